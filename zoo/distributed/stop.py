"""Stopping a run by SIGINT or SIGTERM: the running step is finished, the same one on every process of the run."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from zoo.distributed import runtime


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived where there is no step to finish, or arrived a second time."""


class StopSignal:
    """A context manager that turns SIGINT and SIGTERM into a request to stop; on exit it restores the old handlers.

    One process: within `deferred()` the first signal only sets `requested`; anywhere else, and the second time,
    `Stopped` is raised at once.

    Several processes: a signal to any of them makes `reached` true on all, at the same call, a second or two later. A
    signal before the first step waits until then, and a second one has no effect.
    """

    def __init__(self):
        self.signals = 0
        self._deferred = False
        self._boundaries = 0
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
            return self
        if runtime.active():
            # JAX's runtime handles SIGTERM itself and agrees on the step with the other processes.
            handler = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
            self._old_handlers[signal.SIGINT] = handler
        else:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    @property
    def requested(self) -> bool:
        """Whether this process has received a signal; for one process alone."""
        return self.signals > 0

    def reached(self) -> bool:
        """Returns whether to stop between two steps; every process of a run calls it at each of its steps."""
        if not runtime.active():
            return self.requested
        self._boundaries += 1  # unlike steps it never goes back
        return runtime.preempted(self._boundaries)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A context within which the first signal only sets `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: Any) -> None:
        self.signals += 1
        if self.signals > 1 or not self._deferred:
            raise Stopped(signal.Signals(number).name)
