"""Causal attention by the fused kernels of GPUs and TPUs; `zoo.layers.attention_kernels` chooses them."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from zoo.layers.attention_masks import visible
from zoo.layers.sharding import BATCH_AXES

LANES = 128  # the width of a TPU's vector registers: blocks and heads of splash attention are multiples of it
HALF_LANES = 64  # the one smaller width of heads that the kernel accepts
SPLASH_BLOCKS = (512, 256, 128)


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    window: int | None,
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Returns causal attention by cuDNN's fused kernel (GPU, bfloat16 or float16), called through JAX.

    Without segments the kernel is given the causal order and the window, and skips what they exclude. With segments
    it is given a mask [B, 1, T, T], which includes the window. It reads each kv head once for all its query heads.
    """
    arguments = dict(is_causal=True, implementation="cudnn")
    if segment_ids is not None:
        length = q.shape[1]
        mask = visible(0, length, 0, length, causal=window is not None, window=window, segment_ids=segment_ids)
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, 0], **arguments)
    # (w, 0): a query sees itself and the w keys before it.
    return jax.nn.dot_product_attention(q, k, v, local_window_size=None if window is None else (window, 0), **arguments)


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    window: int | None,
    segment_ids: Int[Array, "B T"] | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Returns causal attention by JAX's splash attention (TPU v4 and later), which skips blocks that are masked out.

    T must be a multiple of 128. JAX cannot partition the kernel by itself, so each device of the ambient mesh runs it
    on the rows and heads that it holds.

    Args:
        interpret: whether to emulate the kernel, which works on any platform.
    """
    heads, kv_heads, head_dim = q.shape[2], k.shape[2], q.shape[3]
    # The kernel does not scale.
    q = (q / math.sqrt(head_dim)).astype(q.dtype)
    if head_dim != HALF_LANES and head_dim % LANES:
        # Zeros add nothing to the scores, and the outputs of zeros are cut off.
        widen = [(0, 0)] * 3 + [(0, -head_dim % LANES)]
        q, k, v = (jnp.pad(x, widen) for x in (q, k, v))

    def local(q, k, v, segment_ids):
        kernel = _splash_kernel(q.shape[1], q.shape[2], window, interpret)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        if segment_ids is None:
            out = jax.vmap(kernel)(q, k, v)
        else:
            out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=_segments(ids)))(q, k, v, segment_ids)
        return out.transpose(0, 2, 1, 3)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        rows = _axes_that_divide(mesh, BATCH_AXES, q.shape[0])
        across = _axes_that_divide(mesh, ("tensor",), heads)
        if _axes_that_divide(mesh, ("tensor",), kv_heads) != across:
            # Too few kv heads for so many devices: each query head takes its own along.
            k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
        of_heads = P(rows, None, across, None)
        local = jax.shard_map(
            local, in_specs=(of_heads, of_heads, of_heads, P(rows, None)), out_specs=of_heads, check_vma=False
        )
    return local(q, k, v, segment_ids)[..., :head_dim]


def _axes_that_divide(mesh: AbstractMesh, names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Returns those axes of `names` on which the mesh has several devices, if together they divide `size`."""
    axes = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    return axes if axes and size % math.prod(mesh.shape[name] for name in axes) == 0 else None


def _splash_kernel(length, heads, window, interpret):
    # Slow to import, and needed on TPUs alone.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window, 0), offset=0)
    # The kernel's default of 128 is far slower.
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _segments(ids):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    return splash.SegmentIds(q=ids, kv=ids)
