"""What a run writes down while it trains: metrics.jsonl, TensorBoard as an extra, progress for people.

One line of metrics.jsonl is one logged step:

    step           updates done; the loss and gradient norm are those of exactly this update, not averages
    tokens         positions [B, T] of all batches so far
    loss           mean negative log-likelihood (nats) over the batch's targets
    lr             learning rate of the update
    grad_norm      global norm of the gradients before clipping
    tokens_per_s   since the line before, evaluations and the first compilation left out; null if not measured
    mfu            model FLOPs over the device's peak (`peak_flops`), same interval (arXiv:2204.02311, appendix B)
    memory_mb      peak memory: of the device where it tells, of the process on CPU
    data_wait      share (0 to 1) of the interval spent waiting for batches
    seconds        training time so far, over all starts of the run

and what was evaluated after the step (heldout_loss). `step, tokens, loss, lr, grad_norm` and the evaluation do not
depend on when a run was interrupted; the others are measurements.

A line with `event` is no logged step: `nonfinite`, a loss or gradient norm that is not finite, with the step, what was
done (`policy`; `back_to`: the step of the checkpoint the run went back to), and of the batch its number and the first
and last of its `examples` in the global order; `evaluation failed`, with the `error`; `recipe changed`, with the
`changes` that the run goes on with after `step`.
"""

import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zoo.errors import UserError
from zoo.hardware.topologies import chip_of
from zoo.train.logging.wandb import WandbLog
from zoo.util import atomic_write, first_line, human_duration

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends to metrics.jsonl, line by line, and mirrors to TensorBoard and to Weights & Biases.

    A line is on its way to the disk before the checkpoint of its step, and so before that step's evaluation: until
    `amend` completes it, it says `unfinished`: how often that evaluation was begun.

    Args:
      path: the file; created when missing. None writes nothing: of several processes only one writes.
      step: what belongs to later steps (see `cut_metrics`), and a line torn by a crash, are cut first. 0 empties the
        file.
      tensorboard: directory of event files, or None.
      wandb: see `zoo.train.logging.wandb`; closed with the log.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        *,
        step: int = 0,
        tensorboard: str | os.PathLike | None = None,
        wandb: WandbLog | None = None,
    ):
        self._path = None if path is None else Path(path)
        self._last: dict[str, Any] = {}
        self._mirrors: list[_Board | WandbLog] = [] if wandb is None else [wandb]
        if self._path is not None:
            cut_metrics(self._path, step)
            self._open()
            lines = _lines(self._path)
            self._last = lines[-1] if lines else {}
        if tensorboard is not None:
            self._mirrors.append(_Board(tensorboard, step))

    @property
    def unfinished(self) -> tuple[int, int] | None:
        """(step, how often its evaluation was begun) of the last line if that evaluation has not come to its end."""
        begun = int(self._last.get("unfinished", 0))
        return (self._last["step"], begun) if begun else None

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; every number in it must be finite or None."""
        if self._path is not None:
            data = _encoded(line)
            _write_all(self._file, data, self._end)
            self._start, self._end = self._end, self._end + len(data)
            self._show(line, line["step"])
        self._last = line

    def amend(self, values: dict[str, Any]) -> dict[str, Any]:
        """Complete the last line, which is `unfinished`, with what its evaluation found; returns it.

        {} where there is none: a process that writes nothing does not know the line of a start before.
        """
        if not self._last:
            return {}
        self._rewrite({name: value for name, value in self._last.items() if name != "unfinished"} | values)
        if self._path is not None:
            self._show(values, self._last["step"])
        return self._last

    def begin_again(self) -> None:
        """Write down, on the disk at once, that the evaluation of the last line is begun once more."""
        if self._last:
            self._rewrite(self._last | {"unfinished": int(self._last["unfinished"]) + 1})
            self.sync()

    def _rewrite(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            # One call, and never shorter than before: a kill leaves the old line or the new one.
            _write_all(self._file, _encoded(line, self._end - self._start), self._start)
            self._end = os.fstat(self._file).st_size
        self._last = line

    def rewind(self, step: int) -> None:
        """Cut the lines of later steps; events stay, for they are why the run goes back."""
        if self._path is not None:
            os.close(self._file)
            cut_metrics(self._path, step, keep_events=True)
            self._open()

    def sync(self) -> None:
        """Wait until every line is on the disk: a checkpoint must never be newer than the lines before it."""
        if self._path is not None:
            os.fsync(self._file)
        self._mirrored(lambda mirror: mirror.sync())

    def close(self) -> None:
        """Wait until every line is on the disk, and close the file and what it is mirrored to."""
        self.sync()
        if self._path is not None:
            os.close(self._file)
        self._mirrored(lambda mirror: mirror.close())

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        content = self._path.read_bytes()
        self._end = len(content)
        self._start = content[:-1].rfind(b"\n") + 1

    def _show(self, values: dict[str, Any], step: int) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._mirrored(lambda mirror: mirror.show(numbers, step))

    def _mirrored(self, tell: Callable[["_Board | WandbLog"], None]) -> None:
        """A mirror that fails is let go of: metrics.jsonl has it all, and the run must not end for it."""
        for mirror in list(self._mirrors):
            try:
                tell(mirror)
            except Exception as error:  # of each library's own kinds
                self._mirrors.remove(mirror)
                reason = f"{type(error).__name__}: {first_line(error)}"
                logger.warning("%s fails (%s); the run goes on without it", mirror.name, reason)


class _Board:
    """TensorBoard's event files, from the step after `step` on."""

    name = "TensorBoard"

    def __init__(self, directory: str | os.PathLike, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, write_to_disk=True)

    def show(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _write_all(file: int, data: bytes, at: int) -> None:
    """A disk that fills up takes a part without an error; the rest then raises one."""
    while data:
        number = os.pwrite(file, data, at)
        data, at = data[number:], at + number


def _encoded(line: dict[str, Any], length: int = 0) -> bytes:
    """The line as JSON, padded with spaces to at least that many bytes."""
    return (json.dumps(line, allow_nan=False).ljust(length - 1) + "\n").encode()


def check_tensorboard() -> None:
    """Raises UserError when TensorBoard logging is asked for and its package is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "logging.tensorboard is true, but tensorboardX is missing; pip install 'zoo-nnx[tensorboard]'"
        ) from None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The logged steps of a metrics.jsonl in order; torn lines are left out."""
    return [line for line in _lines(path) if "event" not in line]


def read_events(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl in order; torn lines are left out."""
    return [line for line in _lines(path) if "event" in line]


def _lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # torn by a crash
                continue
            lines.append(line)
    return lines


def cut_metrics(path: str | os.PathLike, step: int, *, keep_events: bool = False) -> None:
    """Drop what a run that goes on from `step` will write again, and torn lines, if there are any.

    That is every line of a later step, and an event that sent the run back to `step` or a later checkpoint.
    """
    if not Path(path).exists():
        return

    def kept(line: dict[str, Any]) -> bool:
        if "event" in line and keep_events:
            return True
        return line.get("back_to", line["step"] - 1) < step

    content = "".join(json.dumps(line) + "\n" for line in _lines(path) if kept(line))
    if content != Path(path).read_text(encoding="utf-8"):
        atomic_write(path, content)


def peak_flops() -> tuple[float, str]:
    """(FLOP/s of all devices together, where the figure comes from).

    The maker's dense bfloat16 peak for accelerators known to `zoo.hardware.topologies`; else measured: float32 products
    of 2048 x 2048 matrices, the best of three.
    """
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    if chip is not None and chip.bf16_flops is not None:
        return chip.bf16_flops * jax.device_count(), f"{device.device_kind}, stated bfloat16 peak"
    size = 2048
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # Virtual devices of one CPU share its cores, so the measured rate is that of all of this process.
    return jax.process_count() * 2 * size**3 / best, f"float32 matmul {size}^3 measured at the start"


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
        extras = "".join(f"  {name} {line[name]:.4f}" for name in line if name.startswith("heldout"))
        if "loss" not in line:  # of an update that was left out, and evaluated all the same
            self.note(f"step {line['step']}{extras}")
            return
        rate = f"{line['tokens_per_s']:,.0f} tok/s" if line["tokens_per_s"] else "- tok/s"
        text = f"loss {line['loss']:.4f}  lr {line['lr']:.2e}  {rate}  {self._left(line['step'])}"
        if self._bar:
            self._bar.update(self._task, description=text)
            if extras:
                self._bar.console.print(f"step {line['step']}{extras}")
        else:
            width = len(str(self._steps))
            self._console.print(f"step {line['step']:>{width}}/{self._steps}  {text}{extras}")
            self._console.file.flush()

    def note(self, text: str) -> None:
        """Show a line about something out of the ordinary."""
        (self._bar.console if self._bar else self._console).print(text)
        self._console.file.flush()

    def _left(self, step: int) -> str:
        if self._begun is None or step <= self._begun[1]:
            return ""
        a_step = (time.perf_counter() - self._begun[0]) / (step - self._begun[1])
        return f"{human_duration((self._steps - step) * a_step)} left"
