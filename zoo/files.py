"""Files in directories that others may have filled: no name leads out of them, and nothing is written through a link.

A directory got from somebody may hold a symbolic link by the very name that zoo is about to write. What zoo creates is
therefore opened without following links, or written under a new name and renamed, which replaces a link.
`zoo.util.atomic_write` does the latter for small files.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from zoo.errors import UserError

_LFS = b"version https://git-lfs.github.com/spec/"


def safe_join(directory: Path, name: str) -> Path:
    """Returns the path of `name` in `directory`. Raises UserError if the name or a symbolic link leads out of it.

    The hub's cache keeps a snapshot's files as links into the `blobs` beside it: those are inside.
    """
    path = directory / name
    try:
        path.is_symlink()  # `resolve` lets a name pass that is too long to be looked up
        root, real = directory.resolve(), path.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        raise UserError(f"{directory}: {name[:80]!r} names no file") from None
    blobs = [folder.parent.parent / "blobs" for folder in (root, *root.parents) if folder.parent.name == "snapshots"]
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs[:1])):
        raise UserError(f"{path}: leads out of its directory, to {real}; copy the file there if you trust it")
    return path


def is_lfs_pointer(path: Path) -> bool:
    """Returns whether a file is what Git LFS leaves in the place of a large one that was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """Raises UserError for a file that Git LFS left in the place of another."""
    if is_lfs_pointer(path):
        raise UserError(f"{path}: is a pointer of Git LFS, not the file; fetch it with `git lfs pull`, or download it")


def exists(path: Path) -> bool:
    """Returns whether there is a file or directory; False, too, for a path that no file can have (too long, a zero)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def split_pattern(path: Path) -> tuple[Path, list[str]]:
    """Returns the beginning of a path that is there as it is spelt, and the parts behind it: those of a pattern."""
    base, parts = Path(path.anchor), list(path.parts[1:] if path.anchor else path.parts)
    while parts and not ("*" in parts[0] or "?" in parts[0]) and exists(base / parts[0]):
        base /= parts.pop(0)
    return base, parts


def open_in_place(path: Path) -> int:
    """Opens a file for reading and writing, creates it if it is missing, and returns the descriptor.

    Raises UserError where it is a symbolic link, a directory or anything else that is no file.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if path.is_symlink() or error.errno in (errno.EISDIR, errno.ENXIO):  # the last of a socket
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _no_file(path)
    return file


def _no_file(path: Path) -> UserError:
    kind = "a symbolic link, which zoo does not write through" if path.is_symlink() else "no regular file"
    return UserError(f"{path} is {kind}; delete it and run again")


def open_lock(path: Path) -> TextIO:
    """Opens a file to be locked, as `open_in_place` does; what it holds stays."""
    return os.fdopen(open_in_place(path), "r+", encoding="utf-8")


def open_new(path: Path) -> BinaryIO:
    """Opens a file for writing that is not there yet; one that is there, or a link, is deleted first."""
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Yields a path, in a new directory beside `path`, for a library to write; afterwards the file replaces `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as directory:
        written = Path(directory, path.name)
        yield written
        written.replace(path)


def remove(path: Path) -> None:
    """Deletes a file, a link (not what it leads to) or a directory with everything under it, as far as possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
