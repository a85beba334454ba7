"""Multi-head self-attention with rotary positions and an optional cache."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zoo.layers import kv_cache
from zoo.layers.attention_kernels import attention, cached_attention
from zoo.layers.initializers import Initializer
from zoo.layers.linear import Linear
from zoo.layers.sharding import constrain

Rotation = Callable[[Float[Array, "B T N H"]], Float[Array, "B T N H"]]


class Attention(nnx.Module):
    """Projections q, k, v and o around `attention`; N query heads read K kv heads, N/K each. No biases.

    `keys` are four: of q, k, v and o, in this order.
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
    ):
        inner, kv_inner = num_heads * head_dim, num_kv_heads * head_dim
        heads = dict(axes=("embed", "heads"), units=(1, head_dim), init=init)
        kv_heads = dict(axes=("embed", "kv_heads"), units=(1, head_dim), init=init)
        self.q = Linear(embed_dim, inner, key=keys[0], **heads)
        self.k = Linear(embed_dim, kv_inner, key=keys[1], **kv_heads)
        self.v = Linear(embed_dim, kv_inner, key=keys[2], **kv_heads)
        self.o = Linear(inner, embed_dim, axes=("heads", "embed"), units=(head_dim, 1), key=keys[3], init=init)
        self.head_dim = head_dim

    def _project(self, x, rotate):
        def heads(y, axis):
            y = y.reshape(*y.shape[:-1], -1, self.head_dim)
            return constrain(y, ("batch", "length", axis, "features"))

        return (
            rotate(heads(self.q(x), "heads")),
            rotate(heads(self.k(x), "kv_heads")),
            heads(self.v(x), "kv_heads"),
        )

    def _output(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return self.o(heads.reshape(*heads.shape[:2], -1))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotate: Rotation,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Causal attention of x over itself; `rotate` puts positions into queries and keys."""
        q, k, v = self._project(x, rotate)
        return self._output(attention(q, k, v, causal=True, segment_ids=segment_ids))

    def cached(
        self,
        x: Float[Array, "B T D"],
        rotate: Rotation,
        cached_k: Float[Array, "B K S H"],
        cached_v: Float[Array, "B K S H"],
        slots: Int[Array, "B T"],
        visible: Bool[Array, "B 1 T S"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
        """The same over the cached tokens and x itself: x's keys and values are written first, then read.

        Returns the output and the layer's new keys and values. See `zoo.layers.kv_cache` for the slots.
        """
        q, k, v = self._project(x, rotate)
        cached_k = kv_cache.write(cached_k, k, slots)
        cached_v = kv_cache.write(cached_v, v, slots)
        out = cached_attention(q, cached_k.astype(q.dtype), cached_v.astype(q.dtype), mask=visible)
        return self._output(out), cached_k, cached_v
