"""Which processes make up a run, from flags or from the environment that a scheduler or a TPU slice sets."""

import contextlib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UserError

_COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
_RANKS = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_SLICES = (("MEGASCALE_NUM_SLICES", 1), ("MEGASCALE_SLICE_ID", 0))


@dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        coordinator: HOST:PORT where process 0 listens; None leaves it to JAX, which asks the scheduler or the TPU.
    """

    num_processes: int
    process_id: int
    coordinator: str | None = None


def find_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Returns the cluster that the flags, or else the environment, describe; None where this process is alone.

    By hand (flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) all three are needed; number and
    id may come from mpirun or srun. Without a coordinator: a step of srun, Open MPI's mpirun, the hosts of a TPU slice.

    Raises:
        UserError: the flags are incomplete or contradict one another.
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
    set_value = next((environment[name] for name in names if environment.get(name, "").isdecimal()), None)
    if set_value is None:
        raise UserError(f"{flag} is missing; give it beside --coordinator (or set {names[0]})")
    return int(set_value)


def _scheduled(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns the number of processes that a scheduler known to JAX, or a TPU slice, has started, and this one's id."""
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"])
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]), int(environment["OMPI_COMM_WORLD_RANK"])
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or not _has_tpu():
        return 1, 0
    facts = dict(environment)
    hosts = facts.get("TPU_PROCESS_ADDRESSES") or facts.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in facts:
        hosts, facts["TPU_WORKER_ID"] = _metadata("worker-network-endpoints"), _metadata("agent-worker-number")
        # Lines such as MEGASCALE_NUM_SLICES: '2'.
        rows = (line.partition(":") for line in (_metadata("tpu-env") or "").splitlines())
        facts = {name.strip(): value.strip().strip("'") for name, _, value in rows} | facts
    in_slice = len((hosts or "").split(","))
    slices, slice_id = (int(facts.get(name) or default) for name, default in _SLICES)
    return in_slice * slices, int(facts.get("TPU_WORKER_ID") or 0) + slice_id * in_slice


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()


def _metadata(name: str) -> str | None:
    """Returns an attribute of this machine from the cloud's metadata server; None where there is none."""
    address = f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=3) as answer:
        return answer.read().decode()
    return None
