"""Checkpoints of a run: saved in the background, verified on restore. Only `orbax_io` under it knows Orbax.

A checkpoint is the directory `<checkpoints>/<step>/` and holds

    model, optimizer   nested dicts of arrays, per layer, keyed by plain strings (no optax or flax classes)
    integrity          JSON: the checksum of every leaf, computed by the accelerators, or in the background on CPUs
    meta               JSON: format version, step, the shape and dtype of every leaf, what the caller adds
                       (examples seen, fingerprints, versions, ...) and a SHA-256 over all of that

and beside them best.json names the pinned one. Format 1 had the checksums in an array instead of `integrity`.

Orbax writes to a temporary name and renames (in an object store: writes commit_success.txt last), so a kill in
mid-save leaves the checkpoint before it intact. A bit that flips later loads silently in Orbax: hence the checksums,
and the hash over the small JSON.

With several processes all of them make the same calls. Process 0 decides which checkpoint is restored and deletes;
whether one is damaged is decided by all together, so that none waits for another that took another way.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from etils import epath

from zoo.checkpoints import orbax_io as files
from zoo.checkpoints import pytree as trees
from zoo.checkpoints import storage
from zoo.checkpoints.orbax_io import DamagedCheckpoint, Items
from zoo.distributed.runtime import broadcast, first_problem, is_main_process
from zoo.errors import UserError

__all__ = ["BEST_FILE", "Checkpoints", "DamagedCheckpoint", "Restored"]

logger = logging.getLogger(__name__)

BEST_FILE = "best.json"
_DAMAGED = ".damaged"
_DELETED = ".deleted"


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
      directory: where the `<step>` directories lie, local or remote; created by the first save.
      keep: how many of the newest complete checkpoints stay (at least 1). None opens the directory
        read-only: nothing is cleaned up, set aside or deleted, so a run that is still going is not disturbed.
      keep_every: those of steps that it divides stay as well, for good; 0: none do.

    The pinned checkpoint stays too. An older one is deleted only when a newer one is known to be on the disk: for a
    while there is one more.

    Raises:
      UserError: `keep` is below 1, or a remote directory cannot be reached.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = None, keep_every: int = 0):
        if keep is not None and keep < 1:
            raise UserError(f"checkpoint.keep is {keep}; it must be at least 1")
        self.directory = storage.directory(directory)
        self._keep, self._keep_every = keep, keep_every
        self._pinned: tuple[int, dict[str, Any]] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._pending: list[tuple[int, Future]] = []
        storage.check_reachable(self.directory)
        if keep is not None and is_main_process():
            for leftover in self._leftovers():
                storage.remove(leftover)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info) -> None:
        try:
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(path.name) for path in self._entries() if path.name.isdecimal() and files.complete(path))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return (self.steps() or [None])[-1]

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Start saving; returns as soon as the state has been copied, so the arrays may be donated at once.

        On the CPU devices of one process nothing is copied, and the files are begun in the background as well. Waits
        for the save before it, whose failure is raised here. `meta` is JSON-serialisable. A complete checkpoint of the
        same step is replaced.

        Raises:
          UserError: there is no room, or the directory may not be written; the checkpoints before are as they were.
        """
        self.wait()
        step = int(step)
        items = {"model": trees.named(params), "optimizer": trees.named(opt_state)}
        needed = trees.nbytes(leaf for leaves in items.values() for leaf in leaves.values())
        self._make_room(step, needed)
        with self._writing(step, needed):
            written = files.start(self._path(step), step, items, meta)
        self._later(step, lambda: self._finish(step, written, needed))

    def wait(self) -> None:
        """Block until the running save, if any, is complete and on the disk, and what is too old is deleted.

        Raises:
          UserError: there was no room for it, or the directory may not be written.
        """
        while self._pending:
            future = self._pending[0][1]
            try:
                future.result()
            finally:
                if future.done():  # not where a signal ended the waiting
                    self._pending.pop(0)

    def pin(self, step: int, reason: dict[str, Any]) -> None:
        """Keep the checkpoint of a step, saved or being saved, until another is pinned; the one before is let go.

        `reason` is JSON that says why, {"heldout_loss": 3.2}. Waits for nothing: it is written after the save.

        Raises:
          ValueError: there is no checkpoint of that step.
        """
        if not self._has(step):
            raise ValueError(f"there is no checkpoint of step {step} to pin; there are {self.steps()}")
        self._pinned = int(step), reason
        self._later(step, self._write_pin)

    def pinned(self) -> tuple[int, dict[str, Any]] | None:
        """(step, reason) of the pinned checkpoint, or None."""
        found = self._pinned or self._written_pin()
        return found if found is not None and self._has(found[0]) else None

    def read_meta(self, step: int) -> dict[str, Any]:
        """The `meta` given to `save` for that step. May be called by one process alone.

        Raises DamagedCheckpoint, and UserError where a newer zoo wrote it.
        """
        content = files.read_content(self._path(step))
        self._refuse_newer(step, content)
        return content["meta"]

    def leaves(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """{name: (shape, dtype)} of the parameters in a checkpoint, from its description alone.

        Raises UserError where that is damaged or a newer zoo wrote it. May be called by one process alone.
        """
        try:
            content = files.read_content(self._path(step))
        except DamagedCheckpoint as error:
            raise UserError(f"{self._where(step)} is damaged: {error}") from None
        self._refuse_newer(step, content)
        stored = content["leaves"]["model"]
        return {name: (tuple(shape), dtype) for name, (shape, dtype) in stored.items()}

    def restore(
        self,
        params: Any,
        opt_state: Any,
        *,
        accept: Callable[[dict], None] | None = None,
        step: int | None = None,
    ) -> Restored | None:
        """The newest good checkpoint, laid on the shardings of the abstract trees; None if there is none.

        A damaged one is reported by a warning and renamed to `<step>.damaged`; then the one before is tried.

        Args:
          params, opt_state: trees of `jax.ShapeDtypeStruct` (with shardings) or of arrays that look the same.
          accept: called with a checkpoint's meta before its arrays are read; raises UserError to refuse it.
          step: the one to restore; None is the newest good one.

        Raises:
          UserError: the checkpoint holds other names, shapes or dtypes; there is none of that step; or every one of
            them is damaged.
        """
        wanted = {"model": trees.named(params), "optimizer": trees.named(opt_state)}

        def load(step: int) -> Restored:
            content = self._content(step)
            if accept is not None:
                accept(content["meta"])
            for item, leaves in wanted.items():
                trees.refuse_other(content["leaves"][item], trees.described(leaves), self._where(step))
            arrays = self._arrays(step, wanted, content)
            return Restored(
                step=step,
                params=trees.replaced(params, arrays["model"]),
                opt_state=trees.replaced(opt_state, arrays["optimizer"]),
                meta=content["meta"],
            )

        return self._newest_good(load, only=step)

    def restore_params(
        self, params: Any, *, step: int | None = None, only: Callable[[str], bool] | None = None
    ) -> Restored | None:
        """Like `restore`, for the parameters alone (nothing else is read), of `step` or the newest good one.

        A floating-point leaf is cast to the dtype asked for after its checksum has been verified.

        Args:
          params: as for `restore`.
          step: None is the newest good one.
          only: which leaves are read, by name ("layers/0/attn/q/kernel"); the others come back as they are in
            `params`, and the checkpoint may have them or not. None: all.

        Raises:
          UserError: as `restore`, but that dtypes may differ.
        """
        wanted = {name: leaf for name, leaf in trees.named(params).items() if only is None or only(name)}

        def load(step: int) -> Restored:
            content = self._content(step)
            stored = {name: leaf for name, leaf in content["leaves"]["model"].items() if only is None or only(name)}
            shapes = ({name: leaf[:1] for name, leaf in tree.items()} for tree in (stored, trees.described(wanted)))
            trees.refuse_other(*shapes, self._where(step))
            arrays = self._arrays(step, {"model": wanted}, content)
            return Restored(step, trees.replaced(params, arrays["model"]), None, content["meta"])

        return self._newest_good(load, only=step)

    # ------------------------------------------------------------------------------------------------- writing

    def _make_room(self, step: int, needed: int) -> None:
        """Raises UserError, on all processes alike, unless the directory can be made and there is room in it."""

        def make() -> None:
            with self._writing(step, needed):
                self.directory.mkdir(parents=True, exist_ok=True)
            free = storage.free_bytes(self.directory)
            if free is not None and free < needed:
                raise UserError(self._no_room(step, needed))

        broadcast(make)

    def _finish(self, step: int, written: Callable[[], None], needed: int) -> None:
        """Wait until a save is complete, take it to the disk and delete what is too old. In the background."""
        try:
            with self._writing(step, needed):
                written()
                if is_main_process():
                    storage.sync(self._path(step))
        except UserError:
            # What has been written of it takes the room that the user is asked to make.
            if is_main_process():
                for leftover in [*self._leftovers(), self._path(step)]:
                    storage.remove(leftover)
            raise
        self._delete_old()

    def _write_pin(self) -> None:
        if is_main_process() and self._pinned is not None and self._pinned[0] in self.steps():
            step, reason = self._pinned
            content = json.dumps({"step": step, "reason": reason}) + "\n"
            with self._writing(step, len(content)):
                storage.write_small(self.directory / BEST_FILE, content)
        self._delete_old()

    def _written_pin(self) -> tuple[int, dict[str, Any]] | None:
        try:
            found = json.loads((self.directory / BEST_FILE).read_text())
            return int(found["step"]), dict(found["reason"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%r); no checkpoint is pinned", self.directory / BEST_FILE, error)
            return None

    def _delete_old(self) -> None:
        if self._keep is None or not is_main_process():
            return
        # Both: until the new pin is on the disk a crash would leave the old one's file.
        pinned = {pin[0] for pin in (self._pinned, self._written_pin()) if pin is not None}
        for old in self.steps()[: -self._keep]:
            forever = self._keep_every and old % self._keep_every == 0
            if not forever and old not in pinned:
                self._delete(old)

    def _delete(self, step: int) -> None:
        # First it ceases to be a checkpoint: what a kill leaves half deleted must not look complete.
        path = self._path(step)
        with contextlib.suppress(OSError):
            if storage.is_remote(path):
                (path / files.COMMITTED).unlink(missing_ok=True)
            else:
                path = path.rename(self.directory / f"{step}{_DELETED}")
            storage.remove(path)

    def _later(self, step: int, work: Callable[[], None]) -> None:
        """Have it done in the background, after what is being done there."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending.append((step, self._worker.submit(work)))

    @contextlib.contextmanager
    def _writing(self, step: int, needed: int) -> Iterator[None]:
        """Turns what a full or read-only disk raises into a UserError."""
        try:
            yield
        except Exception as error:
            if words := storage.full(error):
                raise UserError(self._no_room(step, needed, f" ({words})")) from error
            if words := storage.refused(error):
                raise UserError(
                    f"{self.directory} cannot be written ({words}); {self._intact()}. Make it "
                    f"writable, or choose another logging.runs_dir"
                ) from error
            raise

    def _no_room(self, step: int, needed: int, words: str = "") -> str:
        free = storage.free_bytes(self.directory)
        there = "" if free is None else f", {free:,} are free"
        return (
            f"{self.directory}: there is no room for the checkpoint of step {step}{words}: it needs {needed:,} "
            f"bytes{there}; {self._intact()}. Make room (or lower checkpoint.keep) and start again"
        )

    def _intact(self) -> str:
        good = self.latest()
        return "there is no checkpoint yet" if good is None else f"the checkpoint of step {good} is intact"

    # ------------------------------------------------------------------------------------------------- reading

    def _newest_good(self, load: Callable[[int], Restored], only: int | None = None) -> Restored | None:
        self.wait()
        if only is not None and only not in (steps := broadcast(self.steps)):
            raise UserError(f"no checkpoint of step {only} in {self.directory}; there are {steps or 'none'}")
        aside = broadcast(self._damaged) if only is None else []
        tried: set[int] = set()
        # The list is read anew each time: a run that goes on may have replaced the checkpoint just tried.
        while untried := broadcast(lambda: [s for s in self.steps() if s not in tried and only in (None, s)]):
            step = untried[-1]
            tried.add(step)
            try:
                return load(step)
            except DamagedCheckpoint as error:
                if is_main_process():
                    logger.warning("checkpoint %d is damaged (%s); trying the one before", step, error)
                aside.append(self._set_aside(step))
        if aside:
            raise UserError(
                f"no good checkpoint is left in {self.directory}; damaged: {', '.join(sorted(aside))}. "
                f"Start over with --fresh"
            )
        return None

    def _set_aside(self, step: int) -> str:
        """Rename a damaged checkpoint; its new name."""
        if self._keep is None:
            return str(step)

        def rename() -> str:
            name, number = f"{step}{_DAMAGED}", 2
            while (self.directory / name).exists():
                name, number = f"{step}{_DAMAGED}-{number}", number + 1
            with self._writing(step, 0):
                self._path(step).rename(self.directory / name)
            return name

        return broadcast(rename)

    def _content(self, step: int) -> dict[str, Any]:
        """What process 0 reads of a checkpoint's description, and of its checksums, on every process."""

        def read() -> list:
            try:
                content = files.read_content(self._path(step))
                self._refuse_newer(step, content)
                return [content | {"checksums": files.read_checksums(self._path(step), content)}, None]
            except DamagedCheckpoint as error:
                return [None, str(error)]

        content, damage = broadcast(read)
        if damage is not None:
            raise DamagedCheckpoint(damage)
        return content

    def _refuse_newer(self, step: int, content: dict[str, Any]) -> None:
        if content["format"] > files.FORMAT:
            raise UserError(
                f"{self._where(step)} has format {content['format']}, this version reads up to {files.FORMAT}; install "
                f"a newer version"
            )

    def _arrays(self, step: int, wanted: Items, content: dict[str, Any]) -> Items:
        """The wanted leaves of each item in their stored dtype, verified against the checksums."""
        _together(lambda: files.check_structure(self._path(step), wanted, content))
        arrays, checksums = _together(lambda: files.read_arrays(self._path(step), wanted, content))
        files.verify(arrays, content["checksums"] or checksums or {})
        return arrays

    def _entries(self) -> list[epath.Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _damaged(self) -> list[str]:
        return sorted(path.name for path in self._entries() if _DAMAGED in path.name)

    def _leftovers(self) -> list[epath.Path]:
        """What a kill has left of a save or of a deletion."""
        return [
            path
            for path in self._entries()
            if files.TEMPORARY in path.name
            or path.name.endswith(_DELETED)
            or (path.name.isdecimal() and not files.complete(path))
        ]

    def _has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, or will be when what is running is done."""
        return any(step == pending for pending, _ in self._pending) or step in self.steps()

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _where(self, step: int) -> str:
        return f"checkpoint {step} in {self.directory}"


def _together(look: Callable[[], Any]) -> Any:
    """What `look` gives on this process; DamagedCheckpoint on all of them where it raised that on one."""
    found, problem = None, None
    try:
        found = look()
    except DamagedCheckpoint as error:
        problem = str(error)
    problem = first_problem(problem)
    if problem is not None:
        raise DamagedCheckpoint(problem)
    return found
