"""Records, and the reader of data sets of the Hugging Face hub, for texts and pairs alike.

A record comes with its place, which error messages name. A record that cannot be decoded comes as a `Fault` in its
place; a file or data set that cannot be read is a `UserError`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoo.data import unpack
from zoo.errors import UserError
from zoo.recipe.data import SourceFields
from zoo.tokenizers import hub
from zoo.util import first_line

# What an error message says of a column that a recipe may have named.
TEXT_FIELD = " (data.text_field; of chats, data.format)"
_KEPT = 1 << 28  # characters
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one, UTF-8 and tokenizers cannot


Item = TypeVar("Item")


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


def without_faults(records: Iterable[Record | Fault]) -> Iterator[Record]:
    """Yields the records. Raises UserError at the first fault."""
    for record in records:
        if isinstance(record, Fault):
            raise UserError(record.reason)
        yield record


def to_keep(items: Iterable[Item], files: Sequence[Path]) -> Iterator[Item]:
    """Yields records or texts of files that are all to be kept in memory.

    Raises UserError once their texts have more characters than `_KEPT` and 20 times the files' bytes on disk: a file
    of a megabyte can unpack to gigabytes.
    """
    limit, total = max(_KEPT, sum(unpack.longest(file, 0) for file in files)), 0
    for item in items:
        total += _characters(item.values if isinstance(item, Record) else item)
        if total > limit:
            raise UserError(
                f"{files[0]}: holds more than {limit:,} characters, which would all be kept in memory; take a part"
            )
        yield item


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 8


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
