"""The contract of every model, with what follows from it.

A model is an `nnx.Module` of this base with `config`, `hidden`, `head` and `init_cache`; training, generation
and evaluation need nothing else. A new model reads: config, block, model.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from zoo.layers import embedding
from zoo.layers.kv_cache import KVCache
from zoo.layers.segments import positions_within

# The logical axes of activations [B, T, D].
ACTIVATION = ("batch", "length", "features")


class Decoder(nnx.Module):
    """A causal language model. A call computes in the dtype of the parameters; logits are float32.

    Attributes:
        config: the frozen config dataclass.
    """

    config: Any

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """The hidden states from which `head` makes logits, and the cache after the call.

        Args:
            positions: default 0, 1, ... from the row's beginning (and, where the model says so, from each
                segment's); with a cache, on from the tokens it holds.
            segment_ids: without a cache, nothing crosses from one id to another and 0 is padding; with a cache,
                1 = token and 0 = pad (rows are right-padded), and pads are not written.
            cache: from `init_cache`, or from the call before.
            key: of dropout; None means none.
        """
        raise NotImplementedError

    def head(self) -> tuple[Float[Array, "D V"], Float[Array, " V"] | None, float | None]:
        """What a loss needs to make logits of `hidden`: kernel, bias and soft-cap, the latter two or None."""
        raise NotImplementedError

    def init_cache(self, batch: int, max_len: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """An empty cache for `batch` rows of at most `max_len` tokens."""
        raise NotImplementedError

    @property
    def dtype(self) -> DTypeLike:
        """That of the head's kernel, in which calls compute."""
        return self.head()[0].dtype

    def unembed(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states."""
        return embedding.unembed(hidden, *self.head())

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits of every position; the arguments are those of `hidden`."""
        hidden, _ = self.hidden(tokens, positions=positions, segment_ids=segment_ids, key=key)
        return self.unembed(hidden)


def default_positions(
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    cache: KVCache | None,
    *,
    restart: bool = True,
) -> Int[Array, "#B T"]:
    """Positions of a call that names none: after the cached tokens, else from the beginning of each segment.

    restart: whether segments begin at 0 anew; if not, positions count from the row's beginning.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    if cache is not None:
        return cache.lengths[:, None] + index
    return positions_within(segment_ids) if restart and segment_ids is not None else index


def advanced(cache: KVCache | None, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None) -> KVCache | None:
    """The cache (or None) after a call whose layers have all written into it."""
    return None if cache is None else cache.advance(valid_tokens(tokens, segment_ids))


def valid_tokens(tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None) -> Bool[Array, "B T"]:
    """Which tokens of a cached call are no pads."""
    return jnp.ones(tokens.shape, bool) if segment_ids is None else segment_ids != 0
