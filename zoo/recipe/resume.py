"""Whether a run may go on under a changed recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.recipe.data import SourceSection
from zoo.recipe.schema import Recipe
from zoo.recipe.training import OPTIMIZERS
from zoo.recipe.yaml_layers import dotted


def resume_diff(old: Recipe, new: Recipe) -> list[str]:
    """Returns the differences that forbid going on with a run of recipe `old` under recipe `new`, a line a field.

    Fixed for a run are the model, its initial weights, which parameters are trained, the tokenizer, the data and their
    order, the optimizer's kind, the dtype of its moments and what it says is fixed (`Optimizer.fixed`), the average of
    the weights, the seed, and the storage dtype. Free to change are steps,
    learning rates and the other numbers of the optimizer, compute dtype, mesh, logging, checkpoints, evaluation, how
    data are prepared, and where local data, the tokenizer and the local source of `from:` lie (the checkpoint knows
    what they held).
    """
    return [
        f"{key}: {before} in the run, {after} in the recipe"
        for key, (before, after) in _differences(old, new).items()
        if _fixed_for_a_run(key)
    ]


def resume_changes(old: Recipe, new: Recipe) -> list[str]:
    """Returns the differences that do not forbid it (see `resume_diff`), a line a field."""
    return [
        f"{key}: {before} -> {after}"
        for key, (before, after) in _differences(old, new).items()
        if not _fixed_for_a_run(key)
    ]


def fixed_fields(recipe: Recipe) -> dict[str, Any]:
    """Returns what is fixed for a run of the recipe, by dotted key, as plain JSON: every checkpoint records it."""
    fixed = {key: value for key, value in _comparable(recipe).items() if _fixed_for_a_run(key)}
    return json.loads(json.dumps(fixed))


def recorded_differences(meta: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Returns where a recipe differs from the one that a checkpoint was trained under, a line a field.

    `meta` is the checkpoint's; one of an older version of zoo records the model's config alone. Fields that only one of
    the two knows are left out.
    """
    recorded = meta.get("recipe") or {f"model.{name}": value for name, value in (meta.get("config") or {}).items()}
    fixed = fixed_fields(recipe)
    return [
        f"{key} is {fixed[key]}, and the checkpoint was trained with {value}"
        for key, value in recorded.items()
        if key in fixed and fixed[key] != value
    ]


def _differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    before, after = _comparable(old), _comparable(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, "not set"), after.get(key, "not set")) for key in keys}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe by dotted key, without the paths of local files in `data.sources` and `data.validation`."""
    flat = dotted(recipe.resolved())
    data = recipe.data
    for number, source in enumerate(data.sources or ()):
        flat[f"data.sources.{number}"] = _without_local_path(source)
    flat["data.sources"] = len(data.sources or ())
    if data.validation is not None:
        flat = {key: value for key, value in flat.items() if not key.startswith("data.validation")}
        flat["data.validation"] = _without_local_path(data.validation)
    if recipe.from_ is not None and Path(recipe.from_.source).is_absolute():
        flat["from.source"] = "a local path"  # what it holds is in the checkpoint's meta
    return flat


def _without_local_path(source: SourceSection) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude={"path"} if source.is_file else set(), exclude_none=True)


def _fixed_for_a_run(key: str) -> bool:
    if key in ("data.path", "data.prepared_dir", "data.workers", "data.max_bad_records", "tokenizer.path"):
        return False
    return key.startswith(("model.", "tokenizer.", "data.", "from.", "lora.")) or key in (
        "from",
        "lora",
        "optimizer.name",
        "optimizer.moments_dtype",
        "optimizer.ema_decay",
        "train.seed",
        "train.param_dtype",
        "train.trainable",
        *(f"optimizer.{field}" for optimizer in OPTIMIZERS.values() for field in optimizer.fixed),
    )
