"""How this process computes on a CPU."""

import os
import re

import jax

_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def compute_in_calling_thread() -> None:
    """Have computations of one CPU device run in the thread that starts them, and not in one that stands by.

    For programs that wait for what they start anyway: decoding is a sixth quicker, and the memory of a training step
    can be kept for the next (see `zoo.train.malloc`). Read when JAX first looks for devices, so it is to be called
    before; a process that already did so keeps its setting, and so does one that has been told by
    JAX_CPU_ENABLE_ASYNC_DISPATCH. Accelerators do not know it. (jax_cpu_enable_async_dispatch in JAX's configuration.)
    """
    told = _DEVICES.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(jax.config.jax_num_cpu_devices, int(told[-1]) if told else 1)
    if devices == 1 and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
