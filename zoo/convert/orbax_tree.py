"""Reading and writing the Orbax checkpoints of other programs (their layout is that of Orbax's first API).

zoo's own checkpoints are another matter: see `zoo.checkpoints`.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zoo.convert import files
from zoo.convert.base import Tensor
from zoo.errors import UserError
from zoo.util import first_line


def open_tree(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of a checkpoint, named by their keys joined with dots; each is read when it is asked for.

    Raises UserError if what describes them cannot be read.
    """
    path = path.absolute()
    for file in path.rglob("*"):
        if file.is_symlink():
            files.safe_join(path, str(file.relative_to(path)))
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
        leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))[0]
        tensors = {}
        for keys, leaf in leaves:
            parts = tuple(key.key for key in keys)
            if leaf.shape is None or leaf.dtype is None:
                continue
            tensors[".".join(map(str, parts))] = Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), _reader(path, parts))
    except Exception as error:  # Orbax and what lies below it raise whatever comes to hand
        raise UserError(f"{path}: cannot be read as an Orbax checkpoint ({first_line(error)})") from None
    # A chunk that is not there counts as zeros: a few bytes may claim any size.
    claimed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    files.check_expansion(path, claimed, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    if not tensors:
        raise UserError(f"{path}: the Orbax checkpoint holds no arrays")
    return tensors


def _reader(path: Path, parts: tuple[Any, ...]):
    def nest(leaf):
        for part in reversed(parts):
            leaf = {part: leaf}
        return leaf

    def read() -> np.ndarray:
        with ocp.PyTreeCheckpointer() as checkpointer:
            arguments = ocp.args.PyTreeRestore(
                nest(0), restore_args=nest(ocp.RestoreArgs(restore_type=np.ndarray)), partial_restore=True
            )
            leaf = checkpointer.restore(path, args=arguments)
        for part in parts:
            leaf = leaf[part]
        return np.asarray(leaf)

    return read


def save_composite(directory: Path, step: int, model: Any, metadata: dict[str, Any]) -> None:
    """Writes `<directory>/<step>/{model,metadata}` as a CheckpointManager of two items would.

    `model` is a nested dict of arrays, `metadata` what JSON can hold. Raises UserError where Orbax does not write it.
    """
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    names = ("model", "metadata")
    with ocp.CheckpointManager(directory.absolute(), options=options, item_names=names) as manager:
        items = ocp.args.Composite(model=ocp.args.PyTreeSave(model), metadata=ocp.args.JsonSave(metadata))
        if not manager.save(step, args=items, force=True):
            raise UserError(f"{directory / str(step)}: Orbax did not write it; choose an empty directory")
