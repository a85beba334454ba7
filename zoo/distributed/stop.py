"""Stopping a run by SIGINT, SIGTERM or SIGHUP: the running step is finished, the same one on every process."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from zoo.distributed import runtime


class Stopped(BaseException):
    """A signal arrived where there is no step to finish, or SIGINT or SIGTERM as the second one."""


def without_ignored(*numbers: int) -> list[int]:
    """Returns those of the signals to be handled: all but a SIGHUP that this process was told to ignore (nohup)."""
    hang_up = signal.SIGHUP
    return [number for number in numbers if number != hang_up or signal.getsignal(hang_up) != signal.SIG_IGN]


class StopSignal:
    """A context manager that turns SIGINT, SIGTERM and SIGHUP into a request to stop; on exit it restores the handlers.

    SIGHUP comes when the terminal is closed, often twice; where it is ignored (nohup), it stays so.

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
            for number in without_ignored(signal.SIGINT, signal.SIGHUP):
                self._old_handlers[number] = signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            for number in without_ignored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
        if number == signal.SIGHUP and self._deferred and self.signals:
            return  # of the shell, and then of the system
        self.signals += 1
        if self.signals > 1 or not self._deferred:
            raise Stopped(signal.Signals(number).name)
