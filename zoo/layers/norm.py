"""Normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def rms_normalize(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, arXiv:1910.07467).

    The mean and the reciprocal root are float32; the product is in the dtype of `x`.
    """
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + eps).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_normalize` times the learned `scale` [dim], which starts at one."""

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_normalize(x, self.eps) * self.scale[...].astype(x.dtype)
