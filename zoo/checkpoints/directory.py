"""The directory of a run's checkpoints: what lies in it, which checkpoints stay, and what is said where it is full.

Nothing here knows other processes: with several of them, process 0 alone writes and deletes.
"""

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from zoo.checkpoints import orbax_io, storage
from zoo.errors import UserError

logger = logging.getLogger(__name__)

BEST_FILE = "best.json"
_DAMAGED = ".damaged"
_DELETED = ".deleted"

Pin = tuple[int, dict[str, Any]]
"""The step of the pinned checkpoint, and why it is pinned: {"heldout_loss": 3.2}."""


class CheckpointDirectory:
    """The `<step>` directories of a run, and best.json, which names the pinned one.

    Args:
      path: where they lie, local or remote; it need not exist.

    Raises:
      UserError: a remote directory cannot be reached.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage.directory(path)
        storage.check_reachable(self.path)

    def of(self, step: int) -> epath.Path:
        """Returns the directory of a step's checkpoint, which need not exist."""
        return self.path / str(step)

    def describe(self, step: int) -> str:
        """Returns how messages name the checkpoint of a step."""
        return f"checkpoint {step} in {self.path}"

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        entries = self._entries()
        return sorted(int(path.name) for path in entries if path.name.isdecimal() and orbax_io.complete(path))

    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        return (self.steps() or [None])[-1]

    def _entries(self) -> list[epath.Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    # ------------------------------------------------------------------------------------------- what is deleted

    def remove_leftovers(self, *steps: int) -> None:
        """Deletes what a kill has left of a save or of a deletion, and the directories of `steps`."""
        for path in self._entries():
            unfinished = path.name.isdecimal() and not orbax_io.complete(path)
            if orbax_io.TEMPORARY in path.name or path.name.endswith(_DELETED) or unfinished:
                storage.remove(path)
        for step in steps:
            storage.remove(self.of(step))

    def delete_old(self, *, keep: int, keep_every: int, pinned: Collection[int]) -> None:
        """Deletes the complete checkpoints but the newest `keep`, the pinned ones and those of steps that `keep_every`
        divides (0: none).
        """
        for step in self.steps()[:-keep]:
            if step not in pinned and not (keep_every and step % keep_every == 0):
                self._delete(step)

    def _delete(self, step: int) -> None:
        # First it ceases to be a checkpoint: what a kill leaves half deleted must not look complete.
        path = self.of(step)
        with contextlib.suppress(OSError):
            if storage.is_remote(path):
                (path / orbax_io.COMMITTED).unlink(missing_ok=True)
            else:
                path = path.rename(self.path / f"{step}{_DELETED}")
            storage.remove(path)

    def damaged(self) -> list[str]:
        """Returns the names of the checkpoints that have been set aside, sorted."""
        return sorted(path.name for path in self._entries() if _DAMAGED in path.name)

    def set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint to `<step>.damaged` and returns the new name."""
        name, number = f"{step}{_DAMAGED}", 2
        while (self.path / name).exists():
            name, number = f"{step}{_DAMAGED}-{number}", number + 1
        with self.writing(step, 0):
            self.of(step).rename(self.path / name)
        return name

    # --------------------------------------------------------------------------------------------- the pinned one

    def read_pin(self) -> Pin | None:
        """Returns what best.json says, None where there is none or it cannot be read."""
        try:
            pin = json.loads((self.path / BEST_FILE).read_text())
            return int(pin["step"]), dict(pin["reason"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            logger.warning("%s cannot be read (%r); no checkpoint is pinned", self.path / BEST_FILE, error)
            return None

    def write_pin(self, pin: Pin) -> None:
        """Writes best.json. Raises UserError as `writing`."""
        step, reason = pin
        content = json.dumps({"step": step, "reason": reason}) + "\n"
        with self.writing(step, len(content)):
            storage.write_small(self.path / BEST_FILE, content)

    # -------------------------------------------------------------------------------------- a full or read-only disk

    def make_room(self, step: int, needed: int) -> None:
        """Makes the directory for a checkpoint of `needed` bytes.

        Raises:
          UserError: it cannot be made, or there is no room in it.
        """
        with self.writing(step, needed):
            self.path.mkdir(parents=True, exist_ok=True)
        free = storage.free_bytes(self.path)
        if free is not None and free < needed:
            raise UserError(self._no_room(step, needed))

    @contextlib.contextmanager
    def writing(self, step: int, needed: int) -> Iterator[None]:
        """Turns what a full or read-only disk raises into a UserError about the checkpoint of `step`."""
        try:
            yield
        except Exception as error:
            if reason := storage.full(error):
                raise UserError(self._no_room(step, needed, f" ({reason})")) from error
            if reason := storage.refused(error):
                raise UserError(
                    f"{self.path} cannot be written ({reason}); {self._intact()}. Make it "
                    f"writable, or choose another logging.runs_dir"
                ) from error
            raise

    def _no_room(self, step: int, needed: int, reason: str = "") -> str:
        free = storage.free_bytes(self.path)
        there = "" if free is None else f", {free:,} are free"
        return (
            f"{self.path}: there is no room for the checkpoint of step {step}{reason}: it needs {needed:,} "
            f"bytes{there}; {self._intact()}. Make room (or lower checkpoint.keep) and start again"
        )

    def _intact(self) -> str:
        good = self.latest()
        return "there is no checkpoint yet" if good is None else f"the checkpoint of step {good} is intact"
