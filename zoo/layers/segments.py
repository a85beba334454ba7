"""Documents packed into one row.

`segment_ids` int [B, T]: equal neighbours belong together, 0 is padding. Nothing crosses from one segment
into the next: attention compares ids (`zoo.layers.attention_kernels`), the functions here give the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where a segment begins: at the row's first token, and wherever the id differs from the one before."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def positions_within(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each token's distance from the beginning of its segment."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    return index - jax.lax.cummax(jnp.where(starts(segment_ids), index, 0), axis=1)


def previous_within(x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """x of the token before in the same segment; zeros for a segment's first token."""
    shifted = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.where(starts(segment_ids)[..., None], jnp.zeros_like(x), shifted)


def split_at(tokens: Int[Array, "B T"], separator: int) -> Int[Array, "B T"]:
    """Segment ids 1, 2, ... of rows in which `separator` closes a document (and belongs to it)."""
    closed = jnp.cumsum(tokens == separator, axis=1, dtype=jnp.int32)
    return 1 + jnp.pad(closed[:, :-1], ((0, 0), (1, 0)))
