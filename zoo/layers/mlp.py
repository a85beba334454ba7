"""Feed-forward blocks."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo.layers.initializers import Initializer
from zoo.layers.linear import Linear
from zoo.layers.sharding import constrain


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer, arXiv:2002.05202).

    `keys` are three: of gate, up and down, in this order.
    """

    def __init__(self, embed_dim: int, mlp_dim: int, *, keys: Array, init: Initializer):
        self.gate = Linear(embed_dim, mlp_dim, axes=("embed", "mlp"), key=keys[0], init=init)
        self.up = Linear(embed_dim, mlp_dim, axes=("embed", "mlp"), key=keys[1], init=init)
        self.down = Linear(mlp_dim, embed_dim, axes=("mlp", "embed"), key=keys[2], init=init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        h = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(h, ("batch", "length", "mlp")))
