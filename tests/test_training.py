"""The training step: equal to the original program's, on one device and on eight."""

import json
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

import zoo.convert
from zoo.errors import UserError
from zoo.models import build
from zoo.models.cronica import Cronica, CronicaConfig
from zoo.recipe.training import OptimizerSection
from zoo.train.mesh import axis_sizes, check_batch_size, make_mesh, put_batch
from zoo.train.optimizers import make_optimizer, make_schedule
from zoo.train.step import compute_dtype_for, init_opt_state, make_eval_step, make_train_step, opt_state_shardings

GOLDEN = Path(__file__).parent / "golden" / "cronica_training"
OPTIMIZER = OptimizerSection(
    peak_lr=3e-3, final_lr=3e-4, warmup_steps=5, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0
)
STEPS = 60
ONE_DEVICE = SimpleNamespace(data=1, fsdp=1, tensor=1)


class Training:
    """A model, its optimizer and the step, from parameters on the host."""

    def __init__(self, graphdef, params, optimizer=OPTIMIZER, **options):
        self.mesh = make_mesh(ONE_DEVICE, jax.devices()[:1])
        place = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        placed = jax.tree.map(lambda _: place, params)
        tx = make_optimizer(optimizer, STEPS)
        shardings = opt_state_shardings(tx, params, placed, self.mesh)
        self.params = jax.device_put(params, placed)
        self.state = init_opt_state(tx, self.params, shardings)
        schedule = make_schedule(optimizer, STEPS)
        self.step_fn = make_train_step(
            graphdef, {}, tx, schedule, mesh=self.mesh, shardings=(placed, shardings), **options
        )

    def step(self, batch, step):
        batch = put_batch(batch, self.mesh)
        self.params, self.state, metrics = self.step_fn(self.params, self.state, batch, step)
        return {name: float(value) for name, value in metrics.items()}


def start():
    loaded = zoo.convert.load(GOLDEN / "ckpt_000000.pkl")
    graphdef, _ = build.abstract_params(Cronica, CronicaConfig(**loaded.config))
    return graphdef, loaded.params


def golden_batches():
    file = np.load(GOLDEN / "batches.npz")
    for tokens, mask in zip(file["tokens"], file["mask"], strict=True):
        yield {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask[:, 1:].astype(np.float32)}


def test_forty_steps_are_the_originals():
    settings = json.loads((GOLDEN / "trajectory.json").read_text())
    assert settings["total_steps"] == STEPS
    assert (settings["peak_lr"], settings["warmup_steps"]) == (OPTIMIZER.peak_lr, OPTIMIZER.warmup_steps)
    training = Training(*start())
    losses = [training.step(batch, i)["loss"] for i, batch in enumerate(golden_batches())]
    assert len(losses) == 40
    np.testing.assert_allclose(losses, np.load(GOLDEN / "losses.npy"), rtol=0, atol=1e-5)
    wanted = build.flatten(zoo.convert.load(GOLDEN / "ckpt_000040.pkl").params)
    actual = build.flatten(training.params)
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        worst = np.abs(np.asarray(value) - wanted[name]).max() / np.abs(wanted[name]).max()
        assert worst <= 1e-5, (name, worst)


def test_learning_rate_is_zero_then_the_peak_then_half_a_cosine():
    config = OptimizerSection(peak_lr=3e-4, final_lr=3e-5, warmup_steps=100)
    lr = make_schedule(config, 2000)
    wanted = {0: 0.0, 50: 1.5e-4, 100: 3e-4, 1050: 1.65e-4, 2000: 3e-5, 2500: 3e-5}
    assert {step: pytest.approx(float(lr(step)), rel=1e-5, abs=1e-12) for step in wanted} == wanted


def test_metrics_are_those_of_the_update_they_come_with():
    graphdef, params = start()
    batch = next(golden_batches())

    def plain(params):
        logits = nnx.merge(graphdef, params)(jnp.asarray(batch["tokens"]))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return (nll * batch["loss_mask"]).sum() / batch["loss_mask"].sum()

    loss, gradients = jax.jit(jax.value_and_grad(plain))(params)
    tight = OPTIMIZER.model_copy(update={"clip_norm": 1e-3})
    training = Training(graphdef, params, tight)
    first = training.step(batch, 0)
    assert first["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert first["grad_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)  # before clipping
    assert first["num_targets"] == batch["loss_mask"].sum()
    assert first["lr"] == 0
    # A learning rate of zero moves nothing, to the bit.
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), training.params, params))
    assert training.step(batch, 1)["lr"] == pytest.approx(OPTIMIZER.peak_lr / OPTIMIZER.warmup_steps)
    assert not (np.asarray(training.params["final_norm"]["scale"]) == params["final_norm"]["scale"]).all()


def test_bfloat16_computes_close_by_and_keeps_float32_parameters():
    graphdef, params = start()
    batch = next(golden_batches())
    exact = Training(graphdef, params).step(batch, 0)["loss"]
    training = Training(graphdef, params, compute_dtype=jnp.bfloat16)
    rounded = training.step(batch, 0)["loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.03)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(training.params))
    assert compute_dtype_for("auto", training.mesh) == jnp.float32  # a CPU
    assert compute_dtype_for("bfloat16", training.mesh) == jnp.bfloat16


class Noisy(nnx.Module):
    """A model whose hidden states are noise of the key it is given."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.eye(4, 8))

    def hidden(self, tokens, *, positions=None, segment_ids=None, cache=None, key=None):
        return jax.random.normal(key, (*tokens.shape, 4)), None

    def head(self):
        return self.kernel[...], None, None


def test_the_key_is_that_of_seed_and_step():
    graphdef = nnx.graphdef(Noisy())
    batch = {"tokens": np.zeros((2, 3), np.int32), "targets": np.ones((2, 3), np.int32)}
    batch["loss_mask"] = np.ones((2, 3), np.float32)
    params = {"kernel": np.eye(4, 8, dtype=np.float32)}

    def loss(seed, step):
        return Training(graphdef, params, seed=seed).step(batch, step)["loss"]

    assert loss(0, 3) == loss(0, 3)
    assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3


def test_evaluation_gives_sums_and_leaves_the_parameters_alone():
    graphdef, params = start()
    batch = next(golden_batches())
    training = Training(graphdef, params)
    evaluate = make_eval_step(graphdef, {}, mesh=training.mesh)
    nll, count = evaluate(training.params, put_batch(batch, training.mesh))
    assert count == batch["loss_mask"].sum()
    assert training.step(batch, 0)["loss"] == pytest.approx(float(nll / count), abs=1e-6)


@pytest.mark.parametrize(
    "data,fsdp,tensor,wanted", [(-1, 1, 1, (6, 1, 1)), (1, -1, 2, (1, 3, 2)), (3, 2, 1, (3, 2, 1))]
)
def test_one_axis_takes_the_devices_that_remain(data, fsdp, tensor, wanted):
    assert _sizes(data, fsdp, tensor, 6) == wanted


@pytest.mark.parametrize("data,fsdp,tensor", [(-1, 4, 1), (2, 2, 1), (4, 2, 1)])
def test_sizes_that_do_not_make_up_the_devices_are_named(data, fsdp, tensor):
    with pytest.raises(UserError, match=rf"^mesh: data {data} x fsdp {fsdp} x tensor {tensor}.* 6"):
        _sizes(data, fsdp, tensor, 6)


def _sizes(data, fsdp, tensor, count):
    return axis_sizes(SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor), count)


def test_rows_must_share_out_over_the_mesh():
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 2, "tensor": 1})
    check_batch_size(16, mesh)
    with pytest.raises(UserError, match=r"data\.batch_size: 12 .*multiple of 8"):
        check_batch_size(12, mesh)


SHARDED = """
    import sys
    sys.path.insert(0, {here!r})
    import jax, numpy as np, optax
    from types import SimpleNamespace
    from test_training import OPTIMIZER, STEPS, golden_batches, start
    from zoo.layers.sharding import param_shardings
    from zoo.models import build
    from zoo.models.cronica import Cronica
    from zoo.train.mesh import make_mesh, put_batch
    from zoo.train.optimizers import make_optimizer, make_schedule
    from zoo.train.step import init_opt_state, make_train_step, opt_state_shardings

    graphdef, host = start()
    config = __import__("flax").nnx.merge(graphdef, host).config
    _, state = build.abstract(Cronica, config)
    batches = [{{k: np.concatenate([v, v[::-1]]) for k, v in b.items()}} for b in list(golden_batches())[:4]]
    tx = make_optimizer(OPTIMIZER, STEPS)

    def lay(*sizes):
        config = SimpleNamespace(**dict(zip(("data", "fsdp", "tensor"), sizes)))
        mesh = make_mesh(config, jax.devices()[:np.prod(sizes)])
        return mesh, param_shardings(state, mesh)

    def train(*sizes):
        mesh, placed = lay(*sizes)
        shardings = opt_state_shardings(tx, host, placed, mesh)
        params = jax.device_put(host, placed)
        opt = init_opt_state(tx, params, shardings)
        schedule = make_schedule(OPTIMIZER, STEPS)
        step = make_train_step(graphdef, {{}}, tx, schedule, mesh=mesh, shardings=(placed, shardings))
        losses = []
        for i, batch in enumerate(batches):
            old = params
            params, opt, metrics = step(params, opt, put_batch(batch, mesh), i + 5)
            losses.append([float(metrics[k]) for k in ("loss", "grad_norm", "num_targets")])
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "not donated"
        for tree, wanted in ((params, placed), (opt, shardings)):
            jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or 1 / 0, tree, wanted)
        return np.array(losses), build.flatten(params), opt, placed

    losses, params, _, _ = train(1, 1, 1)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        other, others, opt, placed = train(*sizes)
        np.testing.assert_allclose(other, losses, rtol=2e-5), sizes
        for name, value in params.items():
            worst = np.abs(np.asarray(others[name]) - np.asarray(value)).max() / np.abs(np.asarray(value)).max()
            assert worst < 1e-4, (sizes, name, worst)
        moments = optax.tree.get(opt, "mu")
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or 1 / 0, moments, placed)
        gate = moments["layers"][0]["mlp"]["gate"]["kernel"]
        assert gate.addressable_shards[0].data.size * sizes[1] * sizes[2] == gate.size, sizes

    # Statistics of whole rows: leaves with a parameter's path, but not its shape.
    mesh, placed = lay(1, 4, 2)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=8)
    chosen = opt_state_shardings(factored, host, placed, mesh).v_row["layers"][0]["mlp"]["gate"]["kernel"]
    assert chosen.is_fully_replicated and not placed["layers"][0]["mlp"]["gate"]["kernel"].is_fully_replicated
    print("sharded steps agree")
"""


@pytest.mark.slow
def test_eight_devices_train_like_one():
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8", NPROC="32")
    script = textwrap.dedent(SHARDED).format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sharded steps agree" in done.stdout
