"""Small helpers that belong to no package. Standard library only."""

import contextlib
import difflib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def atomic_write(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a small file so that a reader, or a crash, sees the old content or the new one, never half.

    The data goes to a temporary name in the same directory, is fsynced and renamed over `path`.
    """
    path = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def cache_directory() -> Path:
    """Returns the directory for copies: $ZOO_CACHE, else $XDG_CACHE_HOME/zoo, else ~/.cache/zoo; it is not created."""
    own, users = os.environ.get("ZOO_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{users}/zoo").expanduser().absolute()


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Keeps the Python processes that are started in the block from looking for modules in the working directory.

    `python -m` and `python -c`, which is how multiprocessing starts its workers, put that directory first.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def first_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first line of an error's text, at most `limit` characters; its class's name where it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= limit else line[: limit - 4].rsplit(" ", 1)[0] + " ..."


def is_utf8(text: str) -> bool:
    """Returns whether the text can be written as UTF-8; lone surrogates cannot, nor bytes that Python read as such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text says, as `json.loads` does, but for whole numbers of thousands of digits.

    Python refuses to convert such a number (see `sys.get_int_max_str_digits`); here it becomes a float, which is
    infinite from 309 digits on. Raises ValueError for a text that is no JSON, RecursionError for one nested too deep.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Returns the choice most like `word`, or None when nothing is close."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)), None)


def sha256_hex(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def human_duration(seconds: float) -> str:
    """Returns seconds as '42s', '3m 07s' or '1h 12m'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"


def human_gib(size: float) -> str:
    """Returns bytes as '1.50 GiB'; an infinite size is 'more than there is'."""
    return f"{size / 2**30:.2f} GiB" if size < math.inf else "more than there is"
