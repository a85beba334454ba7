"""What a run's model starts with: the parameters that its recipe's `from` names, else new ones from its seed.

The checkpoints of a run hold what it trains. The rest is read again from its source, and held against the fingerprint
that the checkpoints keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from zoo import registry
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import Recipe
from zoo.train import parameters
from zoo.weights import resolve
from zoo.weights.sources import Weights, initial_params


@dataclass(frozen=True)
class InitialState:
    """The parameters that a run's model starts with.

    Attributes:
        arrays: by path.
        base: the entry "base" for the meta of checkpoints, {"source", "step", "fingerprint"}: what the run starts
            from. None where nothing has to be read or created again later.
        source: the weights that the recipe's `from` names; None without that section.
    """

    arrays: dict[str, jax.Array]
    base: dict[str, Any] | None
    source: Weights | None


def check(recipe: Recipe) -> list[str]:
    """Checks, from shapes alone, that a recipe's model can start from what its `from` names.

    Returns:
        What is worth showing, in lines: the source, and where it differs from the model.

    Raises:
        UserError: the source is not there, is another model or lacks what `from.partial` does not allow.
    """
    if recipe.from_ is None:
        return []
    spec, config = registry.describe(recipe.model.name), recipe.model.make_config()
    source = resolve.find_source(recipe, None, None)
    model = parameters.abstract(recipe, spec.model_class(), config, dtype=recipe.train.param_dtype)
    new = [path for path in source.new_paths(recipe, model) if not parameters.is_adapter(path)]
    lines = [f"from {source.path}: {source.kind}" + ("" if source.step is None else f", step {source.step:,}")]
    if source.lora is not None:
        action = "go on" if source.same_adapters(recipe.lora) else "are merged into its weights"
        lines.append(f"from: its adapters (rank {source.lora.rank}) {action}")
    source_config = source.config.to_dict()
    lines += [
        f"from: model.{name} is {source_config.get(name)} there, {value} here"
        for name, value in config.to_dict().items()
        if source_config.get(name) != value
    ]
    if new:
        lines.append(f"from: {len(new)} parameters begin anew: {', '.join(new[:3])}{' ...' if new[3:] else ''}")
    return lines


def initialize(
    recipe: Recipe,
    config: ModelConfig,
    model: parameters.Parameters,
    *,
    only_frozen: bool = False,
    base: Mapping[str, Any] | None = None,
    near: Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> InitialState:
    """Returns the parameters that a run's model starts with, on the mesh.

    Args:
        model: the model's parameters, abstract, of the dtype `train.param_dtype`.
        only_frozen: whether the trained ones are left out.
        base: of a run that has begun, the entry "base" of its checkpoint's meta.
        near: the run's directory, beside which a source that has moved is looked for.

    Raises:
        UserError: the source is not there, does not fit, or is not the `base` that the run began with.
    """
    source = None if recipe.from_ is None else resolve.find_source(recipe, base, near)
    frozen = build.flatten(model.frozen)
    paths = frozen if only_frozen else frozen | build.flatten(model.trained)
    arrays, base = initial_params(recipe, config, model, source, paths, recorded=base, mesh=mesh)
    return InitialState(arrays, base, source)
