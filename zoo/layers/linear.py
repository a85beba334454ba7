"""The projection that all models use."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.layers import cpu
from zoo.layers.initializers import Initializer, zeros
from zoo.layers.precision import matmul_precision


class Linear(nnx.Module):
    """Computes y = x . kernel (+ bias) (+ adapter) in the dtype of `x`.

    Parameters: `kernel` [in_features, out_features] and, with `bias`, `bias` [out_features]. `lora` is the slot for an
    adapter (see `zoo.layers.lora`), empty until one is put there; no other parameter's path depends on it.

    Args:
        axes: the logical names of the kernel's two axes (see `zoo.layers.sharding`).
        units: how many neighbours along each axis stay together on one device (head_dim on an axis of heads).
        key: seeds the kernel and the bias, which `init` and `bias_init` draw.
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
        y = _product(x.reshape(-1, x.shape[-1]), kernel)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        if self.has_bias:
            y = y + self.bias[...].astype(x.dtype)
        return y if self.lora is None else y + self.lora(x)


def outputs(x: Float[Array, "... in"], linears: Sequence[Linear]) -> list[Float[Array, "... _"]]:
    """Returns what each of several projections makes of the same x, by one product where that is faster."""
    kernels = [linear.kernel[...] for linear in linears]
    plain = not any(linear.has_bias or linear.lora is not None for linear in linears)
    if plain and cpu.should_join(x, kernels):
        return cpu.joined_products(x, [kernel.astype(x.dtype) for kernel in kernels])
    return [linear(x) for linear in linears]


def _product(x, kernel):
    """x [N, in] . kernel [in, out] in their common dtype."""
    if cpu.on_one_cpu():
        return cpu.product(x, kernel)
    return jnp.matmul(x, kernel, precision=matmul_precision(x.dtype))
