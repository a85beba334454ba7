"""Each layer against a few lines of float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import attention_kernels, kv_cache
from zoo.layers.attention_kernels import attention
from zoo.layers.embedding import unembed
from zoo.layers.initializers import truncated_normal, zeros
from zoo.layers.linear import Linear
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import RMSNorm
from zoo.layers.rotary import rotary_tables, rotate_interleaved, rotate_split_half

KEY = jax.random.key(7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def reference_attention(q, k, v, allowed):
    """q [B,T,N,H], k and v [B,S,K,H], allowed broadcastable to [B,N,T,S]; float64."""
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def close(actual, expected, tolerance=2e-6):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def test_linear_with_and_without_bias():
    x = normal(2, 3, 5)
    plain = Linear(5, 4, axes=("embed", "mlp"), key=KEY, init=truncated_normal(1.0))
    close(plain(f32(x)), x @ np.asarray(plain.kernel[...], np.float64))
    biased = Linear(5, 4, axes=("embed", "mlp"), bias=True, key=KEY, init=zeros)
    biased.bias[...] = f32(np.arange(4.0))
    close(biased(f32(x)), np.broadcast_to(np.arange(4.0), (2, 3, 4)))


def test_truncated_normal_is_cut_and_not_rescaled():
    draw = np.asarray(truncated_normal(0.02)(KEY, (200, 200)))
    assert np.abs(draw).max() <= 0.04
    assert draw.std() == pytest.approx(0.0176, rel=0.01)  # 0.88 of the nominal deviation


def test_rms_norm():
    x, scale = normal(2, 3, 8) * 1e-2, normal(8, seed=1)
    norm = RMSNorm(8, 1e-4)
    norm.scale[...] = f32(scale)
    close(norm(f32(x)), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale)


def test_rms_norm_squares_in_float32_when_computing_in_bfloat16():
    # Rows of one repeated number: a square rounded to bfloat16 would move some of the roots by a unit.
    x = jnp.broadcast_to(jnp.linspace(1, 2, 64).astype(jnp.bfloat16)[:, None], (64, 8))
    value = np.asarray(x, np.float32)
    inverse = (1 / np.sqrt(np.square(value.astype(np.float64)) + 1e-6)).astype(jnp.bfloat16)
    out = RMSNorm(8, 1e-6)(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, (value * inverse.astype(np.float32)).astype(jnp.bfloat16))


def test_swiglu():
    mlp = SwiGLU(6, 10, keys=jax.random.split(KEY, 3), init=truncated_normal(0.5))
    gate, up, down = (np.asarray(p.kernel[...], np.float64) for p in (mlp.gate, mlp.up, mlp.down))
    x = normal(2, 3, 6)
    g = x @ gate
    close(mlp(f32(x)), (g / (1 + np.exp(-g)) * (x @ up)) @ down)


@pytest.mark.parametrize("rotate", [rotate_interleaved, rotate_split_half])
def test_rotary(rotate):
    x = normal(2, 5, 3, 8)
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 300, 301, 0]])
    cos, sin = rotary_tables(jnp.asarray(positions), 8, 100.0, jnp.float32)
    assert cos.shape == (2, 5, 4)
    angles = positions[..., None] * 100.0 ** (-np.arange(4) / 4)
    pairs = x.reshape(2, 5, 3, 4, 2) if rotate is rotate_interleaved else np.stack([x[..., :4], x[..., 4:]], -1)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, :, None]
    if rotate is rotate_interleaved:
        expected = np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    else:
        expected = np.concatenate([turned.real, turned.imag], -1)
    close(rotate(f32(x), cos[:, :, None], sin[:, :, None]), expected, 2e-5)


def test_rotary_tables_tell_far_positions_apart_in_bfloat16():
    cos, _ = rotary_tables(jnp.array([256, 257]), 8, 10000.0, jnp.bfloat16)
    assert cos.dtype == jnp.bfloat16
    assert float(cos[0, 0]) != float(cos[1, 0])


# With segment ids (of a single segment) the same numbers come by the other of the two ways through `attention`.
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length,window", [(9, None), (9, 3), (21, None), (21, 4), (21, 0)])
def test_causal_attention(monkeypatch, heads, kv_heads, length, window, segmented):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)  # so that 21 queries make three blocks
    q, k, v = (
        normal(2, length, heads, 6),
        normal(2, length, kv_heads, 6, seed=1),
        normal(2, length, kv_heads, 6, seed=2),
    )
    distance = np.arange(length)[:, None] - np.arange(length)
    allowed = (distance >= 0) & (distance <= (length if window is None else window))
    ids = jnp.ones((2, length), jnp.int32) if segmented else None
    out = jax.jit(partial(attention, causal=True, window=window, segment_ids=ids))(f32(q), f32(k), f32(v))
    close(out, reference_attention(q, k, v, allowed))


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_causal_attention_gradients(monkeypatch, window, segmented):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 8)
    q, k, v = (f32(normal(2, 19, 4 if i == 0 else 2, 6, seed=i)) for i in range(3))
    weight = f32(normal(2, 19, 4, 6, seed=3))

    def plain(q, k, v):
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(6.0)
        allowed = jnp.tril(jnp.ones((19, 19), bool)) & ~jnp.tril(jnp.ones((19, 19), bool), -1 - (window or 19))
        scores = jnp.where(allowed, scores, -jnp.inf)
        return jnp.sum(jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v) * weight)

    def blocked(*qkv):
        ids = jnp.ones((2, 19), jnp.int32) if segmented else None
        return jnp.sum(attention(*qkv, causal=True, window=window, segment_ids=ids) * weight)

    actual = jax.jit(jax.grad(blocked, argnums=(0, 1, 2)))(q, k, v)
    for a, e in zip(actual, jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(q, k, v), strict=True):
        close(a, e, 1e-5)


def test_segments_of_causal_attention(monkeypatch):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 4)
    q, k, v = (normal(2, 10, 2, 6, seed=i) for i in range(3))
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1] * 9 + [0]])
    allowed = np.tril(np.ones((10, 10), bool)) & (segments[:, :, None] == segments[:, None])
    out = jax.jit(partial(attention, causal=True, segment_ids=jnp.asarray(segments)))(f32(q), f32(k), f32(v))
    close(out, reference_attention(q, k, v, allowed[:, None]))


def test_masked_attention_over_other_keys():
    q, k, v = normal(2, 3, 4, 6), normal(2, 7, 2, 6, seed=1), normal(2, 7, 2, 6, seed=2)
    mask = np.random.default_rng(3).random((2, 1, 3, 7)) < 0.5
    mask[..., 0] = True
    out = attention(f32(q), f32(k), f32(v), causal=False, mask=jnp.asarray(mask))
    close(out, reference_attention(q, k, v, mask))


def test_attention_gives_numbers_where_nothing_is_allowed():
    q, k, v = (f32(normal(1, 2, 2, 4, seed=i)) for i in range(3))
    out = attention(q, k, v, causal=False, mask=jnp.zeros((1, 1, 2, 2), bool))
    assert np.isfinite(np.asarray(out)).all()


def test_scores_of_bfloat16_attention_are_float32():
    # One shared feature lifts all scores by 64, where bfloat16 numbers stand 0.5 apart.
    q, k, v = (jnp.asarray(normal(1, 24, 1, 16, seed=i), jnp.bfloat16) for i in range(3))
    q, k = q.at[..., 0].set(16.0), k.at[..., 0].set(16.0)
    out = attention(q, k, v, causal=True)
    assert out.dtype == jnp.bfloat16
    exact = reference_attention(*(np.asarray(x, np.float64) for x in (q, k, v)), np.tril(np.ones((24, 24), bool)))
    error = np.asarray(out, np.float64) - exact
    assert np.sqrt((error**2).mean()) < 0.005 * np.abs(exact).max()


def test_cache_writes_only_tokens_into_each_rows_own_slots():
    lengths = jnp.array([0, 3], jnp.int32)
    valid = jnp.array([[True, True, False], [True, False, False]])
    slots = kv_cache.write_slots(lengths, valid, 6)
    new = f32(np.arange(1.0, 7.0).reshape(2, 3, 1, 1))
    buffer = kv_cache.write(f32(np.full((2, 1, 6, 1), -1.0)), new, slots)
    np.testing.assert_array_equal(buffer[:, 0, :, 0], [[1, 2, -1, -1, -1, -1], [-1, -1, -1, 4, -1, -1]])
    seen = kv_cache.visible(lengths, 2, 6)
    np.testing.assert_array_equal(seen[:, 0].sum(-1), [[1, 2], [4, 5]])


def test_cache_is_a_pytree_and_advances_by_the_valid_tokens():
    cache = kv_cache.init_cache(2, 3, 5, 1, 4, jnp.bfloat16)
    assert len(jax.tree.leaves(cache)) == 5 and cache.max_len == 5
    advanced = jax.jit(lambda c, valid: c.advance(valid))(cache, jnp.array([[1, 1], [1, 0], [0, 0]], bool))
    np.testing.assert_array_equal(advanced.lengths, [2, 1, 0])


def test_unembed_with_bias_and_softcap():
    h, kernel, bias = normal(2, 3, 4), normal(4, 5, seed=1), normal(5, seed=2)
    close(unembed(f32(h), f32(kernel)), h @ kernel)
    close(unembed(f32(h), f32(kernel), f32(bias), 3.0), 3 * np.tanh((h @ kernel + bias) / 3))
    assert unembed(jnp.asarray(h, jnp.bfloat16), f32(kernel)).dtype == jnp.float32
