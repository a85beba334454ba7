"""Several processes as one run: who they are, what process 0 tells the others, that none waits for one that is gone.

Every process runs the same program and takes the same steps. Process 0 alone prints and writes small files; what it
finds there it tells the others by `share`. A process is lost in one of three ways, and each ends the others in bounded
time:

    it ends with an error     it tells the others why, and they end at once
    it is killed, or stopped  its heartbeat fails to come for `lost_after` seconds (its connections often break sooner)
    it hangs                  no step is finished for `step_limit` seconds, on any process

Above each process a small parent (`zoo.distributed.supervisor`) says in a line what became of it.
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
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.util import first_line

LOST_AFTER = 60  # seconds without a heartbeat
STEP_LIMIT = 1800  # seconds: compilation, a checkpoint and an evaluation must fit in
_ARRIVAL = 300  # seconds within which all processes must have been started
_A_DAY = 86_400  # waits that end by other means when a process is lost
_BROKEN = ("Gloo", "NCCL", "onnection reset", "onnection closed", "UNAVAILABLE", "heartbeat")
_PIECE = 1 << 20  # bytes of one value in the coordinator's store
_COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
_SLICES = (("MEGASCALE_NUM_SLICES", 1), ("MEGASCALE_SLICE_ID", 0))
_RANKS = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, which of them this is, and where process 0 listens: None leaves that to JAX, which asks
    the scheduler or the TPU.
    """

    num_processes: int
    process_id: int
    coordinator: str | None = None


@dataclass
class _Here:
    """This process among the others."""

    cluster: Cluster | None = None
    client: Any = None
    guard: "_Guard | None" = None
    shared: itertools.count = None


_here = _Here()


def find(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The processes that flags, or else the environment, speak of; None where this process is alone.

    By hand (flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) all three are needed; number and
    id may come from mpirun or srun. Without a coordinator: a step of srun, Open MPI's mpirun, the hosts of a TPU slice.

    Raises UserError where they do not fit together.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        for name, value in (("--num-processes", num_processes), ("--process-id", process_id)):
            if value is not None:
                raise UserError(f"{name} needs --coordinator HOST:PORT, the address of process 0")
        count, rank = _scheduled(environment)
        return Cluster(count, rank) if count > 1 else None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator {coordinator} is not HOST:PORT, the address of process 0 and a free port on it")
    count = _number("--num-processes", num_processes, _COUNTS, environment)
    rank = _number("--process-id", process_id, _RANKS, environment)
    if count < 1 or not 0 <= rank < count:
        raise UserError(f"--process-id is {rank} and --num-processes {count}; ids go from 0 to {count - 1}")
    return Cluster(count, rank, coordinator) if count > 1 else None


def _number(flag: str, value: int | None, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    if value is not None:
        return value
    found = next((environment[name] for name in names if environment.get(name, "").isdecimal()), None)
    if found is None:
        raise UserError(f"{flag} is missing; give it beside --coordinator (or set {names[0]})")
    return int(found)


def _scheduled(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many processes a scheduler that JAX knows, or a TPU slice, has started, and which of them this is."""
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"])
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]), int(environment["OMPI_COMM_WORLD_RANK"])
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or not _has_tpu():
        return 1, 0
    told = dict(environment)
    hosts = told.get("TPU_PROCESS_ADDRESSES") or told.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in told:
        hosts, told["TPU_WORKER_ID"] = _metadata("worker-network-endpoints"), _metadata("agent-worker-number")
        # Lines such as MEGASCALE_NUM_SLICES: '2'.
        rows = (line.partition(":") for line in (_metadata("tpu-env") or "").splitlines())
        told = {name.strip(): value.strip().strip("'") for name, _, value in rows} | told
    in_slice = len((hosts or "").split(","))
    slices, slice_id = (int(told.get(name) or default) for name, default in _SLICES)
    return in_slice * slices, int(told.get("TPU_WORKER_ID") or 0) + slice_id * in_slice


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()


def _metadata(name: str) -> str | None:
    """What the cloud's metadata server says of this machine; None where there is none."""
    address = f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=3) as answer:
        return answer.read().decode()
    return None


# ----------------------------------------------------------------------------------------------------- joining


def initialize(cluster: Cluster, *, lost_after: int = LOST_AFTER, step_limit: int = STEP_LIMIT) -> None:
    """Join the other processes, before any device has been touched; `leave` ends it.

    On processes other than 0 nothing is printed from here on.

    Raises UserError when the others do not come.
    """
    import jax

    try:
        jax.distributed.initialize(
            cluster.coordinator,
            # What JAX finds itself it also knows the local devices of.
            cluster.num_processes if cluster.coordinator else None,
            cluster.process_id if cluster.coordinator else None,
            initialization_timeout=_ARRIVAL,
            heartbeat_timeout_seconds=lost_after,
        )
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"the {cluster.num_processes} processes did not come together at "
            f"{cluster.coordinator or 'the coordinator'} within {_ARRIVAL} s ({reason}); start all of them, "
            f"with the same --coordinator"
        ) from error
    from jax._src.distributed import global_state

    _here.cluster = Cluster(global_state.num_processes, global_state.process_id, global_state.coordinator_address)
    _here.client, _here.shared = global_state.client, itertools.count()
    _here.guard = _Guard(_here.client, global_state.process_id, step_limit)
    _here.guard.start()
    if not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the runtime prints there as well
        logging.getLogger("zoo").setLevel(logging.ERROR)


def active() -> bool:
    """Whether this process is one of several."""
    return _here.cluster is not None


def is_main_process() -> bool:
    """Whether this process prints and writes: it is alone, or process 0."""
    return _here.cluster is None or _here.cluster.process_id == 0


def process_id() -> int:
    """Which of them this is, from 0."""
    return 0 if _here.cluster is None else _here.cluster.process_id


def count() -> int:
    """The number of processes."""
    return 1 if _here.cluster is None else _here.cluster.num_processes


def broadcast(make: Callable[[], Any]) -> Any:
    """What `make` returns on process 0, which must be JSON, told to all; the others wait for it.

    Its UserError is raised on all.
    """
    if not active():
        return make()
    key = f"zoo/shared/{next(_here.shared)}"
    if is_main_process():
        try:
            content = {"value": make()}
        except UserError as error:
            _tell(key, {"error": str(error)})
            raise
        _tell(key, content)
        return content["value"]
    content = json.loads(_told(key))
    if "error" in content:
        raise UserError(content["error"])
    return content["value"]


def assert_equal_across_processes(what: str, value: str) -> None:
    """Raises UserError on a process whose `value` is not that of process 0."""
    if broadcast(lambda: value) != value:
        raise UserError(f"process {_here.cluster.process_id}: {what} are not those of process 0; make all hosts alike")


def _tell(key: str, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    for number, piece in enumerate(pieces):
        _here.client.key_value_set_bytes(f"{key}/{number}", piece)
    _here.client.key_value_set_bytes(key, str(len(pieces)).encode())


def _told(key: str) -> bytes:
    pieces = int(_here.client.blocking_key_value_get_bytes(key, _A_DAY * 1000))
    return b"".join(
        _here.client.blocking_key_value_get_bytes(f"{key}/{number}", _A_DAY * 1000) for number in range(pieces)
    )


def barrier(name: str) -> None:
    """Wait until all processes are here. `name` is used once in a process's life."""
    if active():
        _here.client.wait_at_barrier(f"zoo/{name}", _A_DAY * 1000)


def preempted(boundary: int) -> bool:
    """Whether a SIGTERM to any of the processes is to end all of them here.

    `boundary` counts the calls; every process makes all of them. True comes at the same count on all.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(boundary)


# ------------------------------------------------------------------------------------------------------ ending


@contextlib.contextmanager
def training() -> Iterator[None]:
    """While inside, a step that takes too long ends this process."""
    if _here.guard is None:
        yield
        return
    heartbeat(0)
    try:
        yield
    finally:
        _here.guard.seen = None


def heartbeat(step: int) -> None:
    """Note that this process has finished a step, or a part of an evaluation after it."""
    if _here.guard is not None:
        _here.guard.seen, _here.guard.step = time.monotonic(), step


def leave(code: int) -> None:
    """End this process's part: wait for the others where all went well, else tell them and end at once."""
    if not active():
        return
    if code:
        _here.guard.fail(code, f"exit code {code}")
    import jax

    barrier("done")
    _here.guard.stop()
    jax.distributed.shutdown()
    _here.cluster = None


def fail(error: Exception) -> None:
    """End this process because of an error, and tell the others."""
    text = first_line(error, 300)
    if isinstance(error, UserError):
        _here.guard.fail(2, str(error))
    if any(word in str(error) for word in _BROKEN):
        _here.guard.fail(1, f"its connection to another process broke ({text})")
    _here.guard.fail(1, f"{type(error).__name__}: {text}")


class _Guard(threading.Thread):
    """Ends this process when another has failed, or when no step is finished for too long."""

    def __init__(self, client: Any, process_id: int, limit: int):
        super().__init__(daemon=True)
        self.seen: float | None = None  # when the last step was finished, while training
        self.step = 0
        self._client, self._process_id, self._limit = client, process_id, limit
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(1):
            try:
                told = self._client.key_value_try_get("zoo/failed")
            except Exception:  # there is no such key, or no coordinator: of that the heartbeat takes care
                told = None
            if told is not None:
                _say(told)
                os._exit(1)
            seen = self.seen
            if seen is not None and time.monotonic() - seen > self._limit:
                faulthandler.dump_traceback(all_threads=True)
                self.fail(1, f"no step was finished for {self._limit} s (the last: {self.step}); it hangs")

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        self.join()

    def fail(self, code: int, reason: str) -> None:
        """Tell the others and end this process."""
        self._stopped.set()
        text = f"process {self._process_id} has ended: {reason}"
        with contextlib.suppress(Exception):  # another was first
            self._client.key_value_set("zoo/failed", text)
        sys.stdout.flush()
        _say(text)
        if self._process_id == 0:  # with it goes the store: the others must have read it
            time.sleep(3)
        os._exit(code)


def _say(text: str) -> None:
    print(f"zoo-train: {text}", file=sys.stderr, flush=True)
