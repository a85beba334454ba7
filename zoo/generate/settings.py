"""How a text is generated: the settings of a call, completed from those that the model's authors publish."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.generate.sampling import Sampling
from zoo.util import nearest


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of text generation.

    Attributes:
        max_new_tokens: the largest number of tokens to write.
        temperature, top_k, top_p, min_p, repetition_penalty, logit_bias: see `zoo.generate.sampling.Sampling`.
        stop: ids or strings that end a text; they are not part of it.
        ignore_eos: whether neither the tokenizer's EOS nor one of `eos_ids` ends it.
        eos_ids: further ids that end a text, by the model's files.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    stop: int | str | Sequence[int | str] | None = None
    ignore_eos: bool = False
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int | np.integer) or self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; give a whole number of at least 1")

    @property
    def sampling(self) -> Sampling:
        """Returns the settings that decide how a token is chosen."""
        names = [field.name for field in dataclasses.fields(Sampling)]
        return Sampling(**{name: getattr(self, name) for name in names})


def resolve_settings(
    name: str, published: Mapping[str, Any] | None, preset: str | None, given: Mapping[str, Any]
) -> Settings:
    """Returns the settings of a call: those `given` that are not None, else the preset's, else the defaults.

    Args:
        name: of the model, for errors.
        published: the settings that the model's authors publish; None where they publish none.
        preset: None, or "original", which takes the published ones.

    Raises:
        UserError: an unknown preset or setting, or no published settings for the preset.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for setting in given:
        if setting not in known:
            near = nearest(setting, known)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown setting {setting!r}; {hint}")
    if preset not in (None, "original"):
        raise UserError(f"unknown preset {preset!r}; there is only 'original', the settings of the model's card")
    if preset and published is None:
        raise UserError(f"{name} publishes no settings for preset 'original'; leave the preset out")
    of_preset = published if preset else {}
    return Settings(**{**of_preset, **{setting: value for setting, value in given.items() if value is not None}})
