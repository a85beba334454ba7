"""The devices that a program is compiled for: those of the ambient mesh (`jax.set_mesh`), or the process's first."""

from functools import cache
from pathlib import Path

import jax


def platform_and_kind() -> tuple[str, str]:
    """Returns the platform ("cpu", "gpu", "tpu") and the kind ("TPU v5 lite") of the device that is compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return platform, device.device_kind


@cache
def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets that Linux reports for this machine's first x86 CPU; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
