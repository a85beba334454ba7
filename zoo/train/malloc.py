"""Reusing the memory of a training step on one CPU for the next step.

XLA asks malloc for all of a step's activations in one block (0.9 GB for 8 rows of 768 of crónica) and frees it when the
step ends. By default glibc returns a block of that size to the system, which zeroes it again at the next step's first
touch, page by page, while the other cores wait; here glibc is set to keep it. That works for the process's main thread
alone, since glibc's arenas for other threads are too small for such a block: hence `compute_in_calling_thread`.
"""

import ctypes
import sys

import jax

from zoo.hardware import memory
from zoo.train.program import Program

# Of malloc.h, see mallopt(3), which returns 1 on success.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0
# Memory that is kept is lost to other threads and programs: never more than this share of it.
MOST_KEPT = 0.25


def keep_freed_memory(program: Program) -> bool:
    """Lets this process keep the memory that it frees, and returns whether it does.

    It does so only for a program on one CPU that takes a small part of the memory (`MOST_KEPT`), where malloc is
    glibc's and the main thread computes.
    """
    device = program.mesh.devices.flat[0]
    one_cpu = device.platform == "cpu" and program.mesh.size == 1 and jax.process_count() == 1
    if sys.platform != "linux" or not one_cpu or jax.config.read("jax_cpu_enable_async_dispatch"):
        return False
    limit, guess = memory.device_memory(device), program.estimated_memory(program.microbatch.rows)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or limit is None or guess is None or guess > MOST_KEPT * limit:
        return False
    return mallopt(_MMAP_MAX, _NONE) == 1 and mallopt(_TRIM_THRESHOLD, _NEVER) == 1
