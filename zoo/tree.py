"""Trees of arrays as flat dicts by path: "layers/3/attn/q/kernel"."""

from collections.abc import Callable
from typing import Any

import jax


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {"layers/0/attn/q/kernel": leaf, ...} in the order of the tree; None and empty nodes leave no trace."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any], *, key: Callable[[str], Any] | None = None) -> dict[Any, Any]:
    """Returns the nested dict of `flatten`.

    Args:
        flat: leaves by path.
        key: from a part of a path to a dict's key; None makes all-digit parts integers, as the models' parameters have
            them.
    """
    key = key or (lambda part: int(part) if part.isdigit() else part)
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, last = map(key, path.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def path_name(path: tuple) -> str:
    """Returns a path of `jax.tree_util` as "layers/0/attn/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
