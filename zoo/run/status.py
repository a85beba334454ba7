"""What a run directory holds when a run opens it. Of several processes only the first looks, and tells the others."""

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import tokenizers
from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.errors import UserError
from zoo.recipe import Recipe, load_recipe
from zoo.rundir import layout
from zoo.rundir.layout import display_path
from zoo.rundir.mirror import Mirror
from zoo.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class RunStatus:
    """started: a run lies there. recipe: with what it leaves open as that run decided it. result: of a finished run."""

    started: bool
    recipe: Recipe
    result: dict[str, Any] | None


def mirror_of(recipe: Recipe) -> Mirror:
    """Of the run's small files; on processes other than the first, and for local runs, it does nothing."""
    return Mirror(recipe.remote_run_dir if runtime.is_main_process() else None, recipe.run_dir)


def inspect_run_dir(recipe: Recipe, mirror: Mirror, *, fresh: bool) -> RunStatus:
    """Look at the run directory of a recipe, fetched from where it is kept.

    Raises:
        UserError: it holds something else, or, unless `fresh`, a run that cannot go on with this recipe.
    """

    def find() -> dict[str, Any]:
        mirror.fetch()
        started = layout.is_started(recipe.run_dir)
        if not started or fresh:
            return {"started": started, "settled": None, "result": None}
        old = load_recipe(recipe.run_dir / "recipe.yaml", check_files=False)
        layout.refuse_other_recipe(recipe.with_resolved_from(old))
        settled = {"vocab_size": old.model.overrides.get("vocab_size"), "max_tokens": old.data.max_tokens}
        return {"started": True, "settled": settled, "result": layout.read_result(recipe.run_dir)}

    found = runtime.broadcast(find)
    if found["settled"] is not None:
        recipe = recipe.with_resolved(**found["settled"])
    return RunStatus(found["started"], recipe, found["result"])


def saved_tokenizer(recipe: Recipe, *, resume: bool) -> Tokenizer | None:
    """The tokenizer of a run that has begun. Raises UserError where the run has lost it."""
    saved = recipe.run_dir / "tokenizer"
    if not runtime.active():
        return tokenizers.load(saved) if _has_tokenizer(recipe, resume) else None
    found = runtime.broadcast(lambda: _packed(saved) if _has_tokenizer(recipe, resume) else None)
    return None if found is None else _unpacked(found)


def _has_tokenizer(recipe: Recipe, resume: bool) -> bool:
    saved = recipe.run_dir / "tokenizer"
    if resume and not saved.exists() and Checkpoints(recipe.checkpoints_dir).latest() is not None:
        raise UserError(f"{display_path(saved)} is missing but the run has checkpoints; put it back, or --fresh")
    return resume and saved.exists()


def _packed(directory: Path) -> dict[str, str]:
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in directory.iterdir()}


def _unpacked(files: dict[str, str]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            Path(directory, name).write_bytes(base64.b64decode(content))
        return tokenizers.load(Path(directory))
