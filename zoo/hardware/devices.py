"""The devices of this process: how fast they are, and how much memory has been used on them."""

import math
import resource
import sys
import time

import jax
import jax.numpy as jnp

from zoo.hardware.topologies import chip_of


def peak_flops() -> tuple[float, str]:
    """Returns the FLOP/s of all devices together, and where the figure comes from.

    For accelerators that `zoo.hardware.topologies` knows it is the maker's dense bfloat16 peak; for others it is
    measured on float32 products of 2048 x 2048 matrices, the best of three.
    """
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    if chip is not None and chip.bf16_flops is not None:
        return chip.bf16_flops * jax.device_count(), f"{device.device_kind}, stated bfloat16 peak"
    size = 2048
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # Virtual devices of one CPU share its cores, so the measured rate is that of all of this process.
    return jax.process_count() * 2 * size**3 / best, f"float32 matmul {size}^3 measured at the start"


def peak_memory_mb() -> float:
    """Returns the peak memory in 10^6 bytes of the fullest local device, or of the process where devices tell none."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
