"""The cache against a plain list of what every row has seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import kv_cache

HEADS, DIM = 2, 4


@pytest.fixture(params=[1, 3])
def batch(request):
    """One row is written by itself."""
    return request.param


def empty(batch, max_len, window=None):
    return kv_cache.init_cache(1, batch, max_len, HEADS, DIM, jnp.float32, windows=[window])


# A token's key is its number in the row, its value the number plus 100, in every feature.
def chunk(cache, width):
    number = np.asarray(cache.lengths)[:, None] + np.arange(width)
    keys = np.broadcast_to(number[:, :, None, None], (*number.shape, HEADS, DIM)).astype(np.float32)
    return jnp.asarray(keys), jnp.asarray(keys + 100)


@pytest.mark.parametrize("window", [None, 0, 2, 5, 40])
@pytest.mark.parametrize("widths", [(1,) * 14, (9, 1, 1, 3, 1), (3, 7, 1, 4), (13, 1)])
def test_each_token_sees_its_window_whatever_the_chunks(batch, window, widths):
    """Ragged rows in chunks: what a token may see is exactly the w tokens before it, and itself."""
    cache = empty(batch, 16, window)
    assert cache.k[0].shape[2] == min(16, 16 if window is None else window + 1)
    append = jax.jit(lambda cache, k, v, valid: cache.append(0, k, v, valid, window))
    rng = np.random.default_rng(0)
    for width in widths:
        counts = rng.integers(0, width + 1, batch)
        if batch > 1:
            counts[0] = width
        valid = np.arange(width) < counts[:, None]
        before = np.asarray(cache.lengths)
        k, v = chunk(cache, width)
        # What a pad holds must not matter: it is the largest number there is.
        k, v = (jnp.where(valid[:, :, None, None], x, 1e30) for x in (k, v))
        cache, keys, values, visible = append(cache, k, v, jnp.asarray(valid))
        for row in range(batch):
            for t in range(counts[row]):
                own = before[row] + t
                first = 0 if window is None else max(0, own - window)
                seen = np.asarray(visible)[row, 0, t]
                assert sorted(np.asarray(keys)[row, 0, seen, 0]) == list(range(first, own + 1))
                assert sorted(np.asarray(values)[row, 1, seen, 3]) == list(range(first + 100, own + 101))
        cache = cache.advance(jnp.asarray(valid))
        assert np.asarray(cache.lengths).tolist() == (before + counts).tolist()
        assert np.abs(np.asarray(cache.k[0])).max() < 1e30  # no pad was written


@pytest.mark.parametrize("widths", [(5,), (1, 1, 1, 1, 1)])
def test_tokens_beyond_the_last_slot_are_dropped(batch, widths):
    cache = empty(batch, 3)
    for width in widths:
        valid = jnp.ones((batch, width), bool)
        cache, *_ = cache.append(0, *chunk(cache, width), valid)
        cache = cache.advance(valid)
    np.testing.assert_array_equal(cache.k[0][-1, 0, :, 0], [0, 1, 2])
    np.testing.assert_array_equal(cache.v[0][-1, 0, :, 0], [100, 101, 102])


def test_cache_is_a_pytree_with_a_static_length_and_advances_by_the_valid_tokens():
    cache = kv_cache.init_cache(2, 3, 5, 1, 4, jnp.bfloat16, windows=[None, 1], carry=jnp.zeros((3, 8)))
    assert len(jax.tree.leaves(cache)) == 6 and cache.max_len == 5
    assert [k.shape for k in cache.k] == [(3, 1, 5, 4), (3, 1, 2, 4)]
    advanced = jax.jit(lambda c, valid: c.advance(valid))(cache, jnp.array([[1, 1], [1, 0], [0, 0]], bool))
    np.testing.assert_array_equal(advanced.lengths, [2, 1, 0])
    assert advanced.max_len == 5


def test_last_valid():
    x = jnp.arange(12.0).reshape(3, 4, 1)
    valid = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    found = kv_cache.last_valid(x, valid, jnp.full((3, 1), -1.0))
    np.testing.assert_array_equal(found[:, 0], [1, 7, -1])
