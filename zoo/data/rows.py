"""Rows as arrays: tokens, targets and loss mask, and with the document mask segments and positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.data.packing import Layout
from zoo.data.pipeline import Batch
from zoo.data.shards import Shards


@dataclass(frozen=True)
class PackedSource:
    """A source's documents `first` to `last` (exclusive) as rows.

    Attributes:
        name: for people.
        shards: where the tokens are.
        layout: which tokens make which row.
        weight: its share of the rows, in any unit.
    """

    name: str
    shards: Shards
    first: int
    last: int
    layout: Layout
    weight: float

    @property
    def tokens(self) -> int:
        """In its documents."""
        return int(self.shards.offsets[self.last] - self.shards.offsets[self.first])


@dataclass(frozen=True)
class Rows:
    """How rows become arrays.

    Attributes:
        seq_len: targets in a row (T).
        document_mask: whether a batch says which tokens belong together (segment_ids, positions).
        restart_positions: whether positions begin at 0 with every document.
        pad_id: fills what is left of a row.
        trim_to: if positive, a batch's T shrinks to the smallest multiple of it that holds all its targets.
    """

    seq_len: int
    document_mask: bool = False
    restart_positions: bool = True
    pad_id: int = 0
    trim_to: int = 0

    def assemble(self, rows: Sequence[tuple[PackedSource, int]], chosen: slice = slice(None)) -> Batch:
        """The rows `chosen` of the batch that consists of `rows`: (source, row of its layout) each.

        Returns a dict of `tokens` int32, `targets` int32, `loss_mask` float32, and with `document_mask` `segment_ids`
        int32 (from 1; 0 is padding) and `positions` int32, each [B, T]. `targets[:, t]` is the token after
        `tokens[:, t]`; it bears loss if it is one of the row's tokens, of the same document where documents are
        told apart, and one of the assistant's in chat data.
        """
        spans = [source.layout.spans(row) for source, row in rows]
        width = self._width(spans)
        rows, spans = rows[chosen], spans[chosen]
        tokens = np.full((len(rows), width + 1), self.pad_id, np.int32)
        learnt = np.ones((len(rows), width + 1), np.float32)
        segments = np.zeros((len(rows), width + 1), np.int32)
        positions = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1)) if self.document_mask else None
        for r, ((source, _), parts) in enumerate(zip(rows, spans, strict=True)):
            at = 0
            for number, (start, stop) in enumerate(parts, 1):
                end = min(at + stop - start, width + 1)
                source.shards.read(start, start + end - at, tokens[r, at:end])
                if source.shards.manifest.loss_masks:
                    source.shards.read_loss(start, start + end - at, learnt[r, at:end])
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

    def _width(self, spans: Sequence[Sequence[tuple[int, int]]]) -> int:
        if not self.trim_to:
            return self.seq_len
        needed = max(1, max(sum(stop - start for start, stop in parts) for parts in spans) - 1)
        return min(self.seq_len, -(-needed // self.trim_to) * self.trim_to)
