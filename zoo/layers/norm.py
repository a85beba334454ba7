"""Normalisation over the last axis."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.layers.precision import rounded


def rms_normalize(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, arXiv:1910.07467): float32 inside, then the dtype of `x`."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)


def rms_normalize_as_computed(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """`rms_normalize` with every intermediate result rounded to the dtype of `x`."""

    def kept(y):
        return rounded(y, x.dtype)

    wide = x.astype(jnp.float32)
    mean_square = kept(jnp.mean(kept(jnp.square(wide)), axis=-1, keepdims=True))
    root = kept(jnp.sqrt(kept(mean_square + kept(jnp.float32(eps)))))
    return kept(wide / root).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_normalize` times the learned `scale` [dim], which starts at one.

    float32: if not, it is `rms_normalize_as_computed`, for weights that were trained so.
    """

    def __init__(self, dim: int, eps: float, *, float32: bool = True):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.eps = eps
        self.normalize = rms_normalize if float32 else rms_normalize_as_computed

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.normalize(x, self.eps) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """scale * (x - mean) / sqrt(var + eps) + bias (Ba et al., arXiv:1607.06450), population variance.

    Parameters `scale` [dim], from one, and `bias` [dim], from zero. Float32 inside, then the dtype of `x`.
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
