"""The arrays of a state by name: what a checkpoint stores, without its files."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.tree import flatten, path_name

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
    if not all(on_host(leaf) for leaf in leaves):
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


def on_host(leaf: Any) -> bool:
    """Returns whether all of an array lies in this process's memory, to be viewed as integers of at most four bytes."""
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
