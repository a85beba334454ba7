"""Scaled dot-product attention and the choice of its kernel.

`attention_kernel` chooses by the platform of the ambient mesh's devices and by shapes, before anything is compiled;
no kernel is tried until it fails. Steps over a KV cache are `cached_attention`.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from zoo.layers import cpu
from zoo.layers.attention_accelerators import LANES, cudnn_attention, splash_attention
from zoo.layers.attention_cpu import blockwise
from zoo.layers.attention_masks import MASKED, visible
from zoo.layers.devices import platform_and_kind
from zoo.layers.precision import rounded

logger = logging.getLogger(__name__)

# Queries in a block. Small blocks stay in a CPU's caches; accelerators are faster with fewer and larger products.
QUERY_BLOCK = 128
ACCELERATOR_QUERY_BLOCK = 512


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    window: int | None = None,
    mask: Bool[Array, "B 1 T S"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    softmax_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T N H"]:
    """Returns softmax(q k^T / sqrt(H)) v, by the kernel that `attention_kernel` chooses.

    Query head n reads kv head n // (N/K).

    Args:
        causal: query i sees key j only if j <= i; T and S must then be equal.
        window: with `causal`, query i sees key j only if i - j <= window; None sees all before.
        mask: True where a query may see a key.
        segment_ids: a query sees only keys of its own segment.
        softmax_dtype: if narrower than float32, scores and softmax are rounded to it after every operation, for
            weights that were trained so.
    """
    choice = attention_kernel(
        length=q.shape[1],
        head_dim=q.shape[3],
        dtype=q.dtype,
        plain=causal and mask is None,
        segmented=segment_ids is not None,
        softmax_dtype=softmax_dtype,
    )
    _note(choice)
    if choice.name == "cudnn":
        return cudnn_attention(q, k, v, window=window, segment_ids=segment_ids)
    if choice.name == "splash":
        return splash_attention(q, k, v, window=window, segment_ids=segment_ids)
    if choice.name == "cpu":
        return _ungrouped(blockwise(QUERY_BLOCK, window, _grouped(q, k.shape[2]), _heads_first(k), _heads_first(v)))
    return _by_products(q, k, v, causal, window, mask, segment_ids, softmax_dtype)


@dataclass(frozen=True)
class Kernel:
    """The kernel that computes attention.

    Attributes:
        name: "cudnn", "splash", "cpu" or "xla".
        why: why it is not the platform's own kernel; "" where it is.
    """

    name: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


def attention_kernel(
    *,
    length: int,
    head_dim: int,
    dtype: DTypeLike,
    plain: bool = True,
    segmented: bool = False,
    softmax_dtype: DTypeLike = jnp.float32,
) -> Kernel:
    """Returns the kernel for attention of `length` tokens on the devices of the ambient mesh (`jax.set_mesh`).

    cudnn is cuDNN's fused attention on GPUs, splash is splash attention on TPUs from v4 on, cpu takes a few heads at a
    time on one CPU, for rows without segments. xla is plain products, block by block of queries, for all else: a block
    reads only the keys it may see, and the scores never exist as [B, N, T, S].

    Args:
        dtype: the dtype of queries, keys and values.
        plain: whether the mask is causal with at most a window, without a `mask` of the caller.
        segmented: whether there are segment ids.
        softmax_dtype: as in `attention`; the fused kernels compute the softmax in float32.
    """
    platform, kind = platform_and_kind()
    if not plain:
        return Kernel("xla", "a mask of its own")
    if not _is_exact(softmax_dtype):
        return Kernel("xla", f"the softmax is to be rounded to {jnp.dtype(softmax_dtype).name}")
    if platform == "gpu":
        why = _why_not_cudnn(length, head_dim, dtype, segmented)
        return Kernel("xla", why) if why else Kernel("cudnn")
    if platform == "tpu":
        why = _why_not_splash(length, dtype, kind)
        return Kernel("xla", why) if why else Kernel("splash")
    if segmented:
        return Kernel("xla", "segments")
    # Rows spread over devices must not be walked one by one.
    return Kernel("cpu") if cpu.on_one_cpu() else Kernel("xla", "several CPU devices")


def _why_not_cudnn(length, head_dim, dtype, segmented):
    # Where a mesh of GPUs is compiled for in a process that has none, the newest ones are assumed.
    gpus = [device for device in jax.local_devices() if hasattr(device, "compute_capability")]
    capability = float(gpus[0].compute_capability) if gpus else 9.0
    widest = 256 if capability >= 9 else 128
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"{jnp.dtype(dtype).name}; cuDNN's attention takes bfloat16 and float16"
    if capability < 8:
        return f"compute capability {capability}; cuDNN's attention wants 8.0"
    if head_dim % 8 or head_dim > widest:
        return f"heads of {head_dim}; cuDNN's attention takes multiples of 8 up to {widest}"
    if segmented and length % 2:
        return f"{length} tokens in segments; cuDNN's attention takes even lengths"
    return ""


def _why_not_splash(length, dtype, kind):
    generation = re.search(r"\d+", kind)
    if generation and int(generation.group()) < 4:
        return f"{kind}; its compiler refuses such kernels"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"{jnp.dtype(dtype).name}; splash attention is for bfloat16"
    if length % LANES:
        return f"{length} tokens; splash attention takes multiples of {LANES}"
    return ""


_recorded: ContextVar[list[Kernel] | None] = ContextVar("zoo_attention_kernels", default=None)


@contextmanager
def recorded_kernels() -> Iterator[list[Kernel]]:
    """Yields a list that collects the kernels chosen while its block traces a program, each once."""
    kernels: list[Kernel] = []
    token = _recorded.set(kernels)
    try:
        yield kernels
    finally:
        _recorded.reset(token)


def _note(choice):
    logger.debug("attention by %s", choice)
    kernels = _recorded.get()
    if kernels is not None and choice not in kernels:
        kernels.append(choice)


def _by_products(q, k, v, causal, window, mask, segment_ids, softmax_dtype):
    length, exact = q.shape[1], _is_exact(softmax_dtype)
    q, k, v = _grouped(q, k.shape[2], scaled=exact), _heads_first(k), _heads_first(v)
    attend = _attend if exact else partial(_attend_rounded, softmax_dtype)
    size = QUERY_BLOCK if platform_and_kind()[0] == "cpu" else ACCELERATOR_QUERY_BLOCK
    block = size if causal else length
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = max(0, start - window) if causal and window is not None else 0
        last = stop if causal else k.shape[2]
        allowed = visible(start, stop, first, last, causal=causal, window=window, mask=mask, segment_ids=segment_ids)
        outputs.append(attend(q[..., start:stop, :], k[:, :, first:last], v[:, :, first:last], allowed))
    return _ungrouped(jnp.concatenate(outputs, axis=3))


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    *,
    mask: Bool[Array, "B 1 T S"],
    softmax_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T N H"]:
    """Returns `attention` over the keys and values of a `KVCache`, whose heads stand before its slots.

    Args:
        mask: True where a query may see a slot.
        softmax_dtype: as in `attention`.
    """
    exact = _is_exact(softmax_dtype)
    q, mask = _grouped(q, k.shape[1], scaled=exact), mask[:, :, None]
    if not exact:
        return _ungrouped(_attend_rounded(softmax_dtype, q, k, v, mask))
    score = cpu.single_query_scores if q.shape[3] == 1 and cpu.on_one_cpu() else _scores
    return _ungrouped(_attend(q, k, v, mask, score))


def _is_exact(softmax_dtype):
    return jnp.finfo(softmax_dtype).bits >= 32


# Inside, heads stand before positions, so that products run over contiguous matrices. With the other order XLA on CPU
# transposes the operands of every product.


def _heads_first(x):
    """[B,S,K,H] -> [B,K,S,H]."""
    return x.transpose(0, 2, 1, 3)


def _grouped(q, kv_heads, scaled=True):
    """[B,T,N,H] -> [B,K,G,T,H], divided by sqrt(H) if `scaled`."""
    batch, length, heads, head_dim = q.shape
    if scaled:
        q = (q / math.sqrt(head_dim)).astype(q.dtype)
    return q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _ungrouped(out):
    """[B,K,G,T,H] -> [B,T,N,H]."""
    batch, kv_heads, groups, length, head_dim = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * groups, head_dim)


def _scores(q, k):
    """q [B,K,G,t,H] . k [B,K,s,H] -> float32 [B,K,G,t,s]."""
    return cpu.einsum("bkgth,bksh->bkgts", q, k)


def _attend(q, k, v, allowed, score=_scores):
    """q [B,K,G,t,H] (scaled), k and v [B,K,s,H] -> [B,K,G,t,H].

    The softmax is divided by its sum after the product with v: H divisions a query instead of s.
    """
    scores = score(q, k)
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    # The softmax does not depend on what is subtracted, so its gradient is zero.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = cpu.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v)
    return (out / total).astype(v.dtype)


def _attend_rounded(dtype, q, k, v, allowed):
    """`_attend` of queries that are not scaled yet, with every intermediate result rounded to `dtype`."""

    def to_dtype(x):
        return rounded(x, dtype)

    scores = to_dtype(_scores(q, k))
    scores = to_dtype(scores / to_dtype(jnp.float32(math.sqrt(q.shape[-1]))))
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = to_dtype(jnp.exp(to_dtype(scores - peak)))
    weights = to_dtype(weights / to_dtype(jnp.sum(weights, axis=-1, keepdims=True)))
    return cpu.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v).astype(v.dtype)
