"""The contract of every model, with what follows from it.

A model is an `nnx.Module` of this base with a `config`, modules, and `forward`, which takes tokens to hidden states;
`head`, `default_positions` and `init_cache` have defaults that fit most models. Training, generation and evaluation
call `hidden`, `head`, `unembed` and `init_cache`, and need nothing else. A model's file reads: config, block, model.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from zoo.layers import embedding, kv_cache
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
        """Returns the hidden states from which `head` makes logits, and the cache after the call.

        Args:
            positions: each token's position; None takes `default_positions`.
            segment_ids: without a cache, nothing crosses from one id to another and 0 is padding; with a cache,
                1 = token and 0 = pad (rows are right-padded), and pads are not written.
            cache: the one from `init_cache` or from the call before; None computes whole rows without one.
            key: the key of dropout; None means no dropout.
        """
        if positions is None:
            positions = self.default_positions(tokens, segment_ids, cache)
        x, cache = self.forward(tokens, positions, segment_ids, cache, key)
        return x, advanced(cache, tokens, segment_ids)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Computes `hidden` with every argument given: embedding, blocks, final norm.

        Returns the hidden states and the cache with every layer's new keys and values; `hidden` advances its lengths.
        """
        raise NotImplementedError

    def default_positions(
        self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None, cache: KVCache | None
    ) -> Int[Array, "#B T"]:
        """Returns the positions of a call that gives none; see the function `default_positions`."""
        return default_positions(tokens, segment_ids, cache)

    def head(self) -> tuple[Float[Array, "D V"], Float[Array, " V"] | None, float | None]:
        """Returns what makes logits of `hidden`: kernel, bias and soft-cap, the latter two or None.

        The default is the module `lm_head` where the model has one, else the token table `embed` (a tied head).
        """
        rows = self.config.vocab_size
        if hasattr(self, "lm_head"):
            return *self.lm_head.as_head(rows), None
        return self.embed.as_head(rows), None, None

    def init_cache(self, batch: int, max_len: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """Returns an empty cache for `batch` rows of at most `max_len` tokens.

        By default every layer holds all tokens, and each head has its own keys and values unless the config has
        `num_kv_heads`.
        """
        config = self.config
        kv_heads = getattr(config, "num_kv_heads", config.num_heads)
        return kv_cache.init_cache(config.num_layers, batch, max_len, kv_heads, config.head_dim, dtype)

    @property
    def dtype(self) -> DTypeLike:
        """The dtype in which calls compute: that of the head's kernel."""
        return self.head()[0].dtype

    def unembed(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Returns the float32 logits of hidden states."""
        return embedding.unembed(hidden, *self.head())

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "#B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns the float32 logits of every position; the arguments are those of `hidden`."""
        hidden, _ = self.hidden(tokens, positions=positions, segment_ids=segment_ids, key=key)
        return self.unembed(hidden)


def default_positions(
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    cache: KVCache | None,
    *,
    restart: bool = True,
) -> Int[Array, "#B T"]:
    """Returns positions int32 that go on from the cached tokens; without a cache they start at 0 in each segment.

    Args:
        restart: whether every segment starts at 0; if not, positions count from the row's first token.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    if cache is not None:
        return cache.lengths[:, None] + index
    return positions_within(segment_ids) if restart and segment_ids is not None else index


def advanced(cache: KVCache | None, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None) -> KVCache | None:
    """Returns the cache (or None) after a call whose layers have all written their keys and values into it."""
    return None if cache is None else cache.advance(valid_tokens(tokens, segment_ids))


def valid_tokens(tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None) -> Bool[Array, "B T"]:
    """Returns True for the tokens of a cached call that are no padding."""
    return jnp.ones(tokens.shape, bool) if segment_ids is None else segment_ids != 0
