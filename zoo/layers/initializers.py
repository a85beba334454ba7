"""Initial values of parameters. An initialiser is a function `(key, shape) -> float32 array`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[[Array, tuple[int, ...]], Array]


def truncated_normal(std: float) -> Initializer:
    """Returns an initialiser that draws from a standard normal cut at +-2, times `std`.

    The draw is not rescaled: its standard deviation is 0.88 `std`.
    """

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * std

    return init


def normal(std: float) -> Initializer:
    """Returns an initialiser that draws from a normal distribution of mean 0 and standard deviation `std`."""

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.normal(key, shape, jnp.float32) * std

    return init


def uniform(low: float, high: float) -> Initializer:
    """Returns an initialiser that draws uniformly from [low, high)."""

    def init(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, jnp.float32, low, high)

    return init


def lecun_normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws a kernel [in, out] from a normal of standard deviation 1/sqrt(in), cut at +-2 (LeCun et al. 1998)."""
    # 0.8796 is the standard deviation of a standard normal cut at +-2.
    return truncated_normal(1 / (0.87962566103423978 * math.sqrt(shape[0])))(key, shape)


def zeros(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns zeros; the key is not used."""
    return jnp.zeros(shape, jnp.float32)
