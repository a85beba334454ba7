"""The projection all models use."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.layers.initializers import Initializer, zeros


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Float32 operands ask for float32 products (accelerators would round them), others for the default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


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
        y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=matmul_precision(x.dtype))
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        if self.has_bias:
            y = y + self.bias[...].astype(x.dtype)
        return y if self.lora is None else y + self.lora(x)
