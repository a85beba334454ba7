"""Directories that are local or remote (gs:// and what else etils.epath knows), and what can go wrong in them.

Everything here takes and gives `epath.Path`, which is a pathlib path where the directory is local. What only a local
file system has (fsync, free space, a rename that is atomic) is done there and left out elsewhere: an object store
keeps what it has acknowledged.
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
    """Whether a path is a URL ("gs://bucket/runs")."""
    return "://" in (path if isinstance(path, str) else str(path))


def directory(path: str | os.PathLike) -> epath.Path:
    """The path, absolute where it is local; nothing is created. UserError for a URL that cannot be opened here."""
    if not is_remote(path):
        return epath.Path(Path(path).expanduser().absolute())
    try:
        return epath.Path(path)
    except KeyError:
        raise UserError(f"{path}: no such kind of directory; remote ones begin with gs://") from None


def cache(kind: str, url: str | os.PathLike) -> Path:
    """The local directory for what belongs to a remote one, in zoo's cache directory; not created."""
    return cache_directory() / kind / str(url).replace("://", "/").strip("/")


def check_reachable(path: epath.Path) -> None:
    """Raises UserError where a remote directory cannot be looked at: a package or a right is missing, or the network.

    One request; nothing for a local directory.
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
    """What a user may still write under a local directory, which need not exist yet; None for a remote one."""
    if is_remote(path):
        return None
    place = Path(path)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def sync(path: epath.Path) -> None:
    """Wait until a local directory with everything under it is on the disk."""
    if is_remote(path):
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    _fsync(Path(path).parent)  # the entry of the directory itself


def write_small(path: epath.Path, text: str) -> None:
    """Write a small file: a reader, or a crash, sees the old content or the new one, never half."""
    if is_remote(path):
        path.write_text(text)
    else:
        atomic_write(Path(path), text)


def remove(path: epath.Path) -> None:
    """Delete a directory with everything under it. What cannot be deleted stays: it is left for another time."""
    try:
        path.rmtree(missing_ok=True)
    except Exception:  # of the disk or of the store's own kinds
        return


def refused(error: BaseException) -> str | None:
    """The system's words where an error, or one behind it, says that the place may not be written; else None."""
    return _says(error, _REFUSED)


def full(error: BaseException) -> str | None:
    """The same for what has no room any more: the disk, a quota, or a file that may not grow further."""
    return _says(error, _FULL)


def _says(error: BaseException | None, numbers: tuple[int, ...]) -> str | None:
    while error is not None:
        for number in numbers:
            # TensorStore raises ValueError with the system's words in its text.
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
