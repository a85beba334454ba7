"""What programs on a single CPU device do differently, and why.

XLA on CPU runs a few shapes of generation far below the speed of the memory. The functions here compute the same with
other operations; `Linear`, `KVCache` and attention call them where `on_one_cpu` holds. Attention over whole rows has a
module of its own, `zoo.layers.attention_cpu`. The gain of each is measured in docs/performance-notes.md.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.layers.devices import platform_and_kind
from zoo.layers.precision import matmul_precision

# The number of parts that a single row's product with a kernel is split into.
PIECES = 4
# The largest kernels, in bytes of all together, that are joined for a single row.
JOINED_BYTES = 2**20


def on_one_cpu() -> bool:
    """Returns whether the program is compiled for one CPU device, so that no array is spread over several."""
    return platform_and_kind()[0] == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def product(x: Float[Array, "N in"], kernel: Float[Array, "in out"]) -> Float[Array, "N out"]:
    """Returns x . kernel in their common dtype, accumulated in at least float32.

    For a single row XLA reads the kernel with one thread, but computes a batch of such products with several. The sum
    over `in` is then taken in PIECES parts: 20 to 25% faster for one row, no faster from two rows on.
    """
    (rows, features), precision = x.shape, matmul_precision(x.dtype)
    if rows != 1 or features % PIECES:
        return jnp.matmul(x, kernel, precision=precision)
    pieces = jnp.einsum(
        "pi,pio->po",
        x.reshape(PIECES, -1),
        kernel.reshape(PIECES, -1, kernel.shape[1]),
        precision=precision,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return jnp.sum(pieces, axis=0, keepdims=True).astype(x.dtype)


def should_join(x: Float[Array, "... in"], kernels: Sequence[Float[Array, "in _"]]) -> bool:
    """Returns whether `joined_products` is faster than one product a kernel: for a single row and small kernels.

    Starting several products then takes longer than reading their kernels.
    """
    return x.size == x.shape[-1] and sum(kernel.nbytes for kernel in kernels) <= JOINED_BYTES and on_one_cpu()


def joined_products(x: Float[Array, "... in"], kernels: Sequence[Float[Array, "in _"]]) -> list[Float[Array, "... _"]]:
    """Returns the product of a single row with each kernel, computed as one product.

    XLA joins the kernels once before a loop of decoding steps, not in each step.
    """
    y = product(x.reshape(1, -1), jnp.concatenate(kernels, axis=1))
    ends = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1]
    return [part.reshape(*x.shape[:-1], -1) for part in jnp.split(y, ends, axis=1)]


def write_token(
    buffers: tuple[Float[Array, "1 K S H"], ...], new: tuple[Float[Array, "1 1 K H"], ...], slots: Int[Array, "1 1"]
) -> tuple[Float[Array, "1 K S H"], ...]:
    """Returns a single row's cache buffers with one token's keys and values at its slot; slot S writes nothing.

    XLA turns a scatter of one token into a slice update and fuses it, twice over, into the attention that reads the
    cache, which copies the whole cache four times a token. It fuses nothing out of a conditional.
    """

    def put(buffers):
        return tuple(
            jax.lax.dynamic_update_slice(
                buffer, token.transpose(0, 2, 1, 3).astype(buffer.dtype), (0, 0, slots[0, 0], 0)
            )
            for buffer, token in zip(buffers, new, strict=True)
        )

    return jax.lax.cond(slots[0, 0] < buffers[0].shape[2], put, lambda buffers: buffers, buffers)


def single_query_scores(q: Float[Array, "B K G 1 H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K G 1 S"]:
    """Returns q . k of one query a row in float32, with the keys as the left operand.

    XLA transposes the right operand of such a product in memory, which would be the whole cache.
    """
    scores = jnp.einsum(
        "bksh,bkgth->bksgt", k, q, precision=matmul_precision(q.dtype), preferred_element_type=jnp.float32
    )
    return scores.transpose(0, 1, 3, 4, 2)
