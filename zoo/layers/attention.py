"""Multi-head self-attention with rotary positions, normalised queries and keys, value embeddings and windows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.attention_kernels import attention, cached_attention
from zoo.layers.initializers import Initializer, zeros
from zoo.layers.kv_cache import KVCache
from zoo.layers.linear import Linear, outputs
from zoo.layers.norm import rms_normalize
from zoo.layers.sharding import constrain
from zoo.layers.stack import LayerNumber

Rotation = Callable[[Float[Array, "B T N H"]], Float[Array, "B T N H"]]


def no_rotation(heads: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Returns the heads as they are, for models whose positions come from elsewhere."""
    return heads


class Attention(nnx.Module):
    """Projections q, k, v and o around softmax attention (Vaswani et al., arXiv:1706.03762).

    N query heads read K kv heads, N/K each (Ainslie et al., arXiv:2305.13245).

    Parameters: `q` [embed_dim, N * head_dim], `k` and `v` [embed_dim, K * head_dim], `o` [N * head_dim, embed_dim].

    Args:
        keys: four random keys: of q, k, v and o, in this order.
        init, out_init: initialise the kernels of q, k and v, and of o (by default as the others).
        bias, out_bias: whether q, k and v, and whether o has biases, which `bias_init` initialises.
        qk_norm_scale: if given, queries and keys are RMS-normalised per head without a gain after the rotation
            and multiplied by it, as in nanochat (idea: Henry et al., arXiv:2010.04245); `qk_norm_eps` is the norm's.
        value_gate_features: if positive, `__call__` takes value embeddings, which a head adds to its values
            times 3 sigmoid(x[:value_gate_features] . value_gate): parameter `value_gate` [features, K], which
            `value_gate_init` initialises. The factor 3 is nanochat's (github.com/karpathy/nanochat).
        float32_softmax: whether scores and softmax are float32; if not, they are rounded to the dtype of x, for
            weights that were trained so.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        keys: Array,
        init: Initializer,
        out_init: Initializer | None = None,
        bias: bool = False,
        out_bias: bool = False,
        bias_init: Initializer = zeros,
        qk_norm_scale: float | None = None,
        qk_norm_eps: float = 1e-6,
        value_gate_features: int = 0,
        value_gate_init: Initializer = zeros,
        float32_softmax: bool = True,
    ):
        inner, kv_inner = num_heads * head_dim, num_kv_heads * head_dim
        heads = dict(axes=("embed", "heads"), units=(1, head_dim), init=init, bias=bias, bias_init=bias_init)
        kv_heads = heads | dict(axes=("embed", "kv_heads"))
        self.q = Linear(embed_dim, inner, key=keys[0], **heads)
        self.k = Linear(embed_dim, kv_inner, key=keys[1], **kv_heads)
        self.v = Linear(embed_dim, kv_inner, key=keys[2], **kv_heads)
        self.o = Linear(
            inner,
            embed_dim,
            axes=("heads", "embed"),
            units=(head_dim, 1),
            bias=out_bias,
            key=keys[3],
            init=out_init or init,
            bias_init=bias_init,
        )
        if value_gate_features:
            self.value_gate = Linear(
                value_gate_features,
                num_kv_heads,
                axes=("gate_features", "kv_heads"),
                key=jax.random.fold_in(keys[2], 2),
                init=value_gate_init,
            )
        self.head_dim = head_dim
        self.qk_norm_scale, self.qk_norm_eps = qk_norm_scale, qk_norm_eps
        self.value_gate_features = value_gate_features
        self.float32_softmax = float32_softmax

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotate: Rotation = no_rotation,
        *,
        layer: LayerNumber = 0,
        window: int | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        value_embeds: Float[Array, "B T E"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Returns causal attention of x over itself and the tokens in the cache, and the cache with x's added.

        Args:
            rotate: rotates queries and keys by their positions.
            layer: the number of this layer in the cache (a Python int where there is a cache).
            window: how many tokens before its own each token sees; None means all.
            segment_ids: without a cache, attention does not cross from one id to another; with a cache, 0 is
                padding, which is not written.
            value_embeds: [B, T, K * head_dim], for a layer that mixes them into its values.
        """
        q, k, v = outputs(x, (self.q, self.k, self.v))
        q, k, v = self._heads(q, "heads"), self._heads(k, "kv_heads"), self._heads(v, "kv_heads")
        if value_embeds is not None:
            v = self._mix(v, x, self._heads(value_embeds, "kv_heads"))
        q, k = self._qk_norm(rotate(q)), self._qk_norm(rotate(k))
        softmax = dict(softmax_dtype=jnp.float32 if self.float32_softmax else x.dtype)
        if cache is None:
            out = attention(q, k, v, causal=True, window=window, segment_ids=segment_ids, **softmax)
        else:
            valid = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
            cache, keys, values, visible = cache.append(layer, k, v, valid, window)
            # A single query reads a wider cache as it is: narrowing it would take longer than the products.
            dtype = jnp.promote_types(q.dtype, keys.dtype) if q.shape[1] == 1 else q.dtype
            out = cached_attention(
                q.astype(dtype), keys.astype(dtype), values.astype(dtype), mask=visible, **softmax
            ).astype(x.dtype)
        return self.o(out.reshape(*out.shape[:2], -1)), cache

    def _heads(self, y, axis):
        y = y.reshape(*y.shape[:-1], -1, self.head_dim)
        return constrain(y, ("batch", "length", axis, "features"))

    def _qk_norm(self, heads):
        if self.qk_norm_scale is None:
            return heads
        return (self.qk_norm_scale * rms_normalize(heads, self.qk_norm_eps)).astype(heads.dtype)

    def _mix(self, v, x, value_embeds):
        gate = 3 * jax.nn.sigmoid(self.value_gate(x[..., : self.value_gate_features]))
        return v + gate[..., None] * value_embeds
