"""What a call to generate may be told, and the settings that the models' authors publish."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.generate.sampling import Sampling
from zoo.util import nearest

# What the cards and the programs say. All of them mean the order of filters of `zoo.generate.sampling`.
ORIGINAL: dict[str, dict[str, Any]] = {
    "cronica-5m": {"max_new_tokens": 300, "temperature": 0.85, "top_k": 50, "top_p": 0.9},
    # Its program goes on after the end of a document.
    "bwetaf-97m": {"max_new_tokens": 128, "temperature": 0.8, "top_p": 0.92, "ignore_eos": True},
    "gelu-d12": {"max_new_tokens": 50, "temperature": 0.8, "top_p": 0.9},
    "kodalite-1.3b": {"max_new_tokens": 150, "temperature": 0.7, "top_k": 40, "stop": ("<|end|>",)},
    "tiny-lm": {"max_new_tokens": 2000},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a text is written on.

    Attributes:
        max_new_tokens: at most that many.
        temperature, top_k, top_p, min_p, repetition_penalty, logit_bias: see `zoo.generate.sampling.Sampling`.
        stop: ids or strings that end a text; they are not part of it.
        ignore_eos: whether the tokenizer's EOS does not end it.
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

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int | np.integer) or self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; give a whole number of at least 1")

    @property
    def sampling(self) -> Sampling:
        """The part that chooses tokens."""
        names = [field.name for field in dataclasses.fields(Sampling)]
        return Sampling(**{name: getattr(self, name) for name in names})


def resolve_settings(model_name: str, preset: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a call: those `given` that are not None, else the preset's, else the defaults.

    Args:
        model_name: the registry's.
        preset: None, or "original": what the model's authors publish (`ORIGINAL`).

    Raises:
        UserError: an unknown preset or setting, or no published settings of the model.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown setting {name!r}; {hint}")
    if preset not in (None, "original"):
        raise UserError(f"unknown preset {preset!r}; there is only 'original', the settings of the model's card")
    if preset and model_name not in ORIGINAL:
        raise UserError(f"{model_name} publishes no settings for preset 'original'; leave the preset out")
    published = ORIGINAL[model_name] if preset else {}
    return Settings(**{**published, **{name: value for name, value in given.items() if value is not None}})
