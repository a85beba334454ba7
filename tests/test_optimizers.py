"""Schedules and optimizers: what each field of the `optimizer` section does."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import UserError
from zoo.recipe import make_recipe, resume_diff
from zoo.recipe.training import OptimizerSection
from zoo.train.optimizers import make_optimizer, make_schedule

PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5]])}
GRADIENTS = {"a": jnp.array([30.0, -40.0, 0.1]), "b": jnp.array([[2.0]])}


def section(**fields) -> OptimizerSection:
    return OptimizerSection(**fields)


def updates(config, count=3, steps=10):
    tx = make_optimizer(config, steps)
    state, params, found = tx.init(PARAMS), PARAMS, []
    for number in range(count):
        gradients = jax.tree.map(lambda g, number=number: g * (1 + number), GRADIENTS)
        update, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, update)
        found.append(update)
    return found, state


def test_the_warm_up_begins_where_it_is_told():
    lr = make_schedule(section(peak_lr=1.5e-3, final_lr=1.8e-4, warmup_steps=129, warmup_init_lr=6e-4), 6466)
    wanted = {0: 6e-4, 43: 9e-4, 129: 1.5e-3, 6466: 1.8e-4, 7000: 1.8e-4}
    assert {step: pytest.approx(float(lr(step)), rel=1e-5) for step in wanted} == wanted


def test_a_constant_rate_stays():
    lr = make_schedule(section(peak_lr=1e-3, schedule="constant", warmup_steps=0), 100)
    assert [float(lr(step)) for step in (0, 1, 50, 100, 500)] == [pytest.approx(1e-3)] * 5
    lr = make_schedule(section(peak_lr=1e-3, schedule="constant", warmup_steps=10), 100)
    assert [float(lr(step)) for step in (0, 5, 10, 99)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])


def test_without_decay_and_clip_it_is_adam():
    config = section(
        peak_lr=1e-3, schedule="constant", warmup_steps=0, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=None
    )
    found, _ = updates(config)
    adam = optax.adam(1e-3)
    state, params = adam.init(PARAMS), PARAMS
    for number, update in enumerate(found):
        wanted, state = adam.update(jax.tree.map(lambda g, n=number: g * (1 + n), GRADIENTS), state, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), update, wanted)


def test_clipping_is_of_the_global_norm_and_null_switches_it_off():
    # The first update of Adam does not see a scale; the second, of a larger gradient, does.
    base = {"peak_lr": 1e-3, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}
    free, state = updates(section(**base, clip_norm=None))
    clipped, other = updates(section(**base, clip_norm=1.0))
    assert not np.allclose(free[1]["a"], clipped[1]["a"], rtol=1e-3)
    assert jax.tree.structure(state) == jax.tree.structure(other)  # a checkpoint fits both


def test_the_clip_of_bfloat16_gradients_is_computed_in_float32():
    """400 ones have a norm of 20; added up in bfloat16 they come to 256 and no further."""
    ones = {f"w{number:03}": jnp.ones(1, jnp.bfloat16) for number in range(400)}
    config = section(peak_lr=1e-3, schedule="constant", warmup_steps=0, b1=0.0, clip_norm=10.0)
    tx = make_optimizer(config, 10)
    _, state = tx.update(ones, tx.init(ones), ones)
    (adam,) = (node for node in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(node, "mu"))
    clipped = [float(leaf[0]) for leaf in adam.mu.values()]
    assert clipped == pytest.approx([0.5] * 400, rel=1e-6)
    # The state is that of optax's own clip and AdamW: older checkpoints fit.
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(ones))


def test_moments_are_kept_in_bfloat16_and_updates_stay_close():
    base = {"peak_lr": 1e-3, "schedule": "constant", "warmup_steps": 0, "b1": 0.95, "b2": 0.98}
    exact, _ = updates(section(**base), count=8)
    rounded, state = updates(section(**base, moments_dtype="bfloat16"), count=8)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {leaf.dtype.name for leaf in moments} == {"bfloat16"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.03), exact[-1], rounded[-1])
    assert not np.array_equal(exact[-1]["a"], rounded[-1]["a"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "constant", "final_lr": 1e-5}, ["optimizer.final_lr", "constant"]),
        ({"peak_lr": 1e-6}, ["optimizer.final_lr", "optimizer.peak_lr"]),
        ({"peak_lr": 1e-3, "warmup_init_lr": 2e-3}, ["optimizer.warmup_init_lr", "optimizer.peak_lr"]),
        ({"clip_norm": 0.0}, ["optimizer.clip_norm", "above 0"]),
        ({"moments_dtype": "float16"}, ["optimizer.moments_dtype", "bfloat16"]),
        ({"schedule": "lineal"}, ["optimizer.schedule", "cosine", "did you mean linear?"]),
        ({"schedule": "inverse_sqrt", "final_lr": 1e-5}, ["optimizer.final_lr", "inverse_sqrt"]),
        ({"schedule": "inverse_sqrt", "warmup_steps": 0}, ["inverse_sqrt", "optimizer.warmup_steps"]),
        ({"schedule": "inverse_sqrt", "warmup_fraction": 1e-5}, ["optimizer.warmup_fraction", "less than a step"]),
        ({"schedule": "linear", "cooldown_steps": 9}, ["optimizer.cooldown_steps", "trapezoid"]),
        ({"cooldown_fraction": 0.5}, ["optimizer.cooldown_fraction", "trapezoid"]),
        ({"warmup_fraction": 0.1, "warmup_steps": 9}, ["optimizer.warmup_fraction", "optimizer.warmup_steps"]),
        ({"schedule": "trapezoid", "cooldown_fraction": 0.1, "cooldown_steps": 9}, ["optimizer.cooldown_fraction"]),
        ({"schedule": "trapezoid", "cooldown_steps": 1901}, ["optimizer.cooldown_steps 1901", "train.steps 2000"]),
        ({"schedule": "trapezoid", "cooldown_fraction": 0.96}, ["optimizer.cooldown_fraction 0.96", "1920"]),
        ({"warmup_fraction": 0.9999}, ["optimizer.warmup_fraction 0.9999", "train.steps 2000"]),
        ({"ema_decay": 1.0}, ["optimizer.ema_decay", "below 1"]),
        ({"muon_b2": 0.9, "name": "muon"}, ["optimizer.muon_b2", "optimizer.muon_normalize"]),
        ({"muon_normalize": True}, ["optimizer.muon_normalize", "optimizer.name muon"]),
        ({"name": "schedule_free"}, ["optimizer.schedule cosine", "schedule_free", "optimizer.schedule: constant"]),
        ({"name": "schedule_free", "schedule": "constant", "ema_decay": 0.9}, ["optimizer.ema_decay", "schedule_free"]),
        ({"name": "schedule_free", "schedule": "constant", "b1": 0.8}, ["optimizer.b1 is for optimizer.name adamw"]),
        ({"schedule_free_b1": 0.8}, ["optimizer.schedule_free_b1 is for optimizer.name schedule_free"]),
        ({"betas": {"*": [0.9]}}, ["optimizer.betas", "2"]),
        ({"betas": {"*": [0.9, 1.0]}}, ["optimizer.betas", "below 1"]),
        ({"weight_decays": {"*": -0.1}}, ["optimizer.weight_decays", "at least 0"]),
    ],
)
def test_rates_that_do_not_fit_together_are_refused(fields, words):
    with pytest.raises(UserError) as caught:
        make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "optimizer": fields})
    assert all(word in str(caught.value) for word in words)


def test_what_may_change_on_resume():
    def recipe(**fields):
        return make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "optimizer": fields})

    assert resume_diff(recipe(), recipe(schedule="constant", clip_norm=None, warmup_init_lr=1e-4)) == []
    assert len(resume_diff(recipe(), recipe(moments_dtype="bfloat16"))) == 1


# ------------------------------------------------------------------------------------------------ groups and Muon

LAYERED = {
    "embed": {"embedding": jnp.linspace(-1.0, 1.0, 24).reshape(6, 4)},
    "layers": {
        0: {
            "attn": {"q": {"kernel": jnp.sin(jnp.arange(32.0)).reshape(4, 8)}},
            "mlp": {"down": {"kernel": jnp.cos(jnp.arange(32.0)).reshape(8, 4), "bias": jnp.arange(4.0)}},
            "value_embed": {"embedding": jnp.ones((6, 4))},
        }
    },
    "final_norm": {"scale": jnp.ones(4)},
}
CONSTANT = {"peak_lr": 0.1, "schedule": "constant", "warmup_steps": 0, "clip_norm": None}


def steps_of(tx, params, count=3):
    """Parameters after updates with gradients that differ from step to step."""
    state = tx.init(params)
    for number in range(count):
        gradients = jax.tree.map(lambda leaf, n=number: jnp.sin(3.0 * leaf + n), params)
        update, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, update)
    return params, state


def test_muon_moves_the_matrices_of_the_layers_and_adam_the_rest():
    fields = dict(CONSTANT, name="muon", weight_decay=0.01, b2=0.99)
    got, _ = steps_of(make_optimizer(section(**fields), 10), LAYERED)
    adam, _ = steps_of(make_optimizer(section(**{**fields, "name": "adamw"}), 10), LAYERED)
    dims = jax.tree.map(lambda _: None, LAYERED)
    dims["layers"][0]["attn"]["q"]["kernel"] = optax.contrib.MuonDimensionNumbers()
    dims["layers"][0]["mlp"]["down"]["kernel"] = optax.contrib.MuonDimensionNumbers()
    reference = optax.contrib.muon(0.1, weight_decay=0.01, muon_weight_dimension_numbers=lambda _: dims)
    muon, _ = steps_of(reference, LAYERED)
    for path, leaf in jax.tree.leaves_with_path(got):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        wanted, other = (muon, adam) if name.endswith("kernel") else (adam, muon)
        wanted, other = (jax.tree.leaves_with_path(tree) for tree in (wanted, other))
        np.testing.assert_allclose(leaf, dict(wanted)[path], atol=1e-5, err_msg=name)
        assert not np.allclose(leaf, dict(other)[path], atol=1e-5), name


def test_a_muon_update_is_nearly_orthogonal_and_of_the_size_asked_for():
    for rms, size in ((None, [np.sqrt(2.0), 1.0]), (0.2, [0.2 * np.sqrt(8)] * 2)):
        config = section(**CONSTANT, name="muon", weight_decay=0.0, muon_rms=rms)
        moved, _ = steps_of(make_optimizer(config, 10), LAYERED, count=1)
        for (a, b), factor in zip(((("attn", "q"), (4, 8)), (("mlp", "down"), (8, 4))), size, strict=True):
            before, after = LAYERED["layers"][0][a[0]][a[1]]["kernel"], moved["layers"][0][a[0]][a[1]]["kernel"]
            assert before.shape == b
            values = np.linalg.svd((before - after) / 0.1 / factor, compute_uv=False)
            assert values.max() < 1.3
            assert values[0] > 0.6


def test_rates_by_pattern_and_parameters_without_decay():
    base = dict(CONSTANT, weight_decay=0.5)
    plain, _ = steps_of(make_optimizer(section(**base), 10), LAYERED, count=1)
    scales = {"layers/*/value_embed/*": 0.25, "*/embedding": 2.0}  # the first that matches counts
    scaled, _ = steps_of(make_optimizer(section(**base, lr_scales=scales), 10), LAYERED, count=1)
    spared, _ = steps_of(make_optimizer(section(**base, no_decay=["*/scale", "*/bias"]), 10), LAYERED, count=1)

    def moved(tree, *path):
        before, after = LAYERED, tree
        for key in path:
            before, after = before[key], after[key]
        return np.asarray(after - before)

    value, embed, q = ("layers", 0, "value_embed", "embedding"), ("embed", "embedding"), ("layers", 0, "attn", "q")
    np.testing.assert_allclose(moved(scaled, *value), 0.25 * moved(plain, *value), rtol=1e-5)
    np.testing.assert_allclose(moved(scaled, *embed), 2.0 * moved(plain, *embed), rtol=1e-5)
    np.testing.assert_array_equal(moved(scaled, *q, "kernel"), moved(plain, *q, "kernel"))
    np.testing.assert_array_equal(moved(spared, *q, "kernel"), moved(plain, *q, "kernel"))
    # With a rate of 0.1 and ones, a decay of 0.5 is 0.05 of the step.
    np.testing.assert_allclose(moved(spared, "final_norm", "scale") - moved(plain, "final_norm", "scale"), 0.05, 1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_have_their_dtype_whatever_that_of_the_parameters(name):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), LAYERED)
    for dtype in ("float32", "bfloat16"):
        tx = make_optimizer(section(**CONSTANT, name=name, moments_dtype=dtype), 10)
        moved, state = steps_of(tx, params, count=2)
        moments = [
            leaf.dtype.name
            for path, leaf in jax.tree.leaves_with_path(state)
            if {"mu", "nu"} & {getattr(key, "name", "") for key in path}
        ]
        assert len(moments) == (12 if name == "adamw" else 10)
        assert set(moments) == {dtype}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(moved)} == {"bfloat16"}


def test_groups_that_name_nothing_are_refused():
    for fields in ({"lr_scales": {"embd/*": 2.0}}, {"no_decay": ["*/scales"]}):
        with pytest.raises(UserError, match=r"optimizer\.(lr_scales|no_decay): '.*' matches none of the 6") as caught:
            make_optimizer(section(**CONSTANT, **fields), 10).init(LAYERED)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="adamw"):
        make_optimizer(section(**CONSTANT, name="muon"), 10).init({"embed": {"embedding": jnp.ones((4, 4))}})
    with pytest.raises(UserError, match=r"optimizer.muon_rms is for optimizer.name muon"):
        make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "optimizer": {"muon_rms": 0.2}})
    with pytest.raises(UserError, match=r"optimizer.lr_scales"):
        make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "optimizer": {"lr_scales": {"*": -1.0}}})


MUON_ON_A_MESH = """
    import sys
    sys.path.insert(0, {tests!r})
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType
    from tiny_models import TINY
    from zoo.models import build
    from zoo.recipe import make_recipe, resume_diff
    from zoo.train.mesh import put_batch
    from zoo.train.program import Program

    model = TINY["cronica"][1] | dict(num_layers=1, vocab_size=64, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)
    recipe = make_recipe({{
        "name": "m",
        "model": {{"name": "cronica-5m", **model}},
        "data": {{"source": "stories", "seq_len": 12, "batch_size": 8}},
        "optimizer": {{"name": "muon", "peak_lr": 0.02, "warmup_steps": 0, "lr_scales": {{"embed/*": 0.1}}}},
        "train": {{"steps": 10}},
    }})
    tokens = np.random.default_rng(0).integers(0, 64, (8, 13)).astype(np.int32)
    batch = {{"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((8, 12), np.float32)}}
    losses = []
    for shape, devices in (((1, 1, 1), jax.devices()[:1]), ((1, 4, 2), jax.devices())):
        mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)
        program = Program(recipe, mesh)
        params, state = program.create()
        step, found = program.step(), []
        for number in range(4):
            params, state, metrics = step(params, state, put_batch(batch, mesh), number)
            found.append(float(metrics["loss"]))
        losses.append(found)
        placed = {{
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
            for path, leaf in jax.tree.leaves_with_path(state)
        }}
        for path, leaf in build.flatten(params).items():
            mine = [spec for name, spec in placed.items() if name.endswith("/" + path)]
            assert mine and set(mine) == {{leaf.sharding.spec}}, (path, mine, leaf.sharding.spec)
    assert losses[0][-1] < losses[0][0] - 0.05, losses
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
    print("equal")
"""


@pytest.mark.slow
def test_muon_on_eight_devices_keeps_its_momentum_where_the_matrices_lie():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    code = textwrap.dedent(MUON_ON_A_MESH).format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
