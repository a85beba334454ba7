"""Which kernel computes attention where, and that each computes attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from tiny_models import TINY

from zoo.layers import attention_accelerators
from zoo.layers.attention_accelerators import splash_attention
from zoo.layers.attention_kernels import attention, attention_kernel, recorded_kernels
from zoo.recipe import make_recipe
from zoo.train.mesh import make_mesh
from zoo.train.program import Program

SHAPE = {"length": 1024, "head_dim": 64, "dtype": jnp.bfloat16}


def chosen(platform, kind, devices=1, **changes):
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    types = (AxisType.Auto,) * 3
    mesh = AbstractMesh((devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return attention_kernel(**{**SHAPE, **changes})


@pytest.mark.parametrize(
    ("platform", "kind", "changes", "expected"),
    [
        ("gpu", "NVIDIA H200", {}, "cudnn"),
        ("gpu", "NVIDIA H200", {"segmented": True}, "cudnn"),
        ("gpu", "NVIDIA H200", {"length": 1023}, "cudnn"),
        ("gpu", "NVIDIA H200", {"length": 1023, "segmented": True}, "xla (1023 tokens in segments"),
        ("gpu", "NVIDIA H200", {"dtype": jnp.float32}, "xla (float32;"),
        ("gpu", "NVIDIA H200", {"head_dim": 20}, "xla (heads of 20;"),
        ("gpu", "NVIDIA H200", {"softmax_dtype": jnp.bfloat16}, "xla (the softmax is to be rounded to bfloat16)"),
        ("gpu", "NVIDIA H200", {"plain": False}, "xla (a mask of its own)"),
        ("tpu", "TPU v6 lite", {}, "splash"),
        ("tpu", "TPU v4", {"segmented": True, "devices": 8}, "splash"),
        ("tpu", "TPU v6 lite", {"length": 1000}, "xla (1000 tokens;"),
        ("tpu", "TPU v6 lite", {"dtype": jnp.float32}, "xla (float32;"),
        ("tpu", "TPU v3", {}, "xla (TPU v3;"),
        ("cpu", "cpu", {"dtype": jnp.float32}, "cpu"),
        ("cpu", "cpu", {"devices": 8}, "xla (several CPU devices)"),
        ("cpu", "cpu", {"segmented": True}, "xla (segments)"),
    ],
)
def test_the_kernel_is_chosen_by_platform_and_shape(platform, kind, changes, expected):
    assert str(chosen(platform, kind, **changes)).startswith(expected)


def test_without_a_mesh_it_is_the_default_device_that_counts():
    assert attention_kernel(**SHAPE).name == "cpu"


@pytest.mark.parametrize(("name", "expected"), [("llama", ["cpu"]), ("gelu", ["cpu"])])
def test_a_program_says_what_computes_its_attention(name, expected):
    registered, fields = TINY[name]
    recipe = make_recipe(
        {"name": "x", "model": {"name": registered, **fields}, "tokenizer": {"vocab_size": 40}}
        | {"data": {"source": "stories", "seq_len": 5, "batch_size": 2}}
    )
    program = Program(recipe, make_mesh(recipe.mesh))
    assert list(map(str, program.attention_kernels)) == expected


def test_kernels_are_recorded_once_each():
    x = jnp.ones((1, 4, 2, 8))
    with recorded_kernels() as kernels:
        attention(x, x, x, causal=True)
        attention(x, x, x, causal=True, window=2)
        attention(x, x, x, causal=True, segment_ids=jnp.ones((1, 4), jnp.int32))
    assert [kernel.name for kernel in kernels] == ["cpu", "xla"]


# Emulated, at the smallest block the kernel takes.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window", "segmented"),
    [
        (2, 2, 64, None, False),
        (4, 2, 64, 100, False),
        pytest.param(2, 1, 96, None, True, marks=pytest.mark.slow),
    ],
)
def test_splash_attention_is_attention(monkeypatch, heads, kv_heads, head_dim, window, segmented):
    monkeypatch.setattr(attention_accelerators, "SPLASH_BLOCKS", (128,))
    length, rng = 256, np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads))
    ids = jnp.asarray(np.sort(rng.integers(1, 4, (2, length))), jnp.int32) if segmented else None
    weights = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def both(function):
        def loss(q, k, v):
            out = function(q, k, v)
            return jnp.sum(out * weights), out

        (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    found = both(lambda q, k, v: splash_attention(q, k, v, window=window, segment_ids=ids, interpret=True))
    expected = both(lambda q, k, v: attention(q, k, v, causal=True, window=window, segment_ids=ids))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))
