"""The progress of training, for people at a terminal or reading a log file."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zoo.terminal import guard, unguarded, visible
from zoo.util import human_duration


class ProgressDisplay:
    """A context manager that shows a progress bar on a terminal, and one plain line per logged step elsewhere.

    Args:
        steps: the number of updates at the end.
        start: the number of updates done before.
        console: where to write; None is standard output.
    """

    def __init__(self, steps: int, start: int, console: Console | None = None):
        # The bar's own sequences pass a guarded stdout; texts are made visible here, and none is read as markup.
        raw = unguarded(sys.stdout)
        self._console = console or Console(
            file=raw if raw is not sys.stdout else None, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._steps, self._start = steps, start
        self._clock: tuple[float, int] | None = None  # time and step when it was started
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
            self._bar.start()  # rich puts its own streams in the place of stdout and stderr, until it is stopped
            sys.stdout, sys.stderr = guard(sys.stdout), guard(sys.stderr)
        return self

    def __exit__(self, *exc_info) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Sets the number of updates done. The first call starts the clock, so that compilation is left out."""
        if self._clock is None:
            self._clock = (time.perf_counter(), step)
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics.jsonl."""
        extras = "".join(f"  {name} {line[name]:.4f}" for name in line if name.startswith("heldout"))
        if "loss" not in line:  # of an update that was skipped, and evaluated all the same
            self.note(f"step {line['step']}{extras}")
            return
        rate = f"{line['tokens_per_s']:,.0f} tok/s" if line["tokens_per_s"] else "- tok/s"
        text = f"loss {line['loss']:.4f}  lr {line['lr']:.2e}  {rate}  {self._left(line['step'])}"
        if self._bar:
            self._bar.update(self._task, description=text)
            if extras:
                self.note(f"step {line['step']}{extras}")
        else:
            width = len(str(self._steps))
            self._console.print(f"step {line['step']:>{width}}/{self._steps}  {text}{visible(extras)}")
            self._console.file.flush()

    def note(self, text: str) -> None:
        """Shows a line about something out of the ordinary."""
        (self._bar.console if self._bar else self._console).print(visible(text))
        self._console.file.flush()

    def _left(self, step: int) -> str:
        if self._clock is None or step <= self._clock[1]:
            return ""
        seconds_per_step = (time.perf_counter() - self._clock[0]) / (step - self._clock[1])
        return f"{human_duration((self._steps - step) * seconds_per_step)} left"
