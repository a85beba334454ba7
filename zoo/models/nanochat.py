"""The nanochat decoder (github.com/karpathy/nanochat; in JAX as flaxchat), as gelu-d12 uses it.

RMSNorm without gains everywhere, also on the embedding; normalised queries and keys; sliding windows in most layers;
value embeddings in every second layer; the embedding before smeared into each token's; the residual stream blended with
its own beginning before every block, and less a share of its middle at the end; soft-capped logits. Each of these is a
config field, so that leaving one out is one line of a recipe.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers import kv_cache
from zoo.layers.attention import Attention, Rotation
from zoo.layers.embedding import Embedding, Head
from zoo.layers.initializers import lecun_normal, normal, uniform, zeros
from zoo.layers.kv_cache import KVCache, last_valid
from zoo.layers.mlp import MLP
from zoo.layers.norm import rms_normalize
from zoo.layers.residual import Backout, ResidualBlend, Smear, previous_in_row
from zoo.layers.rotary import rotary_tables, rotate_split_half
from zoo.layers.sharding import constrain
from zoo.layers.stack import run_layers
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import ACTIVATION, Decoder, valid_tokens

SMEAR_FEATURES = 24  # of a token's embedding, which gate the embedding before
VALUE_GATE_FEATURES = 12  # of a block's input, which gate the value embedding
ROTARY_ROWS = 10  # times max_seq_len: the positions for which the original has rotary tables


@dataclass(frozen=True)
class NanochatConfig(ModelConfig):
    """The config of a nanochat model; the defaults are those of gelu-d12.

    Attributes:
        vocab_size: the number of logits; the tables have the next multiple of vocab_pad_multiple rows.
        max_seq_len: the rows it was trained on, and the long window: in longer rows a token sees that many before it.
        window_pattern: S and L, repeated over the layers; the last layer is always L. A token sees max_seq_len tokens
            before its own in L, a quarter of it (rounded up to a multiple of 128) in S. Empty means no windows.
        value_embeddings: whether every second layer, the last one included, mixes value embeddings into its values.
        residual_scalars, x0_blend: whether the stream before a block is scaled, and blended with the one before the
            first block.
        logit_softcap: the bound of the logits; 0 means none.
    """

    vocab_size: int = 32768
    vocab_pad_multiple: int = 64
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    num_kv_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 3072
    activation: str = "gelu_tanh"
    max_seq_len: int = 1024
    window_pattern: str = "SSSL"
    rope_theta: float = 100000.0
    rope_dtype: str = "float32"
    norm_eps: float = 1e-6
    qk_norm: bool = True
    qk_norm_scale: float = 1.2
    value_embeddings: bool = True
    smear: bool = True
    backout: bool = True
    residual_scalars: bool = True
    x0_blend: bool = True
    logit_softcap: float = 15.0
    final_norm: bool = True
    tie_embeddings: bool = True

    MAY_BE_ZERO: ClassVar = ("logit_softcap",)
    CHOICES: ClassVar = {"activation": ("gelu_tanh", "relu_squared"), "rope_dtype": ("float32", "bfloat16")}

    def check(self) -> None:
        super().check()
        self.check_pairs()
        self.check_heads()
        if set(self.window_pattern) - set("SL"):
            raise UserError(f"model.window_pattern: consists of S and L, got {self.window_pattern!r}")
        for field, needed in (("smear", SMEAR_FEATURES), ("value_embeddings", VALUE_GATE_FEATURES)):
            if getattr(self, field) and self.embed_dim < needed:
                raise UserError(f"model.{field}: its gate reads {needed} features, embed_dim is {self.embed_dim}")

    @property
    def table_rows(self) -> int:
        """The number of rows of the token tables: vocab_size, padded."""
        return -(-self.vocab_size // self.vocab_pad_multiple) * self.vocab_pad_multiple

    def windows(self) -> list[int | None]:
        """Returns each layer's window w: a token sees the w tokens before it and itself; None means all before it."""
        if not self.window_pattern:
            return [None] * self.num_layers
        short = 128 * math.ceil(math.ceil(self.max_seq_len / 4) / 128)
        sizes = {"S": short, "L": self.max_seq_len}
        pattern = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.num_layers - 1)]
        return [sizes[letter] for letter in [*pattern, "L"]]

    def has_value_embedding(self, layer: int) -> bool:
        """Returns whether a layer mixes value embeddings into its values."""
        return self.value_embeddings and layer % 2 == (self.num_layers - 1) % 2

    @property
    def generation_limit(self) -> int:
        """The most tokens of a row in generation: ten times max_seq_len, where the original's rotary tables end."""
        return ROTARY_ROWS * self.max_seq_len

    @property
    def layers_alike(self) -> bool:
        """False: windows and value embeddings differ by layer, and backout reads the middle."""
        return False

    def flops_per_token(self, seq_len: int) -> float:
        inner, kv_inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = self.embed_dim * (2 * inner + 2 * kv_inner + 2 * self.mlp_dim)
        gates = VALUE_GATE_FEATURES * self.num_kv_heads * sum(map(self.has_value_embedding, range(self.num_layers)))
        gates += SMEAR_FEATURES * self.smear
        weights = self.num_layers * block + self.embed_dim * self.vocab_size + gates
        return training_flops(weights, inner * sum(mean_keys(seq_len, window) for window in self.windows()))

    def switches(self) -> dict[str, str]:
        def when(there: bool, text: str) -> str:
            return text if there else "none"

        kv = self.num_heads // self.num_kv_heads
        first = "1.15 falling to 1.05 over the layers" if self.residual_scalars else "1"
        return {
            "positions": f"rotary, split halves, turning the other way, per head, base {self.rope_theta:g}",
            "rope dtype": self.rope_dtype,
            "norm": f"RMSNorm before each branch and after the embedding, no gain, eps {self.norm_eps:g}",
            "final norm": when(self.final_norm, "RMSNorm, no gain"),
            "attention": "multi-head, every head its own keys and values"
            if kv == 1
            else f"grouped-query, {kv} query heads a kv head",
            "qk norm": when(self.qk_norm, f"after rotation, times {self.qk_norm_scale:g}"),
            "windows": when(bool(self.window_pattern), f"{self.window_pattern}, the last layer long"),
            "value embeddings": when(self.value_embeddings, "every second layer, gated by head"),
            "embedding": "token table, RMSNorm" + (", the token before smeared in" if self.smear else ""),
            "residual": f"stream times {first}"
            + (", plus the stream before the first block" if self.x0_blend else "")
            + (", less the stream of mid-stack at the end" if self.backout else ""),
            "mlp": f"{self.activation}, {self.mlp_dim / self.embed_dim:g} x width",
            "soft-cap": when(bool(self.logit_softcap), f"{self.logit_softcap:g}"),
            "head": "tied to the token table" if self.tie_embeddings else "untied",
            "biases": "none",
        }


class Block(nnx.Module):
    """Blends x with x0, then computes x + attention(norm(x)) and x + mlp(norm(x)). `key` seeds its matrices."""

    def __init__(self, config: NanochatConfig, layer: int, *, key: Array):
        keys = jax.random.split(key, 7)
        bound = math.sqrt(3 / config.embed_dim)
        depth = layer / max(config.num_layers - 1, 1)
        self.blend = ResidualBlend(
            1.15 - 0.10 * depth if config.residual_scalars else None, 0.20 - 0.15 * depth if config.x0_blend else None
        )
        mixes = config.has_value_embedding(layer)
        self.attn = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            keys=keys[:4],
            init=uniform(-bound, bound),
            out_init=zeros,
            qk_norm_scale=config.qk_norm_scale if config.qk_norm else None,
            qk_norm_eps=config.norm_eps,
            value_gate_features=VALUE_GATE_FEATURES if mixes else 0,
            value_gate_init=uniform(0.0, 0.02),
        )
        if mixes:
            self.value_embed = Embedding(
                config.table_rows,
                config.num_kv_heads * config.head_dim,
                key=keys[4],
                init=uniform(-bound, bound),
                axes=("value_vocab", "value_features"),
            )
        self.mlp = MLP(
            config.embed_dim,
            config.mlp_dim,
            activation=config.activation,
            keys=keys[5:],
            init=uniform(-0.4 * bound, 0.4 * bound),
            down_init=zeros,
        )
        self.mixes, self.norm_eps = mixes, config.norm_eps

    def __call__(
        self,
        x: Float[Array, "B T D"],
        x0: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        rotate: Rotation,
        layer: int,
        window: int | None,
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        x = self.blend(x, x0)
        out, cache = self.attn(
            rms_normalize(x, self.norm_eps),
            rotate,
            layer=layer,
            window=window,
            segment_ids=segment_ids,
            cache=cache,
            value_embeds=self.value_embed(tokens) if self.mixes else None,
        )
        x = x + out
        return constrain(x + self.mlp(rms_normalize(x, self.norm_eps)), ACTIVATION), cache


class Nanochat(Decoder):
    """The nanochat decoder. `key` seeds the parameters (the original draws the same numbers for every seed)."""

    def __init__(self, config: NanochatConfig, *, key: Array):
        embed_key, head_key, smear_key, layers_key = jax.random.split(key, 4)
        self.config = config
        self.embed = Embedding(config.table_rows, config.embed_dim, key=embed_key, init=normal(0.8))
        if config.smear:
            self.smear = Smear(SMEAR_FEATURES, key=smear_key, init=lecun_normal)
        layer_keys = jax.random.split(layers_key, config.num_layers)
        self.layers = nnx.List([Block(config, i, key=k) for i, k in enumerate(layer_keys)])
        if config.backout:
            self.backout = Backout(0.2)
        if not config.tie_embeddings:
            self.lm_head = Head(config.embed_dim, config.table_rows, key=head_key, init=normal(0.001))

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: KVCache | None,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        config = self.config
        x, cache = self._embed_tokens(tokens, segment_ids, cache)
        x0 = x
        cos, sin = rotary_tables(positions, config.head_dim, config.rope_theta, jnp.dtype(config.rope_dtype))
        # The original rotates in the opposite direction to Llama.
        rotate = partial(rotate_split_half, cos=cos[:, :, None], sin=-sin[:, :, None])
        windows, after_middle = config.windows(), config.num_layers // 2 + 1

        def apply(block, x, layer, cache):
            return block(x, x0, tokens, rotate, layer, windows[layer], segment_ids, cache)

        layers = list(self.layers)
        middle, cache = run_layers(layers[:after_middle], x, cache, apply, alike=config.layers_alike)
        x, cache = run_layers(
            layers[after_middle:], middle, cache, apply, first=after_middle, alike=config.layers_alike
        )
        if config.backout:
            x = self.backout(x, middle)
        if config.final_norm:
            x = rms_normalize(x, config.norm_eps)
        return x, cache

    def _embed_tokens(self, tokens, segment_ids, cache):
        """The stream before the first block, and the cache with the last tokens' un-smeared embeddings."""
        embedded = constrain(rms_normalize(self.embed(tokens), self.config.norm_eps), ACTIVATION)
        if not self.config.smear:
            return embedded, cache
        if cache is None:
            return self.smear(embedded, previous_in_row(embedded, segment_ids)), None
        x = self.smear(embedded, previous_in_row(embedded, carry=cache.carry))
        carry = last_valid(embedded, valid_tokens(tokens, segment_ids), cache.carry)
        return x, replace(cache, carry=carry)

    def head(self) -> tuple[Float[Array, "D V"], None, float | None]:
        """Returns the head's kernel without its padding, no bias, and the soft-cap."""
        kernel, bias, _ = super().head()
        return kernel, bias, self.config.logit_softcap or None

    def init_cache(self, batch: int, max_len: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """Returns an empty cache: a layer holds its window only, and each row its last embedding for the smear."""
        config = self.config
        return kv_cache.init_cache(
            config.num_layers,
            batch,
            max_len,
            config.num_kv_heads,
            config.head_dim,
            dtype,
            windows=config.windows(),
            carry=jnp.zeros((batch, config.embed_dim), dtype) if config.smear else None,
        )
