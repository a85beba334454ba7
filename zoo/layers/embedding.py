"""Tables looked up by token or position, and the projection to the vocabulary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.layers import cpu
from zoo.layers.initializers import Initializer
from zoo.layers.linear import Linear
from zoo.layers.sharding import constrain
from zoo.layers.softcap import softcap


class Embedding(nnx.Module):
    """A table that maps ids to vectors in its own dtype: parameter `embedding` [rows, features].

    Args:
        axes: the logical names of its two axes; tables of positions and of value embeddings have their own.
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
            # On a mesh that splits the features, the table is gathered before the look-up. Otherwise XLA would look
            # up parts of rows, and every device would hold all rows of the batch on the way: more than the table.
            table = constrain(table, (self.rows_axis, "features"))
        return table[ids]

    def as_head(self, vocab_size: int | None = None) -> Float[Array, "D V"]:
        """Returns the kernel of a head that is tied to this table (Press and Wolf, arXiv:1608.05859).

        It has the first `vocab_size` rows, all by default.
        """
        return self.embedding[...][:vocab_size].T


class Head(Linear):
    """A projection to the vocabulary of its own: `kernel` [embed_dim, rows] and, with `bias`, `bias` [rows]."""

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
        """Returns the kernel and bias (or None) of the first `vocab_size` outputs, all by default."""
        return self.kernel[...][:, :vocab_size], self.bias[...][:vocab_size] if self.has_bias else None


def unembed(
    hidden: Float[Array, "... D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"] | None = None,
    cap: float | None = None,
) -> Float[Array, "... V"]:
    """Returns the float32 logits hidden . kernel + bias, soft-capped if `cap` is given."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    kernel = kernel.astype(hidden.dtype)
    if len(rows) == 1 and rows.dtype == jnp.bfloat16 and cpu.on_one_cpu():
        logits = cpu.single_row_product(rows, kernel)
    else:
        logits = cpu.einsum("nd,dv->nv", rows, kernel)
    logits = logits.reshape(*hidden.shape[:-1], -1)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    return logits if cap is None else softcap(logits, cap)
