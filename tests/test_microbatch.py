"""Microbatches give the whole batch's loss, gradient and update; a step that is not finite changes nothing."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_data_pipeline import make_records
from test_data_text import TOKENIZER, text_data
from test_training import Noisy
from tiny_models import TINY, tiny

from zoo.recipe import make_recipe
from zoo.recipe.training import OptimizerSection
from zoo.run import evaluations
from zoo.tasks.cronica.task import CronicaTask
from zoo.tasks.text import TextTask
from zoo.train.losses import cross_entropy
from zoo.train.mesh import make_mesh, put_batch
from zoo.train.optimizers import make_optimizer, make_schedule
from zoo.train.program import Program
from zoo.train.step import init_opt_state, make_train_step, opt_state_shardings

OPTIMIZER = OptimizerSection(peak_lr=1e-2, final_lr=1e-3, warmup_steps=2, warmup_init_lr=5e-3, clip_norm=1.0)
STEPS = 10
MODEL = {"name": TINY["cronica"][0], **TINY["cronica"][1], "vocab_size": 400}


def mesh_of(data=1, fsdp=1, tensor=1):
    sizes = SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor)
    return make_mesh(sizes, jax.devices()[: data * fsdp * tensor])


class Run:
    """Steps of a model from given parameters."""

    def __init__(self, graphdef, params, mesh=None, placed=None, tx=None, **options):
        self.mesh = mesh or mesh_of()
        placed = placed or jax.tree.map(lambda _: NamedSharding(self.mesh, P()), params)
        tx = tx or make_optimizer(OPTIMIZER, STEPS)
        shardings = opt_state_shardings(tx, params, placed, self.mesh)
        self.params = jax.device_put(params, placed, may_alias=False)
        self.state = init_opt_state(tx, self.params, shardings)
        schedule = make_schedule(OPTIMIZER, STEPS)
        self.function = make_train_step(
            graphdef, {}, tx, schedule, mesh=self.mesh, shardings=(placed, shardings), **options
        )

    def step(self, batch, step=0):
        batch = put_batch(batch, self.mesh)
        self.params, self.state, metrics = self.function(self.params, self.state, batch, step)
        return {name: float(value) for name, value in metrics.items()}

    def kept(self):
        return [np.array(leaf) for leaf in jax.tree.leaves((self.params, self.state))]


def ragged_batch(seed, rows=8, length=5, vocab=32):
    """Rows with 0, 1, 2, ... targets, two of them whole microbatches of none, and weights that are not all 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length + 1), dtype=np.int32)
    mask = (np.arange(length) < np.arange(rows)[:, None] % (length + 1)).astype(np.float32)
    mask[rng.permutation(rows)[:2]] = 0
    mask[0, 0] = 0.5
    return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "loss_mask": mask}


def assert_same_run(whole, parts, steps=3):
    """Loss, gradient (its norm, and in the moments) and parameters agree after every one of three updates."""
    for step in range(steps):
        batch = ragged_batch(step)
        wanted, actual = whole.step(batch, step), parts.step(batch, step)
        assert actual.keys() == wanted.keys()
        for name, value in wanted.items():
            assert actual[name] == pytest.approx(value, rel=2e-5), (step, name)
        for a, b in zip(parts.kept(), whole.kept(), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())


SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in TINY if name != "cronica")


@pytest.mark.parametrize("name", ["cronica", *SLOW])
def test_parts_are_the_whole(name):
    without_dropout = {"dropout": 0.0} if name == "bwetaf" else {}  # each microbatch has masks of its own
    graphdef, params, _ = tiny(name, **without_dropout)
    assert_same_run(Run(graphdef, params), Run(graphdef, params, microbatches=4))


def test_bfloat16_parameters_keep_their_dtype_and_sum_in_float32():
    """64 gradients of which each next is too small for a bfloat16 sum."""

    class Weight(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.zeros((4, 8), jnp.bfloat16))

        def hidden(self, tokens, *, positions=None, segment_ids=None, cache=None, key=None):
            return jnp.ones((*tokens.shape, 4), jnp.bfloat16), None

        def head(self):
            return self.kernel[...], None, None

    module = Weight()
    params = {"kernel": jnp.zeros((4, 8), jnp.bfloat16)}
    rows = 512
    batch = {"tokens": np.zeros((rows, 1), np.int32), "targets": np.ones((rows, 1), np.int32)}
    batch["loss_mask"] = np.ones((rows, 1), np.float32)
    runs = [
        Run(nnx.graphdef(module), params, tx=optax.sgd(1.0), compute_dtype=jnp.bfloat16, microbatches=count)
        for count in (1, rows)
    ]
    for run in runs:
        run.step(batch)
    whole, parts = (np.asarray(run.params["kernel"], np.float32) for run in runs)
    assert runs[1].params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(parts, whole, rtol=0.01)  # a bfloat16 sum stands still at half of it


def test_the_norm_of_bfloat16_gradients_is_a_float32_number():
    # An optimizer whose state is the gradients as they came.
    keeps = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params: (jax.tree.map(jnp.zeros_like, updates), updates),
    )
    graphdef, params, _ = tiny("cronica")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    run = Run(graphdef, params, tx=keeps, compute_dtype=jnp.bfloat16)
    _, state, metrics = run.function(run.params, run.state, put_batch(ragged_batch(0), run.mesh), 0)
    assert {value.dtype.name for value in metrics.values()} == {"float32"}
    gradients = jax.tree.leaves(state)
    assert {leaf.dtype.name for leaf in gradients} == {"bfloat16"}
    exact = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in gradients))
    assert float(metrics["grad_norm"]) == pytest.approx(exact, rel=2e-3)  # it may be that of gradients not yet rounded


def test_every_microbatch_has_a_key_of_its_own():
    graphdef, params = nnx.graphdef(Noisy()), {"kernel": np.eye(4, 8, dtype=np.float32)}
    batch = {"tokens": np.zeros((4, 3), np.int32), "targets": np.ones((4, 3), np.int32)}
    batch["loss_mask"] = np.ones((4, 3), np.float32)
    loss = Run(graphdef, params, seed=7, microbatches=2).step(batch, 5)["loss"]
    key, parts = jax.random.fold_in(jax.random.key(7), 5), []
    for number in range(2):
        hidden = jax.random.normal(jax.random.fold_in(key, number), (2, 3, 4))
        parts.append(cross_entropy(hidden, params["kernel"], None, None, batch["targets"][:2], batch["loss_mask"][:2]))
    assert loss == pytest.approx(float(sum(nll for nll, _ in parts)) / 12, rel=1e-6)


@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_is_skipped(microbatches):
    graphdef, params, _ = tiny("cronica")
    run = Run(graphdef, params, microbatches=microbatches, skip_nonfinite=True)
    assert run.step(ragged_batch(0), 0)["skipped"] == 0
    before = run.kept()
    bad = ragged_batch(1)
    bad["loss_mask"][3, 1] = np.nan
    metrics = run.step(bad, 1)
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["loss"])
    for a, b in zip(run.kept(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    # The bad step was no update: the next has the learning rate that was its turn.
    after = run.step(ragged_batch(2), 2)
    assert after["skipped"] == 0
    assert after["lr"] == pytest.approx(float(make_schedule(OPTIMIZER, STEPS)(1)))
    changed = [not (a == b).all() for a, b in zip(run.kept(), before, strict=True)]
    assert all(changed)
    # Under another policy it goes on from there, with the rate that the optimizer really takes.
    halting = Run(graphdef, params, microbatches=microbatches)
    halting.params, halting.state = run.params, run.state
    assert halting.step(ragged_batch(3), 3)["lr"] == pytest.approx(float(make_schedule(OPTIMIZER, STEPS)(2)))


# ------------------------------------------------------------------------------------------------ the held-out loss


def text_task(tmp_path):
    """Five held-out rows of different lengths, whose batches are as wide as their longest."""
    section = {"sources": None, "source": "stories", "packing": "document", "seq_len": 400, "trim_to": 4}
    data, made = text_data(tmp_path, model=MODEL, data=section)
    return TextTask(made, TOKENIZER, data)


def cronica_task(tmp_path):
    recipe = make_recipe(
        {
            "name": "x",
            "model": MODEL,
            "tokenizer": {"vocab_size": 330},
            "data": {"source": "cronicas", "seq_len": 400, "batch_size": 8, "trim_to": 4},
            "eval": {"num_pairs": 5},
        }
    )
    task = CronicaTask.from_records(recipe, make_records(20), None)
    return dataclasses.replace(task, heldout=make_records(5))


@pytest.mark.parametrize("make_task", [text_task, cronica_task])
def test_the_held_out_loss_takes_a_microbatch_at_a_time(tmp_path, monkeypatch, make_task):
    task, seen, losses = make_task(tmp_path), [], []

    def put(batch, mesh):
        seen.append(batch["tokens"].shape)
        return put_batch(batch, mesh)

    monkeypatch.setattr(evaluations.meshes, "put_batch", put)
    for rows in (2, None):
        train = task.recipe.train.model_copy(update={"microbatch": rows})
        program = Program(task.recipe.model_copy(update={"train": train}), mesh_of())
        measure = evaluations.heldout_loss(program, task, {}, None).function
        losses.append(measure(program.create()[0], 1)["heldout_loss"])
    assert [rows for rows, _ in seen] == [2, 2, 2, 8]
    assert len({width for _, width in seen}) > 1  # each batch is trimmed to its own targets
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_held_out_loss_over_no_target_is_none_and_pins_nothing(tmp_path, monkeypatch):
    task = cronica_task(tmp_path)
    program = Program(
        task.recipe.model_copy(update={"checkpoint": task.recipe.checkpoint.model_copy(update={"keep_best": True})}),
        mesh_of(),
    )
    pinned = []
    monkeypatch.setattr(evaluations, "pin_if_best", lambda checkpoints, step, loss: pinned.append((step, loss)))
    params = program.create()[0]
    measure = evaluations.heldout_loss(program, task, {}, None).function
    loss = measure(params, 1)["heldout_loss"]
    assert pinned == [(1, loss)] and loss > 0
    heldout = task.heldout_batches

    class Blank:
        def heldout_batches(self, rows):
            return ({**batch, "loss_mask": np.zeros_like(batch["loss_mask"])} for batch in heldout(rows))

    assert evaluations.heldout_loss(program, Blank(), {}, None).function(params, 2) == {}
    average = SimpleNamespace(evaluate=program.evaluate, microbatch=program.microbatch, mesh=program.mesh, ema=None)
    average.recipe = program.recipe
    assert evaluations.heldout_loss_of_average(average, Blank(), {}).function(params, 2) == {}
    assert pinned == [(1, loss)]


EIGHT_DEVICES = """
    import sys
    sys.path.insert(0, {here!r})
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from test_microbatch import Run, assert_same_run, mesh_of
    from tiny_models import TINY, tiny
    from zoo import registry
    from zoo.models import build
    from zoo.train.mesh import BATCH_AXES, split_rows

    # Every device keeps its own rows, and nothing is sent.
    mesh = mesh_of(2, 2, 2)
    rows = NamedSharding(mesh, P(BATCH_AXES))
    x = jax.device_put(np.arange(16 * 3).reshape(16, 3), rows)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda x: split_rows(x, 2, mesh), in_shardings=rows)
        text, y = split.lower(x).compile().as_text(), split(x)
    for word in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
        assert word not in text, word
    assert y.shape == (2, 8, 3)
    for one, two in zip(x.addressable_shards, y.addressable_shards):
        assert one.device == two.device
        np.testing.assert_array_equal(one.data.reshape(2, 2, 3), two.data)

    sizes = dict(vocab_size=96, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)
    graphdef, params, config = tiny("cronica", **sizes)
    model_class = registry.describe(TINY["cronica"][0]).model_class()
    _, abstract = build.abstract_params(model_class, config, mesh=mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    assert_same_run(Run(graphdef, params), Run(graphdef, params, mesh, placed, microbatches=2), steps=2)
    print("parts on eight devices agree")
"""


@pytest.mark.slow
def test_eight_devices_split_their_own_rows():
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8", NPROC="32")
    script = textwrap.dedent(EIGHT_DEVICES).format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parts on eight devices agree" in done.stdout
