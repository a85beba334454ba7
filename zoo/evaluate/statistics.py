"""Shares with 95% intervals."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from zoo.evaluate.measures import Z95

RESAMPLES = 2000  # draws of the bootstrap


@dataclasses.dataclass(frozen=True)
class Share:
    """A share with its 95% interval.

    Attributes:
        hits, total: the share is hits / total.
        low, high: ends of the interval, from 0 to 1; None when `total` is 0.
        interval: how it was made: "wilson", "bootstrap over matches" or "wilson over matches".
    """

    hits: int
    total: int
    low: float | None
    high: float | None
    interval: str

    @property
    def value(self) -> float | None:
        """The share itself, from 0 to 1; None when `total` is 0."""
        return self.hits / self.total if self.total else None

    def to_dict(self) -> dict:
        """Returns the fields and the value, JSON-serialisable."""
        return {"value": self.value, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        if not self.total:
            return "none"
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def proportion(hits: Sequence[bool]) -> Share:
    """Returns the share of independent yes-or-no outcomes, with the Wilson score interval (Wilson 1927)."""
    total, count = len(hits), sum(map(bool, hits))
    return Share(count, total, *_wilson(count / total if total else 0.0, total), "wilson")


def pooled(hits: Sequence[int], totals: Sequence[int]) -> Share:
    """Returns sum(hits) / sum(totals) over matches, with a percentile bootstrap (Efron 1979) of whole matches.

    Outcomes of one match depend on each other, so an interval that took each for itself would be too narrow. Where
    all outcomes agree, every resample does too; there the Wilson interval for the number of matches is given.
    The resamples are seeded: equal input gives equal intervals.
    """
    hits, totals = np.asarray(hits, np.int64), np.asarray(totals, np.int64)
    count, total = int(hits.sum()), int(totals.sum())
    if count in (0, total):
        groups = int((totals > 0).sum())
        return Share(count, total, *_wilson(float(count > 0), groups), "wilson over matches")
    groups = len(hits)
    times = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    drawn = times @ totals
    shares = (times @ hits)[drawn > 0] / drawn[drawn > 0]
    low, high = np.percentile(shares, [2.5, 97.5])
    return Share(count, total, float(low), float(high), "bootstrap over matches")


def _wilson(share: float, total: int) -> tuple[float | None, float | None]:
    if not total:
        return None, None
    spread = Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # The ends are exactly 0 and 1 where all outcomes agree; rounding must not move them.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
