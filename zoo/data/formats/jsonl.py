"""JSON lines, plain or compressed."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.data import unpack
from zoo.data.readers import Fault, Record
from zoo.util import parse_json

SUFFIXES = tuple(f"{suffix}{packed}" for packed in unpack.SUFFIXES for suffix in (".jsonl", ".json"))


def read(
    files: Iterable[Path], columns: Sequence[str] = (), *, whole: bool = True, start: int = 0
) -> Iterator[Record | Fault]:
    """Yields the objects of JSONL files, plain or compressed, from number `start` on; blank lines are skipped.

    Objects come whole, whatever `columns` and `whole` are.

    A line that is not one JSON object in UTF-8, or longer than `unpack.longest`, is a `Fault`. Raises UserError for a
    file that cannot be read.
    """
    lines = (
        (path, number, line)
        for path in files
        for number, line in enumerate(unpack.parts(path, b"\n"), 1)
        if line is None or line.strip()
    )
    for path, number, line in itertools.islice(lines, start, None):
        place = f"{path}, line {number}"
        yield (
            Fault(f"{place}: longer than {unpack.longest(path):,} bytes") if line is None else _parse_line(line, place)
        )


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
        remedy = "; write each of its objects as a line" if isinstance(values, list) else ""
        return Fault(f"{place}: a JSON object was expected, this is a {type(values).__name__}{remedy}")
    return Record(place, values)
