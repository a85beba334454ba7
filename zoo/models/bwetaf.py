"""BwETAF (PyPI package BwETAF 0.6, MIT; weights WICKED4950/BwETAFv3-97M).

RMSNorm before grouped-query attention and a fused SwiGLU with biases. The rotary embedding rotates the full width of
the embedding, of the queries and of the keys, before they are split into heads. The tied head reads the residual stream
without a final norm.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers.attention import Attention, Rotation
from zoo.layers.dropout import dropout
from zoo.layers.embedding import Embedding, Head
from zoo.layers.initializers import normal
from zoo.layers.kv_cache import KVCache
from zoo.layers.mlp import FusedSwiGLU
from zoo.layers.norm import RMSNorm
from zoo.layers.precision import rounded
from zoo.layers.rotary import rotary_tables, rotate_full_width, rotate_split_half
from zoo.layers.sharding import constrain
from zoo.layers.stack import LayerNumber, run_layers
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import ACTIVATION, Decoder, default_positions


@dataclass(frozen=True)
class BwetafConfig(ModelConfig):
    """The config of a BwETAF model; the defaults are those of BwETAFv3-97M.

    Attributes:
        max_seq_len: the rows it was trained on. The model computes longer rows; recipes and generation refuse them.
        rope_dtype: the published weights were trained with bfloat16 tables; with float32 tables they compute something
            else beyond position 256 (see docs/models).
        embed_rope: whether the embedding is rotated too.
        restart_positions: whether positions start at 0 in every segment; the original's did not.
        float32_statistics: whether norms and softmax are float32 in every compute dtype. The published weights were
            trained with statistics in bfloat16, like everything else. In float32 there is no difference.
        legacy_casts: whether the embedding and parts of the first norm are rounded to bfloat16, as in the package's own
            float32 path.
    """

    vocab_size: int = 16384
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 96
    mlp_dim: int = 2304
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    rope_dtype: str = "bfloat16"
    norm_eps: float = 1e-8
    dropout: float = 0.05
    embed_init_std: float = 0.02
    init_std: float = 0.002
    embed_rope: bool = True
    final_norm: bool = False
    tie_embeddings: bool = True
    restart_positions: bool = False
    float32_statistics: bool = False
    legacy_casts: bool = False

    MAY_BE_ZERO: ClassVar = ("dropout",)
    CHOICES: ClassVar = {"rope_dtype": ("float32", "bfloat16")}

    def check(self) -> None:
        super().check()
        self.check_heads()
        if self.dropout >= 1:
            raise UserError(f"model.dropout: must be below 1, got {self.dropout}")

    @property
    def layers_alike(self) -> bool:
        """Whether a step may scan over the blocks; not with `legacy_casts`, where the first one's norm differs."""
        return not self.legacy_casts

    def flops_per_token(self, seq_len: int) -> float:
        inner, kv_inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = self.embed_dim * (2 * inner + 2 * kv_inner + 3 * self.mlp_dim)
        weights = self.num_layers * block + self.embed_dim * self.vocab_size
        return training_flops(weights, self.num_layers * inner * mean_keys(seq_len))

    def switches(self) -> dict[str, str]:
        rotated = "embedding, queries and keys" if self.embed_rope else "queries and keys"
        return {
            "positions": f"rotary, split halves, over the full width of {rotated}, base {self.rope_theta:g}",
            "rope dtype": self.rope_dtype,
            "norm": f"RMSNorm before each branch, learned gain, eps {self.norm_eps:g}",
            "final norm": "RMSNorm" if self.final_norm else "none",
            "attention": f"grouped-query, {self.num_heads // self.num_kv_heads} query heads a kv head",
            "mlp": f"SwiGLU in one kernel, {self.mlp_dim / self.embed_dim:g} x width",
            "dropout": f"{self.dropout:g} on the attention branch" if self.dropout else "none",
            "head": "tied to the token table" if self.tie_embeddings else "untied",
            "biases": "o, mlp",
            "packed documents": "positions restart" if self.restart_positions else "positions run on",
        }


class Block(nnx.Module):
    """Computes x + dropout(attention(norm(x))), then x + mlp(norm(x)). `key` seeds its kernels."""

    def __init__(self, config: BwetafConfig, *, key: Array):
        keys = jax.random.split(key, 6)
        init = normal(config.init_std)
        norm = dict(float32=config.float32_statistics)
        self.attn_norm = RMSNorm(config.embed_dim, config.norm_eps, **norm)
        self.attn = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            keys=keys[:4],
            init=init,
            out_bias=True,
            float32_softmax=config.float32_statistics,
        )
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps, **norm)
        self.mlp = FusedSwiGLU(config.embed_dim, config.mlp_dim, keys=keys[4:], init=init)
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotate: Rotation,
        layer: LayerNumber,
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
        legacy_norm: bool = False,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        normalized = _legacy_norm(x, self.attn_norm) if legacy_norm else self.attn_norm(x)
        out, cache = self.attn(normalized, rotate, layer=layer, segment_ids=segment_ids, cache=cache)
        # The sums are rounded: XLA would fuse them with the next norm in float32, unlike in the original's training.
        key = None if key is None else jax.random.fold_in(key, layer)
        x = rounded(x + dropout(out, self.dropout, key), x.dtype)
        x = rounded(x + self.mlp(self.mlp_norm(x)), x.dtype)
        return constrain(x, ACTIVATION), cache


class Bwetaf(Decoder):
    """The BwETAF decoder. `key` seeds the parameters."""

    def __init__(self, config: BwetafConfig, *, key: Array):
        embed_key, head_key, layers_key = jax.random.split(key, 3)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, key=embed_key, init=normal(config.embed_init_std))
        self.layers = nnx.List([Block(config, key=k) for k in jax.random.split(layers_key, config.num_layers)])
        if config.final_norm:
            self.final_norm = RMSNorm(config.embed_dim, config.norm_eps, float32=config.float32_statistics)
        if not config.tie_embeddings:
            self.lm_head = Head(config.embed_dim, config.vocab_size, key=head_key, init=normal(config.init_std))

    def default_positions(
        self, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"] | None, cache: KVCache | None
    ) -> Int[Array, "#B T"]:
        """Returns positions as `Decoder` does, from 0 in each segment only with `restart_positions`."""
        return default_positions(tokens, segment_ids, cache, restart=self.config.restart_positions)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config = self.config
        x = self.embed(tokens)
        if config.embed_rope:
            x = rotate_split_half(x, *self._tables(positions, config.embed_dim))
        if config.legacy_casts:
            x = rounded(x, jnp.bfloat16)
        x = constrain(x, ACTIVATION)
        rotate = self._rotation(positions)

        def apply(block, x, layer, cache):
            first = config.legacy_casts and layer == 0
            return block(x, rotate, layer, segment_ids, cache, key, legacy_norm=first)

        x, cache = run_layers(self.layers, x, cache, apply, alike=config.layers_alike)
        if config.final_norm:
            x = self.final_norm(x)
        return x, cache

    def _tables(self, positions, width):
        return rotary_tables(positions, width, self.config.rope_theta, jnp.dtype(self.config.rope_dtype))

    def _rotation(self, positions) -> Rotation:
        """The rotation of queries and keys, which differ in width and so in frequencies."""
        config = self.config
        tables = {
            heads: self._tables(positions, heads * config.head_dim) for heads in (config.num_heads, config.num_kv_heads)
        }

        def rotate(heads: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
            return rotate_full_width(heads, *tables[heads.shape[2]])

        return rotate


def _legacy_norm(x: Float[Array, "B T D"], norm: RMSNorm) -> Float[Array, "B T D"]:
    """The first norm as the package computes it under jit: its statistics, not its result, are bfloat16."""

    def half(y):
        return rounded(y, jnp.bfloat16)

    mean_square = half(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True))
    root = half(jnp.sqrt(half(mean_square + half(jnp.float32(norm.eps)))))
    return (x / root * norm.scale[...]).astype(x.dtype)
