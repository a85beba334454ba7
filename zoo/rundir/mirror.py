"""A run whose directory is remote: its checkpoints lie there, its small files both there and in a local directory.

`logging.runs_dir: gs://bucket/runs` puts a run's checkpoints into gs://bucket/runs/<name>/checkpoints. The small files
that change (MIRRORED) are written to a local directory first and pushed at each checkpoint; a machine that goes on with
the run, the same or another, fetches them first. The remote side decides: the local one is made equal to it.

    mirror = Mirror(recipe.remote_run_dir, recipe.run_dir)     # for a local run every call does nothing
    mirror.fetch()
    with mirror.locked():
        ...
        mirror.push()                                          # before each checkpoint is saved, and at the end
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from zoo import files
from zoo.checkpoints import storage
from zoo.errors import UserError
from zoo.util import atomic_write, first_line, human_duration, sha256_hex

logger = logging.getLogger(__name__)

# In the order in which they are pushed.
MIRRORED = (
    *("tokenizer", "metrics.jsonl", "tensorboard", "samples.md", "report.md", "loss.png", "result.json", "wandb_id"),
    "recipe.yaml",  # last: it makes a directory a run, and all that a run needs is there by then
)
LOCK_FILE = "lock"
LOCAL_LOCK_FILE = ".lock"
STALE_AFTER = 300.0
"""Seconds without a heartbeat after which a lock counts as abandoned."""
_HEARTBEAT_EVERY = 60.0
_REWRITE = 0.2  # seconds in which a small file has been rewritten
_VISIBLE_AFTER = 2.0  # seconds after which two processes that start at once see each other's lock


class Mirror:
    """The small files of a run in two places.

    Args:
      remote: the run's directory in the store; None is a local run, for which nothing is ever done.
      local: the directory where the run reads and writes its small files.

    Raises:
      UserError: the remote directory cannot be reached.
    """

    def __init__(self, remote: str | os.PathLike | None, local: str | os.PathLike):
        self.remote: epath.Path | None = None if remote is None else storage.directory(remote)
        self.local = Path(local)
        self._pushed: dict[str, str] = {}
        self._lock: _Lock | None = None
        if self.remote is not None:
            storage.check_reachable(self.remote)

    def fetch(self) -> bool:
        """Makes the local small files equal to the remote ones; returns whether a run has begun there.

        Where another process of this machine trains the run, its files are left as they are.

        Raises:
          UserError: the remote directory holds something else, or the local one cannot be written.
        """
        if self.remote is None:
            return False
        begun, contents = self._read()
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            file = files.open_lock(self.local / LOCAL_LOCK_FILE)
        except OSError as error:
            raise UserError(f"{self.local} cannot be written ({error.strerror}); set ZOO_CACHE") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return begun
            self._replace(contents)
        return begun

    def fetch_again(self) -> None:
        """Fetches once more, with the lock held: another process may have trained the run since the first time."""
        if self.remote is not None:
            self._replace(self._read()[1])

    def _read(self) -> tuple[bool, dict[str, bytes]]:
        names = {path.name for path in self.remote.iterdir()} if self.remote.is_dir() else set()
        begun = "recipe.yaml" in names
        foreign = sorted(names - {*MIRRORED, LOCK_FILE, "checkpoints"})
        if foreign and not begun:
            raise UserError(
                f"{self.remote} holds files ({', '.join(foreign[:3])}) but no recipe.yaml, so it is not a run; choose "
                f"another name or logging.runs_dir"
            )
        return begun, {name: (self.remote / name).read_bytes() for name in self._remote_names()} if begun else {}

    def _replace(self, contents: dict[str, bytes]) -> None:
        for name in self._local_names():
            if name not in contents:
                (self.local / name).unlink(missing_ok=True)
        for name in ("tokenizer", "tensorboard"):
            with contextlib.suppress(OSError):
                (self.local / name).rmdir()  # where nothing is left in it
        for name, content in contents.items():
            path = files.safe_join(self.local, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # More lines than the remote file has could not be pushed; a checkpoint may be newer than the remote lines.
            if not (name == "metrics.jsonl" and path.is_file() and path.read_bytes().startswith(content)):
                atomic_write(path, content)
            self._pushed[name] = sha256_hex(content)

    def push(self) -> None:
        """Writes the files that have changed to the remote directory, and a heartbeat of the lock.

        A failure is a warning, and the next push tries again; before the first success it is a UserError.

        Raises:
          UserError: the remote directory cannot be written, or another process has taken the run over.
        """
        if self.remote is None:
            return
        if self._lock is not None:
            self._lock.heartbeat()
        begun = bool(self._pushed)
        try:
            for name in self._local_names():
                content = (self.local / name).read_bytes()
                if self._pushed.get(name) != sha256_hex(content):
                    (self.remote / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.remote / name).write_bytes(content)
                    self._pushed[name] = sha256_hex(content)
        except Exception as error:  # of each store's own kinds
            problem = f"{self.remote} cannot be written: {type(error).__name__}: {first_line(error)}"
            if not begun:
                raise UserError(f"{problem}; choose another logging.runs_dir") from error
            logger.warning("%s; trying again at the next checkpoint", problem)

    def clear(self) -> None:
        """Deletes the run from the remote directory, checkpoints and all. The recipe goes last."""
        if self.remote is None or not self.remote.is_dir():
            return
        self._pushed = {}
        for path in sorted(self.remote.iterdir(), key=lambda path: path.name == "recipe.yaml"):
            if path.name == LOCK_FILE:
                continue
            if path.is_dir():
                path.rmtree(missing_ok=True)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the remote directory. Raises UserError if another process does."""
        if self.remote is None:
            yield
            return
        self._lock = _Lock(self.remote)
        self._lock.acquire()
        try:
            yield
        finally:
            lock, self._lock = self._lock, None
            lock.release()

    def _local_names(self) -> list[str]:
        """The mirrored files that exist locally, as paths under the directory, in the order of MIRRORED."""
        names = []
        for name in MIRRORED:
            path = self.local / name
            if path.is_dir():
                names += sorted(f"{name}/{file.name}" for file in path.iterdir() if file.is_file())
            elif path.is_file():
                names.append(name)
        return names

    def _remote_names(self) -> list[str]:
        names = []
        for name in MIRRORED:
            path = self.remote / name
            if path.is_dir():
                names += sorted(f"{name}/{file.name}" for file in path.iterdir() if not file.is_dir())
            elif path.exists():
                names.append(name)
        return names


def fetched(url: str | os.PathLike) -> Path:
    """Returns a local directory with copies of a remote run's small files, to be read.

    Raises:
        UserError: there is no run at the URL, or it cannot be reached.
    """
    mirror = Mirror(url, storage.cache("read", url))
    if not mirror.fetch():
        raise UserError(f"{url}: there is no run (no recipe.yaml)")
    return mirror.local


class _Lock:
    """A file in the run's directory that says who trains it: host, process, time of the last heartbeat.

    An object store has no lock that ends with its process. So the holder writes the file again every minute, and a lock
    without a heartbeat for STALE_AFTER seconds (or of a process of this machine that is gone) counts as abandoned. Two
    processes that start at the same moment both write, wait, and read who wrote last: that one has it. The clocks of
    the machines should agree to within minutes.
    """

    def __init__(self, remote: epath.Path):
        self._path = remote / LOCK_FILE
        self._content = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def acquire(self) -> None:
        """Takes the lock. Raises UserError if another process holds it, or the store cannot be written."""
        try:
            holder = self._read()
            if holder is None and self._path.exists():  # a directory's file is seen while it is being written
                time.sleep(_REWRITE)
                holder = self._read()
            if holder is not None and not _abandoned(holder):
                raise UserError(self._held_by(holder))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        except UserError:
            raise
        except Exception as error:  # of each store's own kinds
            raise UserError(
                f"{self._path.parent} cannot be written: {type(error).__name__}: {first_line(error)}; choose "
                f"another logging.runs_dir"
            ) from error
        time.sleep(_VISIBLE_AFTER)
        self._refuse_other()
        self._thread.start()

    def heartbeat(self) -> None:
        """Writes that this process still trains. Raises UserError if another has taken the run over meanwhile."""
        try:
            self._refuse_other()
            self._write()
        except UserError:
            raise
        except Exception as error:  # of each store's own kinds; the network comes back
            logger.warning("%s cannot be signed: %s: %s", self._path, type(error).__name__, first_line(error))

    def release(self) -> None:
        """Gives the lock back, unless another process has taken it over."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        with contextlib.suppress(Exception):
            holder = self._read()
            if holder is not None and holder.get("token") == self._content["token"]:
                self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_EVERY):
            try:
                self.heartbeat()
            except UserError:
                return  # the next push says so where it can be heard

    def _refuse_other(self) -> None:
        holder = self._read()
        if holder is not None and holder.get("token") != self._content["token"]:
            raise UserError(self._held_by(holder))

    def _held_by(self, holder: dict[str, Any]) -> str:
        age = max(0.0, time.time() - holder["time"])
        return (
            f"{self._path.parent}: another process is training this run: {holder['pid']} on {holder['host']}, which "
            f"gave a sign of life {human_duration(age)} ago; stop it, or wait until it has been silent for "
            f"{human_duration(STALE_AFTER)}"
        )

    def _read(self) -> dict[str, Any] | None:
        """The content of the lock, None where there is none or it cannot be read."""
        try:
            holder = json.loads(self._path.read_text())
            host, pid, beat = str(holder["host"]), int(holder["pid"]), float(holder["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        if not 0 < pid < 2**31 or not math.isfinite(beat):
            return None
        return {**holder, "host": host, "pid": pid, "time": beat}

    def _write(self) -> None:
        self._path.write_text(json.dumps({**self._content, "time": time.time()}))


def _abandoned(holder: dict[str, Any]) -> bool:
    if time.time() - holder["time"] > STALE_AFTER:
        return True
    if holder["host"] != socket.gethostname():
        return False
    if holder["pid"] == os.getpid():  # in a new container process numbers begin anew
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        pass
    return False
