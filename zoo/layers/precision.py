"""The precision of products, and rounding on purpose."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Returns the `precision` of a product of operands of `dtype`: HIGHEST for float32, None (JAX's default) otherwise.

    Accelerators would round float32 operands to fewer bits by default.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def rounded(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns `x`, in its own dtype, rounded to the precision of `dtype`.

    A pair of casts means the same, but XLA leaves casts out where it fuses operations in float32, so that results
    would depend on what happens to be fused.
    """
    info = jnp.finfo(dtype)
    return x if info.bits >= 32 else jax.lax.reduce_precision(x, info.nexp, info.nmant)
