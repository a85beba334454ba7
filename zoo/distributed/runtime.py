"""Several processes as one run: joining, broadcasts from process 0, and ending all of them when one is lost.

Every process runs the same program and calls the functions of this module in the same order. Process 0 alone prints
and writes small files; what it reads or decides reaches the others by `broadcast`. A process is lost in one of three
ways, and each ends the others in bounded time:

    it ends with an error     it publishes the reason, and the others end at once
    it is killed, or stopped  its heartbeat fails to come for `lost_after` seconds (its connections often break sooner)
    it hangs                  no step is finished for `step_limit` seconds, on any process

Above each process a small parent (`zoo.distributed.supervisor`) reports in one line how it ended.

Broadcasts go through the key-value store of JAX's coordinator. So they work in any program that has called
`jax.distributed.initialize`; the watch over lost processes is for those that joined with `initialize` below.
"""

import contextlib
import faulthandler
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from zoo.distributed.cluster import Cluster
from zoo.errors import UserError
from zoo.util import first_line

LOST_AFTER = 60  # seconds without a heartbeat
STEP_LIMIT = 1800  # seconds: compilation, a checkpoint and an evaluation must fit in
_ARRIVAL = 300  # seconds within which all processes must have been started
_A_DAY = 86_400_000  # ms; these waits end by other means when a process is lost
_BROKEN = ("Gloo", "NCCL", "onnection reset", "onnection closed", "UNAVAILABLE", "heartbeat")
_CHUNK = 1 << 20  # bytes of one value in the coordinator's store

_guard: "_Guard | None" = None  # of a process that has joined others
_broadcasts = itertools.count()  # numbers of the broadcasts, equal on all processes


class _Group(NamedTuple):
    """The processes that JAX has joined. `client` of their coordinator is None where this process is alone."""

    client: Any
    process_id: int
    count: int


def _group() -> _Group:
    from jax._src.distributed import global_state

    # Not jax.process_index(): that would take hold of the devices.
    if global_state.client is None:
        return _Group(None, 0, 1)
    return _Group(global_state.client, global_state.process_id, global_state.num_processes)


def active() -> bool:
    """Returns whether `initialize` has joined this process to others."""
    return _guard is not None


def is_main_process() -> bool:
    """Returns whether this process prints, writes small files and decides: it is process 0, or alone."""
    return process_id() == 0


def process_id() -> int:
    """Returns the number of this process, from 0."""
    return _group().process_id


def count() -> int:
    """Returns the number of processes."""
    return _group().count


# ---------------------------------------------------------------------------------------------------- agreeing


def broadcast(make: Callable[[], Any]) -> Any:
    """Returns what `make` returns on process 0, on every process; the others do not call it and wait for the value.

    Args:
        make: returns a value that JSON can hold.

    Raises:
        UserError: `make` has raised it on process 0; all processes raise it.
    """
    group = _group()
    if group.client is None:
        return make()
    key = f"zoo/broadcast/{next(_broadcasts)}"
    if group.process_id == 0:
        try:
            value = make()
        except UserError as error:
            _put(group, key, {"error": str(error)})
            raise
        _put(group, key, {"value": value})
        return value
    content = _get(group, key)
    if "error" in content:
        raise UserError(content["error"])
    return content["value"]


def first_problem(problem: str | None) -> str | None:
    """Returns the problem of the lowest process that has one, on every process; None where all pass None."""
    group = _group()
    if group.client is None:
        return problem
    key = f"zoo/problem/{next(_broadcasts)}"
    _put(group, f"{key}/of/{group.process_id}", problem)

    def first() -> str | None:
        problems = [_get(group, f"{key}/of/{process}") for process in range(group.count)]
        return next((f"process {i}: {text}" for i, text in enumerate(problems) if text is not None), None)

    return broadcast(first)


def assert_equal_across_processes(name: str, value: str) -> None:
    """Raises UserError on a process whose `value` is not that of process 0; `name` is plural, "the data"."""
    if broadcast(lambda: value) != value:
        raise UserError(f"process {process_id()}: {name} are not those of process 0; make all hosts alike")


def barrier(name: str) -> None:
    """Waits until all processes have called it. Each `name` may be used once in a process's life."""
    if (client := _group().client) is not None:
        client.wait_at_barrier(f"zoo/{name}", _A_DAY)


def preempted(boundary: int) -> bool:
    """Returns whether all processes should stop at this call, because one of them has received SIGTERM.

    Args:
        boundary: the number of this call; every process makes all calls, and True comes at the same one on all.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(boundary)


def _put(group: _Group, key: str, content: Any) -> None:
    data = json.dumps(content).encode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    for number, chunk in enumerate(chunks):
        group.client.key_value_set_bytes(f"{key}/{number}", chunk)
    group.client.key_value_set_bytes(key, str(len(chunks)).encode())


def _get(group: _Group, key: str) -> Any:
    """Waits for a value of `_put`."""
    chunks = int(group.client.blocking_key_value_get_bytes(key, _A_DAY))
    keys = (f"{key}/{number}" for number in range(chunks))
    return json.loads(b"".join(group.client.blocking_key_value_get_bytes(key, _A_DAY) for key in keys))


# --------------------------------------------------------------------------------------------------- a lifetime


def initialize(cluster: Cluster, *, lost_after: int = LOST_AFTER, step_limit: int = STEP_LIMIT) -> None:
    """Joins the other processes; to be called before any device has been touched, and ended by `leave`.

    On processes other than 0 nothing is printed from here on.

    Args:
        cluster: from `find_cluster`.
        lost_after: seconds without a heartbeat after which a process is lost.
        step_limit: seconds within which a step must be finished, see `training`.

    Raises:
        UserError: the other processes do not come.
    """
    global _guard
    import jax

    try:
        jax.distributed.initialize(
            cluster.coordinator,
            # Where JAX detects the cluster itself, it also knows which devices are local: so pass nothing then.
            cluster.num_processes if cluster.coordinator else None,
            cluster.process_id if cluster.coordinator else None,
            initialization_timeout=_ARRIVAL,
            heartbeat_timeout_seconds=lost_after,
        )
    except Exception as error:
        raise UserError(
            f"the {cluster.num_processes} processes did not come together at "
            f"{cluster.coordinator or 'the coordinator'} within {_ARRIVAL} s ({first_line(error)}); start all of them, "
            f"with the same --coordinator"
        ) from error
    group = _group()
    _guard = _Guard(group.client, group.process_id, step_limit)
    _guard.start()
    if not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # JAX's runtime prints there as well
        logging.getLogger("zoo").setLevel(logging.ERROR)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """A context within which a step that takes longer than `step_limit` ends this process."""
    if _guard is None:
        yield
        return
    heartbeat(0)
    try:
        yield
    finally:
        _guard.last_beat = None


def heartbeat(step: int) -> None:
    """Notes that this process has finished a step, or a part of the evaluation after it."""
    if _guard is not None:
        _guard.last_beat, _guard.step = time.monotonic(), step


def leave(code: int) -> None:
    """Ends this process's part: waits for the others if the exit code is 0, else ends all of them at once."""
    global _guard
    if _guard is None:
        return
    if code:
        _guard.fail(code, f"exit code {code}")
    import jax

    barrier("done")
    _guard.stop()
    jax.distributed.shutdown()
    _guard = None


def fail(error: Exception) -> None:
    """Ends this process because of an error, and the others with it."""
    message = first_line(error, 300)
    if isinstance(error, UserError):
        _guard.fail(2, str(error))
    if any(word in str(error) for word in _BROKEN):
        _guard.fail(1, f"its connection to another process broke ({message})")
    _guard.fail(1, f"{type(error).__name__}: {message}")


class _Guard(threading.Thread):
    """Ends this process when another has failed, or when no step is finished for too long."""

    def __init__(self, client: Any, process_id: int, limit: int):
        super().__init__(daemon=True)
        self.last_beat: float | None = None  # when the last step was finished, while training
        self.step = 0
        self._client, self._process_id, self._limit = client, process_id, limit
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(1):
            try:
                failure = self._client.key_value_try_get("zoo/failed")
            except Exception:  # there is no such key; or no coordinator, which the heartbeat finds out
                failure = None
            if failure is not None:
                _report(failure)
                os._exit(1)
            beat = self.last_beat
            if beat is not None and time.monotonic() - beat > self._limit:
                faulthandler.dump_traceback(all_threads=True)
                self.fail(1, f"no step was finished for {self._limit} s (the last: {self.step}); it hangs")

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()
        self.join()

    def fail(self, code: int, reason: str) -> None:
        """Publishes the reason and ends this process."""
        self._stopped.set()
        message = f"process {self._process_id} has ended: {reason}"
        with contextlib.suppress(Exception):  # another process was first
            self._client.key_value_set("zoo/failed", message)
        sys.stdout.flush()
        _report(message)
        if self._process_id == 0:  # the store ends with it: the others must have read the reason
            time.sleep(3)
        os._exit(code)


def _report(message: str) -> None:
    print(f"zoo-train: {message}", file=sys.stderr, flush=True)
