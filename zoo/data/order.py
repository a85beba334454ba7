"""The endless order of examples: which row of which source is example e, from e alone.

It is integer arithmetic on the example's number, without state and without a random generator whose stream could
change; so it is the same on every machine and for any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SHARE_BITS = 31
_ROUNDS = 6
_WORD = (1 << 64) - 1


def scatter(values: np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Returns well mixed numbers, uint64 [N], one for each value and key (splitmix64, Steele et al. 2014)."""
    keys = np.atleast_1d(np.asarray(key)).astype(np.uint64)  # arrays wrap around silently, scalars warn
    x = np.atleast_1d(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * (keys + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def scatter_one(value: int, key: int) -> int:
    """Returns `scatter` of one number, without the cost of arrays."""
    x = (value + 0x9E3779B97F4A7C15 * (key + 1)) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Returns where places go in a shuffle of `size` things: for each key, a bijection of 0 to size - 1.

    A Feistel network over the smallest even number of bits that holds `size`, walked until it lands inside (Black and
    Rogaway 2002). `index`, `keys`: int64 and uint64 [N]; the result is int64 [N].
    """
    half = max(1, -(-int(size - 1).bit_length() // 2))
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    round_keys = [scatter(keys, number) for number in range(_ROUNDS)]
    result = index.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> bits, result[outside] & mask
        for key in round_keys:
            left, right = right, left ^ (scatter(right ^ key[outside], 0) & mask)
        result[outside] = (left << bits) | right
        outside = outside[result[outside] >= np.uint64(size)]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """Rows of several sources in one order.

    Attributes:
        rows: rows of an epoch of each source.
        weights: shares of the sources among the examples, any positive numbers. Of the first n examples each source
            has n times its share, to within the number of sources.
        seed: of the shuffling.
        shuffle: whether each epoch of each source has an order of its own, and not that of the rows.
    """

    rows: Sequence[int]
    weights: Sequence[float]
    seed: int
    shuffle: bool = True

    def lookup(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for examples, int64 [N], the source of each, int64 [N], and its row in that source, int64 [N]."""
        examples = np.asarray(examples, np.int64)
        source, number = self._sources(examples)
        row = np.empty_like(number)
        for index, size in enumerate(self.rows):
            chosen = source == index
            if chosen.any():
                row[chosen] = self._row(index, size, number[chosen])
        return source, row

    def _row(self, index: int, size: int, number: np.ndarray) -> np.ndarray:
        """Returns the rows of the source's examples of these numbers."""
        epoch, place = np.divmod(number, size)
        if not self.shuffle:
            return place
        return permute(place, size, scatter(epoch, (self.seed << 16) + index))

    def _sources(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each example and how many examples of that source come before it.

        The first source takes its share of all examples, evenly spread; the next its share of those left; and so on.
        """
        source = np.zeros(len(examples), np.int64)
        number = examples.copy()
        active = np.arange(len(examples))
        for index in range(len(self.rows) - 1):
            share = round(self.weights[index] / sum(self.weights[index:]) * (1 << _SHARE_BITS))
            before = _count(number[active], share)
            mine = _count(number[active] + 1, share) > before
            rest = number[active] - before
            number[active] = np.where(mine, before, rest)
            active = active[~mine]
            source[active] = index + 1
        return source, number


def _count(examples: np.ndarray, share: int) -> np.ndarray:
    """Returns how many of so many first examples a share (in 2^-31) takes: the nearest whole number."""
    high, low = examples >> _SHARE_BITS, examples & ((1 << _SHARE_BITS) - 1)
    return high * share + ((low * share + (1 << (_SHARE_BITS - 1))) >> _SHARE_BITS)
