"""Rates of training between two lines of the log."""

import time
from dataclasses import dataclass


@dataclass
class Meter:
    """Counts positions, FLOPs and waiting since the last `read`; it runs from the first `start` on.

    Attributes:
        peak: FLOP/s that mfu is measured against.
        since: when the interval began, by `time.perf_counter`; None before the first `start`.
        positions: batch positions of the updates in the interval.
        flops: FLOPs of these updates.
        waited: seconds spent waiting for batches.
        paused: seconds of evaluation, which the rates leave out.
    """

    peak: float
    since: float | None = None
    positions: int = 0
    flops: float = 0.0
    waited: float = 0.0
    paused: float = 0.0

    def start(self) -> None:
        """Begins a new interval."""
        self.since = time.perf_counter()
        self.positions, self.flops, self.waited, self.paused = 0, 0.0, 0.0, 0.0

    def read(self) -> dict[str, float | None]:
        """Returns tokens_per_s, mfu and data_wait of the interval, None where nothing was timed; begins a new one."""
        took = time.perf_counter() - self.since - self.paused if self.since is not None else 0.0
        timed = self.positions > 0 and took > 0
        rates = {
            "tokens_per_s": self.positions / took if timed else None,
            "mfu": self.flops / took / self.peak if timed else None,
            "data_wait": min(self.waited / took, 1.0) if timed else None,
        }
        self.start()
        return rates
