"""Parquet files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.data.readers import TEXT_FIELD, Record
from zoo.errors import UserError
from zoo.util import first_line

SUFFIXES = (".parquet",)


def read(
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
