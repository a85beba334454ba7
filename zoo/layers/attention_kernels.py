"""Scaled dot-product attention: one function for training, prefill and cached steps."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from zoo.layers.linear import matmul_precision
from zoo.layers.precision import rounded

# Finite, so that a row in which nothing is allowed gives numbers (the mean of v) and no NaN.
MASKED = -1e30
QUERY_BLOCK = 128


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    window: int | None = None,
    mask: Bool[Array, "B 1 T S"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    softmax_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v; query head n reads kv head n // (N/K).

    causal: key j is seen by query i iff j <= i; T and S must be equal. window w (with causal): and
    i - j <= w. mask: True = may be seen. segment_ids: only keys of the query's own segment are seen.
    softmax_dtype: with less precision than float32, scores and softmax are rounded to it at every turn, for
    weights that were trained so.
    Causal attention goes block by block of queries, and each block reads only the keys it may see: half the
    work, and the scores never exist as [B, N, T, S].
    """
    length = q.shape[1]
    exact = _is_exact(softmax_dtype)
    if causal and mask is None and segment_ids is None and exact and _on_one_cpu():
        return _ungrouped(_blockwise(QUERY_BLOCK, window, _grouped(q, k.shape[2]), _heads_first(k), _heads_first(v)))
    q, k, v = _grouped(q, k.shape[2], scaled=exact), _heads_first(k), _heads_first(v)
    attend = _attend if exact else partial(_attend_rounded, softmax_dtype)
    block = QUERY_BLOCK if causal else length
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, start - window) if causal and window is not None else 0
        last = stop if causal else k.shape[2]
        allowed = _allowed(start, stop, first, last, causal, window, mask, segment_ids)
        outputs.append(attend(q[..., start:stop, :], k[:, :, first:last], v[:, :, first:last], allowed))
    return _ungrouped(jnp.concatenate(outputs, axis=3))


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    *,
    mask: Bool[Array, "B 1 T S"],
    softmax_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T N H"]:
    """`attention` over a cache, whose heads stand before its slots (see `zoo.layers.kv_cache`)."""
    exact = _is_exact(softmax_dtype)
    attend = _attend if exact else partial(_attend_rounded, softmax_dtype)
    return _ungrouped(attend(_grouped(q, k.shape[1], scaled=exact), k, v, mask[:, :, None]))


def _is_exact(softmax_dtype):
    return jnp.finfo(softmax_dtype).bits >= 32


# Inside, heads stand before positions: the products then run over contiguous matrices, where XLA on CPU would
# otherwise rearrange their operands for each.


def _heads_first(x):
    """[B,S,K,H] -> [B,K,S,H]."""
    return x.transpose(0, 2, 1, 3)


def _grouped(q, kv_heads, scaled=True):
    """[B,T,N,H] -> [B,K,G,T,H], times 1/sqrt(H) if `scaled`."""
    batch, length, heads, head_dim = q.shape
    if scaled:
        q = (q / math.sqrt(head_dim)).astype(q.dtype)
    return q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _ungrouped(out):
    """[B,K,G,T,H] -> [B,T,N,H]."""
    batch, kv_heads, groups, length, head_dim = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * groups, head_dim)


def _allowed(start, stop, first, last, causal, window, mask, segment_ids):
    """The mask of queries start..stop against keys first..last, broadcastable to [B, K, G, t, s], or None."""
    parts = []
    if causal:
        distance = jnp.arange(start, stop)[:, None] - jnp.arange(first, last)
        parts.append(distance >= 0)
        if window is not None:
            parts.append(distance <= window)
    if mask is not None:
        parts.append(mask[:, :, None, start:stop, first:last])
    if segment_ids is not None:
        same = segment_ids[:, start:stop, None] == segment_ids[:, None, first:last]
        parts.append(same[:, None, None])
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return allowed


def _attend(q, k, v, allowed):
    """q [B,K,G,t,H] (scaled), k and v [B,K,s,H] -> [B,K,G,t,H].

    The softmax is divided by its sum after the product with v: H divisions a query in place of s.
    """
    precision = matmul_precision(q.dtype)
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32)
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    # The softmax does not depend on what is subtracted, so no gradient need pass through it.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "bkgts,bksh->bkgth",
        weights.astype(v.dtype),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(v.dtype)


def _attend_rounded(dtype, q, k, v, allowed):
    """`_attend` of queries not yet scaled, with every intermediate result rounded to `dtype`."""

    def kept(x):
        return rounded(x, dtype)

    precision = matmul_precision(q.dtype)
    scores = kept(jnp.einsum("bkgth,bksh->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32))
    scores = kept(scores / kept(jnp.float32(math.sqrt(q.shape[-1]))))
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = kept(jnp.exp(kept(scores - peak)))
    weights = kept(weights / kept(jnp.sum(weights, axis=-1, keepdims=True)))
    return jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, precision=precision)


# Plain causal attention on a CPU: one kv head of one row at a time, so that a block of scores is written and read
# within the core's own cache, and backward from the log of each query's sum instead of saved weights
# (Dao et al., arXiv:2205.14135). Measured with 8 rows of 768: 0.8 of the time of the code above.


def _on_one_cpu() -> bool:
    # The mesh (of size 0 where there is none) knows what is compiled for; rows spread over devices must not be
    # walked one by one.
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return mesh.size <= 1 and (jax.default_backend() if device is None else device.platform) == "cpu"


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(block, window, q, k, v):
    """q [B,K,G,T,H] (scaled), k and v [B,K,T,H] -> [B,K,G,T,H]."""
    return _blockwise_forward(block, window, q, k, v)[0]


def _blockwise_forward(block, window, q, k, v):
    out, log_sum = _each_head(partial(_head_forward, block, window), q, k, v)
    return out, (q, k, v, out, log_sum)


def _blockwise_backward(block, window, saved, d_out):
    return _each_head(partial(_head_backward, block, window), *saved, d_out)


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _each_head(function, *arrays):
    """`function` of every [b, k] part of the arrays, one after the other."""
    batch, kv_heads = arrays[0].shape[:2]
    parts = tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)
    results = jax.lax.map(lambda part: function(*part), parts)
    return tuple(result.reshape(batch, kv_heads, *result.shape[1:]) for result in results)


def _head_forward(block, window, q, k, v):
    """q [G,T,H], k and v [T,H] -> the output [G,T,H] and the log of the sum of exponentials [G,T]."""
    length, outs, log_sums = q.shape[1], [], []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window)
        scores = _dot("gth,sh->gts", q[:, start:stop], k[first:stop])
        scores = jnp.where(_allowed(start, stop, first, stop, True, window, None, None), scores, MASKED)
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
        allowed = _allowed(first, stop, first, last, True, window, None, None).T[:, None]
        weights = jnp.exp(jnp.where(allowed, scores, MASKED) - log_sum[:, seen])
        d_vs.append(_dot("sgt,gth->sh", weights.astype(v.dtype), d_out[:, seen]))
        d_scores = weights * (_dot("sh,gth->sgt", v[first:last], d_out[:, seen]) - inner[:, seen])
        d_scores = d_scores.astype(q.dtype)
        d_ks.append(_dot("sgt,gth->sh", d_scores, q[:, seen]))
        d_q = d_q.at[:, seen].add(_dot("sgt,sh->gth", d_scores, k[first:last]))
    return d_q.astype(q.dtype), *(jnp.concatenate(d).astype(q.dtype) for d in (d_ks, d_vs))


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32)
