"""Tokenised pairs of a match and its crónica in a few flat arrays, one pair a row, and their batches."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import grain
import numpy as np

from zoo.data import batches
from zoo.data.encode import flatten
from zoo.data.packing import Span
from zoo.data.rows import Batch, Row, Rows
from zoo.data.shards import token_dtype
from zoo.errors import UserError
from zoo.recipe.data import DataSection
from zoo.tasks.cronica.match import parse_block
from zoo.tasks.cronica.tokens import check_tokenizer, encode_pairs, training_text
from zoo.tokenizers.base import Tokenizer

_COMMON = 200  # a word of names in one match of so many is common
_AT_ONCE = 1024  # records encoded in one call: enough to keep every core busy, few enough to show progress


@dataclass(frozen=True)
class Pairs:
    """Rows of different lengths, one behind the other; a `zoo.data.rows.RowSource`.

    Attributes:
        tokens: uint16 or uint32 [total], all rows in order.
        offsets: int64 [N + 1]; row i is `tokens[offsets[i]:offsets[i + 1]]`.
        loss_starts: int32 [N]; the index in its row of the first token that bears loss. All after it do too.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    loss_starts: np.ndarray
    has_loss: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.loss_starts)

    def row(self, index: int) -> np.ndarray:
        """Returns the token ids of row `index`, untruncated."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens in each row, int64 [N]."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (64 hexadecimal digits) of tokens, row borders and loss starts: of what training sees."""
        digest = hashlib.sha256()
        for array, dtype in ((self.tokens, "<u4"), (self.offsets, "<i8"), (self.loss_starts, "<i4")):
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()

    def spans(self, row: int) -> Sequence[Span]:
        """Returns the row's only span in `tokens`."""
        return [(int(self.offsets[row]), int(self.offsets[row + 1]))]

    def needed(self, row: int, limit: int) -> int:
        """Returns the number of the row's tokens, at most `limit`; 0 where none of them bears loss."""
        length = min(limit, int(self.lengths[row]))
        return length if self.loss_starts[row] < length else 0

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies the tokens from `start` to `stop` into `out`, int32 [stop - start]."""
        out[:] = self.tokens[start:stop]

    def read_loss(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies which of these tokens, all of one row, bear loss (1 or 0) into `out`, float32 [stop - start]."""
        row = np.searchsorted(self.offsets, start, side="right") - 1
        out[:] = np.arange(start, stop) >= self.offsets[row] + self.loss_starts[row]


def training_batches(
    pairs: Pairs, data: DataSection, start_example: int = 0, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Returns batches without end, from example `start_example` of the global order on.

    Each epoch holds every pair once, in an order of its own if `data.shuffle`; a batch may reach from one epoch
    into the next, so that all are full. See `zoo.data.batches.endless` for `share` and errors, and
    `zoo.data.rows.Rows.assemble` for the arrays; loss_mask is 1 on the crónica, its closing tag and `<eos>`.
    """
    # Not the order of texts (`zoo.data.order`): runs that have begun must go on in their own.
    order = grain.MapDataset.range(len(pairs)).seed(data.seed)
    order = (order.shuffle() if data.shuffle else order).repeat()

    def lookup(first: int, count: int) -> list[Row]:
        return [(pairs, int(order[example])) for example in range(first, first + count)]

    # A row is a lookup and a copy: too little work for a thread to be worth its hand-over.
    rows = Rows(data.seq_len, trim_to=data.trim_to)
    return batches.endless(lookup, rows, data.batch_size, start_example, share, prefetch=0)


def heldout_batches(pairs: Pairs, data: DataSection, batch_size: int) -> Iterator[Batch]:
    """Returns every pair once, in order; the last batch is filled up with rows that bear no loss."""
    examples = [(pairs, row) for row in range(len(pairs))]
    return batches.once(examples, Rows(data.seq_len, trim_to=data.trim_to), batch_size)


@dataclass(frozen=True)
class Fit:
    """How rows of `seq_len` + 1 tokens hold a set of pairs.

    Attributes:
        pairs: how many there are.
        truncated: how many lose their end.
        without_text: how many of those lose the whole crónica, so that they teach nothing.
        longest: tokens of the longest pair.
        filled: share of the row positions that hold a token.
        seq_len: targets in a row.
    """

    pairs: int
    truncated: int
    without_text: int
    longest: int
    filled: float
    seq_len: int

    def __str__(self) -> str:
        text = f"{self.pairs:,} pairs in rows of {self.seq_len}, {self.filled:.0%} filled"
        text += f", longest {self.longest - 1}"
        if self.truncated:
            text += f"; {self.truncated:,} truncated"
        if self.without_text:
            text += f", {self.without_text:,} of them before the first word of the crónica"
        return text


def tokenise(
    records: Sequence[dict], tokenizer: Tokenizer, *, progress: Callable[[int, int], None] | None = None
) -> Pairs:
    """Encodes records (`stats_block`, `style_label`, `cronica`) as training rows, in their order.

    Args:
        records: from `zoo.tasks.cronica.records.load_records`.
        tokenizer: a crónica tokenizer.
        progress: called now and then with (records done, records in all).

    Raises:
        UserError: there are no records, a style is unknown or the tokenizer lacks the special tokens.
    """
    check_tokenizer(tokenizer)
    if not records:
        raise UserError("data: there are no records to train on")
    parts, lengths, loss_starts = [], [], []
    for start in range(0, len(records), _AT_ONCE):
        some = records[start : start + _AT_ONCE]
        columns = ([record[field] for record in some] for field in ("stats_block", "style_label", "cronica"))
        rows = encode_pairs(tokenizer, *columns)
        part, part_lengths = flatten([ids for ids, _ in rows], token_dtype(tokenizer.vocab_size))
        parts.append(part)
        lengths.append(part_lengths)
        loss_starts += [loss_start for _, loss_start in rows]
        if progress:
            progress(start + len(some), len(records))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Pairs(np.concatenate(parts), offsets, np.asarray(loss_starts, np.int32))


def tokenizer_texts(records: Sequence[dict]) -> Iterator[str]:
    """Yields the texts a tokenizer learns from: block and crónica of each record, without the rare words of its names.

    A name that got a token of its own in training would be copied as one token, and no unknown name could be:
    the model would never learn to copy a spelling. So words of names (clubs, scorers, stadium, referee) that
    fewer than one match in `_COMMON` has are left out; common ones ("Deportivo", "Juan") stay.
    """
    words = [_name_words(record["stats_block"]) for record in records]
    counts = Counter(word for own in words for word in own)
    for record, own in zip(records, words, strict=True):
        text = training_text(record)
        rare = [word for word in own if counts[word] * _COMMON < len(records)]
        if rare:
            text = re.sub(rf" ?\b(?:{'|'.join(map(re.escape, sorted(rare)))})\b", "", text)
        yield text


def _name_words(stats_block: str) -> set[str]:
    try:
        match = parse_block(stats_block)
    except UserError:  # another kind of block: nothing is known to be a name
        return set()
    names = (match.home, match.away, match.stadium, match.referee, *(goal.scorer for goal in match.goals))
    return {word for name in names if name for word in name.split()}


def measure_fit(pairs: Pairs, seq_len: int) -> Fit:
    """Counts what rows of `seq_len` + 1 tokens cut off. Raises UserError if no crónica at all would remain."""
    lengths = pairs.lengths
    without_text = int((pairs.loss_starts > seq_len).sum())
    if without_text == len(pairs):
        raise UserError(
            f"data.seq_len: {seq_len} is too short, every block fills its row before the crónica begins; "
            f"the longest pair needs {int(lengths.max()) - 1}"
        )
    return Fit(
        pairs=len(pairs),
        truncated=int((lengths > seq_len + 1).sum()),
        without_text=without_text,
        longest=int(lengths.max()),
        filled=float(np.minimum(lengths, seq_len + 1).sum() / (len(pairs) * (seq_len + 1))),
        seq_len=seq_len,
    )
