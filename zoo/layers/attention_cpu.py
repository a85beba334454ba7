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
from zoo.layers.cpu import as_operands, einsum, row_sums

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
    out, log_sum = _each_head(partial(_head_forward, block, window), block, *as_operands(q, k, v))
    return out.astype(v.dtype), (q, k, v, out, log_sum)


def _blockwise_backward(block, window, saved, d_out):
    q, k, v, out, log_sum = saved
    inner = row_sums(out * d_out)
    gradients = _each_head(partial(_head_backward, block, window), block, *as_operands(q, k, v, d_out), log_sum, inner)
    return tuple(gradient.astype(x.dtype) for gradient, x in zip(gradients, (q, k, v), strict=True))


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
    """q [G,T,H], k and v [T,H] -> the output [G,T,H] and the log of the sum of exponentials [G,T], both float32."""
    length, outs, log_sums = q.shape[1], [], []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window)
        scores = einsum("gth,sh->gts", q[:, start:stop], k[first:stop])
        scores = jnp.where(visible(start, stop, first, stop, causal=True, window=window), scores, MASKED)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak).astype(v.dtype)
        total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
        outs.append(einsum("gts,sh->gth", weights, v[first:stop]) / total)
        log_sums.append((peak + jnp.log(total))[..., 0])
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _head_backward(block, window, q, k, v, d_out, log_sum, inner):
    """Gradients of q [G,T,H], k and v [T,H], block by block of keys: each meets only the queries that see it.

    `inner` [G,T] is the sum over H of out * d_out.
    """
    length, d_ks, d_vs = q.shape[1], [], []
    d_q = jnp.zeros(q.shape, jnp.float32)
    for first in range(0, length, block):
        last = min(first + block, length)
        stop = length if window is None else min(length, last + window)
        seen = slice(first, stop)
        # Keys stand before queries here: [s, G, t].
        scores = einsum("sh,gth->sgt", k[first:last], q[:, seen])
        # Not the transpose of `visible`, which XLA would read a number at a time.
        distance = jnp.arange(first, stop) - jnp.arange(first, last)[:, None, None]
        allowed = (distance >= 0) if window is None else (distance >= 0) & (distance <= window)
        weights = jnp.exp(jnp.where(allowed, scores, MASKED) - log_sum[:, seen]).astype(v.dtype)
        d_vs.append(einsum("sgt,gth->sh", weights, d_out[:, seen]))
        d_scores = weights * (einsum("sh,gth->sgt", v[first:last], d_out[:, seen]) - inner[:, seen])
        d_scores = d_scores.astype(q.dtype)
        d_ks.append(einsum("sgt,gth->sh", d_scores, q[:, seen]))
        d_q = d_q.at[:, seen].add(einsum("sgt,sh->gth", d_scores, k[first:last]))
    return d_q, jnp.concatenate(d_ks), jnp.concatenate(d_vs)
