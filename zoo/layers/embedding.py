"""Tables looked up by token or position, and the projection to the vocabulary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers.initializers import Initializer
from zoo.layers.linear import Linear
from zoo.layers.precision import matmul_precision
from zoo.layers.sharding import constrain
from zoo.layers.softcap import softcap


class Embedding(nnx.Module):
    """A table `embedding` [rows, features]; rows are looked up in the dtype of the table.

    axes: logical names of the two; tables of positions and value embeddings have their own.
    """

    def __init__(
        self,
        rows: int,
        features: int,
        *,
        key: Array,
        init: Initializer,
        axes: tuple[str, str] = ("vocab", "embed"),
    ):
        self.embedding = nnx.Param(init(key, (rows, features)), axes=axes)
        self.rows_axis = axes[0]

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.embedding[...]
        if ids.size > len(table):
            # On a mesh whose devices hold parts of the features these are brought together first. Rows looked up in
            # parts would be dealt out by batch by way of every device holding all of them: more than the table.
            table = constrain(table, (self.rows_axis, "features"))
        return table[ids]

    def as_head(self, vocab_size: int | None = None) -> Float[Array, "D V"]:
        """The kernel of a head tied to this table, of its first `vocab_size` rows (default: all).

        Tied heads: Press and Wolf, arXiv:1608.05859.
        """
        return self.embedding[...][:vocab_size].T


class Head(Linear):
    """The untied projection to the vocabulary: `kernel` [embed_dim, rows] and, with `bias`, `bias` [rows]."""

    def __init__(
        self,
        embed_dim: int,
        rows: int,
        *,
        bias: bool = False,
        key: Array,
        init: Initializer,
        bias_init: Initializer | None = None,
    ):
        extra = {} if bias_init is None else {"bias_init": bias_init}
        super().__init__(embed_dim, rows, axes=("embed", "vocab"), bias=bias, key=key, init=init, **extra)

    def as_head(self, vocab_size: int | None = None) -> tuple[Float[Array, "D V"], Float[Array, " V"] | None]:
        """Kernel and bias of the first `vocab_size` outputs (default: all)."""
        return self.kernel[...][:, :vocab_size], self.bias[...][:vocab_size] if self.has_bias else None


def unembed(
    hidden: Float[Array, "... D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"] | None = None,
    cap: float | None = None,
) -> Float[Array, "... V"]:
    """Float32 logits: hidden . kernel + bias, soft-capped where there is a cap."""
    logits = jnp.matmul(
        hidden,
        kernel.astype(hidden.dtype),
        precision=matmul_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    return logits if cap is None else softcap(logits, cap)
