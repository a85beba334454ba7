"""Directories that are local or remote (gs:// and what else etils.epath knows), and what can go wrong in them.

All functions take and return `epath.Path`, which is a pathlib path where the directory is local. What only a local file
system has (fsync, free space, an atomic rename) is done there and left out elsewhere: an object store keeps what it
has acknowledged.
"""

import errno
import os
import shutil
from pathlib import Path

from etils import epath

from zoo.errors import UserError
from zoo.util import atomic_write, cache_directory, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL ("gs://bucket/runs")."""
    return "://" in (path if isinstance(path, str) else str(path))


def directory(path: str | os.PathLike) -> epath.Path:
    """Returns the path, absolute where it is local; nothing is created.

    Raises:
        UserError: the URL is of a kind that cannot be opened.
    """
    if not is_remote(path):
        return epath.Path(Path(path).expanduser().absolute())
    try:
        return epath.Path(path)
    except KeyError:
        raise UserError(f"{path}: no such kind of directory; remote ones begin with gs://") from None


def cache(kind: str, url: str | os.PathLike) -> Path:
    """Returns the local directory for copies of a remote one, in zoo's cache directory; it is not created."""
    return cache_directory() / kind / str(url).replace("://", "/").strip("/")


def check_reachable(path: epath.Path) -> None:
    """Makes one request to a remote directory; does nothing for a local one.

    Raises:
        UserError: a package, a right or the network is missing.
    """
    if not is_remote(path):
        return
    try:
        path.exists()
    except ImportError as error:
        raise UserError(f"{path}: {first_line(error)}; pip install 'zoo-nnx[gcs]'") from None
    except Exception as error:
        raise UserError(f"{path} cannot be reached: {type(error).__name__}: {first_line(error)}") from error


def free_bytes(path: epath.Path) -> int | None:
    """Returns the bytes that may still be written under a local directory, existing or not; None for a remote one."""
    if is_remote(path):
        return None
    place = Path(path)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def sync(path: epath.Path) -> None:
    """Waits until a local directory with everything under it is on the disk."""
    if is_remote(path):
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    _fsync(Path(path).parent)  # the entry of the directory itself


def write_small(path: epath.Path, text: str) -> None:
    """Writes a small file so that a reader, or a crash, sees the old content or the new one, never half."""
    if is_remote(path):
        path.write_text(text)
    else:
        atomic_write(Path(path), text)


def remove(path: epath.Path) -> None:
    """Deletes a directory with everything under it, as far as that is possible; raises nothing."""
    try:
        path.rmtree(missing_ok=True)
    except Exception:  # of the disk or of the store's own kinds
        return


def refused(error: BaseException) -> str | None:
    """Returns the system's message where an error, or its cause, is that a place may not be written; else None."""
    return _system_message(error, _REFUSED)


def full(error: BaseException) -> str | None:
    """Returns the system's message where an error, or its cause, is that a disk, quota or file is full; else None."""
    return _system_message(error, _FULL)


def _system_message(error: BaseException | None, numbers: tuple[int, ...]) -> str | None:
    while error is not None:
        for number in numbers:
            # TensorStore raises ValueError with the system's message in its text.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
