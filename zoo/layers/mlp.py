"""Feed-forward blocks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.layers.initializers import Initializer, zeros
from zoo.layers.linear import Linear
from zoo.layers.sharding import constrain


def relu_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns max(x, 0)^2 (So et al., Primer, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns GELU by its tanh approximation (Hendrycks and Gimpel, arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "relu_squared": relu_squared,
}


class MLP(nnx.Module):
    """A feed-forward block that computes down(activation(up(x))).

    Parameters: `up` [embed_dim, mlp_dim] and `down` [mlp_dim, embed_dim].

    Args:
        activation: a name in `ACTIVATIONS`.
        keys: two random keys: of up and down.
        init, down_init: initialise the kernels of up and of down (by default as up's).
        bias_inits: initialise the biases of up [mlp_dim] and of down [embed_dim]; None means no biases.
    """

    def __init__(
        self,
        embed_dim: int,
        mlp_dim: int,
        *,
        activation: str,
        keys: Array,
        init: Initializer,
        down_init: Initializer | None = None,
        bias_inits: tuple[Initializer, Initializer] | None = None,
    ):
        up_bias, down_bias = bias_inits or (zeros, zeros)
        up = dict(axes=("embed", "mlp"), key=keys[0], init=init, bias_init=up_bias)
        down = dict(axes=("mlp", "embed"), key=keys[1], init=down_init or init, bias_init=down_bias)
        self.up = Linear(embed_dim, mlp_dim, bias=bias_inits is not None, **up)
        self.down = Linear(mlp_dim, embed_dim, bias=bias_inits is not None, **down)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = self.activation(self.up(x))
        return self.down(constrain(h, ("batch", "length", "mlp")))


class SwiGLU(nnx.Module):
    """A feed-forward block that computes down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202).

    Parameters: `gate` and `up` [embed_dim, mlp_dim], `down` [mlp_dim, embed_dim], with biases from zero if `bias`.
    `keys` are three random keys, in this order.
    """

    def __init__(self, embed_dim: int, mlp_dim: int, *, keys: Array, init: Initializer, bias: bool = False):
        wide = dict(axes=("embed", "mlp"), init=init, bias=bias)
        self.gate = Linear(embed_dim, mlp_dim, key=keys[0], **wide)
        self.up = Linear(embed_dim, mlp_dim, key=keys[1], **wide)
        self.down = Linear(mlp_dim, embed_dim, axes=("mlp", "embed"), key=keys[2], init=init, bias=bias)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(h, ("batch", "length", "mlp")))


class FusedSwiGLU(nnx.Module):
    """A `SwiGLU` with up and gate in one kernel, in this order, and biases from zero, as BwETAF has it.

    Parameters: `up_gate` [embed_dim, 2 mlp_dim] and `down` [mlp_dim, embed_dim]. `keys` are two random keys, in this
    order.
    """

    def __init__(self, embed_dim: int, mlp_dim: int, *, keys: Array, init: Initializer):
        self.up_gate = Linear(embed_dim, 2 * mlp_dim, axes=("embed", "mlp"), bias=True, key=keys[0], init=init)
        self.down = Linear(mlp_dim, embed_dim, axes=("mlp", "embed"), bias=True, key=keys[1], init=init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        up, gate = jnp.split(self.up_gate(x), 2, axis=-1)
        return self.down(constrain(jax.nn.silu(gate) * up, ("batch", "length", "mlp")))
