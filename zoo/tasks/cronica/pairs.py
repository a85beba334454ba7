"""Tokenised pairs of a match and its crónica, in a few flat arrays."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo.errors import UserError
from zoo.tasks.cronica.match import parse_block
from zoo.tasks.cronica.tokens import check_tokenizer, encode_pairs, training_text
from zoo.tokenizers.base import Tokenizer

_COMMON = 200  # a word of names in one match of so many is common
_AT_ONCE = 1024  # records encoded in one call: enough to keep every core busy, few enough to show progress


@dataclass(frozen=True)
class Pairs:
    """Rows of different lengths, one behind the other.

    Attributes:
        tokens: uint16 or uint32 [total], all rows in order.
        offsets: int64 [N + 1]; row i is `tokens[offsets[i]:offsets[i + 1]]`.
        loss_starts: int32 [N]; the index in its row of the first token that bears loss. All after it do too.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    loss_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.loss_starts)

    def row(self, index: int) -> np.ndarray:
        """Token ids of row `index`, untruncated."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens in each row."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of tokens, row borders and loss starts: of what training sees."""
        digest = hashlib.sha256()
        for array, dtype in ((self.tokens, "<u4"), (self.offsets, "<i8"), (self.loss_starts, "<i4")):
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()


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
    """Encode records (`stats_block`, `style_label`, `cronica`) as training rows, in their order.

    Args:
        records: from `zoo.data.sources.load_records`.
        tokenizer: a crónica tokenizer.
        progress: called now and then with (records done, records in all).

    Raises UserError if there are no records, a style is unknown or the tokenizer lacks the special tokens.
    """
    check_tokenizer(tokenizer)
    if not records:
        raise UserError("data: there are no records to train on")
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    parts, lengths, loss_starts = [], [], []
    for start in range(0, len(records), _AT_ONCE):
        some = records[start : start + _AT_ONCE]
        columns = ([record[field] for record in some] for field in ("stats_block", "style_label", "cronica"))
        for ids, loss_start in encode_pairs(tokenizer, *columns):
            parts.append(np.asarray(ids, dtype))
            lengths.append(len(ids))
            loss_starts.append(loss_start)
        if progress:
            progress(start + len(some), len(records))
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Pairs(np.concatenate(parts), offsets, np.asarray(loss_starts, np.int32))


def tokenizer_texts(records: Sequence[dict]) -> Iterator[str]:
    """The texts a tokenizer learns from: block and crónica of each record, without the rare words of its names.

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
    """Count what rows of `seq_len` + 1 tokens cut off. Raises UserError if no crónica at all would remain."""
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
