"""What a run looks at between its steps: the held-out loss, whose best checkpoint is kept, and a text it writes."""

import math
import re
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.experimental import multihost_utils

from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.language_model import LanguageModel
from zoo.tasks.base import Task
from zoo.train import mesh as meshes
from zoo.train import step as steps
from zoo.train.program import Program
from zoo.train.trainer import Callback
from zoo.util import atomic_write

SAMPLES_FILE = "samples.md"


def heldout_loss(program: Program, task: Task, frozen: Any, checkpoints: Checkpoints) -> Callback:
    """Mean loss over held-out rows, in nats a target; with `checkpoint.keep_best` the lowest keeps its checkpoint.

    As many rows at once as in a microbatch of training: what fits there forward and backward fits here forward.
    """
    evaluate = program.evaluate(frozen)
    keep_best = program.recipe.checkpoint.keep_best

    def measure(params: Any, step: int) -> dict[str, float]:
        sums = []
        for batch in task.heldout_batches(program.microbatch.rows):
            placed = meshes.put_batch(meshes.own_rows(batch, program.mesh), program.mesh)
            sums.append(evaluate(params, placed))
            runtime.heartbeat(step)
        nll, count = (sum(float(part) for part in parts) for parts in zip(*sums, strict=True))
        loss = nll / max(count, 1.0)
        if keep_best and math.isfinite(loss):
            pin_if_best(checkpoints, step, loss)
        return {"heldout_loss": loss}

    return Callback(program.recipe.eval.every, measure)


def pin_if_best(checkpoints: Checkpoints, step: int, loss: float) -> None:
    """Pin a step's checkpoint where its held-out loss is below that of the pinned one."""
    best = checkpoints.pinned()
    if best is None or loss < best[1].get("heldout_loss", math.inf):
        checkpoints.pin(step, {"heldout_loss": loss})
        checkpoints.wait()  # the step's line is written when it is pinned


def sample(program: Program, task: Task, frozen: Any, run_dir: Path) -> Callback:
    """A text that the model writes, into samples.md."""

    def write(params: Any, step: int) -> dict[str, float]:
        lm = language_model(program, task, params, frozen)
        if lm is not None:
            add_sample(run_dir / SAMPLES_FILE, step, task.sample(lm))
        return {}

    return Callback(program.recipe.eval.sample_every, write, last=False)


def add_sample(path: Path, step: int, text: str) -> None:
    """Append the sample of a step, in the place of what an earlier life of the run wrote for it and later steps."""
    parts = re.split(r"^## Step (\d+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if path.exists() else []
    kept = [(int(number), body) for number, body in zip(parts[1::2], parts[2::2], strict=True) if int(number) < step]
    sections = [f"## Step {number}\n\n{body.strip()}\n" for number, body in [*kept, (step, text)]]
    atomic_write(path, "\n".join(sections))


def language_model(program: Program, task: Task, params: Any, frozen: Any) -> LanguageModel | None:
    """The model as it is now. Of several processes the first has it, whole on one device; None on the others."""
    params = steps.cast_floats(steps.merged(params, frozen), program.compute_dtype)
    if runtime.active():
        params = jax.tree.map(_gathered, params)
        if not runtime.is_main_process():
            return None
    module = nnx.merge(program.graphdef, params)
    return LanguageModel(module, task.tokenizer, program.spec, program.config)


def _gathered(leaf: jax.Array) -> jax.Array | None:
    whole = multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_put(whole, jax.local_devices()[0]) if runtime.is_main_process() else None
