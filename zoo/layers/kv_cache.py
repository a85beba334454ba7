"""The key/value cache: an explicit pytree that goes into a call and comes out of it.

Rows are right-padded and may differ in length; padding is never written. In layers without a window, token i of a row
lies in slot i. A layer of window w has a ring buffer of w + 1 slots: token i lies in slot i mod (w + 1), since the
newest w + 1 tokens are all that the next one may see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from zoo.layers import cpu


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The keys and values of the tokens that a batch of rows has seen.

    Heads stand before slots, so that a step's products run over the cache as it lies in memory. With the other order
    XLA transposes the whole cache at every step (on CPU 20 times slower in a batch of 32).

    Attributes:
        k, v: one array [B, K, S, H] a layer.
        lengths: the number of tokens in each row, int32 [B].
        carry: whatever else a model needs of earlier tokens, a pytree of its own.
        max_len: how many tokens a row can hold. Further ones are dropped without notice: the caller counts.
    """

    # Any, because under `jax.eval_shape` these are no arrays.
    k: tuple[Any, ...]
    v: tuple[Any, ...]
    lengths: Any
    carry: Any = None
    max_len: int = field(metadata=dict(static=True), default=0)

    def append(
        self,
        layer: int,
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        valid: Bool[Array, "B T"],
        window: int | None = None,
    ) -> tuple["KVCache", Float[Array, "B K S H"], Float[Array, "B K S H"], Bool[Array, "B 1 T S"]]:
        """Writes the keys and values of T new tokens a row into a layer.

        Returns the cache, the keys and values that the new tokens attend to, and which of these each of them sees.
        The lengths do not change: `advance` adds to them once all layers are written.

        Args:
            valid: False for padding, which is not written.
            window: the layer's window, as given to `init_cache`.
        """
        size = self.k[layer].shape[2]
        ring = window is not None and size == window + 1
        if ring and k.shape[1] > 1:
            return self._append_chunk_to_ring(layer, k, v, valid)
        index = self._index(k.shape[1])
        slots = jnp.where(valid, index % size if ring else index, size)
        cache = self._write(layer, k, v, slots)
        held = _held(self.lengths + valid[:, 0], size)[:, None] if ring else jnp.arange(size)[None, None]
        visible = (held >= 0) & (held <= index[..., None])
        if window is not None:
            visible &= index[..., None] - held <= window
        return cache, cache.k[layer], cache.v[layer], visible[:, None]

    def _append_chunk_to_ring(self, layer, k, v, valid):
        """Attends to the old ring and the chunk, whose last tokens overwrite slots that its first tokens must read."""
        size, index = self.k[layer].shape[2], self._index(k.shape[1])
        keys = jnp.concatenate([self.k[layer], _heads_first(k, self.k[layer].dtype)], axis=2)
        values = jnp.concatenate([self.v[layer], _heads_first(v, self.v[layer].dtype)], axis=2)
        held = jnp.concatenate([_held(self.lengths, size), jnp.where(valid, index, -1)], axis=1)[:, None]
        distance = index[..., None] - held
        visible = (held >= 0) & (distance >= 0) & (distance < size)
        after = (self.lengths + jnp.sum(valid, axis=1, dtype=jnp.int32))[:, None]
        # Only the chunk's last `size` tokens are written: the order of two writes to one slot is undefined.
        slots = jnp.where(valid & (index >= after - size), index % size, size)
        return self._write(layer, k, v, slots), keys, values, visible[:, None]

    def advance(self, valid: Bool[Array, "B T"]) -> "KVCache":
        """Returns the cache with each row's length increased by its valid tokens."""
        return replace(self, lengths=self.lengths + jnp.sum(valid, axis=1, dtype=jnp.int32))

    def _index(self, num_tokens):
        """The positions [B, T] of new tokens in their rows."""
        return self.lengths[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)

    def _write(self, layer, k, v, slots):
        buffers = self.k[layer], self.v[layer]
        if slots.shape == (1, 1) and cpu.on_one_cpu():
            k, v = cpu.write_token(buffers, (k, v), slots)
        else:
            k, v = _scatter(buffers, (k, v), slots)
        return replace(self, k=_replaced(self.k, layer, k), v=_replaced(self.v, layer, v))


def _replaced(buffers, layer, buffer):
    return (*buffers[:layer], buffer, *buffers[layer + 1 :])


def _scatter(buffers, new, slots):
    """Writes `new` [B,T,K,H] into `buffers` [B,K,S,H] at the slots [B,T]; slot S means nowhere."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return tuple(
        buffer.at[rows, :, slots].set(tokens.astype(buffer.dtype), mode="drop")
        for buffer, tokens in zip(buffers, new, strict=True)
    )


def _heads_first(x, dtype):
    """[B,T,K,H] -> [B,K,T,H]."""
    return x.transpose(0, 2, 1, 3).astype(dtype)


def _held(lengths, size):
    """The position [B, S] of the token in each slot of a ring after `lengths` tokens; negative where there is none."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(size)) % size


def init_cache(
    num_layers: int,
    batch: int,
    max_len: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: DTypeLike,
    *,
    windows: Sequence[int | None] | None = None,
    carry: Any = None,
) -> KVCache:
    """Returns an empty cache for `batch` rows of at most `max_len` tokens.

    Args:
        dtype: of the buffers, see also `zoo.layers.cpu.cache_dtype`.
        windows: each layer's window, None for a layer that sees all; by default all do.
        carry: what else the model carries from call to call.
    """
    dtype = cpu.cache_dtype(dtype)
    sizes = [max_len if w is None else min(max_len, w + 1) for w in windows or [None] * num_layers]

    def buffers():
        return tuple(jnp.zeros((batch, num_kv_heads, size, head_dim), dtype) for size in sizes)

    return KVCache(k=buffers(), v=buffers(), lengths=jnp.zeros((batch,), jnp.int32), carry=carry, max_len=max_len)


def last_valid(
    x: Float[Array, "B T D"], valid: Bool[Array, "B T"], otherwise: Float[Array, "B D"]
) -> Float[Array, "B D"]:
    """Returns x of each right-padded row's last valid token, and `otherwise` for rows that have none."""
    count = jnp.sum(valid, axis=1)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where((count > 0)[:, None], last.astype(otherwise.dtype), otherwise)
