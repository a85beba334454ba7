"""What a run directory holds when a run is started. Only process 0 reads it, and broadcasts it to the others."""

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import tokenizers
from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.errors import UserError
from zoo.files import safe_join
from zoo.recipe import Recipe, load_recipe
from zoo.rundir import layout
from zoo.rundir.layout import display_path
from zoo.rundir.mirror import Mirror
from zoo.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class RunStatus:
    """The run that a directory holds.

    Attributes:
        started: whether it holds one.
        recipe: the recipe given, with what it leaves open as that run resolved it.
        result: the result.json of a run that has been finished, perhaps with fewer steps; else None.
    """

    started: bool
    recipe: Recipe
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the run has done all steps of the recipe."""
        return self.result is not None and self.result.get("step", -1) >= self.recipe.train.steps


def mirror_of(recipe: Recipe) -> Mirror:
    """Returns the mirror of the run's small files; on processes other than 0, and for local runs, it does nothing."""
    return Mirror(recipe.remote_run_dir if runtime.is_main_process() else None, recipe.run_dir)


def inspect_run_dir(recipe: Recipe, mirror: Mirror, *, fresh: bool) -> RunStatus:
    """Returns what the run directory of a recipe holds, after fetching its small files where it is remote.

    Args:
        recipe: the recipe to run.
        mirror: of the run.
        fresh: whether the run is to be deleted; its recipe is not read then.

    Raises:
        UserError: it holds something else, or, unless `fresh`, a run that cannot go on with this recipe.
    """

    def read() -> dict[str, Any]:
        mirror.fetch()
        started = layout.is_started(recipe.run_dir)
        if not started or fresh:
            return {"started": started, "resolved": None, "result": None}
        old = load_recipe(recipe.run_dir / "recipe.yaml", check_files=False)
        layout.refuse_other_recipe(recipe.with_resolved_from(old))
        _refuse_other_tokenizer(old, recipe)
        return {"started": True, "resolved": old.resolutions(), "result": layout.read_result(recipe.run_dir)}

    content = runtime.broadcast(read)
    if content["resolved"] is not None:
        recipe = recipe.with_resolved(**content["resolved"])
    return RunStatus(content["started"], recipe, content["result"])


def _refuse_other_tokenizer(old: Recipe, recipe: Recipe) -> None:
    """Raises UserError where `tokenizer.path` leads to another tokenizer than the run's own copy; a path may change."""
    path, saved = recipe.tokenizer.path, recipe.run_dir / "tokenizer"
    if path is None or path == old.tokenizer.path or not Path(path).exists() or not saved.exists():
        return
    if tokenizers.load(path).fingerprint != tokenizers.load(saved).fingerprint:
        raise UserError(
            f"tokenizer.path: {path} is another tokenizer than that of {display_path(recipe.run_dir)}; go back to it, "
            f"choose another name, or start over with --fresh"
        )


def saved_tokenizer(recipe: Recipe, *, resume: bool) -> Tokenizer | None:
    """Returns the tokenizer of a run that is resumed, None where there is none yet.

    Raises:
        UserError: the run has checkpoints but its tokenizer is missing.
    """
    saved = recipe.run_dir / "tokenizer"
    if not runtime.active():
        return tokenizers.load(saved) if _has_tokenizer(recipe, resume) else None
    files = runtime.broadcast(lambda: _packed(saved) if _has_tokenizer(recipe, resume) else None)
    return None if files is None else _unpacked(files)


def _has_tokenizer(recipe: Recipe, resume: bool) -> bool:
    saved = recipe.run_dir / "tokenizer"
    if resume and not saved.exists() and Checkpoints(recipe.checkpoints_dir).latest() is not None:
        raise UserError(f"{display_path(saved)} is missing but the run has checkpoints; put it back, or --fresh")
    return resume and saved.exists()


def _packed(directory: Path) -> dict[str, str]:
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in directory.iterdir() if path.is_file()}


def _unpacked(files: dict[str, str]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            safe_join(Path(directory), name).write_bytes(base64.b64decode(content))
        return tokenizers.load(Path(directory))
