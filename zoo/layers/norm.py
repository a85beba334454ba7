"""Normalisation over the last axis."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.layers.precision import rounded


def rms_normalize(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """Returns x / sqrt(mean(x^2) + eps) in the dtype of `x`, computed in float32.

    Source: Zhang and Sennrich, arXiv:1910.07467.
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)


def rms_normalize_as_computed(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """Returns `rms_normalize` with every intermediate result rounded to the dtype of `x`."""

    def to_dtype(y):
        return rounded(y, x.dtype)

    wide = x.astype(jnp.float32)
    mean_square = to_dtype(jnp.mean(to_dtype(jnp.square(wide)), axis=-1, keepdims=True))
    root = to_dtype(jnp.sqrt(to_dtype(mean_square + to_dtype(jnp.float32(eps)))))
    return to_dtype(wide / root).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS normalisation times a learned gain: parameter `scale` [dim], from one.

    Args:
        float32: whether it computes in float32 (`rms_normalize`); if not, it rounds every intermediate result to the
            dtype of x (`rms_normalize_as_computed`), for weights that were trained so.
    """

    def __init__(self, dim: int, eps: float, *, float32: bool = True):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.eps = eps
        self.normalize = rms_normalize if float32 else rms_normalize_as_computed

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.normalize(x, self.eps) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation, scale * (x - mean) / sqrt(variance + eps) + bias (Ba et al., arXiv:1607.06450).

    Parameters: `scale` [dim], from one, and `bias` [dim], from zero. The statistics are float32, the variance is the
    population's, the result has the dtype of `x`.
    """

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)
        return normal * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
