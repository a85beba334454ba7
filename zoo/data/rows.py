"""Rows as arrays: tokens, targets and loss mask, and with the document mask segments and positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zoo.data.packing import Layout, Span
from zoo.data.shards import Shards

Batch = dict[str, np.ndarray]


class RowSource(Protocol):
    """Rows of tokens, each given as spans of one long row of tokens.

    Attributes:
        has_loss: whether the source says which tokens bear loss; otherwise all do.
    """

    has_loss: bool

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's spans, [start, stop) in the long row of tokens; what is too long for a row is cut off."""
        ...

    def needed(self, row: int, limit: int) -> int:
        """Returns how many of the row's first `limit` tokens must remain in a batch that is trimmed."""
        ...

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies the tokens from `start` to `stop` into `out`, int32 [stop - start]."""
        ...

    def read_loss(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies which of these tokens bear loss (1 or 0) into `out`, float32 [stop - start]."""
        ...


Row = tuple[RowSource, int]


@dataclass(frozen=True)
class PackedSource:
    """The documents `first` to `last` (exclusive) of prepared shards, packed into rows.

    Attributes:
        name: of the source, for people.
        shards: hold the tokens.
        first: the first document.
        last: the document after the last one.
        layout: tells which tokens make which row.
        weight: the source's share of the rows, in any unit.
    """

    name: str
    shards: Shards
    first: int
    last: int
    layout: Layout
    weight: float

    @property
    def tokens(self) -> int:
        """The number of tokens in the source's documents."""
        return int(self.shards.offsets[self.last] - self.shards.offsets[self.first])

    @property
    def has_loss(self) -> bool:
        """Whether the shards say which tokens bear loss."""
        return self.shards.manifest.loss_masks

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's spans in its layout."""
        return self.layout.spans(row)

    def needed(self, row: int, limit: int) -> int:
        """Returns the number of the row's tokens, at most `limit`."""
        return min(limit, sum(stop - start for start, stop in self.spans(row)))

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies the tokens from `start` to `stop` into `out`, int32 [stop - start]."""
        self.shards.read(start, stop, out)

    def read_loss(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies which of these tokens bear loss (1 or 0) into `out`, float32 [stop - start]."""
        self.shards.read_loss(start, stop, out)


@dataclass(frozen=True)
class Rows:
    """How rows become arrays. The fields are part of a run's data fingerprint.

    Attributes:
        seq_len: targets in a row (T).
        document_mask: whether a batch says which tokens belong together (segment_ids, positions).
        restart_positions: whether positions begin at 0 with every document.
        pad_id: fills what is left of a row.
        trim_to: if positive, T shrinks to the smallest multiple of it that holds what the batch's sources need. Loss
            and gradient stay the same. 0 keeps T = seq_len.
    """

    seq_len: int
    document_mask: bool = False
    restart_positions: bool = True
    pad_id: int = 0
    trim_to: int = 0

    def assemble(self, rows: Sequence[Row], chosen: slice = slice(None)) -> Batch:
        """Returns the rows `chosen` of the batch that consists of `rows`.

        Args:
            rows: (source, number of the row in its source) of all rows: the batch's width depends on all of them.
            chosen: which rows to return.

        Returns:
            A dict of `tokens` int32, `targets` int32, `loss_mask` float32, and with `document_mask` `segment_ids`
            int32 (from 1; 0 is padding) and `positions` int32, each [B, T]. `targets[:, t]` is the token after
            `tokens[:, t]`; it bears loss if it is one of the row's tokens, of the same document where documents are
            told apart, and one that its source gives loss.
        """
        width = self._width(rows)
        rows = rows[chosen]
        tokens = np.full((len(rows), width + 1), self.pad_id, np.int32)
        learnt = np.ones((len(rows), width + 1), np.float32)
        segments = np.zeros((len(rows), width + 1), np.int32)
        positions = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1)) if self.document_mask else None
        for r, (source, row) in enumerate(rows):
            at = 0
            for number, (start, stop) in enumerate(source.spans(row), 1):
                end = min(at + stop - start, width + 1)
                source.read(start, start + end - at, tokens[r, at:end])
                if source.has_loss:
                    source.read_loss(start, start + end - at, learnt[r, at:end])
                segments[r, at:end] = number if self.document_mask else 1
                if self.document_mask and self.restart_positions:
                    positions[r, at:end] = np.arange(min(end, width) - at) if at < width else 0
                at = end
        same = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
        batch = {
            "tokens": np.ascontiguousarray(tokens[:, :-1]),
            "targets": np.ascontiguousarray(tokens[:, 1:]),
            "loss_mask": learnt[:, 1:] * same,
        }
        if self.document_mask:
            batch |= {"segment_ids": np.ascontiguousarray(segments[:, :-1]), "positions": positions}
        return batch

    def _width(self, rows: Sequence[Row]) -> int:
        if not self.trim_to:
            return self.seq_len
        needed = max(1, max(source.needed(row, self.seq_len + 1) for source, row in rows) - 1)
        return min(self.seq_len, -(-needed // self.trim_to) * self.trim_to)
