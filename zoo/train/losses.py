"""Cross-entropy of a language-model head that never holds the logits [B, T, V] in memory.

The loss is a scalar, so its gradient is known up to a factor before the backward pass. The forward pass goes through
the positions in chunks and computes from each chunk's logits the loss, d hidden and d kernel; the backward pass only
multiplies the saved gradients by the incoming cotangent. That takes three matmuls; recomputing the logits in the
backward pass would take four. Positions with weight 0 (padding, prompts) are sorted to the end and left out. (The fused
loss of Liger Kernel, for GPUs, also computes its gradients in the forward pass: Hsu et al., arXiv:2410.10989.)
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from zoo.layers import cpu
from zoo.layers.sharding import BATCH_AXES

# Positions in one chunk. On a CPU a chunk's logits (512 x 8,000 in float32: 16 MB) should stay in the caches: 1,024
# positions were measured a quarter slower. Where products are bfloat16 they no longer lead, and adding up the kernel's
# gradient does: half as often is faster. An accelerator is fastest with few large matmuls and has memory for them.
CPU_CHUNK = 512
CPU_BFLOAT16_CHUNK = 1024
ACCELERATOR_CHUNK = 8192
# An accelerator's matmuls are fastest with rows of whole registers: 50,257 columns are padded to 50,304.
ACCELERATOR_COLUMNS = 128


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    softcap: float | None,
    targets: jax.Array,
    mask: jax.Array,
    *,
    chunk: int | None = None,
    columns: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of `mask` times the negative log-likelihood of `targets` in nats, and the sum of `mask`.

    The mean over a global batch is `nll / max(count, 1)`. Under an ambient mesh the batch may be sharded over its
    (data, fsdp) axes and the vocabulary over tensor; the sums are global. Differentiable (reverse mode) in hidden,
    kernel and bias; these and softcap are what `model.hidden` and `model.head()` return.

    Args:
        hidden: float [B, T, D]. Matmuls run in this dtype and accumulate in float32.
        kernel: [D, V].
        bias: [V] or None.
        softcap: logits become `softcap * tanh(logits / softcap)`; None leaves them.
        targets: int [B, T] in [0, V); where the mask is zero any value.
        mask: [B, T], each position's weight, >= 0.
        chunk: how many positions of one device have logits at one time; None chooses by the platform.
        columns: logits are computed in a multiple of so many columns, of which those beyond V are ignored; None
            chooses by the platform.

    Returns:
        (nll, count): float32 scalars (float64 for float64 inputs).
    """
    hidden, kernel, targets, mask = map(jnp.asarray, (hidden, kernel, targets, mask))
    weights = mask.astype(jnp.promote_types(jnp.float32, hidden.dtype))
    vocab_size = kernel.shape[1]
    extra = -vocab_size % (columns or (1 if _on_cpu() else ACCELERATOR_COLUMNS))
    if extra:
        kernel = jnp.pad(kernel, ((0, 0), (0, extra)))
        bias = None if bias is None else jnp.pad(bias, (0, extra))
    chunk = chunk or _default_chunk(hidden.dtype)
    settings = (softcap, chunk, vocab_size)
    return _nll(settings, hidden, kernel, bias, targets, weights), weights.sum()


def _default_chunk(dtype) -> int:
    if not _on_cpu():
        return ACCELERATOR_CHUNK
    return CPU_BFLOAT16_CHUNK if cpu.takes_bfloat16(dtype) else CPU_CHUNK


def _on_cpu() -> bool:
    # The mesh knows what is being compiled for; default_backend says cpu under ahead-of-time compilation.
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return platform == "cpu"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nll(settings, hidden, kernel, bias, targets, weights):
    return _on_each_shard(settings, False, hidden, kernel, bias, targets, weights)[0]


def _nll_forward(settings, hidden, kernel, bias, targets, weights):
    nll, *gradients = _on_each_shard(settings, True, hidden, kernel, bias, targets, weights)
    # Residuals must be arrays; these empty ones carry the dtypes the cotangents must have.
    return nll, (gradients, [None if x is None else jnp.zeros((0,), x.dtype) for x in (hidden, kernel, bias)])


def _nll_backward(settings, residuals, cotangent):
    scaled = [None if g is None else (g * cotangent).astype(like.dtype) for g, like in zip(*residuals, strict=True)]
    return *scaled, None, None


_nll.defvjp(_nll_forward, _nll_backward)


def _on_each_shard(settings, with_gradients, hidden, kernel, bias, targets, weights):
    """Returns `_walk` over the rows that each (data, fsdp) shard holds, summed over the shards once, at the end."""
    walk = partial(_walk, settings, with_gradients)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if mesh.shape.get(name, 1) > 1)
    if not axes:
        return walk(hidden, kernel, bias, targets, weights)

    def local(*arguments):
        nll, d_hidden, *d_weights = walk(*arguments)
        nll, d_weights = lax.psum((nll, d_weights), axes)
        return nll, d_hidden, *d_weights

    rows, everywhere = P(axes), P()
    return jax.shard_map(
        local,
        in_specs=(rows, everywhere, everywhere, rows, rows),
        out_specs=(everywhere, rows, everywhere, everywhere),
        axis_names=set(axes),
        check_vma=False,
    )(hidden, kernel, bias, targets, weights)


def _walk(settings, with_gradients, hidden, kernel, bias, targets, weights):
    """Returns (nll, d nll/d hidden, d nll/d kernel, d nll/d bias); the gradients are None without `with_gradients`."""
    softcap, chunk, vocab_size = settings
    rows = hidden.reshape(-1, hidden.shape[-1])
    targets, weights = targets.reshape(-1), weights.reshape(-1)
    chunk = min(chunk, rows.shape[0])
    # Positions with a weight first, in their order; the indices past the end are dropped where they are used.
    order = jnp.argsort(weights == 0, stable=True)
    order = jnp.concatenate([order, rows.shape[0] + jnp.arange(-rows.shape[0] % chunk, dtype=order.dtype)])
    full_chunks = (jnp.count_nonzero(weights) + chunk - 1) // chunk

    def body(i, carry):
        nll, d_rows, d_kernel, d_bias = carry
        index = lax.dynamic_slice(order, (i * chunk,), (chunk,))
        x = rows.at[index].get(mode="clip")
        weight = weights.at[index].get(mode="fill", fill_value=0)
        target = targets.at[index].get(mode="clip")
        chunk_nll, d_logits = _chunk_loss(x, kernel, bias, softcap, vocab_size, target, weight)
        if with_gradients:
            d_logits_x = d_logits.astype(x.dtype)
            d_x = cpu.einsum("cv,dv->cd", d_logits_x, kernel).astype(x.dtype)
            d_rows = d_rows.at[index].set(d_x, mode="drop", unique_indices=True)
            d_kernel += cpu.einsum("cd,cv->dv", x, d_logits_x)
            d_bias = None if bias is None else d_bias + d_logits.sum(0)
        return nll + chunk_nll, d_rows, d_kernel, d_bias

    start: list[Any] = [jnp.zeros((), weights.dtype), None, None, None]
    if with_gradients:
        start[1] = jnp.zeros_like(rows)
        start[2] = jnp.zeros(kernel.shape, weights.dtype)
        start[3] = None if bias is None else jnp.zeros(bias.shape, weights.dtype)
    nll, d_rows, d_kernel, d_bias = lax.fori_loop(0, full_chunks, body, tuple(start))
    d_hidden = None if d_rows is None else d_rows.reshape(hidden.shape)
    return nll, d_hidden, d_kernel, d_bias


def _chunk_loss(x, kernel, bias, softcap, vocab_size, targets, weight):
    """Returns the weighted nll of a chunk [C, D] and its gradient with respect to the uncapped logits, [C, columns].

    Columns beyond the vocabulary are not part of the softmax; their gradient is zero.
    """
    logits = cpu.einsum("cd,dv->cv", x, kernel)
    if bias is not None:
        logits += bias.astype(weight.dtype)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    column = lax.broadcasted_iota(targets.dtype, logits.shape, 1)
    real = None if logits.shape[1] == vocab_size else column < vocab_size
    largest = logits.max(-1, keepdims=True, where=real, initial=None if real is None else -jnp.inf)
    exponentials = jnp.exp(logits - largest)
    if real is not None:
        exponentials = jnp.where(real, exponentials, 0)
    total = exponentials.sum(-1, keepdims=True)
    at_target = jnp.take_along_axis(logits, targets[:, None], axis=-1, mode="clip")
    nll = ((jnp.log(total) + largest - at_target)[:, 0] * weight).sum()
    is_target = column == targets[:, None]
    d_logits = exponentials * (weight[:, None] / total) - jnp.where(is_target, weight[:, None], 0)
    if softcap is not None:
        d_logits *= 1 - jnp.square(logits / softcap)
    return nll, d_logits
