"""Batches shown to people: rows as text with their documents and loss, and statistics of many batches."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zoo.data.batches import Batch
from zoo.terminal import visible
from zoo.tokenizers.base import Tokenizer

_COLOURS = (36, 33, 32, 35, 34)  # cyan, yellow, green, magenta, blue
_BARS = "▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Report:
    """Statistics of some batches.

    Attributes:
        positions: of all batches, T of each row.
        tokens: positions that hold a token.
        targets: positions whose target bears loss.
        lengths: tokens of each document in each row (of each row, where documents are not distinguished).
        seq_len: of the widest batch.
        seconds: that each batch took; the first also opens files.
    """

    positions: int
    tokens: int
    targets: int
    lengths: np.ndarray
    seq_len: int
    seconds: list[float]

    @classmethod
    def measure(cls, batches: Iterator[Batch], number: int) -> tuple["Report", Batch | None]:
        """Measures at most `number` batches; also returns the first of them (None: there was none)."""
        first, seconds, lengths = None, [], []
        positions = tokens = targets = seq_len = 0
        for _ in range(number):
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            seconds.append(time.perf_counter() - started)
            first = first or batch
            segments = filled(batch)
            positions, tokens = positions + segments.size, tokens + int((segments > 0).sum())
            targets += int((batch["loss_mask"] > 0).sum())
            seq_len = max(seq_len, segments.shape[1])
            lengths += [length for row in segments for length in np.bincount(row)[1:].tolist() if length]
        return cls(positions, tokens, targets, np.array(lengths, np.int64), seq_len, seconds), first

    def __str__(self) -> str:
        share = 1 / max(self.positions, 1)
        text = (
            f"{len(self.seconds)} batches: {self.positions:,} positions, {self.tokens * share:.1%} tokens, "
            f"{1 - self.tokens * share:.1%} padding, {self.targets * share:.1%} with loss"
        )
        timed = sorted(self.seconds[1:]) or self.seconds
        if timed:
            middle = timed[len(timed) // 2]
            rate = self.positions / len(self.seconds) / max(middle, 1e-9)
            text += f"\na batch takes {middle * 1e3:.2f} ms (median), {rate:,.0f} tokens/s"
        if len(self.lengths):
            text += (
                f"\nlengths: {self.lengths.min():,} to {self.lengths.max():,}, mean {self.lengths.mean():,.0f}\n"
                f"{histogram(self.lengths, self.seq_len)}"
            )
        return text


def filled(batch: Batch) -> np.ndarray:
    """Returns the document of each position, int [B, T]: 0 is padding.

    Without segments it is 1 up to the last target; where a row has no target, nothing tells what is padding.
    """
    if "segment_ids" in batch:
        return batch["segment_ids"]
    learnt = batch["loss_mask"] > 0
    width = learnt.shape[1]
    last = np.where(learnt.any(1), width - learnt[:, ::-1].argmax(1), width)
    return (np.arange(width) < last[:, None]).astype(np.int32)


def histogram(lengths: np.ndarray, longest: int, bins: int = 16) -> str:
    """Returns a histogram of lengths, int [N], up to `longest`: for each bin a line with its range, bar and count."""
    counts, edges = np.histogram(lengths, bins=min(bins, max(1, longest)), range=(0, longest))
    most = max(int(counts.max()), 1)
    lines = []
    for count, start, stop in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        eighths = round(count / most * 40 * 8)
        bar = "█" * (eighths // 8) + (_BARS[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"{int(start):>6,} to {int(stop):>6,} {bar} {count:,}")
    return "\n".join(lines)


def show_row(batch: Batch, row: int, tokenizer: Tokenizer, *, colour: bool) -> str:
    """Returns a row's first token and its targets as text: documents by colour, targets without loss dimmed.

    Without colour a bar separates the documents and [[ ]] enclose targets without loss.
    """
    tokens, targets = batch["tokens"][row], batch["targets"][row]
    segments = filled(batch)[row]
    learnt = batch["loss_mask"][row] > 0
    # A target belongs to the document of the position it will stand on; the last one to that of the position before.
    document = np.append(segments[1:], segments[-1:])
    document = np.where(learnt, segments, document)
    runs = [([int(tokens[0])], int(segments[0]), False)] if segments[0] else []
    for target, number, loss in zip(targets.tolist(), document.tolist(), learnt.tolist(), strict=True):
        if not number:
            continue
        if runs and runs[-1][1:] == (number, loss):
            runs[-1][0].append(target)
        else:
            runs.append(([target], number, loss))
    text, before = "", None
    for ids, number, loss in runs:
        piece = visible(tokenizer.decode(ids, skip_special=False))
        if colour:
            style = f"{_COLOURS[number % len(_COLOURS)]}" + ("" if loss else ";2")
            text += f"\033[{style}m{piece}\033[0m"
        else:
            text += ("|" if before not in (None, number) else "") + (piece if loss else f"[[{piece}]]")
        before = number
    padding = int((segments == 0).sum())
    return text + (f" ({padding} padding)" if padding else "")
