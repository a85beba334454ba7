"""Rates of training between two lines of the log."""

import time
from dataclasses import dataclass


@dataclass
class Meter:
    """Counts the updates that ended since the last `read`; it runs from the first `start` on.

    Intervals end when an update has ended on the device, not when the host looks at it: by then the next one may have
    ended as well.

    Attributes:
        peak: FLOP/s that mfu is measured against.
        since: when the interval began, by `time.perf_counter`; None before the first `start`.
        positions: batch positions of the updates in the interval.
        flops: FLOPs of these updates.
        waited: seconds spent waiting for their batches.
        paused: seconds of evaluations and of saving, when the device has nothing to do; the rates leave them out.
    """

    peak: float
    since: float | None = None
    positions: int = 0
    flops: float = 0.0
    waited: float = 0.0
    paused: float = 0.0

    def start(self, at: float | None = None) -> None:
        """Begins a new interval, at that time or now."""
        self.since = time.perf_counter() if at is None else at
        self.positions, self.flops, self.waited, self.paused = 0, 0.0, 0.0, 0.0

    def add(self, positions: int, flops: float, waited: float) -> None:
        """Counts an update."""
        self.positions += positions
        self.flops += flops
        self.waited += waited

    def read(self, at: float) -> dict[str, float | None]:
        """Returns tokens_per_s, mfu and data_wait of the interval that ends at that time; begins a new one there.

        They are None where nothing was timed; so is a mfu above 1, which only a wrong peak can give.
        """
        took = at - self.since - self.paused if self.since is not None else 0.0
        timed = self.positions > 0 and took > 0
        mfu = self.flops / took / self.peak if timed else None
        rates = {
            "tokens_per_s": self.positions / took if timed else None,
            "mfu": None if mfu is None or mfu > 1 else mfu,
            "data_wait": min(self.waited / took, 1.0) if timed else None,
        }
        self.start(at)
        return rates
