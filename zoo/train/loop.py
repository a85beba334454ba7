"""The training loop: steps, logging, checkpoints, stopping. Knows no model, no data format, no evaluation.

The loss of a step is fetched while the next one is already running, so the device never waits for the host.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from zoo.checkpoints import Checkpoints
from zoo.errors import UserError
from zoo.train.metrics import MetricsLog, ProgressDisplay, memory_mb

StepFn = Callable[[Any, Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]


@dataclass
class TrainState:
    """All that changes while training. `step`: updates done; `tokens`: positions of their batches."""

    params: Any
    opt_state: Any
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training time over all starts of the run."""


@dataclass(frozen=True)
class Callback:
    """`function(params, step) -> {"name": number}`, run after every `every`-th update (0: none) and the last.

    What it returns goes into that step's line of metrics.jsonl.
    """

    every: int
    function: Callable[[Any, int], dict[str, float]]


class Stopped(BaseException):
    """SIGINT or SIGTERM came where there is no step to finish, or came a second time."""


class StopSignal:
    """Turns SIGINT and SIGTERM into a polite request.

    Inside `with stop.deferred():` the first signal only sets `requested`; anywhere else, and the second time,
    `Stopped` is raised on the spot. Use as a context manager; the handlers found are put back at the end.
    """

    def __init__(self):
        self.signals = 0
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signals > 0

    def deferred(self) -> "_Deferred":
        """A context in which a signal only sets `requested`."""
        return _Deferred(self)

    def _handle(self, number: int, frame: Any) -> None:
        self.signals += 1
        if self.signals > 1 or not self._deferred:
            raise Stopped(signal.Signals(number).name)


@dataclass
class _Deferred:
    signal: StopSignal

    def __enter__(self) -> None:
        self.signal._deferred = True

    def __exit__(self, *exc_info) -> None:
        self.signal._deferred = False


@dataclass
class _Meter:
    """Time, positions and FLOPs since the last line written."""

    since: float | None = None
    positions: int = 0
    flops: float = 0.0
    waited: float = 0.0
    paused: float = 0.0

    def start(self) -> None:
        self.since, self.positions, self.flops, self.waited, self.paused = (
            time.perf_counter(),
            0,
            0.0,
            0.0,
            0.0,
        )

    def read(self, peak: float) -> dict[str, float | None]:
        """tokens_per_s, mfu and data_wait of the interval, None where nothing was timed; begins a new one."""
        took = time.perf_counter() - self.since - self.paused if self.since is not None else 0.0
        timed = self.positions > 0 and took > 0
        values = {
            "tokens_per_s": self.positions / took if timed else None,
            "mfu": self.flops / took / peak if timed else None,
            "data_wait": min(self.waited / took, 1.0) if timed else None,
        }
        self.start()
        return values


@dataclass(frozen=True)
class _Update:
    """A started update: its batch has `positions` in rows of `length`; `values` are on the device."""

    step: int
    tokens: int
    positions: int
    length: int
    values: dict[str, jax.Array]


@dataclass
class Trainer:
    """Runs updates until `steps` are done or a stop is requested.

    Attributes:
      step_fn: (params, opt_state, batch, step) -> (params, opt_state, {"loss", "grad_norm", "lr"} scalars).
      batches: endless iterator of dicts of arrays [B, T] with "tokens", positioned at the state's step.
      put: places such a batch on the devices.
      steps: total number of updates.
      checkpoints, save_every: a checkpoint every so many steps, at the last one and at an interruption.
      log, log_every: a line every so many steps, at the last one and where a callback ran.
      meta: what goes into a checkpoint beside the state: a JSON dict.
      flops_per_token: of one update on a batch of that length, forward and backward.
      peak: FLOP/s that mfu is measured against.
    """

    step_fn: StepFn
    batches: Iterator[dict[str, np.ndarray]]
    put: Callable[[dict[str, np.ndarray]], Any]
    steps: int
    checkpoints: Checkpoints
    save_every: int
    log: MetricsLog
    log_every: int
    meta: Callable[[TrainState], dict[str, Any]]
    flops_per_token: Callable[[int], float]
    peak: float
    callbacks: Sequence[Callback] = ()
    _meter: _Meter = field(init=False, default_factory=_Meter)
    _begun: float = field(init=False, default=0.0)
    _saved: int = field(init=False, default=-1)

    def run(self, state: TrainState, stop: StopSignal) -> str:
        """Train from `state`, which is updated in place; "finished" or "interrupted", and all is saved.

        Raises:
          UserError: loss or gradient norm are not finite. Nothing is saved then: the newest checkpoint is
            from before.
        """
        self._meter = _Meter()
        self._begun = time.perf_counter() - state.seconds
        self._saved = state.step
        with stop.deferred(), ProgressDisplay(self.steps, state.step) as progress:
            running = None
            while state.step < self.steps and not stop.requested:
                before, running = running, self._update(state)
                if before is not None:
                    self._record(before, state.params, progress)
                save = state.step % self.save_every == 0
                # The first step compiles: it is waited for, so that the rates leave it out.
                if save or self._due(state.step) or self._meter.since is None:
                    self._record(running, state.params, progress)
                    running = None
                if save:
                    self._save(state)
            if running is not None:
                self._record(running, state.params, progress)
            if self._saved != state.step:
                self._save(state)
            self.checkpoints.wait()
        return "finished" if state.step >= self.steps else "interrupted"

    def _update(self, state: TrainState) -> _Update:
        """Start one update; its scalars are still being computed."""
        begun = time.perf_counter()
        batch = next(self.batches)
        self._meter.waited += time.perf_counter() - begun
        state.params, state.opt_state, values = self.step_fn(state.params, state.opt_state, self.put(batch), state.step)
        rows, length = batch["tokens"].shape
        rows *= jax.process_count()
        state.step += 1
        state.tokens += rows * length
        return _Update(state.step, state.tokens, rows * length, length, values)

    def _due(self, step: int) -> list[Callback]:
        return [c for c in self.callbacks if step == self.steps or (c.every and step % c.every == 0)]

    def _record(self, update: _Update, params: Any, progress: ProgressDisplay) -> None:
        """Wait for an update, check it, run what is due after it and write its line."""
        step, tokens = update.step, update.tokens
        loss, grad_norm, lr = (float(update.values[name]) for name in ("loss", "grad_norm", "lr"))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._halt(step, loss, grad_norm)
        first = self._meter.since is None
        if not first:
            self._meter.positions += update.positions
            self._meter.flops += update.positions * self.flops_per_token(update.length)
        due = self._due(step)
        if due or step % self.log_every == 0 or step == self.steps:
            rates = self._meter.read(self.peak)
            line = {"step": step, "tokens": tokens, "loss": loss, "lr": lr, "grad_norm": grad_norm, **rates}
            line |= {"memory_mb": memory_mb(), "seconds": self._seconds()}
            paused = time.perf_counter()
            for callback in due:
                line |= callback.function(params, step)
            self._meter.paused += time.perf_counter() - paused
            self.log.write(line)
            progress.show(line)
        if first:
            self._meter.start()
        progress.advance(step)

    def _halt(self, step: int, loss: float, grad_norm: float) -> None:
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = f"the checkpoint of step {good} is from before" if good else "there is no checkpoint yet"
        raise UserError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: training has diverged and stops; {kept}. "
            f"Lower optimizer.peak_lr (or raise optimizer.warmup_steps) and start again"
        )

    def _save(self, state: TrainState) -> None:
        state.seconds = self._seconds()
        self.log.sync()
        self.checkpoints.save(state.step, state.params, state.opt_state, self.meta(state))
        self._saved = state.step

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun
