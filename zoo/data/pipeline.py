"""From pairs to batches. A position in the data is one number, an index into one endless order of examples.

Row r of step s is example `s * batch_size + r` of that order, on any number of processes: so training goes on
anywhere from the number alone, and nothing of a reader's state need be kept.
"""

from collections.abc import Iterator

import grain
import numpy as np

from zoo.errors import UserError
from zoo.tasks.cronica.pairs import Pairs

Batch = dict[str, np.ndarray]

# The order is looked up with two calls a row: too little work for threads to be worth their hand-over.
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def make_loader(
    pairs: Pairs,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    start_example: int = 0,
    shuffle: bool = True,
    trim_to: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches, from example `start_example` of the global order on.

    Each epoch holds every pair once, in an order of its own if `shuffle`; a batch may reach from one epoch
    into the next, so that all are full. A process gets its `batch_size / process_count` consecutive rows.

    Args:
        pairs: the examples.
        batch_size: rows of the global batch.
        seq_len: targets in a row (T); rows are cut or padded (id 0) to T + 1 tokens.
        seed: of the shuffling.
        start_example: examples already seen.
        shuffle: whether to shuffle, anew for every epoch.
        trim_to: if positive, T shrinks to the smallest multiple of it that holds every target with loss in
            the global batch: loss and gradient stay the same, the work shrinks. 0 keeps T = seq_len.
        process_index, process_count: which share of the rows to build.

    Returns:
        An iterator of dicts: `tokens` int32, `targets` int32, `loss_mask` float32, each [B, T];
        `targets[:, t]` is the token after `tokens[:, t]`; the mask is 1 on the crónica, its closing tag and
        `<eos>`.

    Raises UserError if batch_size is not a multiple of process_count.
    """
    if batch_size % process_count:
        raise UserError(f"data.batch_size: {batch_size} is not a multiple of the {process_count} processes")
    local = batch_size // process_count
    rows = slice(process_index * local, (process_index + 1) * local)
    order = grain.MapDataset.range(len(pairs)).seed(seed)
    if shuffle:
        order = order.shuffle()
    # Every process looks at the whole batch's indices: its width depends on all rows.
    batches = order.repeat()[start_example:].batch(batch_size)
    batches = batches.map(lambda indices: assemble(pairs, indices, seq_len, trim_to=trim_to, rows=rows))
    return iter(batches.to_iter_dataset(_READ_OPTIONS))


def eval_batches(pairs: Pairs, *, batch_size: int, seq_len: int, trim_to: int = 0) -> Iterator[Batch]:
    """Every pair once, in order; the last batch is filled up to B rows with rows that bear no loss."""
    for start in range(0, len(pairs), batch_size):
        indices = np.arange(start, min(start + batch_size, len(pairs)))
        batch = assemble(pairs, indices, seq_len, trim_to=trim_to)
        missing = batch_size - len(indices)
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch.items()}


def assemble(pairs: Pairs, indices: np.ndarray, seq_len: int, *, trim_to: int = 0, rows: slice = slice(None)) -> Batch:
    """The rows `rows` of the batch that consists of the pairs `indices`; see `make_loader`."""
    lengths = np.minimum(pairs.lengths[indices], seq_len + 1)
    starts = pairs.loss_starts[indices]
    width = seq_len
    if trim_to:
        with_loss = lengths[starts < lengths]
        needed = int(with_loss.max()) - 1 if len(with_loss) else 1
        width = min(seq_len, -(-needed // trim_to) * trim_to)
    lengths = np.minimum(lengths, width + 1)
    indices, lengths, starts = indices[rows], lengths[rows], starts[rows]
    tokens = np.zeros((len(indices), width + 1), np.int32)
    for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
        first = pairs.offsets[index]
        tokens[row, :length] = pairs.tokens[first : first + length]
    position = np.arange(1, width + 1)
    loss_mask = (position >= starts[:, None]) & (position < lengths[:, None])
    return {
        "tokens": np.ascontiguousarray(tokens[:, :-1]),
        "targets": np.ascontiguousarray(tokens[:, 1:]),
        "loss_mask": loss_mask.astype(np.float32),
    }
