"""A teaching decoder after nanoGPT (course project "A Tiny Large Model", cmaddis/tlm).

LayerNorm before multi-head attention and a ReLU MLP, learned positions, biases everywhere but on queries, keys
and values, an untied head. The original names its axes; here shapes stand in the annotations, checked in tests.
"""

import math
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers.attention import Attention
from zoo.layers.embedding import Embedding, Head
from zoo.layers.initializers import Initializer, normal, uniform
from zoo.layers.kv_cache import KVCache
from zoo.layers.mlp import MLP
from zoo.layers.norm import LayerNorm
from zoo.layers.sharding import constrain
from zoo.layers.stack import LayerNumber, run_layers
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import ACTIVATION, Decoder


@dataclass(frozen=True)
class TinyConfig(ModelConfig):
    """The config of a tiny LM; the defaults are the original's, with an alphabet of 100 characters.

    The original's alphabet depends on its text. `max_seq_len` is the number of positions: longer rows are refused.
    """

    vocab_size: int = 100
    num_layers: int = 4
    embed_dim: int = 64
    num_heads: int = 4
    head_dim: int = 16
    mlp_dim: int = 256
    max_seq_len: int = 32
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    @property
    def generation_limit(self) -> None:
        """None: text of any length is generated from the last max_seq_len tokens alone, as in the original."""
        return None

    def flops_per_token(self, seq_len: int) -> float:
        inner = self.num_heads * self.head_dim
        block = self.embed_dim * (4 * inner + 2 * self.mlp_dim)
        weights = self.num_layers * block + self.embed_dim * self.vocab_size
        return training_flops(weights, self.num_layers * inner * mean_keys(seq_len))

    def switches(self) -> dict[str, str]:
        return {
            "positions": f"learned, {self.max_seq_len} of them, added to the embedding",
            "norm": f"LayerNorm before each branch, eps {self.norm_eps:g}",
            "final norm": "LayerNorm",
            "attention": "multi-head, every head its own keys and values",
            "mlp": f"relu, {self.mlp_dim / self.embed_dim:g} x width",
            "head": "tied to the token table" if self.tie_embeddings else "untied, with a bias",
            "biases": "o, mlp" + ("" if self.tie_embeddings else ", head"),
        }


def _fan_in(features: int) -> Initializer:
    """Uniform in +-1/sqrt(features)."""
    bound = 1 / math.sqrt(features)
    return uniform(-bound, bound)


class Block(nnx.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)). `key` seeds its kernels and biases."""

    def __init__(self, config: TinyConfig, *, key: Array):
        keys = jax.random.split(key, 6)
        inner = config.num_heads * config.head_dim
        self.attn_norm = LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_heads,
            config.head_dim,
            keys=keys[:4],
            init=_fan_in(config.embed_dim),
            out_init=_fan_in(inner),
            out_bias=True,
            bias_init=_fan_in(inner),
        )
        self.mlp_norm = LayerNorm(config.embed_dim, config.norm_eps)
        self.mlp = MLP(
            config.embed_dim,
            config.mlp_dim,
            activation="relu",
            keys=keys[4:],
            init=_fan_in(config.embed_dim),
            down_init=_fan_in(config.mlp_dim),
            bias_inits=(_fan_in(config.embed_dim), _fan_in(config.mlp_dim)),
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: LayerNumber,
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        out, cache = self.attn(self.attn_norm(x), layer=layer, segment_ids=segment_ids, cache=cache)
        x = x + out
        return constrain(x + self.mlp(self.mlp_norm(x)), ACTIVATION), cache


class TinyLM(Decoder):
    """The teaching decoder. `key` seeds the parameters."""

    def __init__(self, config: TinyConfig, *, key: Array):
        embed_key, position_key, head_key, layers_key = jax.random.split(key, 4)
        fan_in = _fan_in(config.embed_dim)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, key=embed_key, init=normal(1.0))
        self.position = Embedding(
            config.max_seq_len, config.embed_dim, key=position_key, init=normal(1.0), axes=("positions", "embed")
        )
        self.layers = nnx.List([Block(config, key=k) for k in jax.random.split(layers_key, config.num_layers)])
        self.final_norm = LayerNorm(config.embed_dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Head(
                config.embed_dim, config.vocab_size, bias=True, key=head_key, init=fan_in, bias_init=fan_in
            )

    def default_positions(
        self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None, cache: KVCache | None
    ) -> Int[Array, "#B T"]:
        """Returns positions as `Decoder` does. Raises UserError for a row of more than max_seq_len tokens."""
        length, limit = tokens.shape[1], self.config.max_seq_len
        if length > limit:
            raise UserError(f"a row of {length} tokens, but the model has only max_seq_len {limit} positions; cut it")
        return super().default_positions(tokens, segment_ids, cache)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        x = constrain(self.embed(tokens) + self.position(positions), ACTIVATION)

        def apply(block, x, layer, cache):
            return block(x, layer, segment_ids, cache)

        x, cache = run_layers(self.layers, x, cache, apply)
        return self.final_norm(x), cache
