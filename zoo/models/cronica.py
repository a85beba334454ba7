"""crónica: a small Llama-like decoder (github.com/DanielRegaladoUMiami/cronica-jax, Apache-2.0).

RMSNorm before attention and SwiGLU, full multi-head attention with interleaved rotary pairs, no biases, no
dropout, the head tied to the token table.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import embedding, kv_cache
from zoo.layers.attention import Attention, Rotation
from zoo.layers.initializers import Initializer, truncated_normal
from zoo.layers.kv_cache import KVCache
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import RMSNorm
from zoo.layers.rotary import rotary_tables, rotate_interleaved
from zoo.layers.sharding import constrain
from zoo.models.config import ModelConfig

ACTIVATION = ("batch", "length", "features")
MATRICES_PER_LAYER = 7


@dataclass(frozen=True)
class CronicaConfig(ModelConfig):
    """The defaults are those of crónica-5M. `max_seq_len` is what it was trained on; nothing enforces it."""

    vocab_size: int = 8000
    num_layers: int = 4
    embed_dim: int = 256
    num_heads: int = 4
    head_dim: int = 64
    mlp_dim: int = 704
    max_seq_len: int = 768
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def check(self) -> None:
        super().check()
        if self.head_dim % 2:
            raise UserError(f"model.head_dim: rotary pairs need an even number, got {self.head_dim}")

    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of forward and backward for one token in rows of `seq_len` tokens.

        6 for each weight of a matrix product (blocks and head, no look-ups), and causal attention: a token
        sees (seq_len + 1) / 2 keys on average.
        """
        inner = self.num_heads * self.head_dim
        block = 4 * self.embed_dim * inner + 3 * self.embed_dim * self.mlp_dim
        matmul = self.num_layers * block + self.embed_dim * self.vocab_size
        attention = self.num_layers * 2 * inner * (seq_len + 1) / 2
        return 6.0 * (matmul + attention)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). `keys`: q, k, v, o, gate, up, down."""

    def __init__(self, config: CronicaConfig, *, keys: Array, init: Initializer):
        self.attn_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(
            config.embed_dim, config.num_heads, config.num_heads, config.head_dim, keys=keys[:4], init=init
        )
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = SwiGLU(config.embed_dim, config.mlp_dim, keys=keys[4:], init=init)


class Cronica(nnx.Module):
    """The decoder. `key` seeds the parameters; a call computes in the dtype of the parameters."""

    def __init__(self, config: CronicaConfig, *, key: Array):
        init = truncated_normal(config.init_std)
        # One key more than there are matrices: the original splits so, and seeds must agree with it.
        keys = jax.random.split(key, 2 + MATRICES_PER_LAYER * config.num_layers)
        self.config = config
        self.embed = embedding.Embedding(config.vocab_size, config.embed_dim, key=keys[0], init=init)
        per_layer = keys[1:-1].reshape(config.num_layers, MATRICES_PER_LAYER, *keys.shape[1:])
        self.layers = nnx.List([Block(config, keys=layer_keys, init=init) for layer_keys in per_layer])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """The normalised hidden states from which `head` makes logits, and the cache after the call.

        positions: default 0.. T-1, or those after the cached tokens. segment_ids: without a cache, attention
        stays within equal ids (0 = padding); with one, 1 = token and 0 = pad, which is not written.
        key is taken for the contract's sake: this model has no dropout.
        """
        if cache is not None:
            return self._cached(tokens, positions, segment_ids, cache)
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        x = constrain(self.embed(tokens), ACTIVATION)
        rotate = self._rotation(positions, x.dtype)
        for block in self.layers:
            x = x + block.attn(block.attn_norm(x), rotate, segment_ids=segment_ids)
            x = constrain(x + block.mlp(block.mlp_norm(x)), ACTIVATION)
        return self.final_norm(x), None

    def _cached(self, tokens, positions, segment_ids, cache):
        batch, length = tokens.shape
        valid = jnp.ones((batch, length), bool) if segment_ids is None else segment_ids != 0
        if positions is None:
            positions = cache.lengths[:, None] + jnp.arange(length, dtype=jnp.int32)
        slots = kv_cache.write_slots(cache.lengths, valid, cache.max_len)
        visible = kv_cache.visible(cache.lengths, length, cache.max_len)
        x = constrain(self.embed(tokens), ACTIVATION)
        rotate = self._rotation(positions, x.dtype)
        for i, block in enumerate(self.layers):
            out, k, v = block.attn.cached(block.attn_norm(x), rotate, cache.k[i], cache.v[i], slots, visible)
            cache = cache.set_layer(i, k, v)
            x = x + out
            x = constrain(x + block.mlp(block.mlp_norm(x)), ACTIVATION)
        return self.final_norm(x), cache.advance(valid)

    def _rotation(self, positions: Int[Array, "B T"], dtype: DTypeLike) -> Rotation:
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        return partial(rotate_interleaved, cos=cos[:, :, None], sin=sin[:, :, None])

    def head(self) -> tuple[Float[Array, "D V"], None, None]:
        """What a loss needs to make logits of `hidden`: kernel, bias, soft-cap (this model has neither)."""
        return self.embed.as_head(), None, None

    def unembed(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states."""
        return embedding.unembed(hidden, *self.head())

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits of every position."""
        hidden, _ = self.hidden(tokens, positions=positions, segment_ids=segment_ids, key=key)
        return self.unembed(hidden)

    def init_cache(self, batch: int, max_len: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """An empty cache for `batch` rows of at most `max_len` tokens."""
        config = self.config
        return kv_cache.init_cache(config.num_layers, batch, max_len, config.num_heads, config.head_dim, dtype)
