"""Documents out of a source, one after the other: texts, or conversations.

Every item of a source has a number, so that reading can go on from any of them. What cannot be used comes out as a
`Fault` in its place: a line that is no JSON, bytes that are not UTF-8, a missing field. It is for the reader of the
items to count faults and to stop at too many. A source that cannot be read at all is a `UserError`.
"""

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data import conversations, stories
from zoo.data.conversations import Conversation
from zoo.errors import UserError
from zoo.recipe.data import SourceFields
from zoo.tokenizers import hub
from zoo.util import first_line

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    "parquet": (".parquet",),
    "text": (".txt", ".text"),
}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BLOCK = 1 << 24  # bytes of a text file read at a time


@dataclass(frozen=True)
class Fault:
    """An item that cannot be used: where it is and why not, one line."""

    reason: str


Item = str | Conversation | Fault


def read(source: SourceFields, kind: str, *, seed: int = 0, start: int = 0) -> Iterator[Item]:
    """The items of a source from number `start` on; endless for the built-in stories.

    Args:
        source: which, see the recipe.
        kind: "text" or "chat".
        seed: of the built-in corpus, and of the buffer that a stream is shuffled in.
        start: items passed over.

    Of oasst1, whose conversations are made of many records, records that cannot be used give no `Fault`.

    Raises UserError when the source cannot be read, or lacks the fields that are needed.
    """
    if source.source == "stories":
        return (stories.story(number, seed=seed, split=source.split) for number in itertools.count(start))
    if source.source == "text":
        return itertools.islice(_texts(source), start, None)
    layout = source.format or "messages"
    columns = (source.text_field,) if kind == "text" else conversations.FIELDS[layout]
    if kind == "chat" and layout == "oasst1":
        # Trees are made of many records: all are read, and the conversations counted.
        table = (record for record in _records(source, columns, seed, 0) if not isinstance(record, Fault))
        return itertools.islice(_checked(conversations.from_trees(_complete(table, columns, source))), start, None)
    records = _records(source, columns, seed, start)
    if kind == "text":
        return (_text(record, source.text_field) for record in records)
    return (_conversation(record, layout) for record in records)


def files(source: SourceFields) -> list[Path]:
    """The local files of a source, in the order they are read. Raises UserError if there are none."""
    path = Path(source.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(_SUFFIXES[source.source]))
    else:
        found = sorted(path.parent.glob(path.name))
    if not found:
        what = "it does not exist" if not path.exists() else f"no {_SUFFIXES[source.source][0]} file in it"
        raise UserError(f"data.path: {path}: {what}")
    return found


# ------------------------------------------------------------------------------------------- records to items


@dataclass(frozen=True)
class _Record:
    """A record and what to call it in errors."""

    place: str
    values: Mapping[str, Any]


def _text(record: _Record | Fault, field: str) -> Item:
    if isinstance(record, Fault):
        return record
    value = record.values.get(field)
    if value is None:
        known = ", ".join(map(str, record.values)) or "none"
        return Fault(f"{record.place}: no field {field!r} (data.text_field); its fields: {known}")
    if not isinstance(value, str):
        return Fault(f"{record.place}: field {field!r} is {type(value).__name__}, not text")
    if _LONE_SURROGATE.search(value):  # JSON can spell one, UTF-8 and tokenizers cannot
        return Fault(f"{record.place}: field {field!r} has half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _conversation(record: _Record | Fault, layout: str) -> Item:
    if isinstance(record, Fault):
        return record
    try:
        conversation = conversations.from_record(record.values, layout)
    except UserError as error:
        return Fault(f"{record.place}: {error}")
    return next(_checked([conversation]))


def _checked(found: Iterable[Conversation]) -> Iterator[Item]:
    """Conversations whose texts no tokenizer could take made faults."""
    for number, conversation in enumerate(found):
        bad = any(_LONE_SURROGATE.search(message["content"] or "") for message in conversation)
        yield (
            Fault(f"conversation {number + 1}: half of a surrogate pair (\\ud800 to \\udfff)") if bad else conversation
        )


def _complete(records: Iterable[_Record], columns: tuple[str, ...], source: SourceFields) -> Iterator[Mapping]:
    for record in records:
        missing = [column for column in columns if column not in record.values]
        if missing:
            raise UserError(f"{record.place}: no field {missing[0]!r}, so {source.path} is not of format oasst1")
        yield record.values


# ----------------------------------------------------------------------------------------- sources to records


def _records(source: SourceFields, columns: tuple[str, ...], seed: int, start: int) -> Iterator[_Record | Fault]:
    if source.source == "jsonl":
        return itertools.islice(_jsonl(source), start, None)
    if source.source == "parquet":
        return _parquet(source, columns, start)
    if source.source == "hub":
        return _hub(source, columns, seed, start)
    raise UserError(f"data.source {source.source} holds tokens; it cannot be read as text")


def _jsonl(source: SourceFields) -> Iterator[_Record | Fault]:
    for path in files(source):
        for number, line in enumerate(_lines(path), 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                yield Fault(f"{place}: not UTF-8 (byte {error.start + 1} of the line)")
            except (json.JSONDecodeError, RecursionError) as error:
                yield Fault(f"{place}: not valid JSON ({error})")
            else:
                ok = isinstance(record, dict)
                yield _Record(place, record) if ok else Fault(f"{place}: {type(record).__name__}, not a JSON object")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file: plain, gzip or zstd, whatever its name."""
    number = 0
    try:
        with _open(path) as lines:
            for line in lines:
                number += 1
                yield line
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}, after line {number}: cannot be read ({first_line(error)})") from None


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        head = file.read(4)
    packed = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if packed == "gzip":
        return gzip.open(path)
    if packed == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"), 1 << 20)
    return path.open("rb")


def _parquet(source: SourceFields, columns: tuple[str, ...], start: int) -> Iterator[_Record]:
    import pyarrow
    import pyarrow.parquet

    for path in files(source):
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                names = table.schema_arrow.names
                missing = [column for column in columns if column not in names]
                if missing:
                    raise UserError(f"{path}: no column {missing[0]!r} (data.text_field); its columns: {names}")
                if start >= table.metadata.num_rows:
                    start -= table.metadata.num_rows
                    continue
                before = 0
                for batch in table.iter_batches(columns=list(columns)):
                    if start < batch.num_rows:
                        for number, values in enumerate(batch.slice(start).to_pylist(), before + start + 1):
                            yield _Record(f"{path}, row {number}", values)
                    start = max(0, start - batch.num_rows)
                    before += batch.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def _texts(source: SourceFields) -> Iterator[Item]:
    separator = None if source.separator is None else source.separator.encode()
    for path in files(source):
        for number, part in enumerate(_parts(path, separator), 1):
            place = str(path) if separator is None else f"{path}, document {number}"
            try:
                yield part.decode("utf-8-sig").strip("\r\n") if separator else part.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                yield Fault(f"{place}: not UTF-8 (byte {error.start + 1})")


def _parts(path: Path, separator: bytes | None) -> Iterator[bytes]:
    """What lies between the separators of a file, read in blocks; the whole file where there is none."""
    try:
        with path.open("rb") as file:
            if separator is None:
                yield file.read()
                return
            rest = b""
            while block := file.read(_BLOCK):
                *whole, rest = (rest + block).split(separator)
                yield from whole
            if rest.strip():
                yield rest
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _hub(source: SourceFields, columns: tuple[str, ...], seed: int, start: int) -> Iterator[_Record]:
    found = open_hub(source)
    known = found.column_names
    if known is not None:
        missing = [column for column in columns if column not in known]
        if missing:
            raise UserError(
                f"data.path: {source.path} has no column {missing[0]!r} (data.text_field); its columns: "
                f"{', '.join(known)}"
            )
        found = found.select_columns(list(columns))
    if source.shuffle_buffer:
        found = found.shuffle(seed=seed, buffer_size=source.shuffle_buffer)
    if start:
        found = found.skip(start)
    number = start
    try:
        for number, values in enumerate(found, start + 1):
            yield _Record(f"{source.path} ({source.split}), row {number}", values)
    except Exception as error:  # the library's, the network's and the file formats' own
        raise UserError(
            f"{source.path}: stopped after row {number} ({first_line(error)}); run again to go on from there"
        ) from None


def open_hub(source: SourceFields) -> Any:
    """The data set of the Hugging Face library: of the hub, a local directory, or one saved to disk.

    Raises UserError, at once when the hub does not answer.
    """
    import datasets

    local = Path(source.path).expanduser() if source.is_file else None
    if local is None and (reason := hub.unreachable()) is not None:
        raise UserError(
            f"data.path: the data set {source.path} cannot be fetched, the Hugging Face hub does not answer "
            f"({reason}); get its files on a machine that can and take source parquet or jsonl, or set "
            f"HF_HUB_OFFLINE=1 if they are in the cache"
        )
    try:
        if local is not None and (local / "dataset_info.json").is_file() and (local / "state.json").is_file():
            found = datasets.load_from_disk(str(local))
            return found.to_iterable_dataset() if source.streaming else found
        return datasets.load_dataset(
            source.path if local is None else str(local),
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    except Exception as error:  # the library raises its own, the hub's, the network's and ValueError alike
        raise UserError(
            f"data.path: the data set {source.path} (config {source.config or 'default'}, split {source.split}, "
            f"revision {source.revision or 'newest'}) cannot be read ({first_line(error)})"
        ) from None


def hub_revision(source: SourceFields) -> str | None:
    """The commit that `source.revision` stands for now, so that preparing goes on with the very same data.

    None where the source is not on the hub. Raises UserError where the hub does not know or does not answer.
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
