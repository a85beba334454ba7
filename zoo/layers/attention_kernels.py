"""Scaled dot-product attention: one function for training, prefill and cached steps."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.layers.linear import matmul_precision

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
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v; query head n reads kv head n // (N/K). Softmax in float32.

    causal: key j is seen by query i iff j <= i; T and S must be equal. window w (with causal): and
    i - j <= w. mask: True = may be seen. segment_ids: only keys of the query's own segment are seen.
    Causal attention goes block by block of queries, and each block reads only the keys it may see: half the
    work, and the scores never exist as [B, N, T, S].
    """
    batch, length, heads, head_dim = q.shape
    groups = heads // k.shape[2]
    q = (q / math.sqrt(head_dim)).astype(q.dtype)
    q = q.reshape(batch, length, k.shape[2], groups, head_dim)
    block = QUERY_BLOCK if causal else length
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, start - window) if causal and window is not None else 0
        last = stop if causal else k.shape[1]
        allowed = _allowed(start, stop, first, last, causal, window, mask, segment_ids)
        outputs.append(_attend(q[:, start:stop], k[:, first:last], v[:, first:last], allowed))
    return jnp.concatenate(outputs, axis=1).reshape(batch, length, heads, head_dim)


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
    """q [B,t,K,G,H] (scaled), k and v [B,s,K,H] -> [B,t,K,G,H]."""
    precision = matmul_precision(q.dtype)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32)
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v, precision=precision)
