"""A run from start to finish, in the order in which things happen: `_run` up to the data, then `Job.train`.

Everything that can be wrong with a recipe is found before anything is written. `zoo.rundir.layout` lists what the run
directory then holds. The kind of data is the business of a `zoo.tasks.base.Task`.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from zoo import registry
from zoo.checkpoints import storage
from zoo.checkpoints.manager import Checkpoints
from zoo.distributed import runtime
from zoo.distributed.stop import Stopped, StopSignal
from zoo.errors import UserError
from zoo.hardware.devices import peak_flops
from zoo.recipe import Recipe, fixed_fields, load_recipe, recorded_differences, resume_changes
from zoo.run import evaluations, setup
from zoo.run.facts import as_lines, facts, versions
from zoo.run.restore import TrainingStart, restore_or_initialize
from zoo.run.status import inspect_run_dir, mirror_of, saved_tokenizer
from zoo.rundir import layout
from zoo.rundir.layout import display_path
from zoo.rundir.mirror import Mirror
from zoo.tasks.base import Finished, Task, say
from zoo.tokenizers.base import Tokenizer
from zoo.train import mesh as meshes
from zoo.train.logging.boards import open_boards
from zoo.train.logging.log import MetricsLog, read_metrics
from zoo.train.malloc import keep_freed_memory
from zoo.train.program import Program
from zoo.train.report import write_report
from zoo.train.state import TrainState
from zoo.train.trainer import Callback, StepFn, Trainer
from zoo.util import atomic_write, first_line
from zoo.weights import initialize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRange:
    """Which steps of a run one process trains, where it is not to train all of them.

    Attributes:
        until: given the step at which training begins or resumes, returns the step at which to stop.
        started: called with the number of each update, from 0, once it has been handed to the device.
    """

    until: Callable[[int], int]
    started: Callable[[int], None] = lambda step: None

    def watch(self, step_fn: StepFn) -> StepFn:
        """Returns the step function with calls of `started`."""

        def watched(params: Any, opt_state: Any, batch: Any, step: int) -> tuple[Any, Any, dict[str, jax.Array]]:
            result = step_fn(params, opt_state, batch, step)
            self.started(step)
            return result

        return watched


def run(recipe: Recipe, *, fresh: bool = False, dry_run: bool = False, part: StepRange | None = None) -> int:
    """Starts the run of a recipe, or resumes it, and returns the exit code.

    SIGINT, SIGTERM and SIGHUP finish the step, save and return 0; a second one returns 130 at once (not with several
    processes, see `zoo.distributed.stop`).

    Args:
        recipe: from `load_recipe`.
        fresh: delete what the run directory holds and start over.
        dry_run: check everything, show what would run and write nothing.
        part: which steps to train; the final evaluation runs only if they include the last. None: all steps.

    Raises:
        UserError: recipe, data, tokenizer and run directory do not fit together, and nothing was written;
            or the training has diverged, or the disk is full.
    """
    with StopSignal() as stop:
        try:
            return _run(recipe, fresh, dry_run, stop, part)
        except Stopped as error:
            started = (recipe.run_dir / "recipe.yaml").exists()
            hint = f"go on with: {_command(recipe)}" if started else "nothing had been written yet"
            say(f"\nstopped by {error}; {hint}")
            return 130 if stop.signals > 1 else 0
        except OSError as error:
            problem = storage.full(error)
            if problem is None:
                raise
            place = error.filename or display_path(recipe.run_dir)
            raise UserError(
                f"{place}: {problem}; the checkpoints are intact. Make room and go on with: {_command(recipe)}"
            ) from error


def _run(recipe: Recipe, fresh: bool, dry_run: bool, stop: StopSignal, part: StepRange | None) -> int:
    setup.set_flags(recipe)

    # The run directory, and the recipe completed with what an earlier start of this run decided.
    mirror = mirror_of(recipe)
    status = inspect_run_dir(recipe, mirror, fresh=fresh)
    recipe, resume = status.recipe, status.started and not fresh
    task_class = registry.task_class(recipe.data.kind)
    if status.finished:
        say(f"{display_path(recipe.run_dir)}: finished at step {status.result['step']:,}; nothing is left to do")
        if (sample := _formatted(task_class, status.result["sample"])) is not None:
            say(sample)
        return 0
    runtime.broadcast(lambda: layout.check_place(recipe.run_dir))
    if not (resume or recipe.characters):  # with characters the vocabulary, and so the shapes, are not known yet
        initialize.check(recipe)

    # The mesh, what the recipe leaves open, and the program. Every check that needs no data comes before the data are
    # prepared, which may take hours.
    mesh = setup.make_mesh(recipe, say)
    recipe = setup.choose_compute_dtype(recipe, mesh, say, resume=resume)
    recipe, tokenizer = task_class.resolve(recipe, saved_tokenizer(recipe, resume=resume), say)
    program = Program(recipe, mesh)
    setup.check_program(program, say)

    # The data. A dry run prepares none where that takes long: it shows the plan alone.
    planned = task_class.dry_run_description(recipe) if dry_run else None
    if planned is None:
        job = Job(program, _prepare_data(task_class, recipe, tokenizer), mirror)
        say(as_lines({name: text for name, text in job.facts().items() if name != "Data"}))
    else:
        say(as_lines(facts(program, tokenizer, planned, None)))
    if dry_run:
        verb = "go on" if resume else "start over" if status.started else "start"
        say(f"dry run: would {verb} in {display_path(recipe.run_dir)}; nothing was written")
        return 0

    # From here on the run directory is written.
    with contextlib.ExitStack() as held:
        runtime.broadcast(lambda: _acquire(held, recipe, mirror, fresh))
        return job.train(stop, part)


def _prepare_data(task_class: type[Task], recipe: Recipe, tokenizer: Tokenizer | None) -> Task:
    say(f"reading the data: {task_class.describe_sources(recipe)}")
    task = task_class.prepare(recipe, tokenizer, say)
    runtime.assert_equal_across_processes("the tokenizer", task.tokenizer.fingerprint)
    runtime.assert_equal_across_processes("the data", task.fingerprint)
    return task


def _acquire(held: contextlib.ExitStack, recipe: Recipe, mirror: Mirror, fresh: bool) -> None:
    """Locks the run directory until `held` is closed, and clears it if `fresh`.

    Raises:
        UserError: another process holds it, or has started another run in it since it was inspected.
    """
    held.enter_context(layout.lock(recipe.run_dir, mirror))
    if fresh:
        layout.clear(recipe.run_dir, mirror)
        return
    mirror.fetch_again()
    if layout.is_started(recipe.run_dir):
        layout.refuse_other_recipe(recipe)


@dataclass(frozen=True)
class Job:
    """A checked program and its data, ready to be trained.

    Attributes:
        program: what is compiled.
        task: the data.
        mirror: copies the run's small files to where the run directory is remote.
    """

    program: Program
    task: Task
    mirror: Mirror

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.program.recipe

    def facts(self) -> dict[str, str]:
        """Returns what is worth knowing about the run, name -> text, in order."""
        return facts(self.program, self.task.tokenizer, self.task.description, self.task.epochs)

    def train(self, stop: StopSignal, part: StepRange | None = None) -> int:
        """Writes the run directory, restores or initializes the state, trains and finishes; returns the exit code."""
        recipe = self.recipe
        runtime.broadcast(self._write_recipe_and_tokenizer)
        keep_freed_memory(self.program)
        runtime.barrier("prepared")  # collectives, which come next, give up on a process that is minutes late
        with Checkpoints(
            recipe.checkpoints_dir, keep=recipe.checkpoint.keep, keep_every=recipe.checkpoint.keep_every
        ) as checkpoints:
            start = self._restore(checkpoints)
            if not start.state.step and read_metrics(recipe.run_dir / "metrics.jsonl"):
                say("the run ended before its first checkpoint was complete; it starts again at step 0")
            changes = runtime.broadcast(self._update_recipe)
            for change in changes:
                say(f"the recipe has changed: {change}")
            with contextlib.closing(self._open_log(start.state.step)) as log:
                trainer = self._trainer(start, checkpoints, log, changes, part)
                state = trainer.run(start.state, stop)
        if state.step < recipe.train.steps:
            if runtime.is_main_process():
                self._report(f"Interrupted at step {state.step:,} of {recipe.train.steps:,}.")
                self.mirror.push()
            done = f"saved step {state.step:,}" if state.step else "stopped before the first step"
            say(f"{done}; go on with: {_command(recipe)}")
            return 0
        self._finish(state, start.frozen)
        self.mirror.push()
        return 0

    def _write_recipe_and_tokenizer(self) -> None:
        """Writes them where a run has not been started yet."""
        run_dir = self.recipe.run_dir
        if not (run_dir / "recipe.yaml").exists():
            atomic_write(run_dir / "recipe.yaml", self.recipe.to_yaml())
        if not (run_dir / "tokenizer").exists():
            layout.save_tokenizer(self.task.tokenizer, run_dir)

    def _restore(self, checkpoints: Checkpoints, frozen: Any = None) -> TrainingStart:
        return restore_or_initialize(self.program, checkpoints, self._accept, say, frozen=frozen)

    def _accept(self, meta: dict[str, Any]) -> None:
        """Raises UserError for a checkpoint of another recipe, other data or another tokenizer."""
        where = display_path(self.recipe.run_dir)
        if different := recorded_differences(meta, self.recipe):
            raise UserError(f"{where}/recipe.yaml: {different[0]}; put the file back, or correct that line")
        if meta["tokenizer_fingerprint"] != self.task.tokenizer.fingerprint:
            raise UserError(
                f"{where}/tokenizer is not the one the run was trained with; put it back, or start over with --fresh"
            )
        if meta["data_fingerprint"] != self.task.fingerprint:
            raise UserError(self.task.changed_message.format(where=where))

    def _update_recipe(self) -> list[str]:
        """Writes the recipe where it has changed, and returns the changes.

        Only after a checkpoint has been accepted: a recipe that it refuses must not replace the old one.
        """
        path = self.recipe.run_dir / "recipe.yaml"
        changes = []
        if self.recipe.to_yaml() != path.read_text(encoding="utf-8"):
            changes = resume_changes(load_recipe(path, check_files=False), self.recipe)
            atomic_write(path, self.recipe.to_yaml())
        self.mirror.push()
        return changes

    def _open_log(self, step: int) -> MetricsLog:
        if not runtime.is_main_process():
            return MetricsLog(None)
        return MetricsLog(self.recipe.run_dir / "metrics.jsonl", step=step, boards=open_boards(self.recipe, step))

    def _trainer(
        self,
        start: TrainingStart,
        checkpoints: Checkpoints,
        log: MetricsLog,
        changes: list[str],
        part: StepRange | None,
    ) -> Trainer:
        recipe, batch_size, share = self.recipe, self.recipe.data.batch_size, meshes.batch_share(self.program.mesh)
        peak, source = peak_flops()
        say(f"MFU against {peak / 1e9:,.0f} GFLOP/s ({source})")
        step_fn, steps = setup.compile_together(self.program.step(start.frozen)), recipe.train.steps
        if part is not None:
            step_fn, steps = part.watch(step_fn), min(part.until(start.state.step), steps)
        return Trainer(
            step_fn=step_fn,
            batches=lambda number: self.task.batches(number * batch_size, share),
            put=lambda batch: meshes.put_batch(batch, self.program.mesh),
            steps=steps,
            checkpoints=checkpoints,
            save_every=recipe.checkpoint.every,
            log=log,
            log_every=recipe.logging.every,
            meta=lambda state: self._checkpoint_meta(state, start.base),
            flops_per_token=self.program.flops_per_token,
            peak=peak,
            callbacks=self._callbacks(start.frozen, checkpoints),
            on_nonfinite=recipe.train.on_nonfinite,
            restore=lambda: self._restore(checkpoints, start.frozen).state,
            before_save=self.mirror.push,  # the mirrored files must never be older than a checkpoint
            changes=changes,
        )

    def _callbacks(self, frozen: Any, checkpoints: Checkpoints) -> list[Callback]:
        callbacks, settings = [], self.recipe.eval
        if settings.num_pairs:
            callbacks.append(evaluations.heldout_loss(self.program, self.task, frozen, checkpoints))
            if self.recipe.optimizer.ema_decay is not None:
                callbacks.append(evaluations.heldout_loss_of_average(self.program, self.task, frozen))
        if settings.sample_every:
            callbacks.append(evaluations.sample(self.program, self.task, frozen, self.recipe.run_dir))
        return callbacks

    def _checkpoint_meta(self, state: TrainState, base: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "model": self.recipe.model.name,
            "config": self.program.config.to_dict(),
            "recipe": fixed_fields(self.recipe),
            "base": base,
            "examples_seen": state.batch * self.recipe.data.batch_size,
            **state.meta(),
            "key": jax.random.key_data(jax.random.key(self.recipe.train.seed)).tolist(),
            "data_fingerprint": self.task.fingerprint,
            "tokenizer_fingerprint": self.task.tokenizer.fingerprint,
            "versions": versions(),
        }

    def _finish(self, state: TrainState, frozen: Any) -> None:
        """Evaluates, writes a sample, report and result. Training is saved by now, and no error here can undo that."""
        run_dir = self.recipe.run_dir
        try:
            weights = self.program.evaluated(state.params, state.opt_state)
            lm = evaluations.language_model(self.program, self.task, weights, frozen)
            if lm is None:
                return
            finished = self.task.finish(lm)
        except Exception as error:
            logger.debug("the evaluation at the end failed", exc_info=True)
            problem = f"the evaluation at the end failed: {type(error).__name__}: {first_line(error)}"
            say(f"warning: {problem}; the model is trained and saved")
            finished = Finished({"Evaluation": f"Warning: {problem}"})
        if not runtime.is_main_process():  # gathering the parameters failed: process 0 alone reports it
            return
        self._report(f"Finished: {state.step:,} steps.", finished.sections)
        result = {"step": state.step, "evaluation": finished.evaluation, "sample": finished.sample}
        layout.write_result(run_dir, result)
        say(f"finished: {display_path(run_dir)}/report.md")

    def _report(self, status: str, sections: dict[str, str] | None = None) -> None:
        recipe = self.recipe
        title = recipe.name if recipe.description is None else f"{recipe.name}: {recipe.description}"
        table = {name: text for name, text in self.facts().items() if name != "Run"}
        write_report(recipe.run_dir, title=title, status=status, facts=table, sections=sections)


def _formatted(task_class: type[Task], sample: Any) -> str | None:
    """Returns the sample of a result.json as text; None where there is none, or a damaged one."""
    try:
        return None if sample is None else task_class.format_sample(sample)
    except (KeyError, TypeError, ValueError):
        return None


def _command(recipe: Recipe) -> str:
    """Returns the command that resumes the run, whatever recipe file and overrides started it."""
    return f"zoo-train {display_path(recipe.run_dir / 'recipe.yaml')}"
