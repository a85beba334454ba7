"""The callbacks between a run's updates: the held-out loss, which decides the best checkpoint, and a sample text."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.experimental import multihost_utils

from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.language_model import LanguageModel
from zoo.tasks.base import Task
from zoo.terminal import visible
from zoo.train import mesh as meshes
from zoo.train import step as steps
from zoo.train.program import Program
from zoo.train.trainer import Callback
from zoo.util import atomic_write

SAMPLES_FILE = "samples.md"


def heldout_loss(program: Program, task: Task, frozen: Any, checkpoints: Checkpoints) -> Callback:
    """Returns the callback for the mean loss over held-out rows, in nats a target, of the weights that are evaluated.

    With `checkpoint.keep_best` it pins the checkpoint of the lowest loss. A batch has as many rows as a microbatch of
    training: rows that fit into memory there, forward and backward, fit here forward.
    """
    mean_loss, keep_best = _heldout_loss(program, task, frozen), program.recipe.checkpoint.keep_best

    def measure(params: Any, step: int) -> dict[str, float]:
        loss = mean_loss(params, step)
        if loss is None:
            return {}
        if keep_best and math.isfinite(loss):
            pin_if_best(checkpoints, step, loss)
        return {"heldout_loss": loss}

    return Callback(program.recipe.eval.every, measure, weights=program.evaluated)


def heldout_loss_of_average(program: Program, task: Task, frozen: Any) -> Callback:
    """Returns the callback for the same loss of the moving average of the weights, `heldout_loss_ema`."""
    mean_loss = _heldout_loss(program, task, frozen)

    def measure(params: Any, step: int) -> dict[str, float]:
        loss = mean_loss(params, step)
        return {} if loss is None else {"heldout_loss_ema": loss}

    return Callback(program.recipe.eval.every, measure, weights=program.ema)


def _heldout_loss(program: Program, task: Task, frozen: Any) -> Callable[[Any, int], float | None]:
    """Returns the function of (params, step) that computes the mean loss; it returns None if there is no target."""
    evaluate = program.evaluate(frozen)

    def mean_loss(params: Any, step: int) -> float | None:
        sums = []
        for batch in task.heldout_batches(program.microbatch.rows):
            placed = meshes.put_batch(meshes.own_rows(batch, program.mesh), program.mesh)
            sums.append(evaluate(params, placed))
            runtime.heartbeat(step)
        nll, count = (sum(float(part) for part in parts) for parts in zip(*sums, strict=True))
        return nll / count if count else None

    return mean_loss


def pin_if_best(checkpoints: Checkpoints, step: int, loss: float) -> None:
    """Pins a step's checkpoint if its held-out loss is below that of the pinned one."""
    best = checkpoints.pinned()
    if best is None or loss < best[1].get("heldout_loss", math.inf):
        checkpoints.pin(step, {"heldout_loss": loss})
        checkpoints.wait()  # the step's line must not be written before its pin


def sample(program: Program, task: Task, frozen: Any, run_dir: Path) -> Callback:
    """Returns the callback that lets the model write a text into samples.md."""

    def write(params: Any, step: int) -> dict[str, float]:
        lm = language_model(program, task, params, frozen)
        if lm is not None:
            add_sample(run_dir / SAMPLES_FILE, step, task.sample(lm))
        return {}

    return Callback(program.recipe.eval.sample_every, write, last=False, weights=program.evaluated)


def add_sample(path: Path, step: int, text: str) -> None:
    """Appends the sample of a step and drops those of the same and later steps, from before the run was resumed."""
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    parts = re.split(r"^## Step (\d{1,18})\n", before, flags=re.MULTILINE)
    earlier = [(int(number), body) for number, body in zip(parts[1::2], parts[2::2], strict=True) if int(number) < step]
    sections = [f"## Step {number}\n\n{visible(body.strip())}\n" for number, body in [*earlier, (step, text)]]
    atomic_write(path, "\n".join(sections))


def language_model(program: Program, task: Task, params: Any, frozen: Any) -> LanguageModel | None:
    """Returns the model with these parameters; of several processes only process 0 gets it, on one device, others None.

    Every process must call it: the parameters are gathered from all of them.
    """
    params = steps.cast_floats(steps.merged(params, frozen), program.activation_dtype)
    if runtime.active():
        params = jax.tree.map(_gathered, params)
        if not runtime.is_main_process():
            return None
    module = nnx.merge(program.graphdef, params)
    prefix_ids = task.tokenizer.prefix_ids_after(task.recipe.data.kind)
    return LanguageModel(module, task.tokenizer, program.spec, program.config, prefix_ids=prefix_ids)


def _gathered(leaf: jax.Array) -> jax.Array | None:
    whole = multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_put(whole, jax.local_devices()[0]) if runtime.is_main_process() else None
