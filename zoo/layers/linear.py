"""The projection all models use."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.layers.devices import on_one_cpu
from zoo.layers.initializers import Initializer, zeros

# One row's product with a kernel is split so many times on a CPU.
PIECES = 4
# Kernels up to this size in all are joined for one row on a CPU.
JOINED_BYTES = 2**20


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Float32 operands ask for float32 products (accelerators would round them), others for the default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def product(x: Float[Array, "N in"], kernel: Float[Array, "in out"]) -> Float[Array, "N out"]:
    """x . kernel in their common dtype, accumulated in at least float32.

    For a single row XLA on CPU reads the kernel by one thread, where it computes a batch of such products by several:
    the sum is then taken in pieces, which is a fifth to a quarter faster (and no faster from two rows on).
    """
    (rows, features), precision = x.shape, matmul_precision(x.dtype)
    if rows != 1 or features % PIECES or not on_one_cpu():
        return jnp.matmul(x, kernel, precision=precision)
    pieces = jnp.einsum(
        "pi,pio->po",
        x.reshape(PIECES, -1),
        kernel.reshape(PIECES, -1, kernel.shape[1]),
        precision=precision,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return jnp.sum(pieces, axis=0, keepdims=True).astype(x.dtype)


class Linear(nnx.Module):
    """y = x . kernel (+ bias) (+ adapter), computed in the dtype of `x`.

    Parameters: `kernel` [in_features, out_features] and, with `bias`, `bias` [out_features]; `lora` is a slot for an
    adapter (see `zoo.layers.lora`), empty until one is put there. No other parameter's path depends on what is in it.
    `axes` names the two logical axes of the kernel. `units` says how many neighbours along each axis
    belong together and are not to be split between devices (head_dim on an axis of heads).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str, str],
        units: tuple[int, int] = (1, 1),
        bias: bool = False,
        key: Array,
        init: Initializer,
        bias_init: Initializer = zeros,
    ):
        self.kernel = nnx.Param(init(key, (in_features, out_features)), axes=axes, units=units)
        if bias:
            # A key of its own, so that the kernel's numbers do not depend on there being a bias.
            draw = bias_init(jax.random.fold_in(key, 1), (out_features,))
            self.bias = nnx.Param(draw, axes=axes[1:], units=units[1:])
        self.has_bias = bias
        self.lora = nnx.data(None)

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        kernel = self.kernel[...].astype(x.dtype)
        # Two axes only: with three, XLA on CPU transposes every output gradient to get that of the kernel.
        y = product(x.reshape(-1, x.shape[-1]), kernel)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        if self.has_bias:
            y = y + self.bias[...].astype(x.dtype)
        return y if self.lora is None else y + self.lora(x)


def outputs(x: Float[Array, "... in"], linears: Sequence[Linear]) -> list[Float[Array, "... _"]]:
    """What each of several projections makes of the same x.

    For a single row on a CPU small kernels are joined: to start three products takes longer than to read their kernels.
    XLA joins them once before a loop of decoding, not in it.
    """
    plain = not any(linear.has_bias or linear.lora is not None for linear in linears)
    small = sum(linear.kernel[...].nbytes for linear in linears) <= JOINED_BYTES
    if not (plain and small and x.size == x.shape[-1] and on_one_cpu()):
        return [linear(x) for linear in linears]
    kernels = [linear.kernel[...].astype(x.dtype) for linear in linears]
    y = product(x.reshape(1, -1), jnp.concatenate(kernels, axis=1))
    ends = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1]
    return [part.reshape(*x.shape[:-1], -1) for part in jnp.split(y, ends, axis=1)]
