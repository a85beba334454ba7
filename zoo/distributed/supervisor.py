"""The parent of a process that is one of several: it forwards signals, and reports which process ended and why.

When a process loses another, JAX's runtime ends it with a C++ stack trace that does not name the cause. The parent
holds that trace back and derives the cause from it.
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
from pathlib import Path

from zoo.distributed.cluster import Cluster
from zoo.distributed.stop import without_ignored

WORKER = "ZOO_TRAIN_WORKER"  # set for the child
# How the runtime's messages about other processes begin; the lines that follow belong to them.
_RUNTIME = re.compile(r"[EFWI]\d{4} [\d:.]+ +\d+ (coordination_service|client\.h|preemption|distributed)")
_ZOO_LINE = re.compile(r"zoo-train: |Traceback ")
_SILENT = re.compile(r"stopped sending heartbeats\):((?:\s*(?:/\S*task:)?\d+\s*$)+)", re.MULTILINE)


def python_command(module: str) -> list[str]:
    """Returns the beginning of a command that runs a module of zoo in a process of its own.

    Such a process looks for no module in the working directory (`python -m` would, and put it first).
    """
    return [sys.executable, "-P", "-m", module]


def supervise(command: Sequence[str], cluster: Cluster | None, *, verbose: bool = False) -> int:
    """Runs a command as one process of the cluster and returns its exit code, 128 + n where signal n ended it.

    Args:
        command: the program and its arguments. SIGTERM, SIGINT and SIGHUP are forwarded to it, as SIGTERM.
        cluster: the processes of the run; None where the command runs alone.
        verbose: whether the runtime's own messages are shown too.
    """
    child: subprocess.Popen | None = None
    signalled = False

    def forward(number: int, frame: object) -> None:
        nonlocal signalled
        signalled = True
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    # Set before there is a child: a signal while it starts must not end this process, which would kill the child.
    numbers = without_ignored(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    old_handlers = {number: signal.signal(number, forward) for number in numbers}
    try:
        child = subprocess.Popen(
            command,
            env=_environment(),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        if signalled:
            child.send_signal(signal.SIGTERM)
        reader = _Reader(child.stderr, verbose)
        code = child.wait()
        reader.thread.join(timeout=5)  # other programs that the child started may hold its stderr
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if code and cluster is not None:
        where = f"process {cluster.process_id} of {cluster.num_processes} ({socket.gethostname()})"
        print(f"zoo-train: {where} {_cause(code, reader, cluster.process_id)}", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def _environment() -> dict[str, str]:
    """Returns the child's environment, in which its own Python processes look for no module in the working directory.

    Where this process itself found zoo through that directory alone, started as `python -m` in the source tree, the
    child is told by PYTHONPATH where zoo lies.
    """
    environment = {**os.environ, WORKER: "1", "PYTHONSAFEPATH": "1"}
    root = Path(__file__).parents[2]
    if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() == root:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return environment


class _Reader:
    """Copies a child's stderr to this process's, except for the runtime's messages, which it collects."""

    def __init__(self, stream, verbose: bool):
        self.messages: deque[str] = deque(maxlen=400)
        self._stream, self._verbose = stream, verbose
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        runtime = False
        for line in self._stream:
            runtime = bool(_RUNTIME.match(line)) or (runtime and not _ZOO_LINE.match(line))
            if runtime:
                self.messages.append(line)
            if self._verbose or not runtime:
                with contextlib.suppress(OSError):  # nobody reads it any more, and the child must not block
                    sys.stderr.write(line)
                    sys.stderr.flush()


def _cause(code: int, reader: _Reader, process_id: int) -> str:
    """Returns how and why the child ended."""
    listed = _SILENT.search("".join(reader.messages))
    silent = sorted({int(number) for number in re.findall(r"(\d+)\s*$", listed[1], re.MULTILINE)}) if listed else []
    name = signal.Signals(-code).name if code < 0 else ""
    if silent := [str(number) for number in silent if number != process_id]:
        return f"ended because process {', '.join(silent)} does not answer any more; start all again to go on"
    if name == "SIGABRT" and reader.messages:
        return "ended because process 0, the coordinator, does not answer any more; start all again to go on"
    if name == "SIGKILL":
        return "was killed by SIGKILL (by hand, or the machine was out of memory)"
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def _die_with_parent() -> None:
    """Makes the kernel kill this process, the child, when its parent is gone. Linux only; elsewhere it goes on."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
