"""How training runs on one CPU device: in the thread that calls it, in memory that the process keeps.

XLA asks malloc for all of a step's activations in one block (0.9 GB for 8 rows of 768 of crónica) and gives it back
when the step ends. glibc hands a block of that size on to the system, which zeroes it again at the next step's first
touch, page by page, while the other cores wait. With both settings below the same block is used by every step. The
first is for the second: what glibc keeps for any thread but the main one is kept in pieces too small for such a block.
"""

import ctypes
import os
import re
import sys

import jax

from zoo.train import memory
from zoo.train.program import Program

# Of malloc.h; mallopt returns 1 where it has done as told.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0
# What is kept is lost to other threads and programs: never more than this share of the memory.
MOST_KEPT = 0.25
_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def step_in_calling_thread() -> None:
    """Have computations of one CPU device run in the thread that starts them; they are waited for anyway.

    Read when JAX first looks for devices, so it is to be called before; a process that already did so keeps its
    setting, and so does one that has been told by JAX_CPU_ENABLE_ASYNC_DISPATCH. Accelerators do not know it.
    """
    told = _DEVICES.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(jax.config.jax_num_cpu_devices, int(told[-1]) if told else 1)
    if devices == 1 and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory(program: Program) -> bool:
    """Have this process keep what it frees, for its next step; whether it does.

    Only for a program on one CPU that takes a small part of the memory (`MOST_KEPT`), and where malloc is glibc's.
    """
    device = program.mesh.devices.flat[0]
    if sys.platform != "linux" or device.platform != "cpu" or program.mesh.size > 1 or jax.process_count() > 1:
        return False
    limit, guess = memory.device_memory(device), memory.estimate(program, program.microbatch.rows)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or limit is None or guess is None or guess > MOST_KEPT * limit:
        return False
    return mallopt(_MMAP_MAX, _NONE) == 1 and mallopt(_TRIM_THRESHOLD, _NEVER) == 1
