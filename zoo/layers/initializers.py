"""How parameters start. An initialiser is a function `(key, shape) -> float32 array`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Initializer = Callable[[Array, tuple[int, ...]], Array]


def truncated_normal(std: float) -> Initializer:
    """A standard normal cut at +-2, times `std`. The result is not rescaled: its deviation is 0.88 `std`."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * std

    return init


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """All zeros; the key is not used."""
    return jnp.zeros(shape, jnp.float32)
