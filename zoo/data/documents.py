"""Documents of a source, one after the other: texts or conversations.

Every item of a source has a number, so that reading can go on from any of them. An item that cannot be used comes as a
`Fault` in its place: a line that is no JSON, bytes that are not UTF-8, a missing field. Whoever reads the items counts
the faults and stops at too many. A source that cannot be read at all is a `UserError`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zoo import registry
from zoo.data import conversations, readers, source_files, unpack
from zoo.data.conversations import Conversation
from zoo.data.readers import LONE_SURROGATE, TEXT_FIELD, Fault, Record
from zoo.data.source_files import SourceFiles
from zoo.errors import UserError
from zoo.recipe.data import SourceFields

_TEXT_SUFFIXES = tuple(f"{suffix}{packed}" for packed in unpack.SUFFIXES for suffix in (".txt", ".text"))
_BLOCK = 1 << 24  # bytes of a text file read at a time

Item = str | Conversation | Fault


def read(source: SourceFields, kind: str, *, seed: int = 0, start: int = 0) -> Iterator[Item]:
    """Yields the items of a source from number `start` on, without end for a built-in corpus.

    Records of oasst1 that cannot be used give no `Fault`, since its conversations are made of many records; one stands
    for all where there is no conversation.

    Args:
        source: one source of a recipe.
        kind: "text" or "chat".
        seed: of a built-in corpus, and of the buffer in which a stream is shuffled.
        start: how many items to skip.

    Raises:
        UserError: the source cannot be read, or lacks a field that is needed.
    """
    if source.built_in:
        return registry.corpus(source.source).items(start, seed=seed, split=source.split)
    if source.source == "text":
        return itertools.islice(_texts(source), start, None)
    layout = source.format or "messages"
    columns = (source.text_field,) if kind == "text" else conversations.FIELDS[layout]
    if kind == "chat" and layout == "oasst1":
        # Trees are made of many records: all are read, and the conversations counted.
        table = _records(source, columns, seed, 0)
        if source.source in registry.FILE_FORMATS:
            table = readers.to_keep(table, files(source))
        return itertools.islice(_trees(table, columns, source), start, None)
    records = _records(source, columns, seed, start)
    if kind == "text":
        return (_text(record, source.text_field) for record in records)
    return (_conversation(record, layout) for record in records)


def files(source: SourceFields) -> list[Path]:
    """Returns the local files of a source in the order in which they are read. Raises UserError if there are none."""
    return found_files(source).files


def found_files(source: SourceFields) -> SourceFiles:
    """Returns the local files of a source and what is left out of them. Raises UserError if there are none."""
    suffixes = _TEXT_SUFFIXES if source.source == "text" else registry.file_format(source.source).SUFFIXES
    return source_files.find(Path(source.path), suffixes)


# ------------------------------------------------------------------------------------------- records to items


def _text(record: Record | Fault, field: str) -> Item:
    if isinstance(record, Fault):
        return record
    value = record.values.get(field)
    if value is None:
        known = ", ".join(map(str, record.values)) or "none"
        return Fault(f"{record.place}: no field {field!r} (data.text_field); its fields: {known}")
    if not isinstance(value, str):
        return Fault(f"{record.place}: field {field!r} is {type(value).__name__}, not text")
    if LONE_SURROGATE.search(value):
        return Fault(f"{record.place}: field {field!r} has half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _conversation(record: Record | Fault, layout: str) -> Item:
    if isinstance(record, Fault):
        return record
    try:
        conversation = conversations.from_record(record.values, layout)
    except UserError as error:
        return Fault(f"{record.place}: {error}")
    return next(_checked([conversation]))


def _checked(talks: Iterable[Conversation]) -> Iterator[Item]:
    """Yields conversations, and a fault in the place of one whose text no tokenizer could encode."""
    for number, conversation in enumerate(talks):
        bad = any(LONE_SURROGATE.search(message["content"] or "") for message in conversation)
        yield (
            Fault(f"conversation {number + 1}: half of a surrogate pair (\\ud800 to \\udfff)") if bad else conversation
        )


def _trees(records: Iterable[Record | Fault], columns: tuple[str, ...], source: SourceFields) -> Iterator[Item]:
    """Yields the conversations in the trees that records make; where there is none, one fault that says why."""
    faults: list[Fault] = []
    number = 0

    def good() -> Iterator[Record]:
        nonlocal number
        for record in records:
            number += 1
            if not isinstance(record, Fault):
                yield record
            elif not faults:
                faults.append(record)

    talks = _checked(conversations.from_trees(_complete(good(), columns, source)))
    first = next(talks, None)
    if first is None and number:
        reason = f"{source.path}: in {number:,} records of format oasst1 there is no English answer of an assistant"
        yield Fault(reason + (f"; one cannot be used: {faults[0].reason}" if faults else " to a user"))
    elif first is not None:
        yield first
        yield from talks


def _complete(records: Iterable[Record], columns: tuple[str, ...], source: SourceFields) -> Iterator[Mapping]:
    for record in records:
        missing = [column for column in columns if column not in record.values]
        if missing:
            raise UserError(f"{record.place}: no field {missing[0]!r}, so {source.path} is not of format oasst1")
        yield record.values


# ----------------------------------------------------------------------------------------- sources to records


def _records(source: SourceFields, columns: tuple[str, ...], seed: int, start: int) -> Iterator[Record | Fault]:
    if source.source in registry.FILE_FORMATS:
        yield from registry.file_format(source.source).read(files(source), columns, start=start)
    elif source.source == "hub":
        yield from _hub(source, columns, seed, start)
    else:
        raise UserError(f"data.source {source.source} holds tokens; it cannot be read as text")


def _hub(source: SourceFields, columns: tuple[str, ...], seed: int, start: int) -> Iterator[Record]:
    readers.check_hub(source)
    rows = readers.load_dataset(source, streaming=source.streaming)
    known = rows.column_names
    if known is not None:
        missing = [column for column in columns if column not in known]
        if missing:
            raise UserError(
                f"data.path: {source.path} has no column {missing[0]!r}{TEXT_FIELD}; its columns: {', '.join(known)}"
            )
        rows = rows.select_columns(list(columns))
    if source.shuffle_buffer:
        rows = rows.shuffle(seed=seed, buffer_size=source.shuffle_buffer)
    return readers.read_dataset(rows, source, start)


def _texts(source: SourceFields) -> Iterator[Item]:
    separator = None if source.separator is None else source.separator.encode()
    for path in files(source):
        for number, part in enumerate(unpack.parts(path, separator, _BLOCK), 1):
            place = str(path) if separator is None else f"{path}, document {number}"
            if part is None:
                yield Fault(f"{place}: longer than {unpack.longest(path):,} bytes")
                continue
            try:
                yield part.decode("utf-8-sig").strip("\r\n") if separator else part.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                yield Fault(f"{place}: not UTF-8 (byte {error.start + 1})")
