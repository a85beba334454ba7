"""The arrays of a state by name, and their checksums: what a checkpoint stores, without its files."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from zoo.errors import UserError

Described = dict[str, list]
"""{"layers/0/attn/q/kernel": [[256, 256], "float32"], ...}"""


def named(tree: Any) -> dict[str, Any]:
    """{"layers/0/attn/q/kernel": leaf, ...}, sorted by name. None and empty nodes leave no trace."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return dict(sorted((_name(path), leaf) for path, leaf in pairs))


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves as dicts in dicts, a level for each part of a name."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def replaced(tree: Any, leaves: dict[str, Any]) -> Any:
    """The tree of `tree` with the leaves of that name, each in the dtype of the leaf it replaces; the others stay."""

    def one(path: Any, leaf: Any) -> Any:
        name = _name(path)
        return leaves[name].astype(leaf.dtype) if name in leaves else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def described(leaves: dict[str, Any]) -> Described:
    """Shape and dtype of each leaf, as JSON takes them."""
    return {name: [list(leaf.shape), jnp.dtype(leaf.dtype).name] for name, leaf in leaves.items()}


def abstract(leaf: Any, dtype: str) -> jax.ShapeDtypeStruct:
    """Shape and sharding of a leaf (the first local device where it has none), of another dtype."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)


def nbytes(leaves: Iterable[Any]) -> int:
    """Bytes of all the leaves, over all devices, each counted once however often it is replicated."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)


def refuse_other(stored: Described, wanted: Described, where: str) -> None:
    """Raises UserError unless both are the same; it names the first few leaves that are not."""
    if stored == wanted:
        return

    def show(tree: Described, name: str) -> str:
        return " ".join(map(str, tree[name])) if name in tree else "missing"

    different = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    lines = [f"{name}: {show(stored, name)} there, {show(wanted, name)} here" for name in different[:3]]
    more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
    raise UserError(f"{where} holds another model or optimizer: {'; '.join(lines)}{more}")


def checksums(leaves: list[Any]) -> jax.Array:
    """uint32 [len(leaves)], replicated: for each leaf the sum of its elements' bits x (2i + 1) mod 2^32.

    i is the element's index in row-major order. The weights are odd, so any change of one element shows; the
    sum has no order, so it is the same on every sharding. Returns at once: it is computed on the devices, from the
    leaves as they are now, though they be donated afterwards.
    """
    shardings = (getattr(leaf, "sharding", None) for leaf in leaves)
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    return _compiled(None if mesh is None else NamedSharding(mesh, PartitionSpec()))(leaves)


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


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
