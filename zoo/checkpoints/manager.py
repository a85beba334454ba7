"""Checkpoints of a run: saved in the background, verified on restore.

A checkpoint is the directory `<checkpoints>/<step>/` and holds

    model, optimizer   nested dicts of arrays, per layer, keyed by plain strings (no optax or flax classes)
    integrity          JSON: the checksum of every leaf, computed by the accelerators, or in the background on CPUs
    meta               JSON: format version, step, the shape and dtype of every leaf, what the caller adds
                       (examples seen, fingerprints, versions, ...) and a SHA-256 over all of that

and beside them best.json names the pinned one. Format 1 had the checksums in an array instead of `integrity`.

Orbax writes to a temporary name and renames (in an object store it writes commit_success.txt last), so a kill during a
save leaves the checkpoint before it intact. A bit that flips later loads silently in Orbax: hence the checksums, and
the hash over the small JSON.

With several processes all of them make the same calls. Process 0 decides which checkpoint is restored and deletes;
whether one is damaged is decided by all together, so that no process waits for another that took another way.
"""

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from etils import epath

from zoo.checkpoints import checksums, orbax_io, pytree, storage
from zoo.checkpoints.checksums import DamagedCheckpoint
from zoo.checkpoints.directory import CheckpointDirectory, Pin
from zoo.checkpoints.orbax_io import Items
from zoo.distributed.runtime import broadcast, first_problem, is_main_process
from zoo.errors import UserError

__all__ = ["Checkpoints", "DamagedCheckpoint", "Restored"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A checkpoint's content, from `Checkpoints.restore` or `restore_params`.

    Attributes:
      step: of the checkpoint.
      params: a tree like the abstract parameters asked for.
      opt_state: a tree like the abstract optimizer state asked for; None from `restore_params`.
      meta: the dict given to `save`.
    """

    step: int
    params: Any
    opt_state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      directory: where the `<step>` directories lie, local or remote; the first save creates it.
      keep: how many of the newest complete checkpoints stay (at least 1). None opens the directory
        read-only: nothing is cleaned up, set aside or deleted, so a run that is still going is not disturbed.
      keep_every: checkpoints of steps that it divides stay as well, for good; 0: none do.

    The pinned checkpoint stays too. An older one is deleted only when a newer one is known to be on the disk: for a
    while there is one more.

    Raises:
      UserError: `keep` is below 1, or a remote directory cannot be reached.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = None, keep_every: int = 0):
        if keep is not None and keep < 1:
            raise UserError(f"checkpoint.keep is {keep}; it must be at least 1")
        self._directory = CheckpointDirectory(directory)
        self._keep, self._keep_every = keep, keep_every
        self._pinned: Pin | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._pending: list[tuple[int, Future]] = []
        if keep is not None and is_main_process():
            self._directory.remove_leftovers()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info) -> None:
        try:
            self.wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None

    @property
    def directory(self) -> epath.Path:
        """The path under which the `<step>` directories lie."""
        return self._directory.path

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        return self._directory.steps()

    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._directory.latest()

    # ------------------------------------------------------------------------------------------------- writing

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Starts saving; returns as soon as the state has been copied, so the arrays may be donated at once.

        On the CPU devices of one process nothing is copied, and the files are begun in the background as well. Waits
        for the save before it, whose failure is raised here. A complete checkpoint of the same step is replaced.

        Args:
          step: updates done.
          params, opt_state: trees of arrays.
          meta: JSON-serialisable.

        Raises:
          UserError: there is no room, or the directory may not be written; the checkpoints before are as they were.
        """
        self.wait()
        step = int(step)
        items = {"model": pytree.named(params), "optimizer": pytree.named(opt_state)}
        needed = pytree.nbytes(leaf for leaves in items.values() for leaf in leaves.values())
        self._make_room(step, needed)
        with self._directory.writing(step, needed):
            finish = orbax_io.start(self._directory.of(step), step, items, meta)
        self._run_later(step, lambda: self._finish(step, finish, needed))

    def wait(self) -> None:
        """Blocks until the running save, if any, is complete and on the disk, and what is too old is deleted.

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
        """Keeps the checkpoint of a step, saved or being saved, until another is pinned; the one before is let go.

        It returns at once: the pin is written in the background, after the save.

        Args:
          step: the checkpoint's.
          reason: JSON that says why, {"heldout_loss": 3.2}.

        Raises:
          ValueError: there is no checkpoint of that step.
        """
        if not self._has(step):
            raise ValueError(f"there is no checkpoint of step {step} to pin; there are {self.steps()}")
        self._pinned = int(step), reason
        self._run_later(step, self._write_pin)

    def pinned(self) -> Pin | None:
        """Returns (step, reason) of the pinned checkpoint, or None."""
        pin = self._pinned or self._directory.read_pin()
        return pin if pin is not None and self._has(pin[0]) else None

    def _has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, or will be when what is running is done."""
        return any(step == pending for pending, _ in self._pending) or step in self.steps()

    def _make_room(self, step: int, needed: int) -> None:
        """Raises UserError, on all processes alike, unless the directory can be made and there is room in it."""
        broadcast(lambda: self._directory.make_room(step, needed))

    def _run_later(self, step: int, work: Callable[[], None]) -> None:
        """Has it done in the background, after what is being done there."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending.append((step, self._worker.submit(work)))

    def _finish(self, step: int, finish: Callable[[], None], needed: int) -> None:
        """Waits until a save is complete, takes it to the disk and deletes what is too old. In the background."""
        try:
            with self._directory.writing(step, needed):
                finish()
                if is_main_process():
                    storage.sync(self._directory.of(step))
        except UserError:
            # What has been written of it takes the room that the user is asked to make.
            if is_main_process():
                self._directory.remove_leftovers(step)
            raise
        self._delete_old()

    def _write_pin(self) -> None:
        if is_main_process() and self._pinned is not None and self._pinned[0] in self.steps():
            self._directory.write_pin(self._pinned)
        self._delete_old()

    def _delete_old(self) -> None:
        if self._keep is None or not is_main_process():
            return
        # Both: until the new pin is on the disk a crash would leave the old one's file.
        pinned = {pin[0] for pin in (self._pinned, self._directory.read_pin()) if pin is not None}
        self._directory.delete_old(keep=self._keep, keep_every=self._keep_every, pinned=pinned)

    # ------------------------------------------------------------------------------------------------- reading

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the `meta` given to `save` for that step. One process alone may call it.

        Raises:
          DamagedCheckpoint: it is not what was written.
          UserError: a newer zoo wrote it.
        """
        return self._read_content(step)["meta"]

    def parameter_shapes(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns {name: (shape, dtype)} of a checkpoint's parameters, from its meta alone. One process may call it.

        Raises:
          UserError: the meta is damaged, or a newer zoo wrote it.
        """
        try:
            stored = self._read_content(step)["leaves"]["model"]
        except DamagedCheckpoint as error:
            raise UserError(f"{self._directory.describe(step)} is damaged: {error}") from None
        return {name: (tuple(shape), dtype) for name, (shape, dtype) in stored.items()}

    def restore(
        self,
        params: Any,
        opt_state: Any,
        *,
        accept: Callable[[dict], None] | None = None,
        step: int | None = None,
    ) -> Restored | None:
        """Returns the newest good checkpoint, laid on the shardings of the abstract trees; None if there is none.

        A damaged one is reported by a warning and renamed to `<step>.damaged`; then the one before is tried.

        Args:
          params, opt_state: trees of `jax.ShapeDtypeStruct` (with shardings) or of arrays that look the same.
          accept: called with a checkpoint's meta before its arrays are read; raises UserError to refuse it.
          step: the one to restore; None is the newest good one.

        Raises:
          UserError: the checkpoint holds other names, shapes or dtypes; there is none of that step; or every one of
            them is damaged.
        """
        wanted = {"model": pytree.named(params), "optimizer": pytree.named(opt_state)}

        def load(step: int) -> Restored:
            content = self._content(step)
            if accept is not None:
                accept(content["meta"])
            for item, leaves in wanted.items():
                pytree.check_same(content["leaves"][item], pytree.described(leaves), self._directory.describe(step))
            arrays = self._arrays(step, wanted, content)
            return Restored(
                step=step,
                params=pytree.replace_leaves(params, arrays["model"]),
                opt_state=pytree.replace_leaves(opt_state, arrays["optimizer"]),
                meta=content["meta"],
            )

        return self._newest_good(load, only=step)

    def restore_params(
        self,
        params: Any,
        *,
        step: int | None = None,
        only: Callable[[str], bool] | None = None,
        of_state: str | None = None,
    ) -> Restored | None:
        """Like `restore`, for the parameters alone (nothing else is read), of `step` or the newest good one.

        A floating-point leaf is cast to the dtype asked for after its checksum has been verified.

        Args:
          params: as for `restore`.
          step: None is the newest good one.
          only: which leaves are read, by name ("layers/0/attn/q/kernel"); the others come back as they are in
            `params`, and the checkpoint may have them or not. None: all.
          of_state: a field of the optimizer's state that is a tree like the parameters, such as an average of them;
            it is read in their place.

        Raises:
          UserError: as `restore`, but that dtypes may differ; or the optimizer's state has no such field.
        """
        item = "model" if of_state is None else "optimizer"
        wanted = {name: leaf for name, leaf in pytree.named(params).items() if only is None or only(name)}

        def load(step: int) -> Restored:
            content = self._content(step)
            prefix = "" if of_state is None else self._prefix(content, of_state, step)
            names = (name.removeprefix(prefix) for name in content["leaves"][item] if name.startswith(prefix))
            stored = {name: content["leaves"][item][prefix + name] for name in names if only is None or only(name)}
            shapes = ({name: leaf[:1] for name, leaf in tree.items()} for tree in (stored, pytree.described(wanted)))
            pytree.check_same(*shapes, self._directory.describe(step))
            arrays = self._arrays(step, {item: {prefix + name: leaf for name, leaf in wanted.items()}}, content)
            leaves = {name.removeprefix(prefix): leaf for name, leaf in arrays[item].items()}
            return Restored(step, pytree.replace_leaves(params, leaves), None, content["meta"])

        return self._newest_good(load, only=step)

    def _prefix(self, content: dict[str, Any], field: str, step: int) -> str:
        """Returns what comes before the parameters' names in those of a field of the optimizer's state."""
        matches = (re.match(rf"(?:[^/]+/)*?{field}/", name) for name in content["leaves"]["optimizer"])
        found = next(filter(None, matches), None)
        if found is None:
            raise UserError(f"{self._directory.describe(step)} holds an optimizer's state without {field}")
        return found[0]

    def _newest_good(self, load: Callable[[int], Restored], only: int | None = None) -> Restored | None:
        self.wait()
        if only is not None and only not in (steps := broadcast(self.steps)):
            raise UserError(f"no checkpoint of step {only} in {self.directory}; there are {steps or 'none'}")
        damaged = broadcast(self._directory.damaged) if only is None else []
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
                damaged.append(self._set_aside(step))
        if damaged:
            raise UserError(
                f"no good checkpoint is left in {self.directory}; damaged: {', '.join(sorted(damaged))}. "
                f"Start over with --fresh"
            )
        return None

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, unless this is read-only, and returns its name."""
        if self._keep is None:
            return str(step)
        return broadcast(lambda: self._directory.set_aside(step))

    def _content(self, step: int) -> dict[str, Any]:
        """A checkpoint's meta and checksums, read by process 0, on every process."""

        def read() -> list:
            try:
                content = self._read_content(step)
                return [content | {"checksums": orbax_io.read_checksums(self._directory.of(step), content)}, None]
            except DamagedCheckpoint as error:
                return [None, str(error)]

        content, damage = broadcast(read)
        if damage is not None:
            raise DamagedCheckpoint(damage)
        return content

    def _read_content(self, step: int) -> dict[str, Any]:
        content = orbax_io.read_content(self._directory.of(step))
        if content["format"] > orbax_io.FORMAT:
            raise UserError(
                f"{self._directory.describe(step)} has format {content['format']}, this version reads up to "
                f"{orbax_io.FORMAT}; install a newer version"
            )
        return content

    def _arrays(self, step: int, wanted: Items, content: dict[str, Any]) -> Items:
        """The wanted leaves of each item in their stored dtype, verified against the checksums."""
        path = self._directory.of(step)
        _together(lambda: orbax_io.check_structure(path, wanted, content))
        arrays, sums = _together(lambda: orbax_io.read_arrays(path, wanted, content))
        checksums.verify(arrays, content["checksums"] or sums or {})
        return arrays


def _together(read: Callable[[], Any]) -> Any:
    """What `read` returns on this process; DamagedCheckpoint on all of them where it raised that on one."""
    result, problem = None, None
    try:
        result = read()
    except DamagedCheckpoint as error:
        problem = str(error)
    problem = first_problem(problem)
    if problem is not None:
        raise DamagedCheckpoint(problem)
    return result
