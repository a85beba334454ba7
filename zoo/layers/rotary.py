"""Rotary position embedding (Su et al., arXiv:2104.09864).

Tables come from explicit positions, so that cached steps, packed rows and cropped windows need no case of
their own. Models differ in which features form a pair, hence two apply functions.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def rotary_tables(
    positions: Int[Array, "..."], width: int, theta: float, dtype: DTypeLike
) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
    """cos and sin of position * theta^(-i / half) for i < half = width // 2, shape positions.shape + (half,).

    Angles are float32 whatever `dtype`: in bfloat16 positions beyond 256 would collapse.
    """
    half = width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate_interleaved(
    x: Float[Array, "... width"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "... width"]:
    """Rotate the pairs (2i, 2i+1) by the angles; `cos` and `sin` broadcast against x[..., :half]."""
    # x cos + swap(x) (-sin, sin): taking the pairs apart with strided slices takes a CPU twice as long.
    swapped = jnp.flip(x.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    signed = jnp.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], -1)
    return x * jnp.repeat(cos, 2, axis=-1) + swapped * signed


def rotate_split_half(
    x: Float[Array, "... width"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "... width"]:
    """Rotate the pairs (i, half + i) by the angles; `cos` and `sin` broadcast against x[..., :half]."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
