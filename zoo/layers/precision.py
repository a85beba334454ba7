"""Rounding on purpose."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def rounded(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """`x`, in its own dtype, with no more precision than `dtype` has.

    A cast says the same, but where XLA fuses operations it computes them in float32 and leaves such casts out, so
    that results depend on what happened to be fused.
    """
    info = jnp.finfo(dtype)
    return x if info.bits >= 32 else jax.lax.reduce_precision(x, info.nexp, info.nmant)
