"""Rehearsing a run on its own devices before paying for their time: a run that is stopped and resumed must be exact.

The real program is started three times, each in processes of its own as after a preemption: one start gets SIGTERM
within a step, one resumes from there, and one is undisturbed. Both ways must lead to the same state, bit for bit.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from zoo.checkpoints import orbax_io, storage
from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.run.job import StepRange, run
from zoo.rundir import layout
from zoo.tasks.base import say
from zoo.train.logging.log import read_metrics

STEPS = 20
SIGNAL_AFTER = 8  # updates
PHASES = ("stopped", "resumed", "undisturbed")
_COMPARED = ("step", "tokens", "loss", "lr", "grad_norm", "heldout_loss", "heldout_loss_ema")
# All else, what is compiled and the data, is the recipe's own.
_CHANGES = {
    "logging": {"every": 1, "tensorboard": False, "wandb": False},
    "eval": {"every": 0, "sample_every": 0},
    "checkpoint": {"every": 10**9, "keep": 2, "keep_every": 0, "keep_best": False},
}
_PAUSE = 0.3  # seconds between steps: several processes need a second or two to agree on one


def rehearse(recipe: Recipe, start: Callable[[str], int], *, main: bool) -> int:
    """Runs the three phases, compares them, deletes what they wrote and returns the exit code.

    Args:
        recipe: the run's own.
        start: runs `phase` with a name in a process of its own, which uses the devices; returns its exit code.
        main: whether this is the host of process 0, which compares and deletes.

    Raises:
        UserError: the recipe has too few steps, or a rehearsal of it is running.
    """
    if recipe.train.steps < 2 * STEPS:
        raise UserError(f"--rehearse needs train.steps to be at least {2 * STEPS}, not {recipe.train.steps}")
    both = [_named(recipe, phase) for phase in ("stopped", "undisturbed")]
    if main:
        for one in both:
            _delete(one)
    try:
        for phase in PHASES:
            if main:
                say(f"rehearsal: {phase}")
            if code := start(phase):
                say(f"rehearsal: NOT OK: the {phase} start ended with exit code {code}")
                return code
        return _compare(*both) if main else 0
    finally:
        if main:
            for one in both:
                _delete(one)


def phase(recipe: Recipe, name: str) -> int:
    """Runs one of the three starts in this process and returns the exit code."""
    if name == "stopped":
        part = StepRange(lambda step: recipe.train.steps, _preempt)
    elif name == "resumed":
        part = StepRange(lambda step: max(STEPS, step + STEPS // 2))
    else:
        reached = runtime.broadcast(lambda: Checkpoints(_named(recipe, "stopped").checkpoints_dir).latest())
        part = StepRange(lambda step: reached)
    return run(_named(recipe, name), part=part)


def _preempt(step: int) -> None:
    """Sends SIGTERM to the last of the processes while an update runs; process 0 decides, so it is not the one."""
    if step == SIGNAL_AFTER and runtime.process_id() == runtime.count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if step >= SIGNAL_AFTER and runtime.active():
        time.sleep(_PAUSE)


def _named(recipe: Recipe, phase: str) -> Recipe:
    """Returns the recipe of a phase; the resumed phase has the stopped one's run directory."""
    changed = {name: getattr(recipe, name).model_copy(update=values) for name, values in _CHANGES.items()}
    name = "rehearsal-undisturbed" if phase == "undisturbed" else "rehearsal"
    return recipe.model_copy(update={"name": f"{recipe.name}.{name}", **changed})


def _compare(stopped: Recipe, undisturbed: Recipe) -> int:
    different = [*_different_lines(stopped, undisturbed), *_different_leaves(stopped, undisturbed)]
    step = Checkpoints(stopped.checkpoints_dir).latest()
    if different:
        say(f"rehearsal: NOT OK: stopped and gone on with, step {step} is another than undisturbed:")
        for line in different[:10]:
            say(f"  {line}")
        if not stopped.train.deterministic:
            say("  (a GPU adds in no fixed order unless train.deterministic is true)")
        return 1
    say(
        f"rehearsal: ok: stopped by SIGTERM, saved, gone on with in new processes: after {step} steps every loss and "
        f"every leaf of parameters and optimizer is, bit for bit, that of a run that nothing disturbed"
    )
    return 0


def _different_lines(one: Recipe, other: Recipe) -> list[str]:
    def lines(recipe: Recipe) -> dict[int, dict[str, Any]]:
        logged = read_metrics(recipe.run_dir / "metrics.jsonl")
        return {line["step"]: {name: line.get(name) for name in _COMPARED} for line in logged}

    a, b = lines(one), lines(other)
    return [
        f"step {step}: {name} {a[step][name]!r}, undisturbed {b[step][name]!r}"
        for step in sorted(a.keys() & b.keys())
        for name in _COMPARED
        if a[step][name] != b[step][name]
    ] + [f"step {step}: only one of the two has a line" for step in sorted(a.keys() ^ b.keys())]


def _different_leaves(one: Recipe, other: Recipe) -> list[str]:
    def checksums(recipe: Recipe) -> dict[str, int]:
        checkpoints = Checkpoints(recipe.checkpoints_dir)
        path = checkpoints.directory / str(checkpoints.latest())
        return orbax_io.read_checksums(path, orbax_io.read_content(path)) or {}

    a, b = checksums(one), checksums(other)
    return [f"{name}: other bits" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _delete(recipe: Recipe) -> None:
    """Deletes a rehearsal's run directory, local or remote. Data prepared for it are the real run's too and stay."""
    if recipe.remote_run_dir is not None:
        storage.remove(recipe.remote_run_dir)
    if not recipe.run_dir.exists():
        return
    layout.is_started(recipe.run_dir)  # raises where it is not a run
    with layout.lock(recipe.run_dir):
        layout.clear(recipe.run_dir)
        (recipe.run_dir / ".lock").unlink()
    recipe.run_dir.rmdir()
