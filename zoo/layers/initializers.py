"""How parameters start. An initialiser is a function `(key, shape) -> float32 array`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[[Array, tuple[int, ...]], Array]


def truncated_normal(std: float) -> Initializer:
    """A standard normal cut at +-2, times `std`. The result is not rescaled: its deviation is 0.88 `std`."""

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * std

    return init


def normal(std: float) -> Initializer:
    """Gaussian of mean 0 and deviation `std`."""

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.normal(key, shape, jnp.float32) * std

    return init


def uniform(low: float, high: float) -> Initializer:
    """Uniform in [low, high)."""

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, jnp.float32, low, high)

    return init


def lecun_normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """A normal cut at two deviations whose deviation is 1/sqrt(shape[0]) (LeCun et al. 1998): kernels [in, out]."""
    # 0.8796 is the deviation of a standard normal cut at +-2.
    return truncated_normal(1 / (0.87962566103423978 * math.sqrt(shape[0])))(key, shape)


def zeros(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """All zeros; the key is not used."""
    return jnp.zeros(shape, jnp.float32)
