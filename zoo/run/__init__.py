"""A run from beginning to end: recipe -> data -> weights -> loop -> evaluation, a sample and a report.

What differs between kinds of data is a `zoo.run.task.Task`: `cronica` and `text`.

Everything that can be wrong with a recipe is found before anything is written; what the run directory then
holds is listed in `zoo.run_directory`.
"""

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from zoo import __version__, registry, run_directory, tokenizers
from zoo.checkpoints import Checkpoints
from zoo.data.sources import load_records
from zoo.data.vocabulary import token_budget
from zoo.errors import UserError
from zoo.models import build
from zoo.recipe import Recipe, load_recipe
from zoo.run import cronica, text
from zoo.run.cronica import CronicaTask
from zoo.run.task import Task
from zoo.run.task import say as _say
from zoo.run.text import TextTask
from zoo.run_directory import shown
from zoo.tokenizers.base import Tokenizer
from zoo.train import mesh as meshes
from zoo.train import step as steps
from zoo.train.loop import Callback, Stopped, StopSignal, Trainer, TrainState
from zoo.train.metrics import MetricsLog, check_tensorboard, peak_flops
from zoo.train.program import Program
from zoo.train.report import write_report
from zoo.util import atomic_write


def run(recipe: Recipe, *, fresh: bool = False, dry_run: bool = False) -> int:
    """Start the run of a recipe, or go on with it; returns the exit code.

    SIGINT and SIGTERM finish the step, save and return 0; a second one returns 130 at once.

    Args:
      recipe: from `load_recipe`.
      fresh: delete what the run directory holds and start over.
      dry_run: check everything, say what would run and write nothing.

    Raises:
      UserError: recipe, data, tokenizer and run directory do not fit together, and nothing was written;
        or the training has diverged.
    """
    with StopSignal() as stop:
        try:
            return _run(recipe, fresh, dry_run, stop)
        except Stopped as error:
            begun = (recipe.run_dir / "recipe.yaml").exists()
            again = f"go on with: {_command(recipe)}" if begun else "nothing had been written yet"
            _say(f"\nstopped by {error}; {again}")
            return 130 if stop.signals > 1 else 0


def _run(recipe: Recipe, fresh: bool, dry_run: bool, stop: StopSignal) -> int:
    started = run_directory.is_started(recipe.run_dir)
    resume = started and not fresh
    if resume:
        # What the recipe leaves open was decided when the run began.
        recipe = recipe.settled_like(load_recipe(recipe.run_dir / "recipe.yaml", check_files=False))
        run_directory.refuse_other_recipe(recipe)
        result = run_directory.read_result(recipe.run_dir)
        if result is not None and result["step"] >= recipe.train.steps:
            _say(f"{shown(recipe.run_dir)}: finished at step {result['step']:,}; nothing is left to do")
            if result["sample"] is not None:
                _say((cronica if recipe.data.kind == "cronicas" else text).shown(result["sample"]))
            return 0
    if dry_run and recipe.data.kind != "cronicas":
        # Shards are made when training starts; a dry run writes nothing, so it stops before them.
        _mesh(recipe)
        _say(_planned(recipe))
    else:
        job = Job.prepare(recipe, resume=resume)
        recipe = job.recipe
        _say(job.description())
    if dry_run:
        doing = "go on" if resume else "start over" if started else "start"
        _say(f"dry run: would {doing} in {shown(recipe.run_dir)}; nothing was written")
        return 0
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    with run_directory.lock(recipe.run_dir):
        if fresh:
            run_directory.clear(recipe.run_dir)
        return job.train(stop)


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names loaded and held against each other. Make one with `prepare`."""

    task: Task
    mesh: jax.sharding.Mesh

    @classmethod
    def prepare(cls, recipe: Recipe, *, resume: bool) -> "Job":
        """Load data and tokenizer (of the run directory, where the run has begun).

        Writes nothing into the run directory; tokens are prepared where the recipe keeps them.
        """
        mesh = _mesh(recipe)
        _say(f"reading the data: {_sources(recipe)}")
        task: Task
        if recipe.data.kind == "cronicas":
            records = load_records(recipe.data)
            task = CronicaTask.prepare(recipe, records, _saved_tokenizer(recipe, resume), recipe.model.make_config())
        else:
            task = TextTask.prepare(recipe, _saved_tokenizer(recipe, resume))
        return cls(task, mesh)

    @property
    def recipe(self) -> Recipe:
        """With everything decided that it left open."""
        return self.task.recipe

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the data and the model."""
        return self.task.tokenizer

    @cached_property
    def program(self) -> Program:
        """What is compiled."""
        return Program(self.recipe, self.mesh)

    def facts(self) -> dict[str, str]:
        """What is worth knowing about the run before it starts, in order."""
        recipe, data = self.recipe, self.recipe.data
        count = build.count_params(self.program.spec.model_class(), self.program.config)
        positions = recipe.train.steps * data.batch_size * data.seq_len
        epochs = "" if self.task.epochs is None else f", {self.task.epochs:.1f} epochs"
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        return {
            "Model": f"{recipe.model.name}, {count:,} parameters",
            "Data": self.task.description,
            "Tokenizer": f"{self.tokenizer.vocab_size:,} entries, SHA-256 {self.tokenizer.fingerprint[:12]}",
            "Plan": f"{recipe.train.steps:,} steps of {data.batch_size} x {data.seq_len} "
            f"({'at most ' if data.trim_to else ''}{positions:,} tokens{epochs})",
            "Devices": f"{devices}; mesh {sizes}; compute in {jnp.dtype(self.program.compute_dtype).name}",
            "Versions": ", ".join(f"{name} {number}" for name, number in _versions().items()),
        }

    def description(self) -> str:
        """`facts` for the terminal."""
        rows = self.facts() | {"Run": shown(self.recipe.run_dir)}
        return "\n".join(f"{name + ':':<11}{text}" for name, text in rows.items() if name != "Data")

    def train(self, stop: StopSignal) -> int:
        """Write the run directory, train and finish; the exit code."""
        recipe, run_dir = self.recipe, self.recipe.run_dir
        if not (run_dir / "recipe.yaml").exists():
            atomic_write(run_dir / "recipe.yaml", recipe.to_yaml())
        if not (run_dir / "tokenizer").exists():
            run_directory.save_tokenizer(self.tokenizer, run_dir)
        with Checkpoints(run_dir / "checkpoints", keep=recipe.checkpoint.keep) as checkpoints:
            state = self._state(checkpoints)
            if recipe.to_yaml() != (run_dir / "recipe.yaml").read_text(encoding="utf-8"):
                atomic_write(run_dir / "recipe.yaml", recipe.to_yaml())
            tensorboard = run_dir / "tensorboard" if recipe.logging.tensorboard else None
            log = MetricsLog(run_dir / "metrics.jsonl", step=state.step, tensorboard=tensorboard)
            with contextlib.closing(log):
                status = self._trainer(state, checkpoints, log).run(state, stop)
        if status == "interrupted":
            self._report(f"Interrupted at step {state.step:,} of {recipe.train.steps:,}.")
            done = f"saved step {state.step:,}" if state.step else "stopped before the first step"
            _say(f"{done}; go on with: {_command(recipe)}")
            return 0
        self._finish(state)
        return 0

    def _state(self, checkpoints: Checkpoints) -> TrainState:
        """The newest good checkpoint's state, or a new one."""
        program = self.program
        found = checkpoints.restore(program.params, program.opt_state, accept=self._accept)
        if found is None:
            return TrainState(*program.create())
        _say(f"going on from the checkpoint of step {found.step:,}")
        meta = found.meta
        return TrainState(found.params, found.opt_state, found.step, meta["tokens_seen"], meta["train_seconds"])

    def _accept(self, meta: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained on other data or with another tokenizer."""
        where = shown(self.recipe.run_dir)
        if meta["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise UserError(
                f"{where}/tokenizer is not the one the run was trained with; put it back, or start over with --fresh"
            )
        if meta["data_fingerprint"] != self.task.fingerprint:
            raise UserError(self.task.changed.format(where=where))

    def _trainer(self, state: TrainState, checkpoints: Checkpoints, log: MetricsLog) -> Trainer:
        recipe, data = self.recipe, self.recipe.data
        peak, source = peak_flops()
        _say(f"MFU against {peak / 1e9:,.0f} GFLOP/s ({source})")
        return Trainer(
            step_fn=self.program.step(),
            batches=self.task.batches(state.step * data.batch_size),
            put=lambda batch: meshes.put_batch(batch, self.mesh),
            steps=recipe.train.steps,
            checkpoints=checkpoints,
            save_every=recipe.checkpoint.every,
            log=log,
            log_every=recipe.logging.every,
            meta=self._meta,
            flops_per_token=self.program.config.flops_per_token,
            peak=peak,
            callbacks=[self._heldout_loss()] if recipe.eval.num_pairs else [],
        )

    def _meta(self, state: TrainState) -> dict[str, Any]:
        return {
            "model": self.recipe.model.name,
            "config": self.program.config.to_dict(),
            "examples_seen": state.step * self.recipe.data.batch_size,
            "tokens_seen": state.tokens,
            "train_seconds": state.seconds,
            "key": jax.random.key_data(jax.random.key(self.recipe.train.seed)).tolist(),
            "data_fingerprint": self.task.fingerprint,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "versions": _versions(),
        }

    def _heldout_loss(self) -> Callback:
        """Mean loss over held-out rows, in nats a target."""
        evaluate = self.program.evaluate()

        def heldout_loss(params: Any, step: int) -> dict[str, float]:
            sums = [evaluate(params, meshes.put_batch(batch, self.mesh)) for batch in self.task.heldout_batches()]
            nll, count = (sum(float(part) for part in parts) for parts in zip(*sums, strict=True))
            return {"heldout_loss": nll / max(count, 1.0)}

        return Callback(self.recipe.eval.every, heldout_loss)

    def _finish(self, state: TrainState) -> None:
        """Evaluate, write a sample, report and result; training is done and saved."""
        from flax import nnx

        from zoo.language_model import LanguageModel

        run_dir = self.recipe.run_dir
        module = nnx.merge(self.program.graphdef, steps.cast_floats(state.params, self.program.compute_dtype))
        finished = self.task.finish(LanguageModel(module, self.tokenizer, self.program.spec, self.program.config))
        self._report(f"Finished: {state.step:,} steps.", finished.sections)
        result = {"step": state.step, "evaluation": finished.evaluation, "sample": finished.sample}
        run_directory.write_result(run_dir, result)
        _say(f"finished: {shown(run_dir)}/report.md")

    def _report(self, status: str, sections: dict[str, str] | None = None) -> None:
        recipe = self.recipe
        title = recipe.name if recipe.description is None else f"{recipe.name}: {recipe.description}"
        write_report(recipe.run_dir, title=title, status=status, facts=self.facts(), sections=sections)


def _mesh(recipe: Recipe) -> jax.sharding.Mesh:
    """The run's mesh. Raises UserError where model, batch and devices do not fit together."""
    if recipe.train.deterministic:
        # Read when JAX first looks for devices; a process that already did so keeps its setting.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = flags.strip()
    if recipe.logging.tensorboard:
        check_tensorboard()
    mesh = meshes.make_mesh(recipe.mesh)
    meshes.check_batch_size(recipe.data.batch_size, mesh)
    # Axes that the mesh cannot divide show here, before the data take their time.
    build.abstract_params(registry.describe(recipe.model.name).model_class(), recipe.model.make_config(), mesh=mesh)
    return mesh


def _saved_tokenizer(recipe: Recipe, resume: bool) -> Tokenizer | None:
    """The tokenizer of a run that has begun."""
    saved = recipe.run_dir / "tokenizer"
    if resume and saved.exists():
        return tokenizers.load(saved)
    if resume and Checkpoints(recipe.run_dir / "checkpoints").latest() is not None:
        raise UserError(f"{shown(saved)} is missing but the run has checkpoints; put it back, or --fresh")
    return None


def _sources(recipe: Recipe) -> str:
    data = recipe.data
    if data.kind == "cronicas":
        return data.source
    return ", ".join(source.path or source.source for source in data.document_sources)


def _planned(recipe: Recipe) -> str:
    """What a dry run says of data that have not been prepared."""
    data = recipe.settled(max_tokens=token_budget(recipe)).data
    return (
        f"Data:      {_sources(recipe)}; up to {data.max_tokens:,} tokens are prepared in {shown(data.prepared_path)}"
    )


def _versions() -> dict[str, str]:
    packages = {"jax": "jax", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint"}
    return {"zoo": __version__} | {name: version(package) for name, package in packages.items()}


def _command(recipe: Recipe) -> str:
    """What goes on with the run, whatever recipe file and overrides began it."""
    return f"zoo-train {shown(recipe.run_dir / 'recipe.yaml')}"
