"""Causal attention over whole rows on one CPU.

It takes a few kv heads at a time, so that a block of scores stays in the cores' own caches, and the backward pass
computes the weights again from the log of each query's sum (Dao et al., arXiv:2205.14135). With 8 rows of 768 it takes
0.8 of the time of products over all rows and heads at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.layers.attention_masks import MASKED, visible
from zoo.layers.precision import matmul_precision

# Scores in one block of the heads that are taken together, 1 MB in float32. With fewer heads, starting the products of
# short rows would cost more than computing them; more heads do not fit into the caches.
SCORES = 2**18


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise(
    block: int,
    window: int | None,
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
) -> Float[Array, "B K G T H"]:
    """Returns causal attention of queries that are already scaled; it can be differentiated in reverse.

    The softmax is float32, the output has the dtype of v.

    Args:
        block: how many queries are computed at a time.
        window: how many tokens before its own a query sees; None means all.
    """
    return _blockwise_forward(block, window, q, k, v)[0]


def _blockwise_forward(block, window, q, k, v):
    out, log_sum = _each_head(partial(_head_forward, block, window), block, q, k, v)
    return out, (q, k, v, out, log_sum)


def _blockwise_backward(block, window, saved, d_out):
    return _each_head(partial(_head_backward, block, window), block, *saved, d_out)


blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _each_head(function, block, *arrays):
    """Applies `function` to every [b, k] part of the arrays, some at a time; the first array holds the queries."""
    batch, kv_heads, groups, length, _ = arrays[0].shape
    most = max(1, SCORES // (groups * block * length))
    together = max(number for number in range(1, most + 1) if batch * kv_heads % number == 0)
    parts = tuple(array.reshape(-1, together, *array.shape[2:]) for array in arrays)
    results = jax.lax.map(lambda part: jax.vmap(function)(*part), parts)
    return tuple(result.reshape(batch, kv_heads, *result.shape[2:]) for result in results)


def _head_forward(block, window, q, k, v):
    """q [G,T,H], k and v [T,H] -> the output [G,T,H] and the log of the sum of exponentials [G,T]."""
    length, outs, log_sums = q.shape[1], [], []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window)
        scores = _dot("gth,sh->gts", q[:, start:stop], k[first:stop])
        scores = jnp.where(visible(start, stop, first, stop, causal=True, window=window), scores, MASKED)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        outs.append((_dot("gts,sh->gth", weights.astype(v.dtype), v[first:stop]) / total).astype(v.dtype))
        log_sums.append((peak + jnp.log(total))[..., 0])
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _head_backward(block, window, q, k, v, out, log_sum, d_out):
    """Gradients of q [G,T,H], k and v [T,H], block by block of keys: each meets only the queries that see it."""
    length, d_ks, d_vs = q.shape[1], [], []
    d_q = jnp.zeros(q.shape, jnp.float32)
    inner = jnp.sum(out * d_out, axis=-1, dtype=jnp.float32)
    for first in range(0, length, block):
        last = min(first + block, length)
        stop = length if window is None else min(length, last + window)
        seen = slice(first, stop)
        # Keys stand before queries here: [s, G, t].
        scores = _dot("sh,gth->sgt", k[first:last], q[:, seen])
        allowed = visible(first, stop, first, last, causal=True, window=window).T[:, None]
        weights = jnp.exp(jnp.where(allowed, scores, MASKED) - log_sum[:, seen])
        d_vs.append(_dot("sgt,gth->sh", weights.astype(v.dtype), d_out[:, seen]))
        d_scores = weights * (_dot("sh,gth->sgt", v[first:last], d_out[:, seen]) - inner[:, seen])
        d_scores = d_scores.astype(q.dtype)
        d_ks.append(_dot("sgt,gth->sh", d_scores, q[:, seen]))
        d_q = d_q.at[:, seen].add(_dot("sgt,sh->gth", d_scores, k[first:last]))
    return d_q.astype(q.dtype), *(jnp.concatenate(d).astype(q.dtype) for d in (d_ks, d_vs))


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32)
