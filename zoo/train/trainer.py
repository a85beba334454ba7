"""The training loop: steps, logging, checkpoints, stopping. Knows no model, no data format, no evaluation.

The loss of a step is fetched while the next one is already running, so the device never waits for the host.

After a step the order is: its values are checked, its line is written, its checkpoint saved, and only then is it
evaluated. So no checkpoint holds what is not finite, and no evaluation can cost the run a step.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from zoo.checkpoints.manager import Checkpoints, Restored
from zoo.distributed import runtime
from zoo.distributed.stop import StopSignal
from zoo.errors import UserError
from zoo.train.logging.log import MetricsLog, ProgressDisplay, memory_mb
from zoo.util import first_line

logger = logging.getLogger(__name__)

StepFn = Callable[[Any, Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]
MOST_SKIPPED = 10  # updates left out in a row
MOST_ROLLBACKS = 3  # from one checkpoint
MOST_EVALUATIONS = 3  # of one step, none of which came to its end


@dataclass
class TrainState:
    """All that changes while training. `step`: updates done; `tokens`: positions of their batches."""

    params: Any
    opt_state: Any
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training time over all starts of the run."""
    left_out: tuple[int, ...] = ()
    """Numbers of the batches of the global order that the run passes over, ascending."""
    skipped: int = 0
    """Updates that were left out, the last ones in a row."""

    @classmethod
    def of(cls, found: Restored) -> "TrainState":
        """A checkpoint's state."""
        meta = found.meta
        return cls(
            found.params,
            found.opt_state,
            found.step,
            meta["tokens_seen"],
            meta["train_seconds"],
            tuple(meta.get("left_out", ())),  # absent: written before there were such things
            meta.get("skipped", 0),
        )

    def meta(self) -> dict[str, Any]:
        """What of it a checkpoint's meta holds; see `of`."""
        return {
            "tokens_seen": self.tokens,
            "train_seconds": self.seconds,
            "left_out": list(self.left_out),
            "skipped": self.skipped,
        }

    @property
    def batch(self) -> int:
        """The number of the next update's batch in the global order."""
        number = self.step
        for left_out in self.left_out:
            number += left_out <= number
        return number


@dataclass(frozen=True)
class Callback:
    """`function(params, step) -> {"name": number}`, run every `every` updates (0: never) and, if `last`, at the end.

    What it returns goes into that step's line of metrics.jsonl. The step's checkpoint is on the disk by then, and what
    it raises does not end the run. After a kill before its end it is run again.
    """

    every: int
    function: Callable[[Any, int], dict[str, float]]
    last: bool = True


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
    """A started update; `step` and `tokens` count it, `values` are on the device.

    Its batch, number `batch` of the global order, is `rows` of `length`.
    """

    step: int
    tokens: int
    batch: int
    rows: int
    length: int
    values: dict[str, jax.Array]


@dataclass
class Trainer:
    """Runs updates until `steps` are done or a stop is requested.

    Attributes:
      step_fn: (params, opt_state, batch, step) -> (params, opt_state, {"loss", "grad_norm", "lr"} scalars).
      batches: from the number of a batch in the global order to an endless iterator that begins with it, of dicts of
        arrays [B, T] with "tokens".
      put: places such a batch on the devices; of several processes each puts its rows, and B is of all together.
      steps: total number of updates.
      checkpoints, save_every: a checkpoint every so many steps, at the last, at an interruption and before callbacks.
      log, log_every: a line every so many steps, at the last one and where a callback runs.
      meta: what goes into a checkpoint beside the state, `TrainState.meta` in it: a JSON dict.
      flops_per_token: of one update on a batch of that length, forward and backward.
      peak: FLOP/s that mfu is measured against.
      on_nonfinite: see `zoo.recipe.training.TrainSection`; with skip, step_fn itself leaves the state as it was.
      restore: for rollback: the state of the newest checkpoint, or that of the beginning.
      saving: called before each checkpoint, when the log is on the disk.
      changes: of the recipe since the run was begun or last gone on with, for the log.
    """

    step_fn: StepFn
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
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
    on_nonfinite: str = "halt"
    restore: Callable[[], TrainState] | None = None
    saving: Callable[[], None] = lambda: None
    changes: Sequence[str] = ()
    _meter: _Meter = field(init=False, default_factory=_Meter)
    _begun: float = field(init=False, default=0.0)
    _saved: int = field(init=False, default=-1)
    _stream: tuple[int, Iterator] | None = field(init=False, default=None)
    _rollbacks: tuple[int, int] = field(init=False, default=(-1, 0))

    def run(self, state: TrainState, stop: StopSignal) -> str:
        """Train from `state`, which is updated in place; "finished" or "interrupted", and all is saved.

        Raises:
          UserError: loss or gradient norm are not finite, and `on_nonfinite` knows no way out; nothing is saved then,
            the newest checkpoint is from before. Or a checkpoint cannot be written.
        """
        self._meter = _Meter()
        self._begun = time.perf_counter() - state.seconds
        self._saved = state.step
        with runtime.training(), stop.deferred(), ProgressDisplay(self.steps, state.step) as progress:
            self._evaluate_again(state, progress)
            if self.changes:
                self.log.write({"step": state.step, "event": "recipe changed", "changes": list(self.changes)})
            running = None
            while state.step < self.steps and not stop.reached():
                before, running = running, self._update(state)
                if before is not None and not self._record(before, state, progress):
                    running = None  # the state is an earlier one
                    continue
                save = self._saves(state.step)
                # The first step compiles: it is waited for, so that the rates leave it out.
                if save or self._meter.since is None:
                    good = self._record(running, state, progress)
                    running = None
                    if save and good:
                        self._save(state)
                        if self._due(state.step):
                            self._evaluate(state, progress)
            if running is not None:
                self._record(running, state, progress)
            if self._saved != state.step:
                self._save(state)
            self.checkpoints.wait()
        return "finished" if state.step >= self.steps else "interrupted"

    def _update(self, state: TrainState) -> _Update:
        """Start one update; its scalars are still being computed."""
        begun = time.perf_counter()
        number = state.batch
        if self._stream is None or self._stream[0] != number:
            self._stream = number, self.batches(number)
        batch = next(self._stream[1])
        self._stream = number + 1, self._stream[1]
        self._meter.waited += time.perf_counter() - begun
        placed = self.put(batch)
        state.params, state.opt_state, values = self.step_fn(state.params, state.opt_state, placed, state.step)
        rows, length = placed["tokens"].shape
        state.step += 1
        state.tokens += rows * length
        return _Update(state.step, state.tokens, number, rows, length, values)

    def _due(self, step: int) -> list[Callback]:
        return [c for c in self.callbacks if (c.last and step == self.steps) or (c.every and step % c.every == 0)]

    def _saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.steps or bool(self._due(step))

    def _record(self, update: _Update, state: TrainState, progress: ProgressDisplay) -> bool:
        """Wait for an update, check it and write its line; False where the run goes back to a checkpoint instead."""
        step = update.step
        loss, grad_norm, lr = (float(update.values[name]) for name in ("loss", "grad_norm", "lr"))
        runtime.heartbeat(step)
        first = self._meter.since is None
        if not first:
            self._meter.positions += update.rows * update.length
            self._meter.flops += update.rows * update.length * self.flops_per_token(update.length)
        due = self._due(step)
        line = {"step": step, "tokens": update.tokens}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            line |= self._nonfinite(update, loss, grad_norm)
            progress.note(f"step {step}: {_what(line)}")
            if self.on_nonfinite == "rollback":
                self._roll_back(line, state)
                return False
            state.skipped += 1
            if self.on_nonfinite == "halt" or state.skipped >= MOST_SKIPPED:
                self._halt(line, state)
        elif due or step % self.log_every == 0 or step == self.steps:
            state.skipped = 0
            line |= {"loss": loss, "lr": lr, "grad_norm": grad_norm, **self._meter.read(self.peak)}
            line |= {"memory_mb": memory_mb(), "seconds": self._seconds()}
        else:
            state.skipped = 0
            line = {}
        if "event" in line:
            self.log.write(line)
            line = {"step": step, "tokens": update.tokens} if due else {}
        if line:
            self.log.write(line | ({"unfinished": 1} if due else {}))
            if not due:
                progress.show(line)
        if first:
            self._meter.start()
        progress.advance(step)
        return True

    def _evaluate(self, state: TrainState, progress: ProgressDisplay) -> None:
        """Run what is due after a step, once its checkpoint is on the disk, and complete its line."""
        paused = time.perf_counter()
        self.checkpoints.wait()
        values: dict[str, float] = {}
        failed = []
        for callback in self._due(state.step):
            try:
                found = callback.function(state.params, state.step)
                if bad := [name for name, value in found.items() if not math.isfinite(value)]:
                    raise ValueError(f"{bad[0]} is {found[bad[0]]}")
                values |= found
            except Exception as error:
                logger.debug("evaluation failed", exc_info=True)
                text = first_line(error, 300)
                failed.append(text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")
            runtime.heartbeat(state.step)
        self._finish_line(state, values, failed, progress)
        self._meter.paused += time.perf_counter() - paused

    def _evaluate_again(self, state: TrainState, progress: ProgressDisplay) -> None:
        """Do what is due where a kill was quicker; but it may be the evaluation that ends the process."""
        step, begun = runtime.broadcast(lambda: self.log.unfinished) or (0, 0)
        if step != state.step or not step:
            return
        if begun >= MOST_EVALUATIONS:
            self._finish_line(state, {}, [f"the process ended in it {begun} times"], progress)
        else:
            self.log.begin_again()
            self._evaluate(state, progress)

    def _finish_line(
        self, state: TrainState, values: dict[str, float], failed: list[str], progress: ProgressDisplay
    ) -> None:
        line = self.log.amend(values)
        if line:
            progress.show(line)
        for text in failed:
            self.log.write({"step": state.step, "event": "evaluation failed", "error": text})
            progress.note(f"warning: the evaluation after step {state.step} failed, training goes on: {text}")

    def _nonfinite(self, update: _Update, loss: float, grad_norm: float) -> dict[str, Any]:
        """The event of an update that is not finite: which batch did it."""
        first = update.batch * update.rows
        values = {"loss": loss, "grad_norm": grad_norm}
        return {
            "event": "nonfinite",
            "policy": self.on_nonfinite,
            **{name: value if math.isfinite(value) else str(value) for name, value in values.items()},
            "batch": update.batch,
            "examples": [first, first + update.rows - 1],
        }

    def _roll_back(self, event: dict[str, Any], state: TrainState) -> None:
        """Go back to the newest checkpoint and leave the batch of the event out from now on."""
        left_out = {*state.left_out, event["batch"]}
        state.params = state.opt_state = None  # makes room
        self.checkpoints.wait()
        restored = self.restore()
        times = 1 + (self._rollbacks[1] if self._rollbacks[0] == restored.step else 0)
        self._rollbacks = restored.step, times
        event["back_to"] = restored.step
        if times > MOST_ROLLBACKS:
            self._halt(event, restored)
        self.log.write(event)
        self.log.rewind(restored.step)
        vars(state).update(vars(restored), left_out=tuple(sorted(left_out)))
        self._saved = state.step
        self._meter.start()

    def _halt(self, event: dict[str, Any], state: TrainState) -> None:
        self.log.write(event)
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = f"the checkpoint of step {good} is from before" if good else "there is no checkpoint yet"
        if event["policy"] == "skip":
            kept = f"{state.skipped} updates in a row were left out; {kept}"
        elif event["policy"] == "rollback":
            kept = f"the run went back to step {event['back_to']} {MOST_ROLLBACKS} times"
        raise UserError(
            f"step {event['step']}: {_what(event)}: training has diverged and stops; {kept}. "
            f"Lower optimizer.peak_lr (or raise optimizer.warmup_steps) and start again"
        )

    def _save(self, state: TrainState) -> None:
        state.seconds = self._seconds()
        self.log.sync()
        self.saving()
        self.checkpoints.save(state.step, state.params, state.opt_state, self.meta(state))
        self._saved = state.step

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun


def _what(event: dict[str, Any]) -> str:
    """A `nonfinite` event in words."""
    first, last = event["examples"]
    return (
        f"loss {event['loss']}, gradient norm {event['grad_norm']} on examples {first:,} to {last:,} "
        f"(batch {event['batch']:,})"
    )
