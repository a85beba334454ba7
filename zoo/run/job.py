"""A run from beginning to end: recipe -> data -> weights -> loop -> evaluation, a sample and a report.

What differs between kinds of data is a `zoo.tasks.base.Task`: `cronica` and `text`.

Everything that can be wrong with a recipe is found before anything is written; what the run directory then
holds is listed in `zoo.rundir.layout`.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from zoo import __version__, registry
from zoo.checkpoints import storage
from zoo.checkpoints.manager import Checkpoints
from zoo.data.tokenizer import resolve_tokenizer
from zoo.distributed import runtime
from zoo.distributed.stop import Stopped, StopSignal
from zoo.errors import UserError
from zoo.hardware import cpu
from zoo.models import build
from zoo.plan.layout import make_mesh_for
from zoo.recipe import Recipe, load_recipe, resume_changes
from zoo.run import evaluations
from zoo.run.restore import RestoredRun, restore_or_initialize
from zoo.run.status import inspect_run_dir, mirror_of, saved_tokenizer
from zoo.rundir import layout
from zoo.rundir.layout import display_path
from zoo.rundir.mirror import Mirror
from zoo.tasks.base import Finished, Task
from zoo.tasks.base import say as _say
from zoo.tokenizers.base import Tokenizer
from zoo.train import memory
from zoo.train import mesh as meshes
from zoo.train.logging.log import MetricsLog, check_tensorboard, peak_flops, read_metrics
from zoo.train.logging.wandb import WandbLog, check_wandb
from zoo.train.malloc import keep_freed_memory
from zoo.train.program import Program
from zoo.train.report import write_report
from zoo.train.step import TrainStep
from zoo.train.trainer import Callback, StepFn, Trainer, TrainState
from zoo.util import atomic_write
from zoo.weights import initialize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRange:
    """A part of a run. until: from the step it begins at to the one it ends at. started: called with each step (from 0)
    when its update has been started.
    """

    until: Callable[[int], int]
    started: Callable[[int], None] = lambda step: None

    def watched(self, step_fn: StepFn) -> StepFn:
        """The step function that tells `started`."""

        def watched(params: Any, opt_state: Any, batch: Any, step: int) -> tuple[Any, Any, dict[str, jax.Array]]:
            result = step_fn(params, opt_state, batch, step)
            self.started(step)
            return result

        return watched


def run(recipe: Recipe, *, fresh: bool = False, dry_run: bool = False, part: StepRange | None = None) -> int:
    """Start the run of a recipe, or go on with it; returns the exit code.

    SIGINT and SIGTERM finish the step, save and return 0; a second one returns 130 at once (not with several
    processes, see `zoo.distributed.stop`).

    Args:
      recipe: from `load_recipe`.
      fresh: delete what the run directory holds and start over.
      dry_run: check everything, say what would run and write nothing.
      part: train no further than this; nothing is evaluated at its end.

    Raises:
      UserError: recipe, data, tokenizer and run directory do not fit together, and nothing was written;
        or the training has diverged, or the disk is full.
    """
    with StopSignal() as stop:
        try:
            return _run(recipe, fresh, dry_run, stop, part)
        except Stopped as error:
            begun = (recipe.run_dir / "recipe.yaml").exists()
            again = f"go on with: {_command(recipe)}" if begun else "nothing had been written yet"
            _say(f"\nstopped by {error}; {again}")
            return 130 if stop.signals > 1 else 0
        except OSError as error:
            words = storage.full(error)
            if words is None:
                raise
            place = error.filename or display_path(recipe.run_dir)
            raise UserError(
                f"{place}: {words}; the checkpoints are intact. Make room and go on with: {_command(recipe)}"
            ) from error


def _run(recipe: Recipe, fresh: bool, dry_run: bool, stop: StopSignal, part: StepRange | None) -> int:
    _set_flags(recipe)
    mirror = mirror_of(recipe)
    opened = inspect_run_dir(recipe, mirror, fresh=fresh)
    recipe, resume = opened.recipe, opened.started and not fresh
    if opened.result is not None and opened.result["step"] >= recipe.train.steps:
        _say(f"{display_path(recipe.run_dir)}: finished at step {opened.result['step']:,}; nothing is left to do")
        if opened.result["sample"] is not None:
            _say(registry.task_class(recipe.data.kind).format_sample(opened.result["sample"]))
        return 0
    runtime.broadcast(lambda: layout.check_place(recipe.run_dir))
    if not resume and not recipe.characters:  # an alphabet decides the shapes when it is known
        initialize.check(recipe)
    mesh = _mesh(recipe)
    tokenizer = saved_tokenizer(recipe, resume=resume)
    program = None
    if recipe.data.kind != "cronicas":
        # What can be refused is refused before tokens are prepared, which may take hours.
        recipe, tokenizer = resolve_tokenizer(recipe, tokenizer, say=_say)
        program = Program(recipe, mesh)
        _check(program)
    if dry_run and program is not None:  # shards are made when training starts; a dry run writes nothing
        _say(_listed(_facts(program, tokenizer, _planned(recipe), None), recipe))
    else:
        job = Job.prepare(recipe, mesh, tokenizer, program)
        recipe = job.recipe
        _say(job.description())
        if program is None:
            _check(job.program)
    if dry_run:
        doing = "go on" if resume else "start over" if opened.started else "start"
        _say(f"dry run: would {doing} in {display_path(recipe.run_dir)}; nothing was written")
        return 0
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(layout.lock(recipe.run_dir, mirror))
            if fresh:
                layout.clear(recipe.run_dir, mirror)
                return
            mirror.fetch_again()
            if layout.is_started(recipe.run_dir):
                layout.refuse_other_recipe(recipe)

        runtime.broadcast(take)
        return job.train(stop, mirror, part)


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names loaded and held against each other. Make one with `prepare`."""

    task: Task
    program: Program
    """What is compiled."""

    @classmethod
    def prepare(
        cls, recipe: Recipe, mesh: jax.sharding.Mesh, tokenizer: Tokenizer | None, program: Program | None
    ) -> "Job":
        """Load the data, and make the tokenizer where there is none yet.

        Writes nothing into the run directory; tokens are prepared where the recipe keeps them.
        """
        _say(f"reading the data: {_sources(recipe)}")
        task = registry.task_class(recipe.data.kind).prepare(recipe, tokenizer, _say)
        runtime.assert_equal_across_processes("the tokenizer", task.tokenizer.fingerprint)
        runtime.assert_equal_across_processes("the data", task.fingerprint)
        same = program is not None and program.recipe == task.recipe
        return cls(task, program if same else Program(task.recipe, mesh))

    @property
    def recipe(self) -> Recipe:
        """With everything decided that it left open."""
        return self.task.recipe

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the data and the model."""
        return self.task.tokenizer

    def facts(self) -> dict[str, str]:
        """What is worth knowing about the run before it starts, in order."""
        return _facts(self.program, self.tokenizer, self.task.description, self.task.epochs)

    def description(self) -> str:
        """`facts` for the terminal."""
        return _listed({name: text for name, text in self.facts().items() if name != "Data"}, self.recipe)

    def train(self, stop: StopSignal, mirror: Mirror, part: StepRange | None = None) -> int:
        """Write the run directory, train and finish; the exit code."""
        recipe = self.recipe
        runtime.broadcast(self._write_tokenizer)
        keep_freed_memory(self.program)
        runtime.barrier("prepared")  # from here on they wait for each other by other means, and not for long
        keep = {"keep": recipe.checkpoint.keep, "keep_every": recipe.checkpoint.keep_every}
        with Checkpoints(recipe.checkpoints_dir, **keep) as checkpoints:
            begun = self._begin(checkpoints)
            state = begun.state
            if not state.step and read_metrics(recipe.run_dir / "metrics.jsonl"):
                _say("the run ended before its first checkpoint was complete; it starts again at step 0")
            steps = recipe.train.steps if part is None else min(part.until(state.step), recipe.train.steps)
            changes = runtime.broadcast(lambda: self._write_recipe(mirror))
            for change in changes:
                _say(f"the recipe has changed: {change}")
            with contextlib.closing(self._log(state.step)) as log:
                trainer = self._trainer(begun, checkpoints, log, mirror, steps)
                trainer.changes = changes
                if part is not None:
                    trainer.step_fn = part.watched(trainer.step_fn)
                status = trainer.run(state, stop)
        if status == "interrupted" or steps < recipe.train.steps:
            if runtime.is_main_process():
                self._report(f"Interrupted at step {state.step:,} of {recipe.train.steps:,}.")
                mirror.push()
            done = f"saved step {state.step:,}" if state.step else "stopped before the first step"
            _say(f"{done}; go on with: {_command(recipe)}")
            return 0
        self._finish(state, begun.frozen)
        mirror.push()
        return 0

    def _write_tokenizer(self) -> None:
        run_dir = self.recipe.run_dir
        if not (run_dir / "recipe.yaml").exists():
            atomic_write(run_dir / "recipe.yaml", self.recipe.to_yaml())
        if not (run_dir / "tokenizer").exists():
            layout.save_tokenizer(self.tokenizer, run_dir)

    def _write_recipe(self, mirror: Mirror) -> list[str]:
        """What has changed in it. After the checkpoint's acceptance: a recipe that a checkpoint refuses must not take
        the old one's place.
        """
        path = self.recipe.run_dir / "recipe.yaml"
        changes = []
        if self.recipe.to_yaml() != path.read_text(encoding="utf-8"):
            changes = resume_changes(load_recipe(path, check_files=False), self.recipe)
            atomic_write(path, self.recipe.to_yaml())
        mirror.push()
        return changes

    def _log(self, step: int) -> MetricsLog:
        run_dir = self.recipe.run_dir
        if not runtime.is_main_process():
            return MetricsLog(None)
        tensorboard = run_dir / "tensorboard" if self.recipe.logging.tensorboard else None
        wandb = WandbLog(run_dir, self.recipe) if self.recipe.logging.wandb else None
        return MetricsLog(run_dir / "metrics.jsonl", step=step, tensorboard=tensorboard, wandb=wandb)

    def _begin(self, checkpoints: Checkpoints, frozen: Any = None) -> RestoredRun:
        """See `zoo.run.restore.restore_or_initialize`."""
        return restore_or_initialize(self.program, checkpoints, self._accept, _say, frozen=frozen)

    def _accept(self, meta: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained on other data or with another tokenizer."""
        where = display_path(self.recipe.run_dir)
        if meta["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise UserError(
                f"{where}/tokenizer is not the one the run was trained with; put it back, or start over with --fresh"
            )
        if meta["data_fingerprint"] != self.task.fingerprint:
            raise UserError(self.task.changed_message.format(where=where))

    def _trainer(
        self, begun: RestoredRun, checkpoints: Checkpoints, log: MetricsLog, mirror: Mirror, steps: int
    ) -> Trainer:
        recipe, batch_size, share = self.recipe, self.recipe.data.batch_size, meshes.batch_share(self.program.mesh)
        peak, source = peak_flops()
        _say(f"MFU against {peak / 1e9:,.0f} GFLOP/s ({source})")
        return Trainer(
            step_fn=_together(self.program.step(begun.frozen)),
            batches=lambda number: self.task.batches(number * batch_size, share),
            put=lambda batch: meshes.put_batch(batch, self.program.mesh),
            steps=steps,
            checkpoints=checkpoints,
            save_every=recipe.checkpoint.every,
            log=log,
            log_every=recipe.logging.every,
            meta=lambda state: self._meta(state, begun.base),
            flops_per_token=self.program.flops_per_token,
            peak=peak,
            callbacks=self._callbacks(begun.frozen, checkpoints),
            on_nonfinite=recipe.train.on_nonfinite,
            restore=lambda: self._begin(checkpoints, begun.frozen).state,
            saving=mirror.push,  # what is mirrored must never be older than a checkpoint
        )

    def _callbacks(self, frozen: Any, checkpoints: Checkpoints) -> list[Callback]:
        found, settings = [], self.recipe.eval
        if settings.num_pairs:
            found.append(evaluations.heldout_loss(self.program, self.task, frozen, checkpoints))
        if settings.sample_every:
            found.append(evaluations.sample(self.program, self.task, frozen, self.recipe.run_dir))
        return found

    def _meta(self, state: TrainState, base: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "model": self.recipe.model.name,
            "config": self.program.config.to_dict(),
            "base": base,
            "examples_seen": state.batch * self.recipe.data.batch_size,
            **state.meta(),
            "key": jax.random.key_data(jax.random.key(self.recipe.train.seed)).tolist(),
            "data_fingerprint": self.task.fingerprint,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "versions": _versions(),
        }

    def _finish(self, state: TrainState, frozen: Any) -> None:
        """Evaluate, write a sample, report and result; training is done and saved, and nothing here can undo that."""
        run_dir = self.recipe.run_dir
        try:
            lm = evaluations.language_model(self.program, self.task, state.params, frozen)
            if lm is None:
                return
            finished = self.task.finish(lm)
        except Exception as error:
            logger.debug("the evaluation at the end failed", exc_info=True)
            failed = f"the evaluation at the end failed: {type(error).__name__}: {storage.first_line(error)}"
            _say(f"warning: {failed}; the model is trained and saved")
            finished = Finished({"Evaluation": f"Warning: {failed}"})
        if not runtime.is_main_process():  # which failed to lend a hand
            return
        self._report(f"Finished: {state.step:,} steps.", finished.sections)
        result = {"step": state.step, "evaluation": finished.evaluation, "sample": finished.sample}
        layout.write_result(run_dir, result)
        _say(f"finished: {display_path(run_dir)}/report.md")

    def _report(self, status: str, sections: dict[str, str] | None = None) -> None:
        recipe = self.recipe
        title = recipe.name if recipe.description is None else f"{recipe.name}: {recipe.description}"
        write_report(recipe.run_dir, title=title, status=status, facts=self.facts(), sections=sections)


def _together(step: TrainStep) -> StepFn:
    """The step, whose first call of each shape all processes begin together.

    Compilation takes longer on one than on another, and collectives give up on a process that comes late (gloo after
    30 s).
    """
    if not runtime.active():
        return step
    compiled: set[tuple[int, ...]] = set()

    def together(params: Any, opt_state: Any, batch: Any, number: int) -> tuple[Any, Any, dict[str, jax.Array]]:
        shape = batch["tokens"].shape
        if shape not in compiled:
            step.lower(params, opt_state, batch, jnp.int32(number)).compile()
            runtime.barrier(f"compiled {shape}")
            compiled.add(shape)
        return step(params, opt_state, batch, number)

    return together


def _set_flags(recipe: Recipe) -> None:
    """What is read when JAX first looks for devices; a process that already did so keeps its setting."""
    flag, flags = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "")
    if recipe.train.deterministic and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    if not runtime.active():
        cpu.compute_in_calling_thread()


def _mesh(recipe: Recipe) -> jax.sharding.Mesh:
    """The run's mesh. Raises UserError where model, batch and devices do not fit together."""
    _set_flags(recipe)
    if jax.process_count() > 1 and not runtime.active():
        raise UserError(
            f"this is one of {jax.process_count()} processes, but it was not told of the others; start zoo-train with "
            f"--coordinator, --num-processes and --process-id on each host"
        )
    if recipe.logging.tensorboard:
        check_tensorboard()
    if recipe.logging.wandb:
        check_wandb()
    mesh = make_mesh_for(recipe, say=_say)
    # Axes that the mesh cannot divide show here, before the data take their time.
    build.abstract_params(registry.describe(recipe.model.name).model_class(), recipe.model.make_config(), mesh=mesh)
    return mesh


def _facts(program: Program, tokenizer: Tokenizer, data: str, epochs: float | None) -> dict[str, str]:
    recipe = program.recipe
    count = build.count_params(program.spec.model_class(), program.config)
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.params))
    batch, length = recipe.data.batch_size, recipe.data.seq_len
    positions = recipe.train.steps * batch * length
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    sizes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    return {
        "Model": f"{recipe.model.name}, {count:,} parameters"
        + (f"; {trained:,} are trained" if program.frozen else ""),
        "Data": data,
        "Tokenizer": f"{tokenizer.vocab_size:,} entries, SHA-256 {tokenizer.fingerprint[:12]}",
        "Plan": f"{recipe.train.steps:,} steps of {batch} x {length} ({'at most ' if recipe.data.trim_to else ''}"
        f"{positions:,} tokens{'' if epochs is None else f', {epochs:.1f} epochs'})",
        "Devices": f"{devices}; mesh {sizes}; compute in {jnp.dtype(program.compute_dtype).name}; "
        f"attention by {', '.join(map(str, program.attention_kernels))}",
        "Versions": ", ".join(f"{name} {number}" for name, number in _versions().items()),
    }


def _listed(facts: dict[str, str], recipe: Recipe) -> str:
    """Facts for the terminal."""
    return "\n".join(
        f"{name + ':':<11}{text}" for name, text in (facts | {"Run": display_path(recipe.run_dir)}).items()
    )


def _check(program: Program) -> None:
    """Raises UserError where the optimizer does not fit the parameters, or a step not into the devices' memory."""
    program.opt_state  # noqa: B018 - patterns that match nothing show when it is made
    memory.check(program, _say)


def _sources(recipe: Recipe) -> str:
    data = recipe.data
    if data.kind == "cronicas":
        return data.source
    return ", ".join(source.path or source.source for source in data.document_sources)


def _planned(recipe: Recipe) -> str:
    """What a dry run says of data that have not been prepared."""
    data = recipe.data
    return f"{_sources(recipe)}; up to {data.max_tokens:,} tokens are prepared in {display_path(data.prepared_path)}"


def _versions() -> dict[str, str]:
    packages = {"jax": "jax", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint"}
    return {"zoo": __version__} | {name: version(package) for name, package in packages.items()}


def _command(recipe: Recipe) -> str:
    """What goes on with the run, whatever recipe file and overrides began it."""
    return f"zoo-train {display_path(recipe.run_dir / 'recipe.yaml')}"
