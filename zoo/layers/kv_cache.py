"""The key/value cache: an explicit pytree that goes into a call and comes out of it.

Rows are right-padded and may differ in length. Token t of a row goes to slot `lengths[row] + t`, so the
slots of a row hold its tokens in order whatever the chunks they came in; pads are never written.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """`k` and `v`: a tuple of [B, K, S, H] a layer; `lengths` int32 [B]: tokens each row holds.

    The heads stand before the slots: a step's products then run over the cache as it lies in memory. The
    other order makes XLA rearrange the whole cache at every step (on CPU 20 times slower in a batch of 32).
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    lengths: Array

    @property
    def max_len(self) -> int:
        """S, the slots of a row. A token beyond the last slot is dropped: the caller counts."""
        return self.k[0].shape[2]

    def advance(self, valid: Bool[Array, "B T"]) -> "KVCache":
        """The cache after a call: the lengths grow by the valid tokens of each row."""
        return replace(self, lengths=self.lengths + jnp.sum(valid, axis=1, dtype=jnp.int32))

    def set_layer(self, layer: int, k: Array, v: Array) -> "KVCache":
        """The cache with one layer's keys and values replaced."""
        return replace(
            self,
            k=(*self.k[:layer], k, *self.k[layer + 1 :]),
            v=(*self.v[:layer], v, *self.v[layer + 1 :]),
        )


def init_cache(
    num_layers: int, batch: int, max_len: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike
) -> KVCache:
    """An empty cache for `batch` rows of at most `max_len` tokens."""
    shape = (batch, num_kv_heads, max_len, head_dim)
    return KVCache(
        k=tuple(jnp.zeros(shape, dtype) for _ in range(num_layers)),
        v=tuple(jnp.zeros(shape, dtype) for _ in range(num_layers)),
        lengths=jnp.zeros((batch,), jnp.int32),
    )


def write_slots(lengths: Int[Array, " B"], valid: Bool[Array, "B T"], max_len: int) -> Int[Array, "B T"]:
    """The slot each token is written to; pads get `max_len`, which is outside and therefore dropped."""
    slots = lengths[:, None] + jnp.arange(valid.shape[1], dtype=jnp.int32)
    return jnp.where(valid, slots, max_len)


def write(
    buffer: Float[Array, "B K S H"], new: Float[Array, "B T K H"], slots: Int[Array, "B T"]
) -> Float[Array, "B K S H"]:
    """`buffer` with the new keys or values in their slots; slots outside are dropped."""
    rows = jnp.arange(buffer.shape[0])[:, None]
    return buffer.at[rows, :, slots].set(new.astype(buffer.dtype), mode="drop")


def visible(lengths: Int[Array, " B"], num_queries: int, max_len: int) -> Bool[Array, "B 1 T S"]:
    """Which slots the T new tokens see: those before them in their row, and their own."""
    own_slot = lengths[:, None] + jnp.arange(num_queries, dtype=jnp.int32)
    return (jnp.arange(max_len) <= own_slot[..., None])[:, None]
