"""Token tables and the projection to the vocabulary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.initializers import Initializer
from zoo.layers.linear import matmul_precision


class Embedding(nnx.Module):
    """A table `embedding` [vocab_size, embed_dim]; rows are looked up in the dtype of the table."""

    def __init__(self, vocab_size: int, embed_dim: int, *, key: Array, init: Initializer):
        self.embedding = nnx.Param(init(key, (vocab_size, embed_dim)), axes=("vocab", "embed"))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embedding[...][tokens]

    def as_head(self) -> Float[Array, "D V"]:
        """The kernel of a head tied to this table."""
        return self.embedding[...].T


def unembed(
    hidden: Float[Array, "... D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "... V"]:
    """Float32 logits: hidden . kernel + bias, then softcap * tanh(logits / softcap) where there is a cap."""
    logits = jnp.matmul(
        hidden,
        kernel.astype(hidden.dtype),
        precision=matmul_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
