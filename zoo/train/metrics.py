"""What a run writes down while it trains: metrics.jsonl, TensorBoard as an extra, progress for people.

One line of metrics.jsonl is one logged step:

    step           updates done; the loss and gradient norm are those of exactly this update, not averages
    tokens         positions [B, T] of all batches so far
    loss           mean negative log-likelihood (nats) over the batch's targets
    lr             learning rate of the update
    grad_norm      global norm of the gradients before clipping
    tokens_per_s   since the line before, evaluations and the first compilation left out; null if not measured
    mfu            model FLOPs over the device's peak (`peak_flops`), same interval
    memory_mb      peak memory: of the device where it tells, of the process on CPU
    data_wait      share (0 to 1) of the interval spent waiting for batches
    seconds        training time so far, over all starts of the run

`step, tokens, loss, lr, grad_norm` do not depend on when a run was interrupted; the others are measurements.
"""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zoo.errors import UserError
from zoo.util import atomic_write, human_duration

# Dense bfloat16 peaks in FLOP/s as the makers state them, by a part of JAX's device_kind.
_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # per core: JAX shows each of the chip's two as a device
}


class MetricsLog:
    """Appends to metrics.jsonl, line by line, and mirrors to TensorBoard.

    Args:
      path: the file; created when missing.
      step: lines of later steps, and a line torn by a crash, are cut first. 0 empties the file.
      tensorboard: directory of event files, or None.
    """

    def __init__(self, path: str | os.PathLike, *, step: int = 0, tensorboard: str | os.PathLike | None = None):
        path = Path(path)
        cut_metrics(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1, write_to_disk=True)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; every number in it must be finite or None."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, line["step"])

    def sync(self) -> None:
        """Wait until every line is on the disk: a checkpoint must never be newer than the lines before it."""
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self.sync()
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """Raises UserError when TensorBoard logging is asked for and its package is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "logging.tensorboard is true, but tensorboardX is missing; pip install 'zoo-nnx[tensorboard]'"
        ) from None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; what follows the first torn line is left out."""
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            lines.append(line)
    return lines


def cut_metrics(path: str | os.PathLike, step: int) -> None:
    """Drop the lines of steps after `step`, and a torn last line, if there are any."""
    if not Path(path).exists():
        return
    kept = "".join(json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step)
    if kept != Path(path).read_text(encoding="utf-8"):
        atomic_write(path, kept)


def peak_flops() -> tuple[float, str]:
    """(FLOP/s of all devices together, where the figure comes from).

    The maker's dense bfloat16 peak for accelerators in the table; else measured: float32 products of
    2048 x 2048 matrices, the best of three.
    """
    device = jax.devices()[0]
    for part, flops in _PEAKS.items():
        if part in device.device_kind:
            return flops * jax.device_count(), f"{device.device_kind}, stated bfloat16 peak"
    size = 2048
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # Virtual devices of one CPU share its cores, so the measured rate is that of all of them.
    return 2 * size**3 / best, f"float32 matmul {size}^3 measured at the start"


def memory_mb() -> float:
    """Peak memory in 10^6 bytes: of the fullest local device, or of the process where devices do not tell."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class ProgressDisplay:
    """A bar with rate and time left on a terminal; one plain line per logged step elsewhere."""

    def __init__(self, steps: int, start: int, console: Console | None = None):
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._steps, self._start = steps, start
        self._begun: tuple[float, int] | None = None
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("compiling", total=steps, completed=start)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """`step` updates are done. The first call starts the clock, so that compilation is left out."""
        if self._begun is None:
            self._begun = (time.perf_counter(), step)
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        rate = f"{line['tokens_per_s']:,.0f} tok/s" if line["tokens_per_s"] else "- tok/s"
        text = f"loss {line['loss']:.4f}  lr {line['lr']:.2e}  {rate}  {self._left(line['step'])}"
        extras = "".join(f"  {name} {line[name]:.4f}" for name in line if name.startswith("heldout"))
        if self._bar:
            self._bar.update(self._task, description=text)
            if extras:
                self._bar.console.print(f"step {line['step']}{extras}")
        else:
            width = len(str(self._steps))
            self._console.print(f"step {line['step']:>{width}}/{self._steps}  {text}{extras}")
            self._console.file.flush()

    def _left(self, step: int) -> str:
        if self._begun is None or step <= self._begun[1]:
            return ""
        a_step = (time.perf_counter() - self._begun[0]) / (step - self._begun[1])
        return f"{human_duration((self._steps - step) * a_step)} left"
