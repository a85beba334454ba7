"""What happens to the residual stream beside attention and MLP (nanochat, github.com/karpathy/nanochat).

Scalars are parameters of shape () and act in float32.
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
    """residual_scale * x + x0_scale * x0, where x0 is the stream as it entered the first block.

    Either scalar may be absent (None): x is then not scaled, or x0 not added.
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
    """x[t] = e[t] + scale * sigmoid(e[t, :gate_features] . gate) * e[t-1]; a segment's first token has no t-1.

    Parameters: `gate/kernel` [gate_features, 1] and `scale` [], from 0.
    """

    def __init__(self, gate_features: int, *, key: Array, init: Initializer):
        self.gate = Linear(gate_features, 1, axes=("gate_features", "scalar"), key=key, init=init)
        self.scale = _scalar(0.0)
        self.gate_features = gate_features

    def __call__(self, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`previous`: the un-smeared x of the token before, zeros where there is none."""
        gate = jax.nn.sigmoid(self.gate(x[..., : self.gate_features]).astype(jnp.float32))
        smeared = self.scale[...].astype(jnp.float32) * gate * previous
        return (x + smeared).astype(x.dtype)


def previous_in_row(
    x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None = None, carry: Float[Array, "B D"] | None = None
) -> Float[Array, "B T D"]:
    """x of the token before: across a call's border it is `carry` (zeros without one), across segments zeros.

    `carry` and `segment_ids` exclude each other: cached rows are one segment each.
    """
    if carry is not None:
        return jnp.concatenate([carry[:, None].astype(x.dtype), x[:, :-1]], axis=1)
    if segment_ids is not None:
        return previous_within(x, segment_ids)
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))


class Backout(nnx.Module):
    """x - scale * earlier: takes a share of the middle of the network out of its end. Parameter `scale` []."""

    def __init__(self, scale: float):
        self.scale = _scalar(scale)

    def __call__(self, x: Float[Array, "B T D"], earlier: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return (x - self.scale[...].astype(jnp.float32) * earlier).astype(x.dtype)
