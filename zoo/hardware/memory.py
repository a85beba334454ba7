"""How much memory the devices and the host have. Sizes are in bytes; on CPUs the devices share the host's memory.

Importing this loads no JAX: `zoo plan` asks for the host's memory before it sets what JAX reads when it is imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.hardware.topologies import chip_of

if TYPE_CHECKING:
    import jax


def device_memory(device: "jax.Device") -> int | None:
    """Returns the bytes that programs may use on `device`, or None where that is not known.

    A CPU device has its share of the host's memory. A device that is not attached, of a topology to compile for, has
    what the table in `zoo.hardware.topologies` states.
    """
    import jax

    if device.platform == "cpu":
        host = host_memory()
        same = [other for other in device.client.devices() if other.process_index == device.process_index]
        return None if host is None else host // max(len(same), 1)
    try:
        stats = device.memory_stats()
    except (jax.errors.JaxRuntimeError, NotImplementedError, AttributeError):  # a device of a topology
        stats = None
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"]
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.memory


def common_memory(devices: "Sequence[jax.Device]") -> int | None:
    """Returns `device_memory` of a mesh's devices: the smallest of all processes, or None where that is not known.

    All processes must call it and all get the same number, since what they decide by it is compiled into one program.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return device_memory(devices[0])

    own = device_memory(jax.local_devices()[0]) or 0
    least = int(np.min(multihost_utils.process_allgather(np.int32(own >> 20))))  # in MiB: JAX sends int32
    return least << 20 or None


def host_memory() -> int | None:
    """Returns the bytes of RAM that this process may use: the host's, or what its control group allows."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total
