"""The training loop: updates, log lines, checkpoints, evaluations. It knows no model, no data format and no task.

The loss of an update is fetched while the next one is already running, so the device never waits for the host.

After an update the loop checks its values, writes its line, saves its checkpoint, and only then evaluates the model. So
no checkpoint holds values that are not finite, and a failing evaluation never loses a step.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.distributed.stop import StopSignal
from zoo.errors import UserError
from zoo.hardware.devices import peak_memory_mb
from zoo.train.logging.log import MetricsLog
from zoo.train.logging.meter import Meter
from zoo.train.logging.progress import ProgressDisplay
from zoo.train.state import TrainState
from zoo.util import first_line

logger = logging.getLogger(__name__)

StepFn = Callable[[Any, Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]
MAX_SKIPPED = 10  # updates skipped in a row
MAX_ROLLBACKS = 3  # rollbacks to the same checkpoint
MAX_EVALUATIONS = 3  # attempts to evaluate one step, where each attempt ended the process


@dataclass(frozen=True)
class Callback:
    """A function that is called between updates, when the step's checkpoint is on the disk.

    What it raises does not end the run. If the process is killed before it returns, the resumed run calls it again.

    Attributes:
        every: the function is called after every `every` updates; 0: never.
        function: `function(params, step)` returns numbers by name for the step's line of metrics.jsonl.
        last: whether it is called at the last step as well.
        weights: `weights(params, opt_state)` returns the parameters that the function is given.
    """

    every: int
    function: Callable[[Any, int], dict[str, float]]
    last: bool = True
    weights: Callable[[Any, Any], Any] = lambda params, opt_state: params


@dataclass(frozen=True)
class _Update:
    """An update that has been started.

    `step` and `tokens` include this update; `values` are scalars on the device. Its batch is number `batch` of the
    global order, has `rows` rows of `length` positions and was waited for `waited` seconds. `ended`: when the update
    ended, where that was before the call that started it returned (a CPU may compute in the calling thread).
    """

    step: int
    tokens: int
    batch: int
    rows: int
    length: int
    values: dict[str, jax.Array]
    waited: float
    ended: float | None


@dataclass
class Trainer:
    """Runs updates until `steps` are done or a stop is requested.

    Attributes:
        step_fn: (params, opt_state, batch, step) -> (params, opt_state, {"loss", "grad_norm", "lr"} scalars).
        batches: from the number of a batch in the global order to an endless iterator that begins with it, of dicts of
            arrays [B, T] with "tokens".
        put: places such a batch on the devices. With several processes each passes only its own rows; the result is
            the whole batch of B rows.
        steps: total number of updates.
        checkpoints: where checkpoints are saved: every `save_every` steps, at the last step, at an interruption and
            before callbacks.
        save_every: steps between checkpoints.
        log: gets a line every `log_every` steps, at the last step and where a callback is called.
        log_every: steps between lines of the log.
        meta: returns what goes into a checkpoint beside the arrays, `TrainState.meta` in it: a JSON dict.
        flops_per_token: returns the FLOPs per token of an update, forward and backward, on a batch of that length.
        peak: FLOP/s that mfu is measured against.
        callbacks: called when they are due.
        on_nonfinite: see `zoo.recipe.training.TrainSection`; with skip, step_fn itself leaves the state as it was.
        restore: for rollback: returns the state of the newest checkpoint, or the initial state where there is none.
        before_save: called before each checkpoint is saved, after the log has been written to the disk.
        changes: what has changed in the recipe since the run was started or last resumed, for the log.
        state: the current state, while `run` runs and afterwards.
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
    before_save: Callable[[], None] = lambda: None
    changes: Sequence[str] = ()
    state: TrainState = field(init=False)
    _meter: Meter = field(init=False)
    _progress: ProgressDisplay = field(init=False)
    _started: float = field(init=False)  # when training would have started had it never been interrupted
    _saved_step: int = field(init=False)
    _stream: tuple[int, Iterator] | None = field(init=False, default=None)  # number of its next batch, and batches
    _rollbacks: tuple[int, int] = field(init=False, default=(-1, 0))  # step gone back to, how often in a row

    def run(self, state: TrainState, stop: StopSignal) -> TrainState:
        """Trains from a state and returns the last one, which is saved; it has fewer than `steps` if stopped before.

        Args:
            state: updated in place; after a rollback the state returned is another object.
            stop: asked between updates.

        Raises:
            UserError: loss or gradient norm are not finite and `on_nonfinite` has no remedy left (the newest
                checkpoint is older than that update); or a checkpoint cannot be written.
        """
        self.state, self._saved_step = state, state.step
        self._meter, self._started = Meter(self.peak), time.perf_counter() - state.seconds
        with runtime.training(), stop.deferred(), ProgressDisplay(self.steps, state.step) as self._progress:
            self._repeat_unfinished_evaluation()
            if self.changes:
                self.log.write({"step": state.step, "event": "recipe changed", "changes": list(self.changes)})
            running: _Update | None = None
            while self.state.step < self.steps and not stop.reached():
                before, running = running, self._start_update()
                if before is not None and not self._record(before):
                    running = None  # a rollback has discarded the state it was started from
                    continue
                save = self._must_save(self.state.step)
                # The first update compiles. The loop waits for it, so that compiling is not counted in the rates.
                if save or self._meter.since is None:
                    good = self._record(running)
                    running = None
                    if save and good:
                        self._save()
                        if self._due(self.state.step):
                            self._evaluate()
            if running is not None:
                self._record(running)
            if self._saved_step != self.state.step:
                self._save()
            self.checkpoints.wait()
        return self.state

    def _start_update(self) -> _Update:
        """Starts one update, whose scalars are then still being computed."""
        state, start, number = self.state, time.perf_counter(), self.state.batch
        if self._stream is None or self._stream[0] != number:
            self._stream = number, self.batches(number)
        batch = next(self._stream[1])
        self._stream = number + 1, self._stream[1]
        waited = time.perf_counter() - start
        placed = self.put(batch)
        state.params, state.opt_state, values = self.step_fn(state.params, state.opt_state, placed, state.step)
        rows, length = placed["tokens"].shape
        state.step += 1
        state.tokens += rows * length
        ready = all(value.is_ready() for value in values.values() if hasattr(value, "is_ready"))
        ended = time.perf_counter() if ready else None
        return _Update(state.step, state.tokens, number, rows, length, values, waited, ended)

    def _record(self, update: _Update) -> bool:
        """Waits for an update, checks it and writes its line; returns False where it rolls back instead."""
        step = update.step
        loss, grad_norm, lr = (float(update.values[name]) for name in ("loss", "grad_norm", "lr"))
        ended = time.perf_counter() if update.ended is None else update.ended
        runtime.heartbeat(step)
        first = self._meter.since is None
        if not first:
            positions = update.rows * update.length
            self._meter.add(positions, positions * self.flops_per_token(update.length), update.waited)
        due = self._due(step)
        line: dict[str, Any] = {"step": step, "tokens": update.tokens}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            event = line | self._nonfinite(update, loss, grad_norm)
            self._progress.note(f"step {step}: {_describe(event)}")
            if self.on_nonfinite == "rollback":
                self._roll_back(event)
                return False
            self.state.skipped += 1
            if self.on_nonfinite == "halt" or self.state.skipped >= MAX_SKIPPED:
                self._halt(event)
            self.log.write(event)
        else:
            self.state.skipped = 0
            # The loss of a batch without targets is 0 / 0, and no number to be logged.
            learnt = float(update.values.get("num_targets", 1)) > 0
            if learnt and (due or step % self.log_every == 0 or step == self.steps):
                line |= {"loss": loss, "lr": lr, "grad_norm": grad_norm, **self._meter.read(ended)}
                line |= {"memory_mb": peak_memory_mb(), "seconds": self._seconds()}
        if due or "loss" in line:
            self.log.write(line | ({"unfinished": 1} if due else {}))
            if not due:
                self._progress.show(line)
        if first:
            self._meter.start()
        self._progress.advance(step)
        return True

    # ------------------------------------------------------------------------------------------- evaluations

    def _due(self, step: int) -> list[Callback]:
        """Returns the callbacks to be called after a step. Its line is marked "unfinished" until they have returned."""
        return [c for c in self.callbacks if (c.last and step == self.steps) or (c.every and step % c.every == 0)]

    def _evaluate(self) -> None:
        """Calls what is due after a step, once its checkpoint is on the disk, and completes its line."""
        paused = time.perf_counter()
        self.checkpoints.wait()
        step, values, errors = self.state.step, {}, []
        for callback in self._due(step):
            try:
                weights = callback.weights(self.state.params, self.state.opt_state)
                numbers = callback.function(weights, step)
                if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
                    raise ValueError(f"{bad[0]} is {numbers[bad[0]]}")
                values |= numbers
            except Exception as error:
                logger.debug("evaluation failed", exc_info=True)
                message = first_line(error, 300)
                errors.append(message if isinstance(error, UserError) else f"{type(error).__name__}: {message}")
            runtime.heartbeat(step)
        self._finish_line(values, errors)
        self._meter.paused += time.perf_counter() - paused

    def _repeat_unfinished_evaluation(self) -> None:
        """Repeats the evaluation that the last start was killed in, unless it seems to be what ends the process."""
        step, starts = runtime.broadcast(lambda: self.log.unfinished) or (0, 0)
        if step != self.state.step or not step:
            return
        if starts >= MAX_EVALUATIONS:
            self._finish_line({}, [f"the process ended in it {starts} times"])
        else:
            self.log.restart_evaluation()
            self._evaluate()

    def _finish_line(self, values: dict[str, float], errors: list[str]) -> None:
        line, step = self.log.amend(values), self.state.step
        if line:
            self._progress.show(line)
        for error in errors:
            self.log.write({"step": step, "event": "evaluation failed", "error": error})
            self._progress.note(f"warning: the evaluation after step {step} failed, training goes on: {error}")

    # ------------------------------------------------------------------------- updates that are not finite

    def _nonfinite(self, update: _Update, loss: float, grad_norm: float) -> dict[str, Any]:
        """Returns the event of an update that is not finite, with the batch that caused it."""
        first = update.batch * update.rows
        values = {"loss": loss, "grad_norm": grad_norm}
        return {
            "event": "nonfinite",
            "policy": self.on_nonfinite,
            **{name: value if math.isfinite(value) else str(value) for name, value in values.items()},
            "batch": update.batch,
            "examples": [first, first + update.rows - 1],
        }

    def _roll_back(self, event: dict[str, Any]) -> None:
        """Goes back to the newest checkpoint, and leaves the batch of the event out from now on."""
        left_out = tuple(sorted({*self.state.left_out, event["batch"]}))
        self.state.params = self.state.opt_state = None  # makes room
        self.checkpoints.wait()
        restored = self.restore()
        times = 1 + (self._rollbacks[1] if self._rollbacks[0] == restored.step else 0)
        self._rollbacks = restored.step, times
        event["back_to"] = restored.step
        if times > MAX_ROLLBACKS:
            self._halt(event)
        self.log.write(event)
        self.log.rewind(restored.step)
        self.state, self._saved_step = replace(restored, left_out=left_out), restored.step
        self._meter.start()

    def _halt(self, event: dict[str, Any]) -> None:
        self.log.write(event)
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        reason = f"the checkpoint of step {good} is from before" if good else "there is no checkpoint yet"
        if event["policy"] == "skip":
            reason = f"{self.state.skipped} updates in a row were left out; {reason}"
        elif event["policy"] == "rollback":
            reason = f"the run went back to step {event['back_to']} {MAX_ROLLBACKS} times"
        raise UserError(
            f"step {event['step']}: {_describe(event)}: training has diverged and stops; {reason}. "
            f"Lower optimizer.peak_lr (or raise optimizer.warmup_steps) and start again"
        )

    # ------------------------------------------------------------------------------------------- checkpoints

    def _must_save(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.steps or bool(self._due(step))

    def _save(self) -> None:
        state, paused = self.state, time.perf_counter()
        state.seconds = self._seconds()
        self.log.sync()
        self.before_save()
        self.checkpoints.save(state.step, state.params, state.opt_state, self.meta(state))
        self._saved_step = state.step
        self._meter.paused += time.perf_counter() - paused

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _describe(event: dict[str, Any]) -> str:
    """Returns a `nonfinite` event as text."""
    first, last = event["examples"]
    return (
        f"loss {event['loss']}, gradient norm {event['grad_norm']} on examples {first:,} to {last:,} "
        f"(batch {event['batch']:,})"
    )
