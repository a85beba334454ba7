"""How this process runs computations on a CPU."""

import os
import re

import jax

_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def compute_in_calling_thread() -> None:
    """Makes computations on a single CPU device run in the thread that starts them, not in a worker thread.

    This is for programs that wait for what they start anyway: decoding is a sixth faster, and the memory of a training
    step can be kept for the next (see `zoo.train.malloc`). JAX reads the setting, jax_cpu_enable_async_dispatch, when
    it first looks for devices, so call this before. It has no effect with several CPU devices, on accelerators, or
    where the environment sets JAX_CPU_ENABLE_ASYNC_DISPATCH.
    """
    flags = _DEVICES.findall(os.environ.get("XLA_FLAGS", ""))
    devices = max(jax.config.jax_num_cpu_devices, int(flags[-1]) if flags else 1)
    if devices == 1 and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
