"""One checkpoint's files, by way of Orbax: written in the background, read and verified. Only this module knows Orbax.

`zoo.checkpoints.manager` says what a checkpoint holds. Nothing here waits for another process, except `start` and the
save that it starts.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from zoo.checkpoints import checksums, pytree, storage
from zoo.checkpoints.checksums import DamagedCheckpoint
from zoo.distributed.runtime import is_main_process
from zoo.tree import unflatten
from zoo.util import first_line, sha256_hex

FORMAT = 2
TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of what is being written to a local disk."""
COMMITTED = "commit_success.txt"

Items = dict[str, dict[str, Any]]
"""{"model": {name: leaf}, "optimizer": {name: leaf}}"""

# Errors of the network, of rights or of this process's limits: the checkpoint may be as good as ever.
_NOT_DAMAGE = (
    *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED"),
    "Too many open files",
)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    # Orbax raises the errors of its threads, and logs each with a traceback as well.
    return record.exc_info is None or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_raised_too)


def complete(path: epath.Path) -> bool:
    """Returns whether the checkpoint in a `<step>` directory was written to the end.

    A local directory has that name only then; in an object store it has it from the start.
    """
    return not storage.is_remote(path) or (path / COMMITTED).exists()


def start(path: epath.Path, step: int, items: Items, meta: dict[str, Any]) -> Callable[[], None]:
    """Begins to write a checkpoint, replacing one that is there; returns when its arrays may be donated.

    The function it returns waits until all is written, and must be called, in any thread. Orbax spends
    about a millisecond on each array before it returns. Where the arrays need no copy (`pytree.snapshot`), the thread
    spends that time. Not with several processes: Orbax compares paths with a collective, and no two may run at once.
    """
    snapshot = pytree.snapshot(items) if jax.process_count() == 1 else None
    if snapshot is None:
        return _write(path, step, items, meta).result
    return lambda: _write(path, step, snapshot(), meta).result()


def _write(path: epath.Path, step: int, items: Items, meta: dict[str, Any]) -> ocp.AsyncResponse[None]:
    """Has Orbax copy the arrays and write them."""
    content = {
        "format": FORMAT,
        "step": step,
        "leaves": {item: pytree.described(leaves) for item, leaves in items.items()},
        "meta": meta,
    }
    names = [f"{item}/{name}" for item, leaves in items.items() for name in leaves]
    sums = checksums.compute([leaf for leaves in items.values() for leaf in leaves.values()])
    written = {
        **{item: unflatten(leaves, key=str) for item, leaves in items.items() if leaves},  # Orbax refuses empty trees
        "integrity": _Checksums(names, sums),
        "meta": {"content": content, "sha256": _hash(content)},
    }
    with _context(path):
        return ocp.save_checkpointables_async(path, written, overwrite=True)


def read_content(path: epath.Path) -> dict[str, Any]:
    """Returns {"format", "step", "leaves", "meta"} of a checkpoint. Raises DamagedCheckpoint."""
    with _damage():
        file = json.loads((path / "meta" / "data.json").read_text())
        content, expected = file["content"], file["sha256"]
        if _hash(content) != expected:
            raise DamagedCheckpoint("its meta data do not match their hash")
        _check_content(content)
        return content


def _check_content(content: dict[str, Any]) -> None:
    """Raises ValueError or what its parts raise unless the meta data are such as `_write` makes them."""
    if type(content["format"]) is not int or type(content["step"]) is not int or not isinstance(content["meta"], dict):
        raise ValueError("its meta data are not of the right types")
    if content["format"] > FORMAT:
        return  # a newer zoo may describe its leaves otherwise
    for item in ("model", "optimizer"):
        for name, (shape, dtype) in content["leaves"][item].items():
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"the shape of {name} is {shape!r}")
            jnp.dtype(dtype)


def read_checksums(path: epath.Path, content: dict[str, Any]) -> dict[str, int] | None:
    """Returns {"model/layers/0/...": checksum}; None for format 1, which has them among the arrays.

    Raises DamagedCheckpoint.
    """
    if content["format"] == 1:
        return None
    with _damage():
        return {name: int(value) for name, value in json.loads((path / "integrity" / "data.json").read_text()).items()}


def check_structure(path: epath.Path, items: Iterable[str], content: dict[str, Any]) -> None:
    """Raises DamagedCheckpoint unless the arrays of these items have the names, shapes and dtypes that were saved.

    Orbax, asked for an array that is not there in that shape, spills thousands of lines: so it is not asked.
    """
    with _damage(), _context(path, alone=True):
        metadata = ocp.checkpointables_metadata(path).metadata
        for item in items:
            stored = content["leaves"][item]
            if stored and pytree.described(pytree.named(metadata[item])) != stored:
                raise DamagedCheckpoint(f"the arrays of its {item} are not those that were saved")


def read_arrays(path: epath.Path, wanted: Items, content: dict[str, Any]) -> tuple[Items, dict[str, int] | None]:
    """Returns this process's part of the wanted leaves, unverified, and of format 1 the checksums, else None.

    The leaves have their stored dtype and the shardings of the wanted ones. With several processes all of them call it,
    once `check_structure` has passed on all: Orbax counts its loads, and processes that had counted differently would
    miss each other in the next save. Raises DamagedCheckpoint.
    """
    stored = content["leaves"]
    items = {
        item: unflatten({name: pytree.abstract(leaf, stored[item][name][1]) for name, leaf in leaves.items()}, key=str)
        for item, leaves in wanted.items()
        if leaves
    }
    if content["format"] == 1:
        number = sum(len(leaves) for leaves in stored.values())
        items["checksums"] = {"uint32": pytree.abstract(np.zeros(number, np.uint32), "uint32")}
    with _damage(), _context(path, alone=True):
        loaded = ocp.load_checkpointables(path, items)
    sums = None
    if content["format"] == 1:
        names = [f"{item}/{name}" for item, leaves in stored.items() for name in sorted(leaves)]
        sums = dict(zip(names, np.asarray(loaded["checksums"]["uint32"]).tolist(), strict=True))
    return {item: pytree.named(loaded.get(item, {})) for item in wanted}, sums


@dataclass(frozen=True)
class _Checksums:
    """The checksums of all leaves, in the order of the names; see `zoo.checkpoints.checksums.compute`."""

    names: list[str]
    values: Callable[[], np.ndarray]


class _ChecksumsHandler(ocp.handlers.CheckpointableHandler[_Checksums, None]):
    """Writes {name: checksum} as JSON, in the background: a save does not wait for the checksums."""

    async def save(self, directory: Any, checkpointable: _Checksums) -> Awaitable[None]:
        return self._write(directory, checkpointable)

    async def _write(self, directory: Any, sums: _Checksums) -> None:
        folder = await directory.await_creation()
        if is_main_process():
            values = await asyncio.to_thread(sums.values)
            content = dict(zip(sums.names, values.tolist(), strict=True))
            await asyncio.to_thread((folder / "data.json").write_text, json.dumps(content))

    async def load(self, directory: Any, abstract_checkpointable: None = None) -> Awaitable[None]:
        raise NotImplementedError("zoo reads them itself")

    async def metadata(self, directory: Any) -> None:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, _Checksums)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns whatever reading a broken file raises into DamagedCheckpoint.

    A full memory is no damage, nor are too many open files, a lost connection and missing rights.
    """
    try:
        yield
    except (DamagedCheckpoint, MemoryError, PermissionError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        if any(word in str(error) for word in _NOT_DAMAGE):
            raise
        raise DamagedCheckpoint(f"it cannot be read: {type(error).__name__}: {first_line(error)}") from error


def _context(path: epath.Path, *, alone: bool = False) -> ocp.Context:
    """Orbax's options: no compression (it is several times slower), and `meta` as a plain JSON file.

    With `alone` it reads without waiting for other processes, which may have met damage and never come.
    """
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    registry.add(_ChecksumsHandler, checkpointable_name="integrity")
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.pytree.loading.partial_load = True
    context.checkpointables.registry = registry
    # Made in the background, a directory that cannot be made keeps Orbax's threads waiting for minutes.
    context.asynchronous.create_directories_asynchronously = storage.is_remote(path)
    if storage.is_remote(path):
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    if alone and jax.process_count() > 1:
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.primary_host = jax.process_index()
    return context


def _hash(content: dict) -> str:
    return sha256_hex(json.dumps(content, sort_keys=True).encode())
