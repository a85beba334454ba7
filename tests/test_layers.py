"""Each layer against a few lines of float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import attention_kernels, segments
from zoo.layers.attention import Attention
from zoo.layers.attention_kernels import attention
from zoo.layers.cpu import product
from zoo.layers.dropout import dropout
from zoo.layers.embedding import Embedding, Head, unembed
from zoo.layers.initializers import truncated_normal, zeros
from zoo.layers.linear import Linear, outputs
from zoo.layers.mlp import MLP, FusedSwiGLU, SwiGLU
from zoo.layers.norm import LayerNorm, RMSNorm
from zoo.layers.residual import Backout, ResidualBlend, Smear, previous_in_row
from zoo.layers.rotary import ntk_theta, rotary_tables, rotate_full_width, rotate_interleaved, rotate_split_half
from zoo.layers.softcap import softcap

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


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("features", [8, 10, 200])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_one_row_and_of_several(rows, features, dtype):
    """One row's sum is taken in pieces, and rounded once, where its features can be dealt out evenly."""
    x, kernel = (jnp.asarray(y, dtype) for y in (normal(rows, features), normal(features, 6, seed=1)))
    found = product(x, kernel)
    assert found.dtype == dtype and found.shape == (rows, 6)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(f32(found), exact, rtol=2**-8 if dtype == "bfloat16" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_are_what_each_projection_gives(monkeypatch, rows, bias):
    options = dict(axes=("embed", "heads"), init=truncated_normal(1.0), bias=bias, bias_init=truncated_normal(1.0))
    linears = [Linear(8, size, key=jax.random.key(size), **options) for size in (12, 4, 6)]
    x = jnp.asarray(normal(rows, 1, 8), jnp.float32)
    joined = []
    monkeypatch.setattr("zoo.layers.cpu.product", lambda x, kernel: joined.append(kernel.shape) or product(x, kernel))
    found = outputs(x, linears)
    assert joined == ([(8, 22)] if rows == 1 and not bias else [(8, 12), (8, 4), (8, 6)])
    for y, linear in zip(found, linears, strict=True):
        close(y, linear(x))


def test_truncated_normal_is_cut_and_not_rescaled():
    draw = np.asarray(truncated_normal(0.02)(KEY, (200, 200)))
    assert np.abs(draw).max() <= 0.04
    assert draw.std() == pytest.approx(0.0176, rel=0.01)  # 0.88 of the nominal deviation


def test_rms_norm():
    x, scale = normal(2, 3, 8) * 1e-2, normal(8, seed=1)
    norm = RMSNorm(8, 1e-4)
    norm.scale[...] = f32(scale)
    close(norm(f32(x)), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale)


def test_rms_norm_is_float32_inside_when_computing_in_bfloat16():
    # Rows of one repeated number: a square or a root rounded to bfloat16 would move some of the results by a unit.
    x = jnp.broadcast_to(jnp.linspace(1, 2, 64).astype(jnp.bfloat16)[:, None], (64, 8))
    value = np.asarray(x, np.float64)
    out = RMSNorm(8, 1e-2)(x)
    assert out.dtype == jnp.bfloat16
    exact = value / np.sqrt(np.square(value) + 1e-2)
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
    as_computed = RMSNorm(8, 1e-2, float32=False)(x)
    assert np.abs(np.asarray(as_computed, np.float64) - exact).max() > np.abs(np.asarray(out, np.float64) - exact).max()


def test_rms_norm_in_the_dtype_of_x_rounds_at_every_turn():
    x = jnp.asarray(normal(3, 16), jnp.bfloat16)

    def half(value):
        return np.asarray(value, np.float64).astype(jnp.bfloat16).astype(np.float64)

    wide = half(x)
    root = half(np.sqrt(half(half(half(wide**2).mean(-1, keepdims=True)) + half(1e-3))))
    expected = half(wide / root)
    for call in (RMSNorm(16, 1e-3, float32=False), jax.jit(RMSNorm(16, 1e-3, float32=False))):
        np.testing.assert_array_equal(np.asarray(call(x), np.float64), expected)
    close(RMSNorm(16, 1e-3, float32=False)(f32(wide)), RMSNorm(16, 1e-3)(f32(wide)))  # where x is float32: no rounding


def test_layer_norm():
    x, scale, bias = normal(2, 3, 8) * 1e-2 + 3, normal(8, seed=1), normal(8, seed=2)
    norm = LayerNorm(8, 1e-4)
    norm.scale[...], norm.bias[...] = f32(scale), f32(bias)
    centred = x - x.mean(-1, keepdims=True)
    close(norm(f32(x)), centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-4) * scale + bias, 1e-4)


def test_swiglu():
    mlp = SwiGLU(6, 10, keys=jax.random.split(KEY, 3), init=truncated_normal(0.5))
    gate, up, down = (np.asarray(p.kernel[...], np.float64) for p in (mlp.gate, mlp.up, mlp.down))
    x = normal(2, 3, 6)
    g = x @ gate
    close(mlp(f32(x)), (g / (1 + np.exp(-g)) * (x @ up)) @ down)


def test_fused_swiglu_has_up_before_gate_and_biases():
    mlp = FusedSwiGLU(6, 10, keys=jax.random.split(KEY, 2), init=truncated_normal(0.5))
    biases = normal(20, seed=1), normal(6, seed=2)
    mlp.up_gate.bias[...], mlp.down.bias[...] = f32(biases[0]), f32(biases[1])
    x = normal(2, 3, 6)
    both = x @ np.asarray(mlp.up_gate.kernel[...], np.float64) + biases[0]
    up, gate = both[..., :10], both[..., 10:]
    close(mlp(f32(x)), (gate / (1 + np.exp(-gate)) * up) @ np.asarray(mlp.down.kernel[...], np.float64) + biases[1])


def reference_gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    "activation,reference",
    [
        ("gelu_tanh", reference_gelu_tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("relu_squared", lambda x: np.maximum(x, 0) ** 2),
    ],
)
def test_plain_mlp(activation, reference):
    draw = truncated_normal(0.5)
    mlp = MLP(6, 10, activation=activation, keys=jax.random.split(KEY, 2), init=draw, bias_inits=(draw, draw))
    up, up_bias, down, down_bias = (
        np.asarray(p[...], np.float64) for p in (mlp.up.kernel, mlp.up.bias, mlp.down.kernel, mlp.down.bias)
    )
    assert np.abs(up_bias).min() > 0 and np.abs(down_bias).min() > 0
    x = normal(2, 3, 6)
    close(mlp(f32(x)), reference(x @ up + up_bias) @ down + down_bias)


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


def test_rotary_tables_in_bfloat16_lose_positions_beyond_256():
    positions = jnp.arange(1024)
    exact, _ = rotary_tables(positions, 64, 10000.0)
    cos, sin = jax.jit(lambda p: rotary_tables(p, 64, 10000.0, jnp.bfloat16))(positions)
    assert cos.dtype == sin.dtype == jnp.bfloat16
    np.testing.assert_array_equal(cos[257], cos[256])
    assert float(exact[257, 0]) != float(exact[256, 0])
    assert len(np.unique(np.asarray(cos, np.float32), axis=0)) == 513  # as the weights' trainer found

    def half(value):
        return np.asarray(value, np.float32).astype(jnp.bfloat16).astype(np.float32)

    frequencies = half(10000.0 ** (-np.arange(32) / 32))
    angles = half(half(np.arange(1024))[:, None] * frequencies)
    assert np.abs(np.asarray(cos, np.float32) - half(np.cos(angles))).max() <= 2**-8
    assert np.abs(np.asarray(sin, np.float32) - half(np.sin(angles))).max() <= 2**-8


def test_split_half_leaves_an_odd_last_feature_alone_and_turns_the_other_way_with_negated_sines():
    x = f32(normal(2, 5, 7))
    cos, sin = rotary_tables(jnp.arange(5)[None], 7, 100.0)
    there = rotate_split_half(x, cos, sin)
    np.testing.assert_array_equal(there[..., 6], x[..., 6])
    close(rotate_split_half(there, cos, -sin), x, 1e-6)


def test_full_width_rotation_gives_each_head_its_own_frequencies():
    heads = normal(2, 5, 3, 4)
    cos, sin = rotary_tables(jnp.arange(5)[None], 12, 100.0)
    angles = np.arange(5)[:, None] * 100.0 ** (-np.arange(6) / 6)
    wide = heads.reshape(2, 5, 12)
    turned = (wide[..., :6] + 1j * wide[..., 6:]) * np.exp(1j * angles)
    close(rotate_full_width(f32(heads), cos, sin), np.concatenate([turned.real, turned.imag], -1).reshape(heads.shape))


def test_ntk_base_divides_the_lowest_frequency_by_the_factor_and_keeps_the_highest():
    width, factor = 64, 2.0
    theta = ntk_theta(10000.0, factor, width)

    def frequency(base, i):
        return base ** (-2 * i / width)

    assert frequency(theta, 0) == frequency(10000.0, 0)
    assert frequency(theta, width // 2 - 1) == pytest.approx(frequency(10000.0, width // 2 - 1) / factor)
    assert ntk_theta(10000.0, 1.0, width) == 10000.0


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


def test_unembed_with_bias_and_softcap():
    h, kernel, bias = normal(2, 3, 4), normal(4, 5, seed=1), normal(5, seed=2)
    close(unembed(f32(h), f32(kernel)), h @ kernel)
    close(unembed(f32(h), f32(kernel), f32(bias), 3.0), 3 * np.tanh((h @ kernel + bias) / 3))
    assert unembed(jnp.asarray(h, jnp.bfloat16), f32(kernel)).dtype == jnp.float32


def test_softcap_bounds_and_is_the_identity_near_zero():
    x = normal(50) * 100
    close(softcap(f32(x), 15.0), 15 * np.tanh(x / 15), 2e-6)
    assert float(softcap(f32(1e-3), 15.0)) == pytest.approx(1e-3, rel=1e-6)


def test_head_and_table_leave_their_padding_out():
    head = Head(4, 8, bias=True, key=KEY, init=truncated_normal(1.0), bias_init=truncated_normal(1.0))
    kernel, bias = head.as_head(5)
    np.testing.assert_array_equal(kernel, head.kernel[...][:, :5])
    np.testing.assert_array_equal(bias, head.bias[...][:5])
    table = Embedding(8, 4, key=KEY, init=truncated_normal(1.0))
    np.testing.assert_array_equal(table.as_head(5), table.embedding[...][:5].T)
    assert table.as_head().shape == (4, 8)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = jnp.ones((200, 500))
    out = np.asarray(dropout(x, 0.2, KEY))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.8)}
    assert (out == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert dropout(x, 0.2, None) is x and dropout(x, 0.0, KEY) is x
    assert not np.array_equal(out, dropout(x, 0.2, jax.random.key(8)))


def test_segments():
    ids = jnp.array([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(segments.positions_within(ids), [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]])
    x = f32(np.arange(1.0, 15.0).reshape(2, 7, 1))
    previous = segments.previous_within(x, ids)[..., 0]
    np.testing.assert_array_equal(previous, [[0, 1, 0, 3, 4, 0, 6], [0, 8, 9, 10, 11, 12, 13]])


def test_a_separator_closes_its_own_document():
    tokens = jnp.array([[5, 0, 6, 7, 0, 0, 8], [0, 1, 2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(segments.split_at(tokens, 0), [[1, 1, 2, 2, 2, 3, 4], [1, 2, 2, 2, 2, 2, 2]])


def test_smear_adds_the_gated_token_before():
    smear = Smear(3, key=KEY, init=truncated_normal(1.0))
    assert float(smear.scale[...]) == 0
    smear.scale[...] = f32(0.7)
    x = normal(2, 5, 6)
    gate = np.asarray(smear.gate.kernel[...], np.float64)
    previous = np.concatenate([np.zeros((2, 1, 6)), x[:, :-1]], axis=1)
    expected = x + 0.7 / (1 + np.exp(-x[..., :3] @ gate)) * previous
    close(smear(f32(x), previous_in_row(f32(x))), expected)
    ids = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
    apart = smear(f32(x), previous_in_row(f32(x), ids))
    close(apart[0, 2], x[0, 2])
    close(apart[1], expected[1])
    carried = previous_in_row(f32(x), carry=f32(np.full((2, 6), 9.0)))
    np.testing.assert_array_equal(carried[:, 0], np.full((2, 6), 9.0))
    np.testing.assert_array_equal(carried[:, 1:], f32(x[:, :-1]))


def test_residual_blend_and_backout():
    x, x0 = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    close(ResidualBlend(1.1, 0.2)(f32(x), f32(x0)), 1.1 * x + 0.2 * x0)
    close(ResidualBlend(None, 0.2)(f32(x), f32(x0)), x + 0.2 * x0)
    close(ResidualBlend(1.1, None)(f32(x), f32(x0)), 1.1 * x)
    close(Backout(0.3)(f32(x), f32(x0)), x - 0.3 * x0)


def test_residual_scalars_act_in_float32():
    x = jnp.full((1, 1, 1), 1.0, jnp.bfloat16)
    assert float(ResidualBlend(1.0, 0.0078)(x, x)[0, 0, 0]) == float(jnp.bfloat16(1.0078))


def rotation(positions, width):
    cos, sin = rotary_tables(positions, width, 100.0)
    return partial(rotate_split_half, cos=cos[:, :, None], sin=sin[:, :, None])


def test_attention_with_biases_norms_and_value_embeddings():
    """Everything an attention layer can have at once, by the equations."""
    draw = truncated_normal(0.7)
    layer = Attention(
        12,
        4,
        2,
        6,
        keys=jax.random.split(KEY, 4),
        init=draw,
        bias=True,
        out_bias=True,
        bias_init=draw,
        qk_norm_scale=1.2,
        qk_norm_eps=1e-3,
        value_gate_features=5,
        value_gate_init=draw,
    )
    x, value_embeds = normal(2, 7, 12), normal(2, 7, 12, seed=1)
    positions = np.arange(7)

    def project(linear, source):
        return source @ np.asarray(linear.kernel[...], np.float64) + (
            np.asarray(linear.bias[...], np.float64) if linear.has_bias else 0
        )

    def turned_and_normal(y):
        angles = positions[:, None] * 100.0 ** (-np.arange(3) / 3)
        z = (y[..., :3] + 1j * y[..., 3:]) * np.exp(1j * angles)[:, None]
        y = np.concatenate([z.real, z.imag], -1)
        return 1.2 * y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3)

    q = turned_and_normal(project(layer.q, x).reshape(2, 7, 4, 6))
    k = turned_and_normal(project(layer.k, x).reshape(2, 7, 2, 6))
    gate = 3 / (1 + np.exp(-project(layer.value_gate, x[..., :5])))
    v = project(layer.v, x).reshape(2, 7, 2, 6) + gate[..., None] * value_embeds.reshape(2, 7, 2, 6)
    distance = positions[:, None] - positions
    heads = reference_attention(q, k, v, (distance >= 0) & (distance <= 3))
    out, cache = layer(f32(x), rotation(jnp.arange(7)[None], 6), window=3, value_embeds=f32(value_embeds))
    close(out, project(layer.o, heads.reshape(2, 7, 24)), 5e-6)
    assert cache is None


def test_softmax_in_the_dtype_of_x_rounds_at_every_turn():
    def half(value):
        return np.asarray(value, np.float64).astype(jnp.bfloat16).astype(np.float64)

    q, k, v = (jnp.asarray(normal(1, 9, 1, 8, seed=i) * 2, jnp.bfloat16) for i in range(3))
    a, b, c = (half(x)[0, :, 0] for x in (q, k, v))
    scores = np.where(np.tril(np.ones((9, 9), bool)), half(half(a @ b.T) / half(np.sqrt(8))), -np.inf)
    weights = half(np.exp(half(scores - scores.max(-1, keepdims=True))))
    weights = half(weights / half(weights.sum(-1, keepdims=True)))
    out = jax.jit(partial(attention, causal=True, softmax_dtype=jnp.bfloat16))(q, k, v)
    error = np.abs(np.asarray(out, np.float64)[0, :, 0] - half(weights @ c))
    plain = np.abs(np.asarray(attention(q, k, v, causal=True), np.float64)[0, :, 0] - half(weights @ c))
    assert error.mean() < 0.3 * plain.mean() and plain.mean() > 0
