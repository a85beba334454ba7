"""The devices of a topology: those of TPUs come from libtpu's compiler; for GPUs and CPUs the CPU's devices stand in.

This module must not import JAX at the top: JAX reads the variables of `environment` when it is imported.
"""

import os
from typing import Any

from zoo.errors import UserError
from zoo.hardware.memory import host_memory
from zoo.hardware.topologies import Topology


def environment(topology: Topology) -> dict[str, str]:
    """Returns the environment variables with which JAX compiles for `topology` on a machine without its devices."""
    if topology.chip.platform == "tpu":
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": topology.accelerator_type,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time, or a plan beside a training
            "TPU_LOG_DIR": "disabled",
            "TPU_MIN_LOG_LEVEL": "3",
            "TPU_STDERR_LOG_LEVEL": "3",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    count = f"--xla_force_host_platform_device_count={topology.num_devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()}


def devices(topology: Topology) -> list[Any]:
    """Returns as many devices as `topology` has, to make a mesh of; for TPUs they are those of its compiler.

    Raises:
        UserError: libtpu is missing or does not know the shape; JAX was started with fewer devices.
    """
    import jax

    if topology.chip.platform == "tpu":
        return _of_libtpu(topology)
    here = jax.devices("cpu")
    if len(here) < topology.num_devices:
        raise UserError(
            f"{topology.text} is planned with {topology.num_devices} virtual devices, but this process has "
            f"{len(here)}; plan in a new process, with zoo.plan.targets.environment set before JAX is imported"
        )
    return here[: topology.num_devices]


def _of_libtpu(topology: Topology) -> list[Any]:
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            f"--topology {topology.text} is compiled by libtpu, which is missing; pip install 'zoo-nnx[plan]'"
        ) from None
    from jax.experimental import topologies

    # Both cores of a v4 chip act as one device; libtpu alone would show two.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {topology.text}: libtpu knows no such slice ({reason}); take another shape"
        ) from None


def usable_memory(topology: Topology) -> int:
    """Returns the bytes of a device that a training may use.

    Of a GPU JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; the devices of a CPU share
    this machine's memory, or what this process may use of it.

    Raises:
        UserError: this machine does not say how much memory it has, or as `gpu_fraction`.
    """
    if topology.chip.platform == "cpu":
        host = host_memory()
        if host is None:
            raise UserError("this machine does not say how much memory it has; plan for a GPU or a TPU (--topology)")
        return host // topology.num_devices
    memory = topology.chip.memory
    assert memory is not None
    return int(memory * gpu_fraction()) if topology.chip.platform == "gpu" else memory


def gpu_fraction() -> float:
    """Returns the share of a GPU's memory that JAX takes, by XLA_PYTHON_CLIENT_MEM_FRACTION.

    Raises:
        UserError: the variable is not a number above 0 and at most 1.
    """
    text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"XLA_PYTHON_CLIENT_MEM_FRACTION is {text!r}; give a share of 1, as in 0.92")
    return share
