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
    lookup: Lookup, rows: Rows, batch_size: int, start_example: int, share: tuple[int, int], prefetch: int = 2
) -> Iterator[Batch]:
    """Returns batches without end, as `Rows.assemble` makes them.

    Args:
        lookup: gives the rows of consecutive examples.
        rows: makes arrays of rows.
        batch_size: rows of the global batch.
        start_example: the example of the first batch's first row.
        share: (index, count) of the processes; each gets its consecutive rows of every batch.
        prefetch: how many batches a thread assembles ahead; 0: there is no thread.

    Raises:
        UserError: batch_size is not a multiple of the number of processes.
    """
    index, count = share
    if batch_size % count:
        raise UserError(f"data.batch_size: {batch_size} is not a multiple of the {count} processes")
    chosen = slice(index * batch_size // count, (index + 1) * batch_size // count)

    def assemble(number: int) -> Batch:
        # The whole batch is looked up: its width depends on the rows of all processes.
        return rows.assemble(lookup(start_example + number * batch_size, batch_size), chosen)

    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(_BATCHES).map(assemble).to_iter_dataset(options))


def once(examples: Sequence[Row], rows: Rows, batch_size: int) -> Iterator[Batch]:
    """Yields all rows in order; the last batch is filled up to `batch_size` rows with rows that bear no loss."""
    for start in range(0, len(examples), batch_size):
        some = examples[start : start + batch_size]
        missing = batch_size - len(some)
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in rows.assemble(some).items()}
