"""Schedules and optimizers: what each field of the `optimizer` section does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import UserError
from zoo.recipe import OptimizerSection, make_recipe, resume_diff
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
        ({"schedule": "linear"}, ["optimizer.schedule", "cosine"]),
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
