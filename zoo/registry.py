"""Model names and what stands behind them. Importing this module, and listing names, loads no JAX.

A new model is one entry in `BUILT_IN`. Other packages add theirs through an entry point in the group
"zoo.models", whose name is the model's name and whose object is a `ModelSpec`:

    [project.entry-points."zoo.models"]
    my-model = "my_package.spec:SPEC"
"""

import importlib
import logging
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zoo.errors import UserError
from zoo.util import nearest

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "zoo.models"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelSpec:
    """A registered model. Classes are "module:Name" strings, imported when they are first asked for.

    config: the fields in which the model differs from its config class's defaults. tokenizer, source,
    licence, dataset and facts (label -> text) are what the authors publish; what they do not is NOT_STATED.
    """

    name: str
    summary: str
    cls: str
    config_cls: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = NOT_STATED
    source: str = NOT_STATED
    licence: str = NOT_STATED
    dataset: str = NOT_STATED
    facts: dict[str, str] = field(default_factory=dict)

    def model_class(self) -> type:
        """The `nnx.Module` class."""
        return _import(self.cls, self.name)

    def config_class(self) -> type:
        """The frozen config dataclass."""
        return _import(self.config_cls, self.name)

    def make_config(self, **overrides: Any) -> Any:
        """The model's config; `overrides` are config fields. UserError for an unknown or impossible one."""
        return self.config_class().from_dict({**self.config, **overrides})

    @cached_property
    def num_params(self) -> int:
        """The exact number of parameters, from shapes alone: nothing is allocated."""
        from zoo.models.build import count_params

        return count_params(self.model_class(), self.make_config())


def list_models() -> list[str]:
    """All names, built-in and of other packages, sorted."""
    return sorted({**BUILT_IN, **_outside()})


def describe(name: str) -> ModelSpec:
    """What stands behind `name`. UserError with the nearest known name when there is no such model."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    outside = _outside()
    if name in outside:
        return _load_outside(outside[name])
    near = nearest(name, list_models())
    hint = f"did you mean {near!r}? " if near else ""
    raise UserError(f"unknown model {name!r}; {hint}Known: {', '.join(list_models())}")


def _outside() -> dict[str, EntryPoint]:
    found = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in BUILT_IN:
            logger.warning("entry point %s = %s ignored: the name is built in", point.name, point.value)
        else:
            found[point.name] = point
    return found


def _load_outside(point: EntryPoint) -> ModelSpec:
    try:
        spec = point.load()
    except Exception as error:  # another package's code: whatever it raises, say whose it is
        raise UserError(
            f"model {point.name!r}: its package's {point.value} cannot be loaded: {error}"
        ) from error
    if not isinstance(spec, ModelSpec):
        raise UserError(
            f"model {point.name!r}: {point.value} is a {type(spec).__name__}, not a zoo.ModelSpec"
        )
    return spec


def _import(target: str, name: str) -> type:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model {name!r}: {target!r} cannot be imported: {error}") from error


CRONICA_5M = ModelSpec(
    name="cronica-5m",
    summary="Spanish football match reports in 8 regional styles, from a block of statistics",
    cls="zoo.models.cronica:Cronica",
    config_cls="zoo.models.cronica:CronicaConfig",
    tokenizer="byte-level BPE, 8,000 entries, 16 of them special tokens (tokenizer.json)",
    source="https://huggingface.co/DanielRegaladoCardoso/cronica-jax-5m",
    licence="Apache-2.0",
    dataset="cronicas-d2t (Apache-2.0): 5,000 pairs, 1,074,312 words, 8 styles",
    facts={
        "parameters": "5,261,568",
        "context": "768 tokens",
        "trained": "2,000 steps x 8 x 768 tokens, AdamW, peak 3e-4, warm-up 100, weight decay 0.1, clip 1.0",
        "hardware": "Apple M4 CPU, about 28 minutes, 6,940 tokens/s",
        "final loss": "2.80 (perplexity 16.4)",
        "published generation, held out, n=12": "home 16.7%, away 25.0%, scorers 0 of 39, score 0%",
        "published style": "apasionado 100%, literario 100%, comentario_tecnico 50%",
        "files": "tokenizer.json, ckpt_002000.pkl",
        "limits": "hallucinated context, coverage of leagues, style overlap",
    },
)

BUILT_IN: dict[str, ModelSpec] = {spec.name: spec for spec in (CRONICA_5M,)}
