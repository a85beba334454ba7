"""Soft-capping of logits."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def softcap(logits: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Returns cap * tanh(logits / cap): close to `logits` near 0, never beyond +-cap (Gemma 2, arXiv:2408.00118)."""
    return cap * jnp.tanh(logits / cap)
