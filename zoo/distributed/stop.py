"""Stopping politely: SIGINT and SIGTERM finish the step, the same one on every process of a run."""

import signal
import threading
from dataclasses import dataclass
from typing import Any

from zoo.distributed import runtime


class Stopped(BaseException):
    """SIGINT or SIGTERM came where there is no step to finish, or came a second time."""


class StopSignal:
    """Turns SIGINT and SIGTERM into a polite request. Use as a context manager; handlers found are put back at the end.

    One process: inside `with stop.deferred():` the first signal only sets `requested`; anywhere else, and the second
    time, `Stopped` is raised on the spot.

    Several: a signal to any of them stops all at one and the same `reached`, a second or two later. Until the first
    step it waits; another signal adds nothing.
    """

    def __init__(self):
        self.signals = 0
        self._deferred = False
        self._boundaries = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
            return self
        if runtime.active():
            # JAX's runtime listens to SIGTERM itself and agrees on the step with the other processes.
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def requested(self) -> bool:
        """Whether this process, of one, has got a signal."""
        return self.signals > 0

    def reached(self) -> bool:
        """Whether to stop here, between two steps. Every process of a run asks at each of its steps."""
        if not runtime.active():
            return self.requested
        self._boundaries += 1  # never goes back, as steps do
        return runtime.preempted(self._boundaries)

    def deferred(self) -> "_Deferred":
        """A context in which a signal only sets `requested`."""
        return _Deferred(self)

    def _handle(self, number: int, frame: Any) -> None:
        self.signals += 1
        if self.signals > 1 or not self._deferred:
            raise Stopped(signal.Signals(number).name)


@dataclass
class _Deferred:
    signal: StopSignal

    def __enter__(self) -> None:
        self.signal._deferred = True

    def __exit__(self, *exc_info) -> None:
        self.signal._deferred = False
