"""The directory of a run: which files it has, its lock, the check of its recipe, and its result.

runs/<name>/recipe.yaml     the resolved recipe
runs/<name>/tokenizer/      written before the first step and read from there afterwards
runs/<name>/checkpoints/    see zoo.checkpoints
runs/<name>/metrics.jsonl   see zoo.train.logging.log, also for metrics.jsonl.damaged
runs/<name>/report.md, loss.png, samples.md, tensorboard/
runs/<name>/result.json     written last: the step reached, the evaluation, the sample

Where logging.runs_dir is remote, checkpoints lie there and the small files in a local directory: see zoo.rundir.mirror.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo import files
from zoo.errors import UserError
from zoo.recipe import Recipe, load_recipe, resume_diff
from zoo.rundir.mirror import LOCAL_LOCK_FILE, Mirror
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, first_line

logger = logging.getLogger(__name__)

RESULT_FORMAT = 1


def is_started(run_dir: Path) -> bool:
    """Returns whether the directory holds a run. Raises UserError when it holds anything else."""
    if (run_dir / "recipe.yaml").exists():
        return True
    if run_dir.exists():
        if not run_dir.is_dir():
            raise UserError(f"{display_path(run_dir)} is a file; choose another name or logging.runs_dir")
        # Hidden files are those of a start that was killed before its first visible one.
        if any(not path.name.startswith(".") for path in run_dir.iterdir()):
            raise UserError(
                f"{display_path(run_dir)} holds files but no recipe.yaml, so it is not a run; choose another name "
                f"or logging.runs_dir"
            )
    return False


def load_run_recipe(path: Path, overrides: Sequence[str], say: Callable[[str], None]) -> Recipe:
    """Returns the recipe of a file; one that lies beside `checkpoints/` means that run, wherever it has been moved.

    Args:
        path: a recipe file, perhaps a run's own.
        overrides: see `zoo.recipe.load_recipe`; those of `name` and `logging.runs_dir` mean another run.
        say: shows a line where the run lies elsewhere than its recipe says.

    Raises:
        UserError: see `zoo.recipe.load_recipe`.
    """
    named = any(re.match(r"(name|logging\.runs_dir)=", override) for override in overrides)
    run_dir = path.expanduser().absolute().parent
    if path.name != "recipe.yaml" or named or not (run_dir / "checkpoints").is_dir():
        return load_recipe(path, overrides)
    here = [f"name={json.dumps(run_dir.name)}", f"logging.runs_dir={json.dumps(str(run_dir.parent))}"]
    stated = load_recipe(path, overrides, check_files=False).run_dir
    if stated != run_dir:
        say(f"going on from {display_path(run_dir)}, where the recipe lies (it says {display_path(stated)})")
    return load_recipe(path, [*here, *overrides])


def check_place(run_dir: Path) -> None:
    """Raises UserError where the directory cannot be made or written; makes and writes nothing."""
    place = next(path for path in [run_dir.absolute(), *run_dir.absolute().parents] if path.exists())
    if not place.is_dir():
        raise UserError(f"{display_path(place)} is a file; choose another name or logging.runs_dir")
    if not os.access(place, os.W_OK):
        raise UserError(
            f"{display_path(place)} cannot be written (no permission, or mounted read-only); make it writable, or "
            f"choose another logging.runs_dir"
        )


def refuse_other_recipe(recipe: Recipe) -> None:
    """Raises UserError with the differences where the run in the recipe's directory cannot go on under this recipe."""
    old = load_recipe(recipe.run_dir / "recipe.yaml", check_files=False)
    different = resume_diff(old, recipe)
    if different:
        listed = "\n".join(f"  {line}" for line in different)
        raise UserError(
            f"{display_path(recipe.run_dir)} was begun with another recipe:\n{listed}\n"
            f"Go back to it, choose another name, or start over with --fresh."
        )


@contextlib.contextmanager
def lock(run_dir: Path, mirror: Mirror | None = None) -> Iterator[None]:
    """Makes a run directory and holds its lock, and with a mirror the remote directory's.

    The system releases the local lock when the process ends, however it ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = files.open_lock(run_dir / LOCAL_LOCK_FILE)
    except OSError as error:
        raise UserError(
            f"{display_path(run_dir)} cannot be written ({error.strerror}); make it writable, or choose another "
            f"logging.runs_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{display_path(run_dir)}: another process is training this run; wait for it, or stop it"
            ) from None
        with contextlib.nullcontext() if mirror is None else mirror.locked():
            yield


def clear(run_dir: Path, mirror: Mirror | None = None) -> None:
    """Deletes a run. Its recipe.yaml goes last, so that what a kill leaves is still a run."""
    if mirror is not None:
        mirror.clear()
    for path in sorted(run_dir.iterdir(), key=lambda path: path.name == "recipe.yaml"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCAL_LOCK_FILE:
            path.unlink()


def save_tokenizer(tokenizer: Tokenizer, run_dir: Path) -> None:
    """Writes `tokenizer/`; all of its files appear at once, so that a kill never leaves half of it."""
    temporary = run_dir / ".tokenizer.tmp"
    files.remove(temporary)
    tokenizer.save(temporary)
    temporary.rename(run_dir / "tokenizer")


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Writes result.json, atomically.

    Args:
        run_dir: the run directory.
        result: {"step", "evaluation", "sample"}, of which the last two may be None; a sample is what the run's task
            makes and shows.
    """
    content = {"format": RESULT_FORMAT, **result}
    atomic_write(run_dir / "result.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Returns what result.json holds, or None where the run has not been finished.

    A damaged one counts as none, with a warning: `zoo-train` evaluates the run's last checkpoint again and rewrites it.
    """
    path = run_dir / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if type(result["format"]) is not int or type(result.get("step", 0)) is not int:
            raise TypeError("its format and step are no whole numbers")
        parts = {name: result.get(name) for name in ("evaluation", "sample")}
        if not all(isinstance(part, dict | None) for part in parts.values()):
            raise TypeError("its evaluation or sample is no object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged (%s); zoo-train writes it again", path, first_line(error))
        return None
    return {**result, **parts} if result["format"] <= RESULT_FORMAT else None


def display_path(path: Path) -> str:
    """Returns the path relative to the working directory where it lies inside, else as it is."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
