"""What a run's model begins as: the parameters that its recipe's `from:` names, else new ones from its seed.

A run keeps in its checkpoints what it trains; the rest is read again from where it began, and held against the
fingerprint that the checkpoints keep.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import registry
from zoo.checkpoints import pytree, storage
from zoo.errors import UserError
from zoo.layers import lora
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import Recipe
from zoo.train import parameters
from zoo.util import sha256_hex
from zoo.weights import resolve


@dataclass(frozen=True)
class InitialState:
    """What `begin` gives.

    arrays: by path. base: what was begun with, {"source", "step", "fingerprint"} for the checkpoints' meta; None:
    nothing that is needed again.

    source: where the arrays are from, None for new ones. new: paths that the source does not have.
    """

    arrays: dict[str, jax.Array]
    base: dict[str, Any] | None
    source: resolve.Weights | None
    new: list[str]


def check(recipe: Recipe) -> list[str]:
    """Hold a recipe's model against what its `from:` names, from shapes alone; what is worth telling, in lines.

    Raises UserError for a source that is not there, is another model or lacks what `from.partial` does not allow.
    """
    if recipe.from_ is None:
        return []
    spec, config = registry.describe(recipe.model.name), recipe.model.make_config()
    source = find_source(recipe, None, None)
    wanted = parameters.abstract(recipe, spec.model_class(), config, dtype=recipe.train.param_dtype)
    new = new_paths(recipe, source, wanted)
    theirs, ours = source.config.to_dict(), config.to_dict()
    told = [f"from {source.path}: {source.kind}" + ("" if source.step is None else f", step {source.step:,}")]
    if source.lora is not None:
        kept = "go on" if same_adapters(source, recipe) else "are merged into its weights"
        told.append(f"from: its adapters (rank {source.lora.rank}) {kept}")
    told += [
        f"from: model.{name} is {theirs.get(name)} there, {value} here"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    anew = [path for path in new if not parameters.is_adapter(path)]
    if anew:
        told.append(f"from: {len(anew)} parameters begin anew: {', '.join(anew[:3])}{' ...' if anew[3:] else ''}")
    return told


def initialize(
    recipe: Recipe,
    config: ModelConfig,
    wanted: parameters.Parameters,
    *,
    only_frozen: bool = False,
    base: Mapping[str, Any] | None = None,
    near: Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> InitialState:
    """The parameters that a run's model begins with.

    Args:
        wanted: which; their dtype is the recipe's train.param_dtype.
        only_frozen: whether the trained ones are left out.
        base: of a run that has begun, what its checkpoint says it began with.
        near: the run's directory, beside which a source that has moved is looked for.

    Raises:
        UserError: the source is not there, does not fit, or is not the `base` that the run began with.
    """
    spec, dtype = registry.describe(recipe.model.name), jnp.dtype(recipe.train.param_dtype)
    frozen = build.flatten(wanted.frozen)
    paths = frozen if only_frozen else frozen | build.flatten(wanted.trained)
    arrays: dict[str, jax.Array] = {}
    source, found = None, None
    if recipe.from_ is not None:
        source = find_source(recipe, base, near)
        missing = set(new_paths(recipe, source, wanted))
        graphdef, params = source.read(dtype=dtype, mesh=mesh)
        found = {"source": str(recipe.from_.source), "step": source.step, "fingerprint": fingerprint(params)}
        if source.lora is not None and not same_adapters(source, recipe):
            params = nnx.to_pure_dict(nnx.state(lora.merge(nnx.merge(graphdef, params))))
        arrays = {path: x for path, x in build.flatten(params).items() if path in paths and path not in missing}
    new = [path for path in paths if path not in arrays]
    if new:
        arrays |= parameters.create(recipe, spec.model_class(), config, new, mesh=mesh, dtype=dtype)
    if found is None and frozen:
        of_frozen = build.unflatten({path: arrays[path] for path in frozen})
        found = {"source": None, "step": None, "fingerprint": fingerprint(of_frozen)}
    if base is not None and base["fingerprint"] != found["fingerprint"]:
        there = "what the seed gives here" if source is None else f"{source.path} now"
        raise UserError(
            f"from: the run was begun on other parameters than {there} (fingerprint {base['fingerprint'][:12]} then, "
            f"{found['fingerprint'][:12]} now); put {base['source'] or 'the old version'} back, or start over with "
            f"--fresh"
        )
    return InitialState({path: arrays[path] for path in paths}, found, source, new)


def fingerprint(params: build.Params) -> str:
    """SHA-256 (64 hexadecimal digits) of the parameters' names, shapes, dtypes and checksums, however sharded.

    The checksums (`zoo.checkpoints.pytree.checksums`) look at every bit.
    """
    named = pytree.named(params)
    sums = pytree.checksums(list(named.values()))().tolist()
    about = [[*item, total] for item, total in zip(pytree.described(named).items(), sums, strict=True)]
    return sha256_hex(json.dumps(about).encode())


def find_source(recipe: Recipe, base: Mapping[str, Any] | None, near: Path | None) -> resolve.Weights:
    """What `from:` names; of a run, the checkpoint that `base` says. `near` as for `begin`.

    Raises UserError where it is not to be found, or is a run without a checkpoint.
    """
    asked = recipe.from_
    path, step = Path(asked.source), asked.step
    if near is not None and path.is_absolute() and not path.exists() and (near.parent / path.name).exists():
        path = near.parent / path.name  # both have moved together
    name = path if path.is_absolute() else asked.source
    is_run = storage.is_remote(asked.source) or (path / resolve.RECIPE_FILE).is_file()
    if step is None and base is not None and is_run:
        step = base["step"]
    try:
        found = resolve.find(name, revision=asked.revision, step=step)
    except UserError as error:
        raise UserError(f"from: {error}") from None
    if isinstance(found, resolve.RunWeights):
        if found.step is None:
            raise UserError(f"from: {found.path} has no checkpoint yet; train it first")
        # Which one it is, is part of what the run began with.
        found = replace(found, asked=True)
    return found


def new_paths(recipe: Recipe, source: resolve.Weights, wanted: parameters.Parameters) -> list[str]:
    """The paths of the model that begin anew: adapters that the source lacks, and what `from.partial` lets.

    Raises UserError for any other difference between the source's parameters and the model's.
    """
    spec = registry.describe(recipe.model.name)
    if source.spec.model_class() is not spec.model_class():
        raise UserError(
            f"from: {source.path} is a {source.spec.name}, of another class than the recipe's {recipe.model.name}; "
            f"set model.name: {source.spec.name}"
        )
    theirs = source.shapes()
    if source.lora is not None and not same_adapters(source, recipe):
        theirs = {path: shape for path, shape in theirs.items() if not parameters.is_adapter(path)}
    both = build.flatten(wanted.frozen) | build.flatten(wanted.trained)
    ours = {path: tuple(leaf.shape) for path, leaf in both.items()}
    different = [path for path in {**ours, **theirs} if ours.get(path) != theirs.get(path)]
    free = [path for path in different if parameters.is_adapter(path) and path not in theirs]
    for path in different:
        if path not in free and not any(parameters.matches(pattern, path) for pattern in recipe.from_.partial):
            raise UserError(
                f"from: {path} is {theirs.get(path, 'missing')} in {source.path}, "
                f"{ours.get(path, 'no parameter')} in the recipe's model; change the model section, or name it in "
                f"from.partial to begin it anew"
            )
    return [path for path in different if path in ours]


def same_adapters(source: resolve.Weights, recipe: Recipe) -> bool:
    """Whether the source's adapters are such as the recipe's, and go on as these."""
    there, here = source.lora, recipe.lora
    if there is None or here is None or (there.rank, there.alpha) != (here.rank, here.alpha):
        return False
    _, flat = parameters.adapted(here, source.spec.model_class(), source.config, dtype=jnp.float32)
    return {path for path in flat if parameters.is_adapter(path)} == set(filter(parameters.is_adapter, source.shapes()))
