"""Dropout with an explicit key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Returns x with each number set to zero with probability `rate`, else divided by 1 - rate.

    Without a key, or with a rate of 0, it returns x itself (Srivastava et al. 2014).
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
