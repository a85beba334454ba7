"""The arrays of a state by name, and their checksums: what a checkpoint stores, without its files."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.tree import flatten, path_name

_PIECE = 2**16  # elements that are summed up together: they stay in a core's cache
_FEW_RUNS = 64

Described = dict[str, list]
"""{"layers/0/attn/q/kernel": [[256, 256], "float32"], ...}"""


def named(tree: Any) -> dict[str, Any]:
    """Returns {"layers/0/attn/q/kernel": leaf, ...}, sorted by name. None and empty nodes leave no trace."""
    return dict(sorted(flatten(tree).items()))


def replace_leaves(tree: Any, leaves: dict[str, Any]) -> Any:
    """Returns `tree` with the given leaves, by name, each cast to the dtype of the leaf it replaces; others stay."""

    def one(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return leaves[name].astype(leaf.dtype) if name in leaves else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def described(leaves: dict[str, Any]) -> Described:
    """Returns the shape and the dtype of each leaf, as JSON holds them."""
    return {name: [list(leaf.shape), jnp.dtype(leaf.dtype).name] for name, leaf in leaves.items()}


def abstract(leaf: Any, dtype: str) -> jax.ShapeDtypeStruct:
    """Returns a ShapeDtypeStruct of the leaf's shape and sharding (else the first local device) and of `dtype`."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)


def nbytes(leaves: Iterable[Any]) -> int:
    """Returns the bytes of all the leaves together, each counted once however often it is replicated."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)


def check_same(stored: Described, wanted: Described, where: str) -> None:
    """Raises UserError, naming the first few leaves that differ, unless both are the same; `where` names the stored."""
    if stored == wanted:
        return

    def show(tree: Described, name: str) -> str:
        return " ".join(map(str, tree[name])) if name in tree else "missing"

    different = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    lines = [f"{name}: {show(stored, name)} there, {show(wanted, name)} here" for name in different[:3]]
    more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
    raise UserError(f"{where} holds another model or optimizer: {'; '.join(lines)}{more}")


def snapshot(tree: Any) -> Callable[[], Any] | None:
    """Returns a function that gives the tree's arrays as they are now, also after the originals are donated.

    It holds views of the arrays in this process's memory, which takes neither time nor room: XLA writes the results of
    a step elsewhere while an argument has a view. Any thread may call it, once. Returns None where the arrays would
    have to be copied, as those of accelerators and of other processes.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not all(_on_host(leaf) for leaf in leaves):
        return None
    views = [_views(leaf) for leaf in leaves]
    layouts = [(leaf.shape, leaf.sharding) if isinstance(leaf, jax.Array) else None for leaf in leaves]

    def restore() -> Any:
        arrays = []
        for parts, layout in zip(views, layouts, strict=True):
            if layout is None:
                arrays.append(parts[0][1])
                continue
            shards = [jax.device_put(part, device, may_alias=True) for device, part in parts]
            arrays.append(jax.make_array_from_single_device_arrays(*layout, shards))
        return jax.tree.unflatten(structure, arrays)

    return restore


def checksums(leaves: list[Any]) -> Callable[[], np.ndarray]:
    """Returns a function that gives the checksums of the leaves as they are now, uint32 [len(leaves)].

    A checksum is the sum of the elements' bits x (2i + 1) mod 2^32, where i is the element's index in row-major order.
    The weights are odd, so any change of one element shows; a sum has no order, so it is the same on every sharding.
    The leaves may be donated before the function is called. Accelerators compute the sums at once and the function only
    fetches them. On CPUs the function computes them: NumPy takes a fifth of the time of XLA, which copies an array to
    read its bits.
    """
    if all(_on_host(leaf) for leaf in leaves):
        parts = [_host_parts(leaf) for leaf in leaves]  # views: they hold on to what is donated
        return lambda: np.array([sum(_part_sum(*part) for part in each) % 2**32 for each in parts], np.uint32)
    shardings = (getattr(leaf, "sharding", None) for leaf in leaves)
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    sums = _compiled(None if mesh is None else NamedSharding(mesh, PartitionSpec()))(leaves)
    return lambda: np.asarray(sums)


def _on_host(leaf: Any) -> bool:
    """Whether all of an array lies in this process's memory and can be viewed as integers of at most four bytes."""
    if leaf.dtype.itemsize > 4 or not isinstance(leaf, jax.Array | np.ndarray):
        return False
    if isinstance(leaf, np.ndarray):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.sharding.device_set)


def _views(leaf: Any) -> list[tuple[Any, np.ndarray]]:
    """The (device, part) of every device that holds one."""
    if isinstance(leaf, np.ndarray):
        return [(None, np.copy(leaf))]
    if len(leaf.sharding.device_set) == 1:  # `addressable_shards` would take longer than all else
        return [(leaf.device, np.asarray(leaf))]
    return [(shard.device, np.asarray(shard.data)) for shard in leaf.addressable_shards]


def _host_parts(leaf: Any) -> list[tuple[np.ndarray, list[int], tuple[int, ...]]]:
    """The (part, its first index on each axis of the whole, the whole's shape) of every part, replicas once."""
    if isinstance(leaf, np.ndarray):
        return [(leaf, [0] * leaf.ndim, leaf.shape)]
    return [
        (np.asarray(shard.data), [one.start or 0 for one in shard.index], leaf.shape)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]


def _part_sum(part: np.ndarray, begin: list[int], shape: tuple[int, ...]) -> int:
    """A part's share of its leaf's checksum, from its runs: elements that are neighbours in the part and the whole.

    A run that begins at element g adds sum(bits (2i + 1)) + 2g sum(bits), i counted from its own beginning.
    """
    if part.size == 0:
        return 0
    cut = part.ndim  # from this axis on a part's elements are neighbours
    while cut > 0 and (cut == part.ndim or part.shape[cut] == shape[cut]):
        cut -= 1
    length = math.prod(part.shape[cut:])
    starts = np.zeros((), np.uint32)  # of each run in the whole, wrapped as all sums are
    for axis, size in enumerate(shape):
        count = part.shape[axis] if axis < cut else 1
        starts = starts[..., None] * np.uint32(size) + np.arange(begin[axis], begin[axis] + count, dtype=np.uint32)
    bits = np.ascontiguousarray(part).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[part.dtype.itemsize])
    runs = bits.reshape(-1, length)
    if len(runs) > _FEW_RUNS:
        sums = runs.astype(np.uint32, copy=False) @ np.stack([_odd(length), np.ones(length, np.uint32)], axis=1)
        return int(np.sum(sums[:, 0] + 2 * starts.reshape(-1) * sums[:, 1], dtype=np.uint32))
    weights, total = _odd(min(length, _PIECE)), 0
    for run, start in zip(runs, starts.reshape(-1).tolist(), strict=True):
        for at in range(0, length, _PIECE):
            piece = run[at : at + _PIECE].astype(np.uint32, copy=False)
            total += int(np.dot(piece, weights[: piece.size]))
            total += 2 * (start + at) * int(np.sum(piece, dtype=np.uint32))
    return total % 2**32


def _odd(count: int) -> np.ndarray:
    return 2 * np.arange(count, dtype=np.uint32) + 1


@functools.lru_cache(maxsize=8)
def _compiled(sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda leaves: jnp.stack([_checksum(leaf) for leaf in leaves]), out_shardings=sharding)


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    size = x.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    index = jnp.zeros((), jnp.uint32)
    for axis, length in enumerate(bits.shape):
        index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
