"""The Llama decoder (Touvron et al., arXiv:2302.13971; transformers' LlamaForCausalLM), as KodaLite-1.3B uses it.

RMSNorm before grouped-query attention and SwiGLU, split-half rotary pairs, an untied head. Biases, a tied head and a
stretched rotary base are options for other checkpoints.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.attention import Attention, Rotation
from zoo.layers.embedding import Embedding, Head
from zoo.layers.initializers import lecun_normal, normal
from zoo.layers.kv_cache import KVCache
from zoo.layers.mlp import SwiGLU
from zoo.layers.norm import RMSNorm
from zoo.layers.rotary import ntk_theta, rotary_tables, rotate_split_half
from zoo.layers.sharding import constrain
from zoo.layers.stack import LayerNumber, run_layers
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import ACTIVATION, Decoder


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The config of a Llama model; the defaults are those of KodaLite-1.3B.

    Attributes:
        max_seq_len: the rows it was trained on. The model computes longer rows; recipes and generation refuse them.
        rope_ntk_factor: stretches the context by raising the rotary base (see `zoo.layers.rotary.ntk_theta`).
        rope_dtype: KodaLite was trained with bfloat16 tables, its release computes with float32; see docs/models.
        attention_bias, attention_out_bias, mlp_bias: whether q, k and v, o, and gate, up and down have biases.
    """

    vocab_size: int = 50257
    num_layers: int = 24
    embed_dim: int = 2048
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 5504
    max_seq_len: int = 1024
    rope_theta: float = 10000.0
    rope_ntk_factor: float = 1.0
    rope_dtype: str = "float32"
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False

    CHOICES: ClassVar = {"rope_dtype": ("float32", "bfloat16")}

    def check(self) -> None:
        super().check()
        self.check_pairs()
        self.check_heads()

    def flops_per_token(self, seq_len: int) -> float:
        inner, kv_inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = self.embed_dim * (2 * inner + 2 * kv_inner + 3 * self.mlp_dim)
        weights = self.num_layers * block + self.embed_dim * self.vocab_size
        return training_flops(weights, self.num_layers * inner * mean_keys(seq_len))

    def switches(self) -> dict[str, str]:
        flags = {"q, k, v": self.attention_bias, "o": self.attention_out_bias, "mlp": self.mlp_bias}
        stretched = "" if self.rope_ntk_factor == 1 else f", stretched {self.rope_ntk_factor:g} times (NTK)"
        return {
            "positions": f"rotary, split halves, per head, base {self.rope_theta:g}{stretched}",
            "rope dtype": self.rope_dtype,
            "norm": f"RMSNorm before each branch, learned gain, eps {self.norm_eps:g}",
            "final norm": "RMSNorm",
            "attention": f"grouped-query, {self.num_heads // self.num_kv_heads} query heads a kv head",
            "mlp": f"SwiGLU, {self.mlp_dim / self.embed_dim:g} x width",
            "head": "tied to the token table" if self.tie_embeddings else "untied",
            "biases": ", ".join(name for name, there in flags.items() if there) or "none",
        }


class Block(nnx.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)). `key` seeds its seven kernels."""

    def __init__(self, config: LlamaConfig, *, key: Array):
        keys = jax.random.split(key, 7)
        self.attn_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            keys=keys[:4],
            init=lecun_normal,
            bias=config.attention_bias,
            out_bias=config.attention_out_bias,
        )
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = SwiGLU(config.embed_dim, config.mlp_dim, keys=keys[4:], init=lecun_normal, bias=config.mlp_bias)

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


class Llama(Decoder):
    """The Llama decoder. `key` seeds the parameters."""

    def __init__(self, config: LlamaConfig, *, key: Array):
        embed_key, head_key, layers_key = jax.random.split(key, 3)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, key=embed_key, init=normal(config.embed_dim**-0.5))
        self.layers = nnx.List([Block(config, key=k) for k in jax.random.split(layers_key, config.num_layers)])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Head(config.embed_dim, config.vocab_size, key=head_key, init=lecun_normal)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config = self.config
        x = constrain(self.embed(tokens), ACTIVATION)
        theta = ntk_theta(config.rope_theta, config.rope_ntk_factor, config.head_dim)
        cos, sin = rotary_tables(positions, config.head_dim, theta, jnp.dtype(config.rope_dtype))
        rotate = partial(rotate_split_half, cos=cos[:, :, None], sin=sin[:, :, None])

        def apply(block, x, layer, cache):
            return block(x, rotate, layer, segment_ids, cache)

        x, cache = run_layers(self.layers, x, cache, apply)
        return self.final_norm(x), cache
