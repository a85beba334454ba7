"""Checkpoints of a run: saved in the background, verified on restore. The only file that knows Orbax.

A checkpoint is the directory `<checkpoints>/<step>/` and holds

    model, optimizer   nested dicts of arrays, per layer, keyed by plain strings (no optax or flax classes)
    checksums          uint32 [leaves of model + leaves of optimizer], computed on device before the save
    meta               JSON: format version, step, the shape and dtype of every leaf, what the caller adds
                       (examples seen, fingerprints, versions, ...) and a SHA-256 over all of that

Orbax writes to a temporary name and renames, so a kill in mid-save leaves the checkpoint before it intact.
A bit that flips later loads silently in Orbax: hence the checksums, and the hash over the small JSON.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from zoo.errors import UserError
from zoo.util import sha256_hex

logger = logging.getLogger(__name__)

FORMAT = 1
_DAMAGED = ".damaged"
_TEMPORARY = ".orbax-checkpoint-tmp"


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are missing, unreadable or not what was written."""


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` and `restore_params` give back."""

    step: int
    params: Any
    """Same tree as the abstract parameters asked for."""
    opt_state: Any
    """Same tree as the abstract optimizer state; None from `restore_params`."""
    meta: dict[str, Any]
    """The dict given to `save`."""


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      directory: where the `<step>` directories lie; created by the first save.
      keep: how many of the newest complete checkpoints stay on disk (at least 1). None opens the directory
        read-only: nothing is cleaned up, set aside or deleted, so a run that is still going is not disturbed.

    An older one is deleted only when a newer one is known to be on the disk: for a while there is one more.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = None):
        if keep is not None and keep < 1:
            raise UserError(f"checkpoint.keep is {keep}; it must be at least 1")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._pending: tuple[int, ocp.AsyncResponse] | None = None
        if keep is not None and jax.process_index() == 0:
            for leftover in self.directory.glob(f"*{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints on disk, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return (self.steps() or [None])[-1]

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Start saving; returns as soon as the state has been copied, so the arrays may be donated at once.

        Waits for the save before it, whose failure is raised here. `meta` is JSON-serialisable. A complete
        checkpoint of the same step is replaced.
        """
        self.wait()
        self.directory.mkdir(parents=True, exist_ok=True)
        trees = {"model": _leaves(params), "optimizer": _leaves(opt_state)}
        content = {
            "format": FORMAT,
            "step": int(step),
            "leaves": {name: _describe(leaves) for name, leaves in trees.items()},
            "meta": meta,
        }
        checksums = _checksums([leaf for leaves in trees.values() for leaf in leaves.values()])
        items = {
            **{name: _nest(leaves) for name, leaves in trees.items() if leaves},  # Orbax refuses empty trees
            "checksums": {"uint32": checksums},
            "meta": {"content": content, "sha256": _hash(content)},
        }
        with _context():
            response = ocp.save_checkpointables_async(self.directory / str(step), items, overwrite=True)
        self._pending = (int(step), response)

    def wait(self) -> None:
        """Block until the running save, if any, is complete and on the disk; then delete what is too old."""
        if self._pending is None:
            return
        step, response = self._pending
        self._pending = None
        response.result()
        if jax.process_index() == 0:
            _fsync_tree(self.directory / str(step))
            _fsync(self.directory)
            for old in self.steps()[: -self._keep] if self._keep else []:
                shutil.rmtree(self.directory / str(old), ignore_errors=True)

    def read_meta(self, step: int) -> dict[str, Any]:
        """The `meta` given to `save` for that step. Raises DamagedCheckpoint."""
        return self._content(step)["meta"]

    def restore(self, params: Any, opt_state: Any, *, accept: Callable[[dict], None] | None = None) -> Restored | None:
        """The newest good checkpoint, laid on the shardings of the abstract trees; None if there is none.

        A damaged one is reported by a warning and renamed to `<step>.damaged`; then the one before is tried.

        Args:
          params, opt_state: trees of `jax.ShapeDtypeStruct` (with shardings) or of arrays that look the same.
          accept: called with a checkpoint's meta before its arrays are read; raises UserError to refuse it.

        Raises:
          UserError: the checkpoint holds other names, shapes or dtypes; or every one of them is damaged.
        """
        return self._newest_good(lambda step: self._load(step, params, opt_state, accept))

    def restore_params(self, params: Any, *, step: int | None = None) -> Restored | None:
        """Like `restore`, for the parameters alone (nothing else is read), of `step` or the newest good one.

        A floating-point leaf is cast to the dtype asked for after its checksum has been verified.
        """
        if step is not None and step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {self.steps() or 'none'}")
        return self._newest_good(lambda step: self._load(step, params, None, None), only=step)

    def _newest_good(self, load: Callable[[int], Restored], only: int | None = None) -> Restored | None:
        self.wait()
        aside = sorted(self.directory.glob(f"*{_DAMAGED}*")) if only is None else []
        tried: set[int] = set()
        # The list is read anew each time: a run that goes on may have replaced the checkpoint just tried.
        while untried := [step for step in self.steps() if step not in tried and only in (None, step)]:
            step = untried[-1]
            tried.add(step)
            try:
                return load(step)
            except DamagedCheckpoint as error:
                logger.warning("checkpoint %d is damaged (%s); trying the one before", step, error)
                aside.append(self._set_aside(step))
        if aside:
            names = ", ".join(sorted(path.name for path in aside))
            raise UserError(
                f"no good checkpoint is left in {self.directory}; damaged: {names}. Start over with --fresh"
            )
        return None

    def _set_aside(self, step: int) -> Path:
        path = self.directory / str(step)
        if self._keep is None:
            return path
        target = self.directory / f"{step}{_DAMAGED}"
        number = 2
        while target.exists():
            target, number = self.directory / f"{step}{_DAMAGED}-{number}", number + 1
        if jax.process_index() == 0:
            path.rename(target)
        return target

    def _content(self, step: int) -> dict[str, Any]:
        with _damage():
            file = json.loads((self.directory / str(step) / "meta" / "data.json").read_text())
            content, expected = file["content"], file["sha256"]
            if _hash(content) != expected:
                raise DamagedCheckpoint("its meta data do not match their hash")
        if content["format"] > FORMAT:
            raise UserError(
                f"checkpoint {step} in {self.directory} has format {content['format']}, this version reads "
                f"up to {FORMAT}; install a newer version"
            )
        return content

    def _load(self, step: int, params: Any, opt_state: Any, accept: Callable | None) -> Restored:
        content = self._content(step)
        if accept is not None:
            accept(content["meta"])
        wanted = {"model": _leaves(params)}
        if opt_state is not None:
            wanted["optimizer"] = _leaves(opt_state)
        for item, leaves in wanted.items():
            where = f"checkpoint {step} in {self.directory}"
            _refuse_other(content["leaves"][item], _describe(leaves), opt_state is not None, where)
        arrays = self._arrays(step, wanted, content["leaves"])
        return Restored(
            step=step,
            params=_rebuild(params, arrays["model"]),
            opt_state=None if opt_state is None else _rebuild(opt_state, arrays["optimizer"]),
            meta=content["meta"],
        )

    def _arrays(self, step: int, wanted: dict[str, dict], stored: dict[str, dict]) -> dict[str, dict]:
        """The wanted leaves of each item in their stored dtype, verified against the checksums."""
        path = self.directory / str(step)
        items = {
            item: _nest({name: _abstract(leaf, stored[item][name][1]) for name, leaf in leaves.items()})
            for item, leaves in wanted.items()
            if leaves
        }
        number = sum(len(leaves) for leaves in stored.values())
        items["checksums"] = {"uint32": _abstract(np.zeros(number, np.uint32), "uint32")}
        with _damage(), _context():
            found = ocp.checkpointables_metadata(path).metadata
            for item in items.keys() & wanted.keys():
                if _describe(_leaves(found[item])) != stored[item]:
                    raise DamagedCheckpoint(f"the arrays of its {item} are not those that were saved")
            loaded = ocp.load_checkpointables(path, items)
        arrays = {item: _leaves(loaded.get(item, {})) for item in wanted}
        names = [f"{item}/{name}" for item, leaves in arrays.items() for name in leaves]
        checksums = _checksums([leaf for leaves in arrays.values() for leaf in leaves.values()])
        expected = np.asarray(loaded["checksums"]["uint32"])[: len(names)]
        bad = np.flatnonzero(np.asarray(checksums) != expected)
        if bad.size:
            raise DamagedCheckpoint(f"{names[bad[0]]} does not match its checksum")
        return arrays


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    """uint32 [len(leaves)]: for each leaf the sum of its elements' bits x (2i + 1) mod 2^32.

    i is the element's index in row-major order. The weights are odd, so any change of one element shows; the
    sum has no order, so it is the same on every sharding.
    """
    return jnp.stack([_checksum(leaf) for leaf in leaves])


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    size = x.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    index = jnp.zeros((), jnp.uint32)
    for axis, length in enumerate(bits.shape):
        index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _leaves(tree: Any) -> dict[str, Any]:
    """{"layers/0/attn/q/kernel": leaf, ...}, sorted by name. None and empty nodes leave no trace."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return dict(sorted((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in pairs))


def _rebuild(tree: Any, leaves: dict[str, Any]) -> Any:
    """The tree of `tree` with the leaves of that name, each in the dtype of the leaf it replaces."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves[jax.tree_util.keystr(path, simple=True, separator="/")].astype(leaf.dtype),
        tree,
    )


def _nest(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _describe(leaves: dict[str, Any]) -> dict[str, list]:
    return {name: [list(leaf.shape), jnp.dtype(leaf.dtype).name] for name, leaf in leaves.items()}


def _abstract(leaf: Any, dtype: str) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)


def _refuse_other(stored: dict, wanted: dict, same_dtype: bool, where: str) -> None:
    """Raises UserError unless names and shapes (and dtypes) agree; it names the first few that do not."""
    if not same_dtype:
        stored, wanted = ({name: [leaf[0]] for name, leaf in tree.items()} for tree in (stored, wanted))
    if stored == wanted:
        return

    def show(tree: dict, name: str) -> str:
        return " ".join(map(str, tree[name])) if name in tree else "missing"

    different = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    lines = [f"{name}: {show(stored, name)} there, {show(wanted, name)} here" for name in different[:3]]
    more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
    raise UserError(f"{where} holds another model or optimizer: {'; '.join(lines)}{more}")


@contextlib.contextmanager
def _damage():
    """Turns whatever reading a broken file raises into DamagedCheckpoint; a full memory is not damage."""
    try:
        yield
    except (DamagedCheckpoint, MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:160]
        raise DamagedCheckpoint(f"it cannot be read: {type(error).__name__}: {reason}") from error


def _context() -> ocp.Context:
    """Orbax options: no compression (it is several times slower), `meta` as a plain JSON file."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.checkpointables.registry = registry
    return context


def _hash(content: dict) -> str:
    return sha256_hex(json.dumps(content, sort_keys=True).encode())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_tree(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
