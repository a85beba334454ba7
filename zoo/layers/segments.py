"""Documents packed into one row.

`segment_ids` int [B, T]: neighbours with equal ids are one segment, 0 is padding. Nothing passes from one segment to
the next: attention compares ids (`zoo.layers.attention_kernels`), the functions here do the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Returns True where a segment begins: at the row's first token, and where the id differs from the one before."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def positions_within(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns each token's distance from the beginning of its segment."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    return index - jax.lax.cummax(jnp.where(starts(segment_ids), index, 0), axis=1)


def previous_within(x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Returns x of the token before in the same segment, and zeros for a segment's first token."""
    shifted = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.where(starts(segment_ids)[..., None], jnp.zeros_like(x), shifted)


def split_at(tokens: Int[Array, "B T"], separator: int) -> Int[Array, "B T"]:
    """Returns segment ids 1, 2, ... of rows in which each `separator` is the last token of a document."""
    closed = jnp.cumsum(tokens == separator, axis=1, dtype=jnp.int32)
    return 1 + jnp.pad(closed[:, :-1], ((0, 0), (1, 0)))
