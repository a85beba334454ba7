"""Every optimizer's update against the equations it is from, written again in NumPy's float64."""

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
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from tiny_models import TINY

from zoo import registry
from zoo.checkpoints.manager import Checkpoints
from zoo.errors import UserError
from zoo.layers.sharding import param_shardings
from zoo.models import build
from zoo.recipe import make_recipe, resume_diff
from zoo.recipe.optimizers.muon import POLAR_EXPRESS, MuonMoments
from zoo.recipe.training import OptimizerSection
from zoo.train.mesh import make_mesh
from zoo.train.optimizers import in_state, make_optimizer, make_schedule
from zoo.train.program import Program
from zoo.train.step import opt_state_shardings

JORDAN = (3.4445, -4.7750, 2.0315)
CONSTANT = {"peak_lr": 0.05, "schedule": "constant", "warmup_steps": 0, "clip_norm": None, "weight_decay": 0.1}
RANDOM = np.random.default_rng(0)
PARAMS = {
    "embed": {"embedding": RANDOM.normal(size=(6, 4))},
    "layers": {
        0: {
            "attn": {"q": {"kernel": RANDOM.normal(size=(4, 10))}},
            "mlp": {"down": {"kernel": RANDOM.normal(size=(9, 4))}},
        }
    },
    "final_norm": {"scale": np.ones(4)},
}
PATHS = list(build.flatten(PARAMS))
MATRICES = [path for path in PATHS if path.startswith("layers")]
GRADIENTS = [{path: RANDOM.normal(size=leaf.shape) for path, leaf in build.flatten(PARAMS).items()} for _ in range(5)]


def trained(section: OptimizerSection, steps: int = 5):
    """Parameters by path after each of five updates with GRADIENTS, and the optimizer's state."""
    params = jax.tree.map(jnp.float32, PARAMS)
    tx, after = make_optimizer(section, steps), []
    state = tx.init(params)
    for gradients in GRADIENTS:
        updates, state = tx.update(build.unflatten(jax.tree.map(jnp.float32, gradients)), state, params)
        params = optax.apply_updates(params, updates)
        after.append(build.flatten(params))
    return after, state


def assert_close(after, wanted, rtol=2e-5):
    for number, (one, other) in enumerate(zip(after, wanted, strict=True)):
        for path, leaf in other.items():
            np.testing.assert_allclose(one[path], leaf, rtol=rtol, atol=rtol, err_msg=f"{path}, update {number + 1}")


def is_muon(node):
    return isinstance(node, MuonMoments)


# ------------------------------------------------------------------------------------------------------- schedules


def rates(steps, at, **fields):
    schedule = make_schedule(OptimizerSection(peak_lr=0.1, final_lr=None, **fields), steps)
    return [float(schedule(step)) for step in at]


def test_a_trapezoid_climbs_stays_and_falls_along_a_line():
    at = (0, 5, 10, 50, 60, 70, 90, 100, 200)
    wanted = [0, 0.05, 0.1, 0.1, 0.1, 0.1 - 0.25 * 0.09, 0.1 - 0.75 * 0.09, 0.01, 0.01]
    whole = make_schedule(
        OptimizerSection(peak_lr=0.1, final_lr=0.01, schedule="trapezoid", warmup_steps=10, cooldown_steps=40), 100
    )
    parts = make_schedule(
        OptimizerSection(peak_lr=0.1, final_lr=0.01, schedule="trapezoid", warmup_fraction=0.1, cooldown_fraction=0.4),
        100,
    )
    assert [float(whole(step)) for step in at] == pytest.approx(wanted)
    assert [float(parts(step)) for step in at] == pytest.approx(wanted)
    # Where the recipe does not say, the rate falls for the last fifth, to 3e-5.
    assert rates(100, (80, 90, 100), schedule="trapezoid") == pytest.approx([0.1, 0.05 + 1.5e-5, 3e-5])


def test_nanochat_s_own_trapezoid_can_be_written():
    """nanochat/scripts/base_train.py, get_lr_multiplier: the first step has a fortieth of the rate already."""
    steps, warmup, warmdown, final = 200, 40, 130, 0.05
    peak = 0.02
    section = OptimizerSection(
        peak_lr=peak,
        warmup_init_lr=peak / warmup,
        warmup_steps=warmup - 1,
        schedule="trapezoid",
        cooldown_fraction=0.65,
        final_lr=peak * final,
    )
    found = make_schedule(section, steps)

    def multiplier(it):
        if it < warmup:
            return (it + 1) / warmup
        share = min(1.0, (steps - it) / warmdown)
        return share + (1 - share) * final

    wanted = [peak * multiplier(it) for it in range(steps)]
    assert [float(found(it)) for it in range(steps)] == pytest.approx(wanted, rel=1e-5)


def test_linear_and_inverse_square_root():
    assert rates(110, (0, 10, 60, 110, 120), schedule="linear", warmup_steps=10) == pytest.approx(
        [0, 0.1, 0.05 + 1.5e-5, 3e-5, 3e-5]
    )
    found = rates(100, (0, 8, 16, 64, 1600), schedule="inverse_sqrt", warmup_steps=16)
    assert found == pytest.approx([0, 0.05, 0.1, 0.05, 0.01])
    assert rates(100, (5, 20), schedule="inverse_sqrt", warmup_fraction=0.05) == pytest.approx([0.1, 0.05])
    assert rates(100, (5, 10, 100), schedule="cosine", warmup_fraction=0.1) == pytest.approx([0.05, 0.1, 3e-5])


# ------------------------------------------------------------------------------------------------------------ Muon


def orthogonalized(matrix, polynomials, margin):
    """The polynomials act on the singular values alone: no product of the iteration is needed to say what it gives."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (margin * np.linalg.norm(matrix))
    for a, b, c in polynomials:
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def muon_reference(polynomials, margin, *, b2=None, cautious=False, momentum=0.95, lr=0.05, decay=0.1):
    """nanochat/nanochat/optim.py, muon_step_fused, over matrices as nanochat has them, [fan_out, fan_in]."""
    after = []
    weights = {path: build.flatten(PARAMS)[path].T.copy() for path in MATRICES}
    buffers = {path: np.zeros_like(weights[path]) for path in MATRICES}
    squares = dict.fromkeys(MATRICES, 0.0)
    for gradients in GRADIENTS:
        for path, weight in weights.items():
            gradient = gradients[path].T
            buffers[path] = momentum * buffers[path] + (1 - momentum) * gradient
            update = orthogonalized(momentum * buffers[path] + (1 - momentum) * gradient, polynomials, margin)
            fan_out, fan_in = weight.shape
            if b2 is not None:
                along = 1 if fan_out >= fan_in else 0
                squares[path] = b2 * squares[path] + (1 - b2) * (update**2).mean(axis=along, keepdims=True)
                size = np.linalg.norm(update)
                update = update / np.sqrt(squares[path])
                update = update * size / np.linalg.norm(update)
            update = max(1.0, fan_out / fan_in) ** 0.5 * update
            pull = decay * weight * (update * weight >= 0 if cautious else 1)
            weights[path] = weight - lr * (update + pull)
        after.append({path: weight.T.copy() for path, weight in weights.items()})
    return after


def test_the_polynomials_of_polar_express_bring_singular_values_to_one():
    """From a thousandth on to within 0.15, where Jordan's polynomial leaves a third of some of them."""

    def errors(polynomials, smallest):
        values = np.geomspace(smallest, 1, 500) / 1.01
        for a, b, c in polynomials:
            values = a * values + b * values**3 + c * values**5
        return np.abs(values - 1).max()

    assert errors(POLAR_EXPRESS, 5e-3) < 0.15
    assert errors([JORDAN] * 5, 5e-3) > 0.3


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("b2", [None, 0.9])
def test_polar_express_and_normuon_are_what_nanochat_computes(b2, cautious):
    normalize = {} if b2 is None else {"muon_normalize": True, "muon_b2": b2}
    fields = {"muon_coefficients": "polar_express", "muon_cautious_decay": cautious, **normalize}
    after, _ = trained(OptimizerSection(name="muon", **CONSTANT, **fields))
    assert_close(after, muon_reference(POLAR_EXPRESS, 1.01, b2=b2, cautious=cautious))
    # The reference tells the variants apart: each other one is far from it.
    other = muon_reference(POLAR_EXPRESS, 1.01, b2=0.9 if b2 is None else None, cautious=cautious)
    with pytest.raises(AssertionError):
        assert_close(after, other, rtol=1e-3)
    with pytest.raises(AssertionError):
        assert_close(after, muon_reference(POLAR_EXPRESS, 1.01, b2=b2, cautious=not cautious), rtol=1e-3)


def test_normuon_goes_with_jordan_s_polynomial_too_and_more_iterations_repeat_the_last():
    fields = {"muon_normalize": True, "muon_iterations": 4}
    after, state = trained(OptimizerSection(name="muon", **CONSTANT, **fields))
    assert_close(after, muon_reference([JORDAN] * 4, 1.0, b2=0.95))
    (moments,) = (node for node in jax.tree.leaves(state, is_leaf=is_muon) if is_muon(node))
    shapes = [leaf.shape for leaf in jax.tree.leaves(moments.nu)]
    assert shapes == [(1, 10), (9, 1)]  # one number a neuron
    fields = {"muon_coefficients": "polar_express", "muon_iterations": 7}
    after, _ = trained(OptimizerSection(name="muon", **CONSTANT, **fields))
    assert_close(after, muon_reference([*POLAR_EXPRESS, POLAR_EXPRESS[-1], POLAR_EXPRESS[-1]], 1.01))


def test_normuon_evens_out_the_sizes_of_the_neurons_and_zeros_stay_zeros():
    section = OptimizerSection(
        name="muon", **CONSTANT | {"weight_decay": 0.0}, muon_coefficients="polar_express", muon_normalize=True
    )
    params = {"layers": {0: {"kernel": jnp.zeros((8, 16))}}}
    tx = make_optimizer(section, 5)
    uneven = RANDOM.normal(size=(8, 16)) * np.geomspace(1e-2, 1, 16)
    update, _ = tx.update({"layers": {0: {"kernel": jnp.float32(uneven)}}}, tx.init(params), params)
    sizes = np.linalg.norm(update["layers"][0]["kernel"], axis=0)
    assert sizes.max() / sizes.min() < 1.001
    update, _ = tx.update(params, tx.init(params), params)
    assert not np.asarray(update["layers"][0]["kernel"]).any()


# ------------------------------------------------------------------------------------------------- AdamW in groups


def test_betas_and_weight_decays_of_each_parameter():
    betas = {"embed/*": [0.8, 0.995], "layers/*/q/*": [0.96, 0.9]}
    decays = {"layers/*/q/*": 0.3, "layers/*": 0.02, "final_norm/*": 7.0}
    section = OptimizerSection(**CONSTANT, eps=1e-10, betas=betas, weight_decays=decays, no_decay=["final_norm/*"])
    after, state = trained(section)

    def group(path):
        b1, b2 = {PATHS[0]: (0.8, 0.995), MATRICES[0]: (0.96, 0.9)}.get(path, (0.9, 0.95))
        return b1, b2, {MATRICES[0]: 0.3, MATRICES[1]: 0.02, "final_norm/scale": 0.0}.get(path, 0.1)

    weights, wanted = dict(build.flatten(PARAMS)), []
    m, v = ({path: 0.0 for path in PATHS} for _ in range(2))
    for t, gradients in enumerate(GRADIENTS, 1):
        for path, g in gradients.items():
            b1, b2, decay = group(path)
            m[path], v[path] = b1 * m[path] + (1 - b1) * g, b2 * v[path] + (1 - b2) * g**2
            step = m[path] / (1 - b1**t) / (np.sqrt(v[path] / (1 - b2**t)) + 1e-10)
            weights[path] = weights[path] - 0.05 * (step + decay * weights[path])
        wanted.append(dict(weights))
    assert_close(after, wanted)
    # A checkpoint of a run without groups fits one with them.
    _, plain = trained(OptimizerSection(**CONSTANT))
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(plain)]


def test_groups_that_move_nothing_are_refused():
    with pytest.raises(UserError, match=r"optimizer\.weight_decays: 'norm/\*' matches none of the 4"):
        trained(OptimizerSection(**CONSTANT, weight_decays={"norm/*": 0.0}))
    # Adam moves no matrix of a layer where Muon does, so that betas for them would do nothing.
    with pytest.raises(UserError, match=r"optimizer\.betas: 'layers/\*' matches none of the 2"):
        trained(OptimizerSection(name="muon", **CONSTANT, betas={"layers/*": [0.8, 0.9]}))


# -------------------------------------------------------------------------------------------- averages of weights


def test_schedule_free_keeps_the_three_sequences_of_its_paper():
    """Algorithm 1 of arXiv:2405.15682 with x, y and z each on its own; the rate warms up over four updates."""
    b1, b2, eps, peak, scale = 0.8, 0.9, 1e-8, 0.1, 3.0
    fields = CONSTANT | {"peak_lr": peak, "warmup_steps": 4, "lr_scales": {"embed/*": scale}}
    section = OptimizerSection(name="schedule_free", schedule_free_b1=b1, b2=b2, **fields)
    after, state = trained(section)

    def rate(step):
        return peak * min(1.0, step / 4)

    x, y, z = (dict(build.flatten(PARAMS)) for _ in range(3))
    v, weights, wanted = dict.fromkeys(PATHS, 0.0), 0.0, []
    for t, gradients in enumerate(GRADIENTS, 1):
        weights += rate(t) ** 2
        share = rate(t) ** 2 / weights
        for path, g in gradients.items():
            v[path] = b2 * v[path] + (1 - b2) * g**2
            direction = g / (np.sqrt(v[path] / (1 - b2**t)) + eps) + 0.1 * y[path]
            # The inner optimizer counts its updates from 0, the average from 1, as optax has them.
            z[path] = z[path] - rate(t - 1) * (scale if path == PATHS[0] else 1) * direction
            x[path] = (1 - share) * x[path] + share * z[path]
            y[path] = b1 * x[path] + (1 - b1) * z[path]
        wanted.append(dict(y))
    assert_close(after, wanted)
    average = section.averaged(build.unflatten(after[-1]), in_state(state, "z"))
    assert_close([build.flatten(average)], [x])
    assert not np.allclose(x[PATHS[0]], y[PATHS[0]], rtol=1e-3)
    params = jax.tree.map(jnp.bfloat16, PARAMS)
    with pytest.raises(UserError, match=r"schedule_free needs parameters in float32; set train\.param_dtype"):
        make_optimizer(section, 5).init(params)


@pytest.mark.parametrize("decay", [0.9, 0.99999])
def test_the_average_of_the_weights_is_the_weighted_mean_of_what_the_updates_made(decay):
    plain, _ = trained(OptimizerSection(**CONSTANT))
    after, state = trained(OptimizerSection(**CONSTANT, ema_decay=decay))
    for one, other in zip(after, plain, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)  # the average does not touch what is averaged
    shares = decay ** np.arange(4, -1, -1.0)
    ema = build.flatten(in_state(state, "ema"))
    for path in PATHS:
        leaves = np.stack([np.asarray(weights[path], np.float64) for weights in after])
        wanted = np.tensordot(shares / shares.sum(), leaves, 1)
        np.testing.assert_allclose(ema[path], wanted, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- on meshes, and in checkpoints

VARIANTS = {
    "normuon": {
        "name": "muon",
        "muon_coefficients": "polar_express",
        "muon_normalize": True,
        "muon_cautious_decay": True,
        "ema_decay": 0.9,
        "betas": {"embed/*": [0.8, 0.99]},
    },
    "schedule_free": {"name": "schedule_free", "schedule": "constant"},
    "adamw": {"ema_decay": 0.99, "betas": {"layers/*": [0.8, 0.99]}, "weight_decays": {"*": 0.01}},
}
MODEL = TINY["cronica"][1] | dict(num_layers=1, vocab_size=64, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)


def recipe_of(name, **fields):
    return make_recipe(
        {
            "name": "m",
            "model": {"name": "cronica-5m", **MODEL},
            "data": {"source": "stories", "seq_len": 12, "batch_size": 8},
            "optimizer": {"peak_lr": 0.02, "warmup_steps": 2, **VARIANTS[name], **fields},
            "train": {"steps": 10},
        }
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_what_has_the_shape_of_a_parameter_lies_as_it_does(name):
    axes = (AxisType.Auto,) * 3
    mesh = AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=axes)
    recipe, spec = recipe_of(name), registry.describe("cronica-5m")
    _, abstract = build.abstract(spec.model_class(), recipe.model.make_config())
    params, shardings = nnx.to_pure_dict(abstract), param_shardings(abstract, mesh)
    tx = make_optimizer(recipe.optimizer, recipe.train.steps)
    shapes = {path: leaf.shape for path, leaf in build.flatten(jax.eval_shape(tx.init, params)).items()}
    placed = build.flatten(opt_state_shardings(tx, params, shardings, mesh))
    found = set()
    for path, sharding in build.flatten(shardings).items():
        alike = [key for key in placed if key.endswith(f"/{path}") and shapes[key] == build.flatten(params)[path].shape]
        assert len(alike) >= 2 and {placed[key].spec for key in alike} == {sharding.spec}, path
        found |= set(alike)
    assert any(placed[key].spec == P("fsdp", "tensor") for key in found)
    assert {shapes[key] for key in shapes.keys() - found} <= {(), (1, 32), (1, 48), (48, 1), (32, 1)}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(name, tmp_path):
    recipe = recipe_of(name)
    program = Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))
    step, tokens = program.step({}), np.random.default_rng(0).integers(0, 64, (8, 13)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((8, 12), np.float32)}

    def go_on(params, state, first, last):
        for number in range(first, last):
            params, state, metrics = step(params, state, batch, number)
        return params, state, metrics

    wanted = go_on(*program.create(), 0, 6)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, *go_on(*program.create(), 0, 3)[:2], {})
        checkpoints.wait()
        found = checkpoints.restore(program.params, program.opt_state)
        average = program.recipe.optimizer.average_field or "ema"
        read = checkpoints.restore_params(program.params, of_state=average).params
        jax.tree.map(np.testing.assert_array_equal, read, in_state(found.opt_state, average))
        with pytest.raises(UserError, match="holds an optimizer's state without momentum"):
            checkpoints.restore_params(program.params, of_state="momentum")
    resumed = go_on(found.params, found.opt_state, 3, 6)
    jax.tree.map(np.testing.assert_array_equal, resumed, wanted)


def test_what_the_state_depends_on_stays_for_a_run():
    def differences(name, **fields):
        return [line.partition(":")[0] for line in resume_diff(recipe_of(name), recipe_of(name, **fields))]

    assert differences("normuon", muon_normalize=False) == ["optimizer.muon_normalize"]
    assert differences("normuon", muon_coefficients="newton_schulz") == ["optimizer.muon_coefficients"]
    assert differences("normuon", ema_decay=None) == ["optimizer.ema_decay"]
    assert differences("schedule_free", schedule_free_b1=0.8) == ["optimizer.schedule_free_b1"]
    free = {"muon_b2": 0.8, "muon_cautious_decay": False, "betas": {}, "weight_decays": {"*": 0.1}}
    assert differences("normuon", **free, schedule="trapezoid", cooldown_fraction=0.3) == []


ON_EIGHT_DEVICES = """
    import sys
    sys.path.insert(0, {tests!r})
    import jax, numpy as np
    from jax.sharding import AxisType
    from test_optimizer_updates import VARIANTS, recipe_of
    from zoo.models import build
    from zoo.train.mesh import put_batch
    from zoo.train.optimizers import in_state
    from zoo.train.program import Program

    tokens = np.random.default_rng(0).integers(0, 64, (8, 13)).astype(np.int32)
    batch = {{"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((8, 12), np.float32)}}
    for name in VARIANTS:
        losses, averages = [], []
        for shape, devices in (((1, 1, 1), jax.devices()[:1]), ((1, 4, 2), jax.devices())):
            mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)
            program = Program(recipe_of(name), mesh)
            params, state = program.create()
            step, found = program.step({{}}), []
            for number in range(5):
                params, state, metrics = step(params, state, put_batch(batch, mesh), number)
                found.append(float(metrics["loss"]))
            losses.append(found)
            average = program.evaluated if name == "schedule_free" else program.ema
            averages.append(build.flatten(average(params, state)))
        for path, leaf in build.flatten(params).items():
            assert averages[1][path].sharding == leaf.sharding, path
            np.testing.assert_allclose(averages[0][path], averages[1][path], rtol=2e-4, atol=2e-5, err_msg=path)
        assert losses[0][-1] < losses[0][0] - 0.05, losses
        np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
    print("equal")
"""


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    code = textwrap.dedent(ON_EIGHT_DEVICES).format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
