"""Operations on the residual stream beside attention and MLP (from nanochat, github.com/karpathy/nanochat).

Their scalars are parameters of shape () and act in float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.initializers import Initializer
from zoo.layers.linear import Linear
from zoo.layers.segments import previous_within


def _scalar(value: float) -> nnx.Param:
    return nnx.Param(jnp.full((), value, jnp.float32), axes=())


class ResidualBlend(nnx.Module):
    """Returns residual_scale * x + x0_scale * x0, where x0 is the stream before the first block.

    Parameters: `residual_scale` [] and `x0_scale` []. With None for one of them, x is not scaled, or x0 not added.
    """

    def __init__(self, residual_scale: float | None, x0_scale: float | None):
        self.scales, self.blends = residual_scale is not None, x0_scale is not None
        if self.scales:
            self.residual_scale = _scalar(residual_scale)
        if self.blends:
            self.x0_scale = _scalar(x0_scale)

    def __call__(self, x: Float[Array, "B T D"], x0: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        out = x.astype(jnp.float32)
        if self.scales:
            out = self.residual_scale[...].astype(jnp.float32) * out
        if self.blends:
            out = out + self.x0_scale[...].astype(jnp.float32) * x0
        return out.astype(x.dtype)


class Smear(nnx.Module):
    """Adds a gated share of the embedding before: x[t] = e[t] + scale * sigmoid(e[t, :gate_features] . gate) * e[t-1].

    Parameters: `gate/kernel` [gate_features, 1] and `scale` [], from zero.
    """

    def __init__(self, gate_features: int, *, key: Array, init: Initializer):
        self.gate = Linear(gate_features, 1, axes=("gate_features", "scalar"), key=key, init=init)
        self.scale = _scalar(0.0)
        self.gate_features = gate_features

    def __call__(self, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the smeared x; `previous` is the un-smeared x of the token before, zeros where there is none."""
        gate = jax.nn.sigmoid(self.gate(x[..., : self.gate_features]).astype(jnp.float32))
        smeared = self.scale[...].astype(jnp.float32) * gate * previous
        return (x + smeared).astype(x.dtype)


def previous_in_row(
    x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None = None, carry: Float[Array, "B D"] | None = None
) -> Float[Array, "B T D"]:
    """Returns x of the token before each token, and zeros for the first token of a row or segment.

    Args:
        carry: x of the row's last token in the call before, for a cached call; `segment_ids` do not count then, since
            a cached row is one segment.
    """
    if carry is not None:
        return jnp.concatenate([carry[:, None].astype(x.dtype), x[:, :-1]], axis=1)
    if segment_ids is not None:
        return previous_within(x, segment_ids)
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))


class Backout(nnx.Module):
    """Returns x - scale * earlier, the last block's output less a share of a middle block's. Parameter: `scale` []."""

    def __init__(self, scale: float):
        self.scale = _scalar(scale)

    def __call__(self, x: Float[Array, "B T D"], earlier: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return (x - self.scale[...].astype(jnp.float32) * earlier).astype(x.dtype)
