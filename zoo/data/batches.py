"""Batches of rows, without end for training and once for evaluation.

A position in the data is one number, an index into one endless order of examples: row r of step s is example
`s * batch_size + r`, on any number of processes. So training goes on anywhere from the number alone.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from zoo.data.rows import Batch, Row, Rows
from zoo.errors import UserError

_BATCHES = 1 << 40  # of the endless order

Lookup = Callable[[int, int], Sequence[Row]]
"""Returns the rows of so many examples of the endless order: (first example, number of examples) -> rows."""


def endless(
    lookup: Lookup,
    rows: Rows,
    batch_size: int,
    *,
    start_example: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Returns batches without end, as `Rows.assemble` makes them.

    Args:
        lookup: gives the rows of consecutive examples.
        rows: makes arrays of rows.
        batch_size: rows of the global batch; every process returns its consecutive share of them.
        start_example: the example of the first batch's first row.
        process_index, process_count: which share of the rows to return.
        prefetch: batches that a thread assembles ahead; 0: no thread.

    Raises:
        UserError: batch_size is not a multiple of process_count.
    """
    if batch_size % process_count:
        raise UserError(f"data.batch_size: {batch_size} is not a multiple of the {process_count} processes")
    local = batch_size // process_count
    chosen = slice(process_index * local, (process_index + 1) * local)
    batches = grain.MapDataset.source(_Batches(lookup, rows, batch_size, start_example, chosen))
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))


def once(examples: Sequence[Row], rows: Rows, batch_size: int) -> Iterator[Batch]:
    """Yields all rows in order; the last batch is filled up to `batch_size` rows with rows that bear no loss."""
    for start in range(0, len(examples), batch_size):
        some = examples[start : start + batch_size]
        missing = batch_size - len(some)
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in rows.assemble(some).items()}


class _Batches:
    """A process's share of batch i as item i, for Grain."""

    def __init__(self, lookup: Lookup, rows: Rows, batch_size: int, start: int, chosen: slice):
        self._lookup, self._rows, self._batch_size, self._start, self._chosen = lookup, rows, batch_size, start, chosen

    def __len__(self) -> int:
        return _BATCHES

    def __getitem__(self, index: int) -> Batch:
        # The whole batch is looked up: its width depends on the rows of all processes.
        rows = self._lookup(self._start + int(index) * self._batch_size, self._batch_size)
        return self._rows.assemble(rows, self._chosen)

    def __repr__(self) -> str:
        return f"batches of {self._batch_size} from example {self._start}"
