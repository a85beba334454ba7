"""The local files of a source: those of a directory or a pattern, in order, and what is left out of them.

Hidden files and directories (`.ipynb_checkpoints`, `.git`) are left out, and so are those that unfinished jobs of Spark
and logs of Delta tables keep. Directories that are links are followed, each once. A directory in the place of a file,
such as the `train.parquet/` that Spark writes, stands for the files in it.
"""

import dataclasses
import fnmatch
import functools
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import UserError
from zoo.files import split_pattern

_NO_DATA = ("_temporary", "_delta_log")  # directories that hold no finished data
_SHOWN = 3  # names of what is left out


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        files: those that are read, in order.
        left_out: what is not read, each with the reason.
    """

    files: list[Path]
    left_out: list[str]

    def summary(self) -> str:
        """Returns what is left out as text, the first names and how many more; "" for nothing."""
        more = len(self.left_out) - _SHOWN
        return ", ".join(self.left_out[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def find(path: Path, suffixes: tuple[str, ...]) -> SourceFiles:
    """Returns the files at a path: the file itself, those of a directory with all below it, or of a pattern.

    Args:
        path: in a pattern each part may have `*`, `?` and `[...]`; the part `**` stands for any directories.
        suffixes: in lower case, those of the files that are read of a directory; a file that the path or the pattern
            names is read whatever its suffix.

    Raises:
        UserError: there is no such file.
    """
    if path.is_file():
        return SourceFiles([path], [])
    if path.is_dir():
        found = _directory(path, suffixes)
    elif path.is_symlink():
        raise UserError(f"data.path: {path} is a link to {os.readlink(path)}, which does not exist")
    else:
        found = _pattern(path, suffixes)
    if not found.files:
        reason = f"no {suffixes[0]} file in it" if path.exists() else "it does not exist"
        left_out = f"; left out: {found.summary()}" if found.left_out else ""
        raise UserError(f"data.path: {path}: {reason}{left_out}")
    return found


def all_files(path: str) -> list[Path]:
    """Returns every file at a path, or of the directory there and all below it, in order; without hidden ones."""
    place = Path(path).expanduser()
    return [place] if place.is_file() else sorted(file for file, reason in _walk(place) if not reason)


def _directory(path: Path, suffixes: tuple[str, ...]) -> SourceFiles:
    files, left_out = [], []
    for file, reason in _walk(path):
        if not reason and not file.name.lower().endswith(suffixes):
            reason = f"no {suffixes[0]}"
        if reason:
            left_out.append((file, reason))
        else:
            files.append(file)
    return SourceFiles(sorted(files), [f"{file.relative_to(path)} ({reason})" for file, reason in sorted(left_out)])


def _pattern(path: Path, suffixes: tuple[str, ...]) -> SourceFiles:
    base, pattern = split_pattern(path)
    if "**" in pattern:
        found = _walk(base, by_every_path=True)
        matches = [item for item in found if _matches(item[0].relative_to(base).parts, tuple(pattern))]
    else:
        places = (base / name for name in glob.glob(os.path.join(*pattern), root_dir=base)) if pattern else ()
        matches = [(place, "" if place.exists() else "a link to nothing") for place in places]
    files, left_out = [], []
    for place, reason in sorted(matches):
        if reason:
            left_out.append(f"{place} ({reason})")
        elif place.is_dir():
            inside = _directory(place, suffixes)
            files += inside.files
            left_out += [f"{place}/{name}" for name in inside.left_out]
        else:
            files.append(place)
    once, copies = _without_copies(files)
    return SourceFiles(once, [f"{file} (read already by another path)" for file in copies] + left_out)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Returns whether the parts of a path match those of a pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and bool(_compiled(pattern[0]).match(parts[0])) and _matches(parts[1:], pattern[1:])


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern:
    return re.compile(fnmatch.translate(pattern))


def _without_copies(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Returns each file once, by the path that goes through the fewest links, and the other paths to them.

    A file that is a link by itself is no copy.
    """
    places: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (sum(parent.is_symlink() for parent in file.parents), file)):
        places.setdefault(str(file) if file.is_symlink() else os.path.realpath(file), file)
    once = sorted(places.values())
    return once, sorted(set(files).difference(once))


def _walk(root: Path, *, by_every_path: bool = False) -> Iterator[tuple[Path, str]]:
    """Yields what lies in a directory and below it, and why it is left out ("" for a file that is not).

    A directory that several links lead to is entered once, or `by_every_path`, as far as that makes no circle.
    """
    real_root, seen = os.path.realpath(root), set()
    waiting = [(root, frozenset([real_root]))]
    while waiting:
        directory, above = waiting.pop()
        try:
            entries = _entries(directory)
        except OSError as error:
            if directory == root:
                raise UserError(f"{directory}: cannot be read ({error.strerror})") from None
            yield directory, f"cannot be read: {error.strerror}"
            continue
        for entry in entries:
            path = directory / entry.name
            if entry.name.startswith("."):
                yield path, "hidden"
            elif entry.is_dir():
                if entry.name in _NO_DATA:
                    yield path, "no finished data"
                    continue
                real = os.path.realpath(path)
                known = above if by_every_path else seen
                if entry.is_symlink() and (real in known or (not by_every_path and _is_visible_below(real, real_root))):
                    yield path, "a link to a directory that is read already"
                else:
                    seen.add(real)
                    waiting.append((path, above | {real}))
            elif entry.is_file():
                yield path, ""
            else:
                yield path, "a link to nothing" if entry.is_symlink() else "no file"


def _entries(directory: Path) -> list[os.DirEntry]:
    with os.scandir(directory) as entries:
        return list(entries)


def _is_visible_below(real: str, root: str) -> bool:
    """Returns whether a directory is `root` or one that is reached from there without links and hidden names."""
    if not Path(real).is_relative_to(root):
        return False
    return not any(part.startswith(".") or part in _NO_DATA for part in Path(real).relative_to(root).parts)
