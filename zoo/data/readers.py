"""Readers of records: JSON lines, Parquet files and data sets of the Hugging Face hub, for texts and pairs alike.

A record comes with its place, which error messages name. A record that cannot be decoded comes as a `Fault` in its
place; a file or data set that cannot be read is a `UserError`.
"""

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.recipe.data import SourceFields
from zoo.tokenizers import hub
from zoo.util import first_line

TEXT_FIELD = " (data.text_field)"  # what an error message says of a column that a recipe may have named
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one, UTF-8 and tokenizers cannot
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used.

    Attributes:
        reason: its place and why it cannot be used, in one line.
    """

    reason: str


@dataclass(frozen=True)
class Record:
    """A record of a source.

    Attributes:
        place: the file and line, or the data set and row, for error messages.
        values: the record's fields.
    """

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class FileFormat:
    """A format of files that hold records. A new one is an object of this class and a line in `registry.FILE_FORMATS`.

    Attributes:
        suffixes: those of the files that are read of a directory, in lower case.
        read: yields the records of files from number `start` on, called with their paths, the columns that they must
            have, `whole` (whether the other columns are wanted too) and `start`. A record that cannot be decoded is a
            `Fault`, a file that cannot be read a UserError.
    """

    suffixes: tuple[str, ...]
    read: Callable[..., Iterator[Record | Fault]]


def without_faults(records: Iterable[Record | Fault]) -> Iterator[Record]:
    """Yields the records. Raises UserError at the first fault."""
    for record in records:
        if isinstance(record, Fault):
            raise UserError(record.reason)
        yield record


def read_jsonl(files: Iterable[Path]) -> Iterator[Record | Fault]:
    """Yields the objects of JSONL files, plain, gzip or zstd; blank lines are skipped.

    A line that is not one JSON object in UTF-8 is a `Fault`. Raises UserError for a file that cannot be read.
    """
    for path in files:
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield _parse_line(line, f"{path}, line {number}")


def _parse_line(line: bytes, place: str) -> Record | Fault:
    try:
        values = json.loads(line.decode("utf-8-sig"))
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


def read_parquet(
    files: Iterable[Path], columns: Sequence[str] = (), *, whole: bool = False, start: int = 0
) -> Iterator[Record]:
    """Yields the rows of Parquet files from row `start` of all of them on.

    Args:
        files: read one after the other.
        columns: that every file must have.
        whole: whether to read all columns, and not only `columns`.
        start: how many rows to skip.

    Raises:
        UserError: a file is not Parquet or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                names = table.schema_arrow.names
                missing = [column for column in columns if column not in names]
                if missing:
                    setting = "" if whole else TEXT_FIELD
                    raise UserError(f"{path}: no column {missing[0]!r}{setting}; its columns: {names}")
                if start >= table.metadata.num_rows:
                    start -= table.metadata.num_rows
                    continue
                before = 0
                for batch in table.iter_batches(columns=None if whole else list(columns)):
                    if start < batch.num_rows:
                        for number, values in enumerate(batch.slice(start).to_pylist(), before + start + 1):
                            yield Record(f"{path}, row {number}", values)
                    start = max(0, start - batch.num_rows)
                    before += batch.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def _read_jsonl_from(files: Iterable[Path], columns: Sequence[str], *, whole: bool = False, start: int = 0) -> Iterator:
    return itertools.islice(read_jsonl(files), start, None)


JSONL = FileFormat((".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"), _read_jsonl_from)
PARQUET = FileFormat((".parquet",), read_parquet)


def read_dataset(rows: Any, source: SourceFields, start: int = 0) -> Iterator[Record]:
    """Yields the rows of a data set from number `start` on. Raises UserError where they cannot be read on."""
    number = start
    try:
        for number, values in enumerate(rows.skip(start) if start else rows, start + 1):
            yield Record(f"{source.path} ({source.split}), row {number}", values)
    except Exception as error:  # the library's, the network's and the file formats' own
        raise UserError(
            f"{source.path}: stopped after row {number} ({first_line(error)}); run again to go on from there"
        ) from None


def check_hub(source: SourceFields) -> None:
    """Raises UserError at once where a source lies on the hub and the hub does not answer."""
    if not source.is_file and (reason := hub.unreachable()) is not None:
        raise UserError(
            f"data.path: the data set {source.path} cannot be fetched, the Hugging Face hub does not answer "
            f"({reason}); get its files on a machine that can and take source parquet or jsonl, or set "
            f"HF_HUB_OFFLINE=1 if they are in the cache"
        )


def load_dataset(source: SourceFields, *, streaming: bool) -> Any:
    """Returns a data set of the Hugging Face library: of the hub, of a local directory, or one saved to disk.

    Raises UserError where the library cannot load it.
    """
    import datasets

    local = Path(source.path).expanduser() if source.is_file else None
    try:
        if local is not None and (local / "dataset_info.json").is_file() and (local / "state.json").is_file():
            dataset = datasets.load_from_disk(str(local))
            return dataset.to_iterable_dataset() if streaming else dataset
        return datasets.load_dataset(
            source.path if local is None else str(local),
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=streaming,
        )
    except Exception as error:  # the library raises its own, the hub's, the network's and ValueError alike
        raise UserError(
            f"data.path: the data set {source.path} (config {source.config or 'default'}, split {source.split}, "
            f"revision {source.revision or 'newest'}) cannot be read ({first_line(error)})"
        ) from None


def hub_revision(source: SourceFields) -> str | None:
    """Returns the commit that `source.revision` stands for now, so that preparing goes on with the very same data.

    None where the source is not on the hub. Raises UserError where the hub does not know it or does not answer.
    """
    if source.source != "hub" or source.is_file:
        return None
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(source.path, revision=source.revision).sha
    except Exception as error:
        raise UserError(
            f"data.path: the data set {source.path} (revision {source.revision or 'newest'}) is not to be found on "
            f"the hub ({first_line(error)})"
        ) from None
