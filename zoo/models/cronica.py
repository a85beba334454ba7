"""crónica: a small Llama-like decoder (github.com/DanielRegaladoUMiami/cronica-jax, Apache-2.0).

RMSNorm before attention and SwiGLU, full multi-head attention with interleaved rotary pairs, no biases, no
dropout, the head tied to the token table.
"""

from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.attention import Attention, Rotation
from zoo.layers.embedding import Embedding
from zoo.layers.initializers import Initializer, truncated_normal
from zoo.layers.kv_cache import KVCache
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import RMSNorm
from zoo.layers.rotary import rotary_tables, rotate_interleaved
from zoo.layers.sharding import constrain
from zoo.layers.stack import LayerNumber, run_layers
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import ACTIVATION, Decoder

MATRICES_PER_LAYER = 7


@dataclass(frozen=True)
class CronicaConfig(ModelConfig):
    """The config of a crónica model; the defaults are those of crónica-5M.

    `max_seq_len` is the rows it was trained on. The model computes longer rows; recipes and generation refuse them.
    """

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
        self.check_pairs()

    def flops_per_token(self, seq_len: int) -> float:
        inner = self.num_heads * self.head_dim
        block = 4 * self.embed_dim * inner + 3 * self.embed_dim * self.mlp_dim
        weights = self.num_layers * block + self.embed_dim * self.vocab_size
        return training_flops(weights, self.num_layers * inner * mean_keys(seq_len))

    def switches(self) -> dict[str, str]:
        return {
            "positions": f"rotary, interleaved pairs, per head, base {self.rope_theta:g}",
            "rope dtype": "float32",
            "norm": f"RMSNorm before each branch, learned gain, eps {self.norm_eps:g}",
            "final norm": "RMSNorm",
            "attention": "multi-head, every head its own keys and values",
            "mlp": f"SwiGLU, {self.mlp_dim / self.embed_dim:g} x width",
            "head": "tied to the token table",
            "biases": "none",
        }


class Block(nnx.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)). `keys` seed q, k, v, o, gate, up and down."""

    def __init__(self, config: CronicaConfig, *, keys: Array, init: Initializer):
        self.attn_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(
            config.embed_dim, config.num_heads, config.num_heads, config.head_dim, keys=keys[:4], init=init
        )
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = SwiGLU(config.embed_dim, config.mlp_dim, keys=keys[4:], init=init)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotate: Rotation,
        layer: LayerNumber,
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        out, cache = self.attn(self.attn_norm(x), rotate, layer=layer, segment_ids=segment_ids, cache=cache)
        x = x + out
        return constrain(x + self.mlp(self.mlp_norm(x)), ACTIVATION), cache


class Cronica(Decoder):
    """The crónica decoder. `key` seeds the parameters."""

    def __init__(self, config: CronicaConfig, *, key: Array):
        init = truncated_normal(config.init_std)
        # One key more than there are matrices, as in the original: the same seed must draw the same numbers.
        keys = jax.random.split(key, 2 + MATRICES_PER_LAYER * config.num_layers)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, key=keys[0], init=init)
        per_layer = keys[1:-1].reshape(config.num_layers, MATRICES_PER_LAYER, *keys.shape[1:])
        self.layers = nnx.List([Block(config, keys=layer_keys, init=init) for layer_keys in per_layer])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        x = constrain(self.embed(tokens), ACTIVATION)
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        rotate = partial(rotate_interleaved, cos=cos[:, :, None], sin=sin[:, :, None])

        def apply(block, x, layer, cache):
            return block(x, rotate, layer, segment_ids, cache)

        x, cache = run_layers(self.layers, x, cache, apply)
        return self.final_norm(x), cache
