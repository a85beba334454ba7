"""The parent of a process that is one of several: it passes signals on, and says which process ended and why.

When a process loses another, JAX's runtime ends it with a C++ stack that names no cause a person could use. So that
stack is held back here and read.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence

from zoo.distributed.runtime import Cluster

WORKER = "ZOO_TRAIN_WORKER"  # set for the child
# What the runtime says about other processes begins so; the lines that follow belong to it.
_RUNTIME = re.compile(r"[EFWI]\d{4} [\d:.]+ +\d+ (coordination_service|client\.h|preemption|distributed)")
_OURS = re.compile(r"zoo-train: |Traceback ")
_SILENT = re.compile(r"stopped sending heartbeats\):((?:\s*(?:/\S*task:)?\d+\s*$)+)", re.MULTILINE)


def supervise(command: Sequence[str], cluster: Cluster | None, *, verbose: bool = False) -> int:
    """Run `command` as one process of the cluster (None: alone) and return its exit code (128 + the signal that ended
    it).

    SIGTERM and SIGINT go on to the child, both as SIGTERM. `verbose`: the runtime's own messages are shown too.
    """
    child: subprocess.Popen | None = None
    asked = False

    def forward(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    # Before there is a child: what comes while it starts must not end this process, which would kill the child.
    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = subprocess.Popen(
            command,
            env={**os.environ, WORKER: "1"},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        if asked:
            child.send_signal(signal.SIGTERM)
        reader = _Reader(child.stderr, verbose)
        code = child.wait()
        reader.thread.join(timeout=5)  # what else the child has started may hold its stderr
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code and cluster is not None:
        where = f"process {cluster.process_id} of {cluster.num_processes} ({socket.gethostname()})"
        print(f"zoo-train: {where} {_why(code, reader, cluster.process_id)}", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


class _Reader:
    """Passes a child's stderr on, but keeps the runtime's messages."""

    def __init__(self, stream, verbose: bool):
        self.kept: deque[str] = deque(maxlen=400)
        self._stream, self._verbose = stream, verbose
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        runtime = False
        for line in self._stream:
            runtime = bool(_RUNTIME.match(line)) or (runtime and not _OURS.match(line))
            if runtime:
                self.kept.append(line)
            if self._verbose or not runtime:
                with contextlib.suppress(OSError):  # whoever read it is gone, and the child must not wait for him
                    sys.stderr.write(line)
                    sys.stderr.flush()


def _why(code: int, reader: _Reader, process_id: int) -> str:
    """What became of the child, in words."""
    found = _SILENT.search("".join(reader.kept))
    silent = sorted({int(number) for number in re.findall(r"(\d+)\s*$", found[1], re.MULTILINE)}) if found else []
    name = signal.Signals(-code).name if code < 0 else ""
    if silent := [str(number) for number in silent if number != process_id]:
        return f"ended because process {', '.join(silent)} does not answer any more; start all again to go on"
    if name == "SIGABRT" and reader.kept:
        return "ended because process 0, the coordinator, does not answer any more; start all again to go on"
    if name == "SIGKILL":
        return "was killed by SIGKILL (by hand, or the machine was out of memory)"
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def _die_with_parent() -> None:
    """In the child: get SIGKILL when the parent is gone, however it went (Linux; elsewhere the child goes on)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
