"""Packing documents into rows: which tokens stand in row i, for every i, without looking at the rows before.

A row of `seq_len` targets holds `seq_len` + 1 tokens, given as spans of all documents joined end to end. With
`document_mask` each span lies within one document; without it, adjacent spans are merged.
"""

import contextlib
import heapq
import io
import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from zoo.data.order import scatter_one
from zoo.data.shards import Shards
from zoo.errors import UserError
from zoo.util import atomic_write, sha256_hex

Span = tuple[int, int]

ENDLESS = 1 << 40
"""Rows of a layout that draws with replacement."""

_BUFFER = 4096  # documents that best-fit packing chooses among


class Layout(Protocol):
    """The spans of tokens that make row i. `len` is the number of rows of an epoch."""

    def __len__(self) -> int: ...

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's spans, [start, stop) in the long row of tokens; together at most seq_len + 1 tokens."""
        ...


class Concat:
    """Documents joined end to end and cut every `seq_len` tokens; a row's last target is the next row's first token.

    What is left at the end, less than a row, is not used.
    """

    def __init__(self, shards: Shards, first: int, last: int, seq_len: int, *, split: bool):
        """Documents `first` to `last` (exclusive); `split`: a span for each document in a row."""
        self._bounds = shards.offsets[first : last + 1]
        self._seq_len, self._split = seq_len, split
        self._rows = max(0, (int(self._bounds[-1]) - int(self._bounds[0]) - 1) // seq_len)

    def __len__(self) -> int:
        return self._rows

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the tokens at the row's place in the joined documents."""
        start = int(self._bounds[0]) + row * self._seq_len
        stop = start + self._seq_len + 1
        return split_at(self._bounds, start, stop) if self._split else [(start, stop)]


class Windows:
    """Random windows with replacement over the joined documents: row i begins anywhere, decided by seed and i alone."""

    def __init__(self, shards: Shards, first: int, last: int, seq_len: int, *, split: bool, seed: int):
        """Documents `first` to `last` (exclusive); `split`: a span for each document in a row."""
        self._bounds = shards.offsets[first : last + 1]
        self._seq_len, self._split, self._seed = seq_len, split, seed
        self._places = max(0, int(self._bounds[-1] - self._bounds[0]) - seq_len)

    def __len__(self) -> int:
        return ENDLESS if self._places else 0

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's window."""
        start = int(self._bounds[0]) + scatter_one(row, self._seed) % self._places
        stop = start + self._seq_len + 1
        return split_at(self._bounds, start, stop) if self._split else [(start, stop)]


class OneDocument:
    """One document in each row, from its beginning; what does not fit is cut off."""

    def __init__(self, shards: Shards, first: int, last: int, seq_len: int):
        """Documents `first` to `last` (exclusive)."""
        self._bounds, self._width = shards.offsets[first : last + 1], seq_len + 1

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the beginning of the row's document."""
        start, stop = int(self._bounds[row]), int(self._bounds[row + 1])
        return [(start, min(stop, start + self._width))]


class BestFit:
    """Whole documents, several in a row, so that every row begins with the beginning of one (as nanochat packs).

    The document that waits longest opens a row. Then, of the next `_BUFFER` documents, the longest that still fits is
    added, until none does; the rest of the row is padding. Only a document longer than a whole row is cut, and its end
    is not used.
    """

    def __init__(self, shards: Shards, first: int, last: int, seq_len: int, *, cache: Path | None = None):
        """Documents `first` to `last` (exclusive); `cache`: a directory that keeps the index of rows."""
        self._bounds, self._width = shards.offsets[first : last + 1], seq_len + 1
        lengths = np.minimum(np.diff(self._bounds), self._width)
        self._order, self._rows = cached_best_fit(cache, lengths, self._width)

    def __len__(self) -> int:
        return len(self._rows) - 1

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's documents."""
        chosen = self._order[self._rows[row] : self._rows[row + 1]].tolist()
        starts = ((document, int(self._bounds[document])) for document in chosen)
        return [(start, min(int(self._bounds[document + 1]), start + self._width)) for document, start in starts]


class Chosen:
    """Some rows of another layout, which are numbered anew."""

    def __init__(self, layout: Layout, rows: np.ndarray):
        """`rows`: the chosen rows of the layout, int [N]."""
        self._layout, self._chosen = layout, rows

    def __len__(self) -> int:
        return len(self._chosen)

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the spans of the chosen row."""
        return self._layout.spans(int(self._chosen[row]))


def with_targets(layout: Layout, shards: Shards, seq_len: int) -> Layout:
    """Returns the rows of a layout in which some token bears loss; the layout itself where that holds for all.

    A conversation whose prompt fills the row has none. The first token of a row is no target. Random windows are
    returned as they are.
    """
    if not shards.manifest.loss_masks or len(layout) >= ENDLESS:
        return layout
    spans, owners, firsts = [], [], []
    for row in range(len(layout)):
        room = seq_len + 1
        for number, (start, stop) in enumerate(layout.spans(row)):
            spans.append((start, min(stop, start + room)))
            owners.append(row)
            firsts.append(number == 0)
            room -= min(room, stop - start)
    bounds = np.array(spans, np.int64).reshape(-1, 2)
    bounds[:, 0] += np.array(firsts, bool)
    targets = shards.loss_places()
    counts = np.searchsorted(targets, bounds[:, 1]) - np.searchsorted(targets, bounds[:, 0])
    chosen = np.unique(np.array(owners, np.int64)[counts > 0])
    return layout if len(chosen) == len(layout) else Chosen(layout, chosen)


def split_at(bounds: np.ndarray, start: int, stop: int) -> list[Span]:
    """Returns [start, stop) cut at the bounds that lie inside."""
    low, high = np.searchsorted(bounds, [start, stop], side="right")
    cuts = [start, *bounds[low : max(low, high)].tolist(), stop]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def best_fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs documents into rows and returns (order int32 [documents], rows int64 [rows + 1]).

    Row r is `order[rows[r]:rows[r + 1]]`. `lengths` (1 to `width`) of the documents in their order.
    """
    order: list[int] = []
    rows = [0]
    # Sorted by (length, -number): of equally long ones the first comes first.
    buffer: list[tuple[int, int]] = []
    coming = iter(enumerate(lengths.tolist()))
    oldest: list[int] = []  # a heap of what is in the buffer, so that no document waits for ever
    taken: set[int] = set()

    def fill() -> None:
        while len(buffer) < _BUFFER and (document := next(coming, None)) is not None:
            insort(buffer, (document[1], -document[0]))
            heapq.heappush(oldest, document[0])

    def take(at: int) -> int:
        length, number = buffer.pop(at)
        order.append(-number)
        taken.add(-number)
        return length

    fill()
    while buffer:
        # The document that waits longest opens the row.
        while oldest[0] in taken:
            taken.discard(heapq.heappop(oldest))
        first = heapq.heappop(oldest)
        length = int(lengths[first])
        left = width - take(bisect_right(buffer, (length, -first)) - 1)
        taken.discard(first)
        while left and (at := bisect_right(buffer, (left, 1)) - 1) >= 0:
            left -= take(at)
        rows.append(len(order))
        fill()
    return np.array(order, np.int32), np.array(rows, np.int64)


def cached_best_fit(cache: Path | None, lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `best_fit` of many documents, which takes long, from a file in the directory `cache` if possible."""
    if cache is None or len(lengths) < 10_000:
        return best_fit(lengths, width)
    key = sha256_hex(np.ascontiguousarray(lengths, "<i8").tobytes() + f"{width} {_BUFFER}".encode())[:16]
    path = cache / f"best_fit-{key}.npy"
    try:
        packed = np.load(path, allow_pickle=False)
        content, checksum = packed[:-1], packed[-1:]
        if len(content) > len(lengths) and checksum == _checksum(content):
            return content[: len(lengths)].astype(np.int32), content[len(lengths) :]
    except Exception:  # there is none yet, or it is damaged (NumPy gives its head to Python's parser) and written again
        pass
    order, rows = best_fit(lengths, width)
    content, buffer = np.concatenate([order.astype(np.int64), rows]), io.BytesIO()
    np.save(buffer, np.concatenate([content, _checksum(content)]))
    with contextlib.suppress(OSError):  # shards may lie where nothing can be written: then every start packs again
        cache.mkdir(exist_ok=True)
        atomic_write(path, buffer.getvalue())
    return order, rows


def _checksum(content: np.ndarray) -> np.ndarray:
    """Returns the beginning of the SHA-256 of int64 numbers, int64 [1]: a flipped bit would train on other rows."""
    return np.frombuffer(bytes.fromhex(sha256_hex(np.ascontiguousarray(content, "<i8").tobytes()))[:8], "<i8")


def make_layout(packing: str, shards: Shards, first: int, last: int, seq_len: int, *, split: bool, seed: int) -> Layout:
    """Returns the layout of that name over documents `first` to `last`. Raises UserError where they make no row."""
    layout = layout_of(packing, shards, first, last, seq_len, split=split, seed=seed)
    if not len(layout):
        tokens = int(shards.offsets[last] - shards.offsets[first])
        raise UserError(f"data: {tokens:,} tokens make no row of {seq_len}; give more data or lower data.seq_len")
    return layout


def layout_of(packing: str, shards: Shards, first: int, last: int, seq_len: int, *, split: bool, seed: int) -> Layout:
    """Returns the layout of that name over documents `first` to `last`, of no row where they are too short."""
    if packing == "concat":
        return Concat(shards, first, last, seq_len, split=split)
    if packing == "windows":
        return Windows(shards, first, last, seq_len, split=split, seed=seed)
    if packing == "document":
        return OneDocument(shards, first, last, seq_len)
    return BestFit(shards, first, last, seq_len, cache=shards.directory / "rows")
