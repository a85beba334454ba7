"""The mask of attention: which keys a query may see."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Finite, so that a query that may see no key gives the mean of v and no NaN.
MASKED = -1e30


def visible(
    start: int,
    stop: int,
    first: int,
    last: int,
    *,
    causal: bool,
    window: int | None = None,
    mask: Bool[Array, "B 1 T S"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Bool[Array, "..."] | None:
    """Returns which of the keys first..last the queries start..stop may see, or None if all.

    The result is broadcastable to [B, K, G, stop - start, last - first]. The other arguments are those of
    `zoo.layers.attention_kernels.attention` for whole rows.
    """
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
