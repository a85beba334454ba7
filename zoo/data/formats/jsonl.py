"""JSON lines, plain or compressed."""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.data.readers import Fault, Record
from zoo.errors import UserError
from zoo.util import first_line, parse_json

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def read(
    files: Iterable[Path], columns: Sequence[str] = (), *, whole: bool = True, start: int = 0
) -> Iterator[Record | Fault]:
    """Yields the objects of JSONL files, plain, gzip or zstd, from number `start` on; blank lines are skipped.

    Objects come whole, whatever `columns` and `whole` are.

    A line that is not one JSON object in UTF-8 is a `Fault`. Raises UserError for a file that cannot be read.
    """
    lines = ((path, *line) for path in files for line in enumerate(_lines(path), 1) if line[1].strip())
    for path, number, line in itertools.islice(lines, start, None):
        yield _parse_line(line, f"{path}, line {number}")


def _parse_line(line: bytes, place: str) -> Record | Fault:
    try:
        values = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Fault(f"{place}: not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Fault(f"{place}: not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError as error:
        return Fault(f"{place}: not valid JSON ({error})")
    if not isinstance(values, dict):
        return Fault(f"{place}: a JSON object was expected, this is a {type(values).__name__}")
    return Record(place, values)


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with _open(path) as lines:
            for line in lines:
                number += 1
                yield line
    except FileNotFoundError:
        raise UserError(f"data.path: {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"data.path: {path} is a directory; give a file of JSON lines") from None
    except (EOFError, OSError, zlib.error) as error:  # the first and the last from a damaged gzip file
        raise UserError(f"{path}, after line {number}: cannot be read ({first_line(error)})") from None


def _open(path: Path) -> io.BufferedIOBase:
    """Opens a file for reading, decompressed if its first bytes say that it is compressed."""
    with path.open("rb") as file:
        head = file.read(4)
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if compression == "gzip":
        return gzip.open(path)
    if compression == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"), 1 << 20)
    return path.open("rb")
