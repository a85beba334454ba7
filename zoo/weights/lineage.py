"""Whether a run may start from given weights, and whether they are still those that it started from.

All here is decided from shapes and sections of recipes; only `fingerprint` looks at values.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from zoo import registry
from zoo.checkpoints import checksums, pytree
from zoo.errors import UserError
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import Recipe
from zoo.recipe.patterns import matches
from zoo.recipe.training import LoraSection
from zoo.train import parameters
from zoo.util import sha256_hex


def same_adapters(source: LoraSection | None, target: LoraSection | None, model_cls: type, config: ModelConfig) -> bool:
    """Returns whether adapters of the section `source` can go on as those of `target`, in a model of that config."""
    if source is None or target is None or (source.rank, source.alpha) != (target.rank, target.alpha):
        return False

    def paths(section: LoraSection) -> set[str]:
        _, flat = parameters.adapted(section, model_cls, config, dtype=jnp.float32)
        return set(filter(parameters.is_adapter, flat))

    return paths(source) == paths(target)


def new_paths(
    recipe: Recipe,
    model: parameters.Parameters,
    path: Path,
    spec: registry.ModelSpec,
    config: ModelConfig,
    lora: LoraSection | None,
) -> list[str]:
    """Returns the parameters of the recipe's model that are created anew when a run starts from a source.

    These are adapters that the source lacks, and what `from.partial` allows to differ.

    Args:
        recipe: has a section `from`.
        model: the parameters of the recipe's model.
        path, spec, config, lora: of the source; its path is named in errors.

    Raises:
        UserError: any other difference between the parameters of the two.
    """
    model_cls = registry.describe(recipe.model.name).model_class()
    if spec.model_class() is not model_cls:
        raise UserError(
            f"from: {path} is a {spec.name}, of another class than the recipe's {recipe.model.name}; "
            f"set model.name: {spec.name}"
        )
    _, abstract = parameters.adapted(lora, model_cls, config, dtype=jnp.float32)
    there = {name: tuple(leaf.shape) for name, leaf in abstract.items()}
    if not same_adapters(lora, recipe.lora, model_cls, config):
        there = {name: shape for name, shape in there.items() if not parameters.is_adapter(name)}
    leaves = build.flatten(model.frozen) | build.flatten(model.trained)
    here = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    for name in different:
        is_new_adapter = parameters.is_adapter(name) and name not in there
        if not is_new_adapter and not any(matches(pattern, name) for pattern in recipe.from_.partial):
            raise UserError(
                f"from: {name} is {there.get(name, 'missing')} in {path}, "
                f"{here.get(name, 'no parameter')} in the recipe's model; change the model section, or name it in "
                f"from.partial to begin it anew"
            )
    return [name for name in different if name in here]


def fingerprint(params: build.Params) -> str:
    """Returns the SHA-256 (64 hexadecimal digits) of the parameters' names, shapes, dtypes and checksums.

    The checksums (`zoo.checkpoints.checksums.compute`) cover every bit and are the same however the arrays are sharded.
    """
    named = pytree.named(params)
    sums = checksums.compute(list(named.values()))().tolist()
    entries = [[*item, total] for item, total in zip(pytree.described(named).items(), sums, strict=True)]
    return sha256_hex(json.dumps(entries).encode())


def check_fingerprint(recorded: Mapping[str, Any], current: str, place: str) -> None:
    """Raises UserError unless `current` is the fingerprint that the run's checkpoint recorded.

    Args:
        recorded: {"source", "step", "fingerprint"} of the checkpoint's meta.
        place: where the current parameters come from, for the message.
    """
    if recorded["fingerprint"] != current:
        raise UserError(
            f"from: the run was begun on other parameters than {place} (fingerprint "
            f"{recorded['fingerprint'][:12]} then, {current[:12]} now); put {recorded['source'] or 'the old version'} "
            f"back, or start over with --fresh"
        )
