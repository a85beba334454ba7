"""The log of a run, metrics.jsonl. One line is one logged step:

    step           updates done; the loss and gradient norm are those of exactly this update, not averages
    tokens         positions [B, T] of all batches so far
    loss           mean negative log-likelihood (nats) over the batch's targets
    lr             learning rate of the update
    grad_norm      global norm of the gradients before clipping
    tokens_per_s   since the line before, evaluations and the first compilation left out; null if not measured
    mfu            model FLOPs over `peak_flops` of the devices, same interval (arXiv:2204.02311, appendix B)
    memory_mb      peak memory: of the device where it tells, of the process on CPU
    data_wait      share (0 to 1) of the interval spent waiting for batches
    seconds        training time so far, over all starts of the run

and the results of the evaluation after the step (heldout_loss; heldout_loss_ema, of the moving average of the weights).
`step, tokens, loss, lr, grad_norm` and the evaluation do not depend on when a run was interrupted; the others are
measurements.

A line with `event` is not a logged step but one of these:

    nonfinite          a loss or gradient norm is not finite: the step, the `policy` applied (`back_to`: the step of the
                       checkpoint that was restored), the number of the batch and the first and last of its `examples`
                       in the global order
    evaluation failed  with the `error`
    recipe changed     with the `changes` that the run is resumed with after `step`
"""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from zoo.files import open_in_place
from zoo.train.logging.boards import Boards
from zoo.util import atomic_write

logger = logging.getLogger(__name__)

DAMAGED = ".damaged"
"""Added to the name of the file into which damaged lines are moved."""
_NUMBERS = ("tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_mb", "data_wait", "seconds")


class MetricsLog:
    """Appends lines to metrics.jsonl and shows their numbers on boards.

    A line is written before the checkpoint of its step, and so before that step's evaluation. Until `amend` adds the
    results, the line has a field `unfinished`: how often the evaluation has been started.

    Args:
        path: the file; created if missing. None writes nothing: of several processes only one writes.
        step: lines of later steps, and a line torn by a crash, are removed first, and damaged lines set aside (see
            `cut_metrics`). 0 empties the file.
        boards: where the numbers are shown too; closed with the log.
    """

    def __init__(self, path: str | os.PathLike | None, *, step: int = 0, boards: Boards | None = None):
        self._path = None if path is None else Path(path)
        self._last: dict[str, Any] = {}
        self._boards = boards or Boards()
        if self._path is not None:
            os.close(open_in_place(self._path))  # a link is refused before it is read
            cut_metrics(self._path, step)
            self._open()
            lines = read_lines(self._path)[0]
            self._last = lines[-1] if lines else {}

    @property
    def unfinished(self) -> tuple[int, int] | None:
        """The last line's step and how often its evaluation was started; None where that evaluation is complete."""
        starts = int(self._last.get("unfinished", 0))
        return (self._last["step"], starts) if starts else None

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; every number in it must be finite or None."""
        if self._path is not None:
            data = _encoded(line)
            _write_all(self._file, data, self._end)
            self._start, self._end = self._end, self._end + len(data)
            self._show(line, line["step"])
        self._last = line

    def amend(self, values: dict[str, Any]) -> dict[str, Any]:
        """Adds an evaluation's results to the last line, which is `unfinished`, and returns the line.

        Returns {} where there is no line: a process that writes nothing does not know those from before its start.
        """
        if not self._last:
            return {}
        self._rewrite({name: value for name, value in self._last.items() if name != "unfinished"} | values)
        if self._path is not None:
            self._show(values, self._last["step"])
        return self._last

    def restart_evaluation(self) -> None:
        """Counts one more start of the last line's evaluation, on the disk at once."""
        if self._last:
            self._rewrite(self._last | {"unfinished": int(self._last["unfinished"]) + 1})
            self.sync()

    def _rewrite(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            # One call, and never shorter than before, so that a kill leaves the old line or the new one.
            _write_all(self._file, _encoded(line, self._end - self._start), self._start)
            self._end = os.fstat(self._file).st_size
        self._last = line

    def rewind(self, step: int) -> None:
        """Removes the lines of later steps, but not the events, which are the reason for going back."""
        if self._path is not None:
            os.close(self._file)
            cut_metrics(self._path, step, keep_events=True)
            self._open()

    def sync(self) -> None:
        """Waits until every line is on the disk: a checkpoint must never be newer than the lines before it."""
        if self._path is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Waits until every line is on the disk, and closes the file and the boards."""
        self.sync()
        if self._path is not None:
            os.close(self._file)
        self._boards.finish()

    def _open(self) -> None:
        self._file = open_in_place(self._path)
        content = self._path.read_bytes()
        self._end = len(content)
        self._start = content[:-1].rfind(b"\n") + 1

    def _show(self, values: dict[str, Any], step: int) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._boards.log(numbers, step)


def _write_all(file: int, data: bytes, at: int) -> None:
    """Writes all of the data. A disk that fills up takes a part without an error, and raises one for the rest."""
    while data:
        number = os.pwrite(file, data, at)
        data, at = data[number:], at + number


def _encoded(line: dict[str, Any], length: int = 0) -> bytes:
    """Returns the line as JSON, padded with spaces to at least `length` bytes."""
    return (json.dumps(line, allow_nan=False).ljust(length - 1) + "\n").encode()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the logged steps of a metrics.jsonl in order, without damaged lines; [] where there is no file."""
    return [line for line in read_lines(path)[0] if "event" not in line]


def read_events(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the events of a metrics.jsonl in order, without damaged lines; [] where there is no file."""
    return [line for line in read_lines(path)[0] if "event" in line]


def read_lines(path: str | os.PathLike) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Returns the lines of a metrics.jsonl in order, and the damaged ones as they are; both empty where there is none.

    A last line without its end was torn by a crash, and is in neither.
    """
    path = Path(path)
    lines, damaged = [], []
    *whole, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for content in whole:
        line = _parsed(content)
        if line is not None:
            lines.append(line)
        elif content.strip():
            damaged.append(content)
    if (line := _parsed(last)) is not None:
        lines.append(line)
    return lines, damaged


def count_damaged(path: str | os.PathLike) -> int:
    """Returns how many lines of a metrics.jsonl are damaged, those that have been set aside included."""
    aside = Path(f"{path}{DAMAGED}")
    return len(read_lines(path)[1]) + (aside.read_bytes().count(b"\n") if aside.is_file() else 0)


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Returns a line of the log; None for one that zoo cannot have written."""
    try:
        line = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # the former also of bytes that are not UTF-8 and of far too many digits
        return None
    return line if isinstance(line, dict) and _is_sound(line) else None


def _is_sound(line: dict[str, Any]) -> bool:
    """Returns whether the fields that zoo reads again have the types that it writes."""
    counts = [line.get("step"), *(line[name] for name in ("back_to", "unfinished") if name in line)]
    if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
        return False
    if "event" in line:
        return isinstance(line["event"], str)
    numbers = (value for name, value in line.items() if name in _NUMBERS or name.startswith("heldout"))
    return all(value is None or _is_finite(value) for value in numbers)


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def cut_metrics(path: str | os.PathLike, step: int, *, keep_events: bool = False) -> None:
    """Removes the lines that a run going on from `step` will write again, torn ones, and sets damaged ones aside.

    The former are the lines of later steps, and events that sent the run back to the checkpoint of `step` or a later
    one. Damaged lines are moved to `<path>.damaged`, and a warning says how many.

    Args:
        path: the metrics.jsonl; it need not exist.
        step: the step the run goes on from.
        keep_events: whether all events stay.
    """
    path = Path(path)
    if not path.is_file():
        return

    def stays(line: dict[str, Any]) -> bool:
        if "event" in line and keep_events:
            return True
        return line.get("back_to", line["step"] - 1) < step

    lines, damaged = read_lines(path)
    if damaged:
        aside = path.with_name(path.name + DAMAGED)
        earlier = aside.read_bytes() if aside.is_file() else b""
        atomic_write(aside, earlier + b"".join(content + b"\n" for content in damaged))
        what = "a damaged line is" if len(damaged) == 1 else f"{len(damaged)} damaged lines are"
        logger.warning("%s: %s set aside in %s; the run goes on", path, what, aside.name)
    content = "".join(json.dumps(line) + "\n" for line in lines if stays(line)).encode()
    if content != path.read_bytes():
        atomic_write(path, content)
