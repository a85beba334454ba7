"""Parquet files.

A file of a kilobyte can unpack to gigabytes: pages may be compressed a thousandfold, and a value that stands once in a
dictionary may be that of a million rows. So the sizes in the file's head are held against its size before anything is
read, and as few rows are read at a time as keep their values within `_BATCH_BYTES`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.data import unpack
from zoo.data.readers import TEXT_FIELD, Fault, Record
from zoo.errors import UserError
from zoo.util import first_line

SUFFIXES = (".parquet",)
_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 26
_DICTIONARY_PAGE = 2  # kind of a page
_COLUMN_BYTES = 1 << 28  # of a row group, as they are stored but for compression
_LIST_BYTES = 1 << 30  # texts in lists that may take more, at the worst, are kept as dictionaries
_MOST_ROWS, _ROWS_A_BYTE = 1 << 24, 20  # of a file: the larger of both
_MOST_ELEMENTS, _ELEMENTS_A_BYTE = 1 << 20, 2  # of the lists in a row group: the larger of both


def read(
    files: Iterable[Path], columns: Sequence[str] = (), *, whole: bool = False, start: int = 0
) -> Iterator[Record | Fault]:
    """Yields the rows of Parquet files from row `start` of all of them on.

    Args:
        files: read one after the other.
        columns: that every file must have.
        whole: whether to read all columns, and not only `columns`.
        start: how many rows to skip.

    A row whose lists hold too long texts is a `Fault` (see `unpack.longest`).

    Raises:
        UserError: a file is not Parquet, lacks a column, or would unpack to far more than its size.
    """
    import pyarrow
    import pyarrow.parquet

    for path in files:
        try:
            with _open(path, columns, whole) as table:
                names = table.schema_arrow.names
                missing = [column for column in columns if column not in names]
                if missing:
                    setting = "" if whole else TEXT_FIELD
                    raise UserError(f"{path}: no column {missing[0]!r}{setting}; its columns: {names}")
                chosen = names if whole else list(columns)
                check_sizes(path, table, chosen)
                before, longest = 0, unpack.longest(path)
                for group in range(table.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows
                    if start >= rows:
                        start, before = start - rows, before + rows
                        continue
                    size = _batch_rows(path, table, group, chosen)
                    for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=chosen):
                        if start < batch.num_rows:
                            rows = _rows(batch.slice(start), longest)
                            for number, values in enumerate(rows, before + start + 1):
                                place = f"{path}, row {number}"
                                yield (
                                    Fault(f"{place}: longer than {longest:,} bytes")
                                    if values is None
                                    else Record(place, values)
                                )
                        start = max(0, start - batch.num_rows)
                        before += batch.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def _open(path: Path, columns: Sequence[str], whole: bool) -> Any:
    """Opens a file so that a text which stands once, for many elements of lists, is kept once in memory too."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    chosen = table.schema_arrow.names if whole else columns
    repeated = set()
    for group in range(table.num_row_groups):
        for leaf in _leaves(table, chosen):
            chunk = table.metadata.row_group(group).column(leaf)
            in_lists = table.schema.column(leaf).max_repetition_level > 0
            if in_lists and chunk.num_values * _dictionary_bytes(path, chunk) > _LIST_BYTES:
                repeated.add(chunk.path_in_schema)
    if not repeated:
        return table
    table.close()
    return pyarrow.parquet.ParquetFile(path, read_dictionary=sorted(repeated))


def _rows(batch: Any, limit: int) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a batch, None in the place of one whose dictionaries unpack to more than `limit` bytes."""
    if sum(map(_unpacked_bytes, batch.columns)) <= limit:
        yield from batch.to_pylist()
        return
    for row in range(batch.num_rows):
        one = batch.slice(row, 1)
        yield one.to_pylist()[0] if sum(map(_unpacked_bytes, one.columns)) <= limit else None


def _unpacked_bytes(array: Any) -> int:
    """Returns the bytes of text that an Arrow array refers to by dictionaries."""
    import pyarrow.compute
    from pyarrow import types

    if types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0
    if types.is_struct(array.type):
        return sum(map(_unpacked_bytes, array.flatten()))
    return _unpacked_bytes(array.flatten()) if types.is_nested(array.type) else 0


def check_sizes(path: Path, table: Any, columns: Sequence[str]) -> None:
    """Raises UserError where a file says of these columns that they unpack to far more than its size.

    Args:
        path: of the file.
        table: the `pyarrow.parquet.ParquetFile` of it.
        columns: names of columns of the table.
    """
    most_bytes, size = unpack.longest(path, _COLUMN_BYTES), path.stat().st_size
    most_rows = max(_MOST_ROWS, _ROWS_A_BYTE * size)
    if table.metadata.num_rows > most_rows:
        raise UserError(f"{path}: {table.metadata.num_rows:,} rows in {size:,} bytes, of which zoo reads {most_rows:,}")
    most_elements = max(_MOST_ELEMENTS, _ELEMENTS_A_BYTE * size)
    for group in range(table.num_row_groups):
        for leaf in _leaves(table, columns):
            chunk = table.metadata.row_group(group).column(leaf)
            where = f"{path}: row group {group}, column {chunk.path_in_schema}"
            if chunk.total_uncompressed_size > most_bytes:
                raise UserError(
                    f"{where}: unpacks to {chunk.total_uncompressed_size:,} bytes, of which zoo reads {most_bytes:,} "
                    f"(20 times the file's size, or 256 MiB)"
                )
            if table.schema.column(leaf).max_repetition_level and chunk.num_values > most_elements:
                raise UserError(f"{where}: has {chunk.num_values:,} elements, of which zoo reads {most_elements:,}")


def _leaves(table: Any, columns: Sequence[str]) -> list[int]:
    """Returns the numbers of the columns, as Parquet stores them, that belong to these columns of the table."""
    paths = ((number, table.schema.column(number).path) for number in range(table.metadata.num_columns))
    return [number for number, path in paths if any(path == name or path.startswith(f"{name}.") for name in columns)]


def _batch_rows(path: Path, table: Any, group: int, columns: Sequence[str]) -> int:
    """Returns how many rows of a group to read at a time, so that values which stand once in the file stay bounded."""
    largest = 1
    for leaf in _leaves(table, columns):
        chunk = table.metadata.row_group(group).column(leaf)
        if "DELTA_BYTE_ARRAY" in chunk.encodings:  # a value is what the one before begins with, and an end
            largest = max(largest, chunk.total_uncompressed_size)
        largest = max(largest, _dictionary_bytes(path, chunk))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // largest))


def _dictionary_bytes(path: Path, chunk: Any) -> int:
    """Returns the size of a column's dictionary of texts, which none of them exceeds; 0 where it has none.

    It stands in the head of the first page, and is not taken from the file's own description of the column.
    """
    if chunk.physical_type != "BYTE_ARRAY":
        return 0
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    with path.open("rb") as file:
        file.seek(start)
        head = iter(file.read(32))
    # Thrift's compact protocol: field 1, the kind of page, and field 2, its size, are integers of 32 bits, zigzag.
    kind, size = (_varint(head) if next(head, None) == 0x15 else None for _ in range(2))
    if kind is None or size is None:
        return chunk.total_uncompressed_size
    return size >> 1 if kind >> 1 == _DICTIONARY_PAGE else 0


def _varint(content: Iterator[int]) -> int | None:
    value = 0
    for place, byte in zip(range(5), content, strict=False):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    return None
