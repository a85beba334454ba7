"""How parameters start: every tensor's distribution at full width, and the seed."""

import math

import jax
import numpy as np
import pytest

from zoo import registry
from zoo.models import build

# Full width, but as few layers and vocabulary rows as show every kind of tensor.
SMALL = {"vocab_size": 640, "num_layers": 2}


def created(name, seed=0, **overrides):
    spec = registry.describe(name)
    config = spec.make_config(**{**SMALL, **overrides})
    _, params = build.create_params(spec.model_class(), config, seed)
    return {path: np.asarray(leaf) for path, leaf in build.flatten(params).items()}


def is_normal(x, std, cut=None):
    """Gaussian of that deviation; with `cut`, one truncated at cut deviations of the parent."""
    assert abs(x.mean()) < 5 * std / math.sqrt(x.size)
    assert x.std() == pytest.approx(std, rel=0.02)
    kurtosis = (x**4).mean() / (x**2).mean() ** 2
    if cut is None:
        assert kurtosis == pytest.approx(3, abs=0.1) and np.abs(x).max() > 3.2 * std
    else:
        # A normal cut at two of its deviations has a kurtosis of 2.37 and 0.8796 of the parent's deviation.
        assert kurtosis == pytest.approx(2.37, abs=0.05) and np.abs(x).max() <= cut * std / 0.8796 * 1.0001


def is_uniform(x, low, high):
    assert low <= x.min() and x.max() <= high
    assert x.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * x.size))
    assert x.std() == pytest.approx((high - low) / math.sqrt(12), rel=max(0.02, 1.5 / math.sqrt(x.size)))


def test_cronica():
    for path, x in created("cronica-5m").items():
        if path.endswith("scale"):
            assert (x == 1).all()
        else:
            is_normal(x, 0.02 * 0.8796, cut=2)


@pytest.mark.slow
def test_kodalite():
    flat = created("kodalite-1.3b")
    assert {path for path in flat if path.startswith("lm_head")} == {"lm_head/kernel"}
    for path, x in flat.items():
        if path.endswith("scale"):
            assert (x == 1).all()
        elif path == "embed/embedding":
            is_normal(x, 2048**-0.5)
        else:
            is_normal(x, x.shape[0] ** -0.5, cut=2)


def test_bwetaf():
    for path, x in created("bwetaf-97m").items():
        if path.endswith("scale"):
            assert (x == 1).all()
        elif path.endswith("bias"):
            assert (x == 0).all()
        else:
            is_normal(x, 0.02 if path == "embed/embedding" else 0.002)


@pytest.mark.parametrize("name", ["gelu-d12", "nanochat-d12"])
def test_nanochat(name):
    flat = created(name, num_layers=3)
    width = math.sqrt(3 / 768)
    for path, x in flat.items():
        last = path.split("/")[-2:]
        if path == "embed/embedding":
            is_normal(x, 0.8)
        elif path == "lm_head/kernel":
            is_normal(x, 0.001)
        elif last[0] in ("q", "k", "v"):
            is_uniform(x, -width, width)
        elif last[0] in ("o", "down"):
            assert (x == 0).all()
        elif last[0] == "up":
            is_uniform(x, -0.4 * width, 0.4 * width)
        elif last[0] == "value_gate":
            is_uniform(x, 0, 0.02)
        elif last[0] == "value_embed":
            is_uniform(x, -width, width)
    assert ("lm_head/kernel" in flat) == (name == "nanochat-d12")
    assert np.allclose([flat[f"layers/{i}/blend/residual_scale"] for i in range(3)], [1.15, 1.10, 1.05])
    assert np.allclose([flat[f"layers/{i}/blend/x0_scale"] for i in range(3)], [0.20, 0.125, 0.05])
    assert flat["smear/scale"] == 0 and flat["backout/scale"] == np.float32(0.2)
    assert {path for path in flat if "value_embed" in path} == {f"layers/{i}/value_embed/embedding" for i in (0, 2)}
    # 24 numbers tell little: many draws of the smear's gate, by what draws it.
    from zoo.layers.initializers import lecun_normal

    draws = jax.vmap(lambda key: lecun_normal(key, (24, 1)))(jax.random.split(jax.random.key(0), 4000))
    is_normal(np.asarray(draws), 24**-0.5, cut=2)


def test_tiny():
    flat = created("tiny-lm", vocab_size=2000)
    for path, x in flat.items():
        if "norm" in path:
            assert (x == (0 if path.endswith("bias") else 1)).all()
        elif path in ("embed/embedding", "position/embedding"):
            is_normal(x, 1.0) if x.size > 10_000 else is_normal_roughly(x)
        else:
            fan_in = 256 if "mlp/down" in path else 64
            is_uniform(x, -(fan_in**-0.5), fan_in**-0.5)


def is_normal_roughly(x):
    assert abs(x.mean()) < 0.15 and x.std() == pytest.approx(1, rel=0.1) and np.abs(x).max() > 2.5


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "gelu-d12" else pytest.mark.slow) for name in registry.list_models()],
)
def test_the_seed_is_honoured(name):
    small = dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=2, head_dim=16, mlp_dim=64)
    fields = registry.describe(name).make_config().to_dict()
    small |= {"num_kv_heads": 2} if "num_kv_heads" in fields else {}
    one, again, other = (created(name, seed, **small) for seed in (0, 0, 1))
    drawn = {path for path, x in one.items() if x.size > 1 and x.std() > 0}
    assert any(path.startswith("layers/1/") for path in drawn)
    for path, x in one.items():
        np.testing.assert_array_equal(x, again[path])
        assert np.array_equal(x, other[path]) == (path not in drawn), path
    # No two tensors, nor two layers, share their numbers.
    starts = [x.ravel()[:8].round(6).tobytes() for path, x in one.items() if path in drawn and x.size >= 8]
    assert len(set(starts)) == len(starts)
