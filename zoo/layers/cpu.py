"""What programs on a single CPU device do differently, and why.

XLA on CPU runs a few shapes of generation far below the speed of the memory. The functions here compute the same with
other operations; `Linear`, `KVCache` and attention call them where `on_one_cpu` holds. Attention over whole rows has a
module of its own, `zoo.layers.attention_cpu`. The gain of each is measured in docs/performance-notes.md.
"""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zoo.layers.devices import cpu_flags, platform_and_kind
from zoo.layers.precision import matmul_precision

# The number of parts that a single row's product with a kernel is split into.
PIECES = 4
# The largest kernels, in bytes of all together, that are joined for a single row.
JOINED_BYTES = 2**20

_rounds: ContextVar[bool] = ContextVar("zoo_bfloat16_products", default=False)


def on_one_cpu() -> bool:
    """Returns whether the program is compiled for one CPU device, so that no array is spread over several."""
    return platform_and_kind()[0] == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def multiplies_bfloat16() -> bool:
    """Returns whether the program is compiled for one CPU that multiplies bfloat16 matrices by units of its own (AMX).

    Such products run several times as fast as float32 ones. AVX512-BF16 alone is not enough: on an Intel CPU whose
    AMX was masked, XLA's bfloat16 products ran at 0.6 of the rate of float32.
    """
    return "amx_bf16" in cpu_flags() and on_one_cpu()


def bfloat16_products(program: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with the operands of its float32 products rounded to bfloat16, where that is faster.

    That is where `multiplies_bfloat16` holds. Sums, results and everything between products stay float32. Derivatives
    must be taken inside of `program`, which is to be compiled whole.
    """

    @wraps(program)
    def rounding(*args, **kwargs):
        token = _rounds.set(True)
        try:
            return program(*args, **kwargs)
        finally:
            _rounds.reset(token)

    return rounding


def takes_bfloat16(dtype: DTypeLike) -> bool:
    """Returns whether a product of operands of this dtype is computed in bfloat16 by the CPU's matrix units."""
    return (dtype == jnp.bfloat16 or (dtype == jnp.float32 and _rounds.get())) and multiplies_bfloat16()


def einsum(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns jnp.einsum(equation, a, b) of operands of one dtype, summed and returned in at least float32.

    Every axis must stand in two of the three terms of the equation. Where `takes_bfloat16` holds, the operands and the
    gradient that comes back are rounded to bfloat16 and all three products run on the matrix units. (JAX's own
    derivative would multiply float32 by bfloat16.)
    """
    if takes_bfloat16(a.dtype):
        return _bfloat16_einsum((equation, a.dtype, b.dtype), a, b)
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype), preferred_element_type=dtype)


def as_operands(*arrays: Float[Array, "..."]) -> list[Float[Array, "..."]]:
    """Returns the arrays as `einsum` multiplies them: in bfloat16 where it rounds, else as they are.

    What is multiplied several times is cast once by this.
    """
    return [x.astype(jnp.bfloat16) if takes_bfloat16(x.dtype) else x for x in arrays]


def row_sums(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Returns the float32 sums over the last axis."""
    if takes_bfloat16(x.dtype):
        # XLA hands sums to a library that takes ten times as long as a product with ones.
        ones = jnp.ones((x.shape[-1], 1), jnp.float32)
        return jnp.matmul(x.astype(jnp.float32), ones, precision=jax.lax.Precision.HIGHEST)[..., 0]
    return jnp.sum(x, axis=-1, dtype=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bfloat16_einsum(static, a, b):
    return _bfloat16_einsum_forward(static, a, b)[0]


def _bfloat16_einsum_forward(static, a, b):
    operands = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _row_major_einsum(static[0], *operands), operands


def _bfloat16_einsum_backward(static, operands, d_y):
    equation, a_dtype, b_dtype = static
    (a, b), d_y = operands, d_y.astype(jnp.bfloat16)
    terms, out = equation.split("->")
    a_axes, b_axes = terms.split(",")
    d_a = _row_major_einsum(f"{out},{b_axes}->{a_axes}", d_y, b)
    d_b = _row_major_einsum(f"{a_axes},{out}->{b_axes}", a, d_y)
    return d_a.astype(a_dtype), d_b.astype(b_dtype)


_bfloat16_einsum.defvjp(_bfloat16_einsum_forward, _bfloat16_einsum_backward)


def _row_major_einsum(equation, a, b):
    """`einsum` as one product [batch, M, K] . [batch, K, N] or [batch, N, K] of row-major operands.

    XLA's bfloat16 kernels take no other layouts. It multiplies others in float32, or fails when the program runs
    ("Unsupported element type for DotThunk"); layout assignment must therefore choose none of the three.
    """
    terms, out = equation.split("->")
    a_axes, b_axes = terms.split(",")
    summed = [axis for axis in a_axes if axis in b_axes and axis not in out]
    if _is_last(summed, b_axes) and not _is_last(summed, a_axes):
        (a_axes, a), (b_axes, b) = (b_axes, b), (a_axes, a)
    elif not _is_last(summed, a_axes) and not _is_last(summed, b_axes) and b.size < a.size:
        # Either is to be transposed: the smaller.
        (a_axes, a), (b_axes, b) = (b_axes, b), (a_axes, a)
    batch = [axis for axis in out if axis in a_axes and axis in b_axes]
    rows = [axis for axis in out if axis in a_axes and axis not in b_axes]
    columns = [axis for axis in out if axis in b_axes and axis not in a_axes]
    sizes = dict(zip(a_axes + b_axes, a.shape + b.shape, strict=True))

    def flat(x, axes, *groups):
        x = x.transpose([axes.index(axis) for group in groups for axis in group])
        shape = [math.prod(sizes[axis] for axis in group) for group in groups]
        return _row_major(x.reshape(shape if batch else shape[1:]))

    a = flat(a, a_axes, batch, rows, summed)
    columns_first = _is_last(summed, b_axes)
    b = flat(b, b_axes, batch, columns, summed) if columns_first else flat(b, b_axes, batch, summed, columns)
    first = 1 if batch else 0
    contracted = (first + 1,), (first + 1 if columns_first else first,)
    dimensions = (contracted, ((0,), (0,)) if batch else ((), ()))
    y = _row_major(jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32))
    natural = batch + rows + columns
    return y.reshape([sizes[axis] for axis in natural]).transpose([natural.index(axis) for axis in out])


def _is_last(summed, axes):
    return list(axes[-len(summed) :]) == summed


def _row_major(x):
    x = with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    # JAX leaves the layout of a program's result to XLA if it comes right out of a constraint, and jaxlib 0.10 then
    # changes, and misreads, those of other results, too. XLA removes this pair of reshapes.
    return jax.lax.squeeze(jax.lax.expand_dims(x, (0,)), (0,))


def product(x: Float[Array, "N in"], kernel: Float[Array, "in out"]) -> Float[Array, "N out"]:
    """Returns x . kernel in their common dtype, accumulated in at least float32.

    For a single row XLA reads the kernel with one thread, but computes a batch of such products with several. The sum
    over `in` is then taken in PIECES parts: 20 to 25% faster for one row, no faster from two rows on.
    """
    rows, features = x.shape
    if rows == 1 and x.dtype == jnp.bfloat16:
        return single_row_product(x, kernel).astype(x.dtype)
    if rows != 1 or features % PIECES:
        if takes_bfloat16(x.dtype):
            return einsum("ni,io->no", x, kernel).astype(x.dtype)
        return jnp.matmul(x, kernel, precision=matmul_precision(x.dtype))
    pieces = jnp.einsum(
        "pi,pio->po",
        x.reshape(PIECES, -1),
        kernel.reshape(PIECES, -1, kernel.shape[1]),
        precision=matmul_precision(x.dtype),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return jnp.sum(pieces, axis=0, keepdims=True).astype(x.dtype)


def single_row_product(x: Float[Array, "1 in"], kernel: Float[Array, "in out"]) -> Float[Array, "1 out"]:
    """Returns the float32 product x . kernel of a single bfloat16 row.

    XLA multiplies a vector in float32, and widens the kernel for that, even in a loop that reads it again and again. So
    the row's even and odd features are taken apart into two rows, which are multiplied as a matrix and added up. The
    kernel is transposed, once before such a loop: its rows are then read in one piece.
    """
    features = jnp.arange(x.shape[1])
    halves = jnp.where(features % 2 == jnp.arange(2)[:, None], x, jnp.zeros((), x.dtype))
    products = _row_major_einsum("ni,oi->no", halves, kernel.T)
    return jnp.sum(products, axis=0, keepdims=True)


def materialized(table: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns a table as it is, in memory of its own where `takes_bfloat16` holds for float32.

    XLA fuses a table's cosines into all that multiplies by them, and computes them again for every row and head. It
    fuses nothing into what multiplies a product, hence the product with the identity, which is exact.
    """
    if not takes_bfloat16(jnp.float32):
        return table
    rows = _row_major(table.reshape(-1, table.shape[-1]))
    identity = jnp.eye(table.shape[-1], dtype=table.dtype)
    return _row_major(jnp.matmul(rows, identity, precision=matmul_precision(table.dtype))).reshape(table.shape)


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


def cache_dtype(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype in which a `KVCache` of `dtype` is kept: float32 on one CPU in place of bfloat16.

    XLA on CPU writes a token into bfloat16 buffers by widening all of them and narrowing them again.
    """
    return jnp.float32 if dtype == jnp.bfloat16 and on_one_cpu() else dtype


def single_query_scores(q: Float[Array, "B K G 1 H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K G 1 S"]:
    """Returns q . k of one query a row in float32, with the keys as the left operand.

    XLA transposes the right operand of such a product in memory, which would be the whole cache.
    """
    scores = einsum("bksh,bkgth->bksgt", k, q)
    return scores.transpose(0, 1, 3, 4, 2)
