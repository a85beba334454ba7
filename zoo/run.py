"""A run from beginning to end: recipe -> data -> weights -> loop -> evaluation, a sample and a report.

Everything that can be wrong with a recipe is found before anything is written; what the run directory then
holds is listed in `zoo.run_directory`.
"""

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from zoo import __version__, registry, run_directory, tokenizers
from zoo.checkpoints import Checkpoints
from zoo.data import cronicas, pipeline
from zoo.data import pairs as data_pairs
from zoo.data.pairs import Pairs
from zoo.data.sources import load_records
from zoo.errors import UserError
from zoo.models import build
from zoo.recipe import Recipe
from zoo.run_directory import shown
from zoo.tokenizers import cronica as cronica_tokenizer
from zoo.tokenizers.base import Tokenizer
from zoo.train import mesh as meshes
from zoo.train import step as steps
from zoo.train.loop import Callback, Stopped, StopSignal, Trainer, TrainState
from zoo.train.metrics import MetricsLog, check_tensorboard, peak_flops
from zoo.train.optimizers import make_optimizer, make_schedule
from zoo.train.report import write_report
from zoo.util import atomic_write

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel


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
        run_directory.refuse_other_recipe(recipe)
        result = run_directory.read_result(recipe.run_dir)
        if result is not None and result["step"] >= recipe.train.steps:
            _say(f"{shown(recipe.run_dir)}: finished at step {result['step']:,}; nothing is left to do")
            if result["sample"] is not None:
                _say("\n{stats_block}\n\n[{style}]\n{cronica}".format(**result["sample"]))
            return 0
    job = Job.prepare(recipe, resume=resume)
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

    recipe: Recipe
    config: Any
    tokenizer: Tokenizer
    pairs: Pairs
    heldout: list[dict]
    mesh: jax.sharding.Mesh

    @classmethod
    def prepare(cls, recipe: Recipe, *, resume: bool) -> "Job":
        """Load data and tokenizer (of the run directory, where the run has begun); writes nothing."""
        if recipe.train.deterministic:
            # Read when JAX first looks for devices; a process that already did so keeps its setting.
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
            os.environ["XLA_FLAGS"] = flags.strip()
        if recipe.logging.tensorboard:
            check_tensorboard()
        mesh = meshes.make_mesh(recipe.mesh)
        meshes.check_batch_size(recipe.data.batch_size, mesh)
        config = recipe.model.make_config()
        # Axes that the mesh cannot divide show here, before the data take their time.
        build.abstract_params(registry.describe(recipe.model.name).model_class(), config, mesh=mesh)
        _say(f"reading the data: {recipe.data.source}")
        records, heldout = _records(recipe)
        tokenizer = _tokenizer(recipe, records, resume)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"tokenizer.path: the tokenizer has {tokenizer.vocab_size:,} entries, more than the model's "
                f"vocab_size {config.vocab_size:,}; raise model.vocab_size or take another tokenizer"
            )
        _say(f"tokenising {len(records):,} pairs")
        pairs = data_pairs.tokenise(records, tokenizer)
        job = cls(recipe, config, tokenizer, pairs, heldout, mesh)
        _say(f"data: {job.fit}")
        return job

    @cached_property
    def fit(self) -> data_pairs.Fit:
        """How the rows hold the pairs."""
        return data_pairs.measure_fit(self.pairs, self.recipe.data.seq_len)

    @cached_property
    def spec(self) -> registry.ModelSpec:
        return registry.describe(self.recipe.model.name)

    @cached_property
    def compute_dtype(self) -> Any:
        return steps.compute_dtype_for(self.recipe.train.compute_dtype, self.mesh)

    def facts(self) -> dict[str, str]:
        """What is worth knowing about the run before it starts, in order."""
        recipe, data = self.recipe, self.recipe.data
        count = build.count_params(self.spec.model_class(), self.config)
        positions = recipe.train.steps * data.batch_size * data.seq_len
        epochs = recipe.train.steps * data.batch_size / len(self.pairs)
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        return {
            "Model": f"{recipe.model.name}, {count:,} parameters",
            "Data": f"{data.source}{f' {data.path}' if data.path else ''}: {self.fit}",
            "Tokenizer": f"{self.tokenizer.vocab_size:,} entries, SHA-256 {self.tokenizer.fingerprint[:12]}",
            "Plan": f"{recipe.train.steps:,} steps of {data.batch_size} x {data.seq_len} "
            f"({'at most ' if data.trim_to else ''}{positions:,} tokens, {epochs:.1f} epochs)",
            "Devices": f"{devices}; mesh {sizes}; compute in {jnp.dtype(self.compute_dtype).name}",
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
            graphdef, state, shardings = self._state(checkpoints)
            if recipe.to_yaml() != (run_dir / "recipe.yaml").read_text(encoding="utf-8"):
                atomic_write(run_dir / "recipe.yaml", recipe.to_yaml())
            tensorboard = run_dir / "tensorboard" if recipe.logging.tensorboard else None
            log = MetricsLog(run_dir / "metrics.jsonl", step=state.step, tensorboard=tensorboard)
            with contextlib.closing(log):
                status = self._trainer(graphdef, state, shardings, checkpoints, log).run(state, stop)
        if status == "interrupted":
            self._report(f"Interrupted at step {state.step:,} of {recipe.train.steps:,}.")
            done = f"saved step {state.step:,}" if state.step else "stopped before the first step"
            _say(f"{done}; go on with: {_command(recipe)}")
            return 0
        self._finish(graphdef, state)
        return 0

    def _state(self, checkpoints: Checkpoints) -> tuple[Any, TrainState, tuple[Any, Any]]:
        """The graph definition, the newest good checkpoint's state (or a new one), its trees' shardings."""
        recipe = self.recipe
        model_cls = self.spec.model_class()
        dtype = jnp.dtype(recipe.train.param_dtype)
        tx = make_optimizer(recipe.optimizer, recipe.train.steps)
        graphdef, abstract = build.abstract_params(model_cls, self.config, mesh=self.mesh, dtype=dtype)
        param_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        opt_shardings = steps.opt_state_shardings(tx, abstract, param_shardings, self.mesh)
        abstract_opt = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(tx.init, abstract),
            opt_shardings,
        )
        found = checkpoints.restore(abstract, abstract_opt, accept=self._accept)
        if found is not None:
            meta = found.meta
            state = TrainState(found.params, found.opt_state, found.step, meta["tokens_seen"], meta["train_seconds"])
            _say(f"going on from the checkpoint of step {found.step:,}")
        else:
            _, params = build.create_params(model_cls, self.config, recipe.train.seed, mesh=self.mesh, dtype=dtype)
            state = TrainState(params, steps.init_opt_state(tx, params, opt_shardings))
        return graphdef, state, (param_shardings, opt_shardings)

    def _accept(self, meta: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained on other data or with another tokenizer."""
        where = shown(self.recipe.run_dir)
        if meta["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise UserError(
                f"{where}/tokenizer is not the one the run was trained with; put it back, or start over with --fresh"
            )
        if meta["data_fingerprint"] != self.pairs.fingerprint:
            raise UserError(
                f"data: the training pairs are not those {where} was trained on; put the data back as they "
                f"were (of a file, eval.num_pairs pairs are held out), or start over with --fresh"
            )

    def _trainer(self, graphdef, state: TrainState, shardings, checkpoints, log: MetricsLog) -> Trainer:
        recipe, data = self.recipe, self.recipe.data
        schedule = make_schedule(recipe.optimizer, recipe.train.steps)
        step_fn = steps.make_train_step(
            graphdef,
            {},
            make_optimizer(recipe.optimizer, recipe.train.steps),
            schedule,
            mesh=self.mesh,
            shardings=shardings,
            compute_dtype=self.compute_dtype,
            seed=recipe.train.seed,
        )
        batches = pipeline.make_loader(
            self.pairs,
            batch_size=data.batch_size,
            seq_len=data.seq_len,
            seed=data.seed,
            start_example=state.step * data.batch_size,
            shuffle=data.shuffle,
            trim_to=data.trim_to,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        peak, source = peak_flops()
        _say(f"MFU against {peak / 1e9:,.0f} GFLOP/s ({source})")
        return Trainer(
            step_fn=step_fn,
            batches=batches,
            put=lambda batch: meshes.put_batch(batch, self.mesh),
            steps=recipe.train.steps,
            checkpoints=checkpoints,
            save_every=recipe.checkpoint.every,
            log=log,
            log_every=recipe.logging.every,
            meta=self._meta,
            flops_per_token=self.config.flops_per_token,
            peak=peak,
            callbacks=[self._heldout_loss(graphdef)] if recipe.eval.num_pairs else [],
        )

    def _meta(self, state: TrainState) -> dict[str, Any]:
        return {
            "model": self.recipe.model.name,
            "config": self.config.to_dict(),
            "examples_seen": state.step * self.recipe.data.batch_size,
            "tokens_seen": state.tokens,
            "train_seconds": state.seconds,
            "key": jax.random.key_data(jax.random.key(self.recipe.train.seed)).tolist(),
            "data_fingerprint": self.pairs.fingerprint,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "versions": _versions(),
        }

    def _heldout_loss(self, graphdef) -> Callback:
        """Mean loss over held-out pairs, in nats a target."""
        data = self.recipe.data
        heldout = data_pairs.tokenise(self.heldout[: self.recipe.eval.num_pairs], self.tokenizer)
        evaluate = steps.make_eval_step(graphdef, {}, mesh=self.mesh, compute_dtype=self.compute_dtype)

        def heldout_loss(params: Any, step: int) -> dict[str, float]:
            batches = pipeline.eval_batches(
                heldout, batch_size=data.batch_size, seq_len=data.seq_len, trim_to=data.trim_to
            )
            sums = [evaluate(params, meshes.put_batch(batch, self.mesh)) for batch in batches]
            nll, count = (sum(float(part) for part in parts) for parts in zip(*sums, strict=True))
            return {"heldout_loss": nll / max(count, 1.0)}

        return Callback(self.recipe.eval.every, heldout_loss)

    def _finish(self, graphdef, state: TrainState) -> None:
        """Evaluate, tell one held-out match, write report and result; training is done and saved."""
        from flax import nnx

        from zoo.evaluate.report import markdown
        from zoo.language_model import LanguageModel

        run_dir = self.recipe.run_dir
        module = nnx.merge(graphdef, steps.cast_floats(state.params, self.compute_dtype))
        lm = LanguageModel(module, self.tokenizer, self.spec, self.config)
        sections: dict[str, str] = {}
        evaluation = self._evaluation(lm) if self.recipe.eval.cronicas else None
        if evaluation is not None:
            sections["Evaluation"] = markdown(evaluation)
        sample = self._sample(lm) if self.recipe.eval.final_sample else None
        if sample is not None:
            sections["A held-out match"] = "```\n{stats_block}\n```\n\n{style}:\n\n> {cronica}".format(**sample)
        self._report(f"Finished: {state.step:,} steps.", sections)
        run_directory.write_result(run_dir, {"step": state.step, "evaluation": evaluation, "sample": sample})
        _say(f"finished: {shown(run_dir)}/report.md")

    def _sampling(self) -> dict[str, Any]:
        settings = self.recipe.eval
        return {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}

    def _evaluation(self, lm: "LanguageModel") -> dict[str, Any] | None:
        """The crónica suite on a few held-out matches; None if the texts do not fit into the model."""
        from zoo.evaluate import cronica

        wanted = self.recipe.eval.cronicas
        _say(f"writing {wanted} crónicas of held-out matches")
        try:
            result = cronica.evaluate(lm, num_cronicas=wanted, sets={"heldout": self.heldout}, **self._sampling())
        except UserError as error:
            _say(f"no evaluation: {error}")
            return None
        found = result["sets"]["heldout"]["generated"]
        names = {"both": "both clubs named", "score": "score", "scorers": "scorers", "style_strict": "style"}
        told = (f"{text} {found[name]['hits']} of {found[name]['total']}" for name, text in names.items())
        _say(f"held-out matches: {', '.join(told)}")
        return result

    def _sample(self, lm: "LanguageModel") -> dict[str, str] | None:
        """One crónica for the first held-out match, printed as it comes; None if the match does not fit."""
        record = self.heldout[0]
        stats, style = record["stats_block"].strip(), record["style_label"]
        try:
            pieces = lm.stream_cronica(stats, style, seed=self.recipe.train.seed, **self._sampling())
        except UserError as error:
            _say(f"no crónica of a held-out match: {error}")
            return None
        _say(f"\n{stats}\n\n[{style}]")
        text = ""
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
        _say("\n")
        return {"stats_block": stats, "style": style, "cronica": text.strip()}

    def _report(self, status: str, sections: dict[str, str] | None = None) -> None:
        recipe = self.recipe
        title = recipe.name if recipe.description is None else f"{recipe.name}: {recipe.description}"
        write_report(recipe.run_dir, title=title, status=status, facts=self.facts(), sections=sections)


def _records(recipe: Recipe) -> tuple[list[dict], list[dict]]:
    """Training records and held-out ones, at least one.

    The built-in corpus has a split of its own. Of other sources the last `eval.num_pairs` are held out, with
    every other crónica of the same matches.
    """
    records, wanted = load_records(recipe.data), recipe.eval.num_pairs
    if recipe.data.source == "cronicas" or not wanted:
        number = max(wanted, recipe.eval.cronicas, 1)
        return records, cronicas.generate(number, seed=recipe.data.seed, split="heldout")
    blocks = {record["stats_block"] for record in records[-wanted:]}
    training = [record for record in records if record["stats_block"] not in blocks]
    if not training:
        raise UserError(f"eval.num_pairs: {wanted} pairs are to be held out and nothing is left to train on; lower it")
    return training, [record for record in records if record["stats_block"] in blocks]


def _tokenizer(recipe: Recipe, records: list[dict], resume: bool) -> Tokenizer:
    saved = recipe.run_dir / "tokenizer"
    if resume and saved.exists():
        return tokenizers.load(saved)
    if resume and Checkpoints(recipe.run_dir / "checkpoints").latest() is not None:
        raise UserError(f"{shown(saved)} is missing but the run has checkpoints; put it back, or --fresh")
    if recipe.tokenizer.path is not None:
        return tokenizers.load(recipe.tokenizer.path)
    _say(f"training a tokenizer of {recipe.tokenizer.vocab_size:,} entries")
    return cronica_tokenizer.train(data_pairs.tokenizer_texts(records), recipe.tokenizer.vocab_size)


def _versions() -> dict[str, str]:
    packages = {"jax": "jax", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint"}
    return {"zoo": __version__} | {name: version(package) for name, package in packages.items()}


def _command(recipe: Recipe) -> str:
    """What goes on with the run, whatever recipe file and overrides began it."""
    return f"zoo-train {shown(recipe.run_dir / 'recipe.yaml')}"


def _say(text: str) -> None:
    print(text, flush=True)
