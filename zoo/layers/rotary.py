"""Rotary position embedding (Su et al., arXiv:2104.09864).

Tables are computed from explicit positions, so that cached steps, packed rows and cropped windows need no case of
their own. Models differ in which features form a pair, hence the several functions that rotate. A model that rotates in
the other direction negates the sines.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.layers import cpu
from zoo.layers.precision import rounded


def rotary_tables(
    positions: Int[Array, "..."], width: int, theta: float, dtype: DTypeLike = jnp.float32
) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
    """Returns cos and sin of position * theta^(-i / half) for i < half = width // 2, shape positions.shape + (half,).

    Args:
        dtype: the dtype of positions, frequencies, angles and tables. bfloat16 has 8 significant bits, so that
            positions beyond 256 collapse (257 becomes 256); weights that were trained so need such tables.
    """
    half = width // 2
    frequencies = rounded(theta ** (-jnp.arange(half, dtype=jnp.float32) / half), dtype)
    angles = rounded(rounded(positions.astype(jnp.float32), dtype)[..., None] * frequencies, dtype)
    return cpu.materialized(jnp.cos(angles)).astype(dtype), cpu.materialized(jnp.sin(angles)).astype(dtype)


def ntk_theta(theta: float, factor: float, width: int) -> float:
    """Returns the rotary base that stretches the context by `factor`: theta * factor^(width / (width - 2)).

    It divides the lowest frequency by `factor` and leaves the highest as it is ("NTK-aware scaled RoPE", bloc97 2023;
    Peng et al., arXiv:2309.00071, section 3.1).
    """
    return theta * factor ** (width / (width - 2)) if factor != 1 else theta


def rotate_interleaved(
    x: Float[Array, "... width"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "... width"]:
    """Rotates the pairs (2i, 2i+1) by the angles; `cos` and `sin` broadcast against x[..., :half]."""
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    # x cos + swap(x) (-sin, sin): separating the pairs by strided slices takes twice as long on a CPU.
    swapped = jnp.flip(x.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    signed = jnp.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], -1)
    return x * jnp.repeat(cos, 2, axis=-1) + swapped * signed


def rotate_split_half(
    x: Float[Array, "... width"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "... width"]:
    """Rotates the pairs (i, half + i) by the angles; `cos` and `sin` broadcast against x[..., :half].

    If the width is odd, the last feature is returned unchanged.
    """
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    half = x.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def rotate_full_width(
    heads: Float[Array, "B T N H"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Array, "B T N H"]:
    """Rotates all heads as one vector by `rotate_split_half`, half = N * H // 2, as BwETAF does (PyPI, 0.6).

    Each head has its own frequencies then.
    """
    wide = heads.reshape(*heads.shape[:2], -1)
    return rotate_split_half(wide, cos, sin).reshape(heads.shape)
