"""Timing programs side by side: what the benchmarks share."""

import contextlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

CPU_MATMUL, ACCELERATOR_MATMUL = 2048, 8192


@dataclass
class Way:
    """Something to time: `run` starts it and returns what to wait for, if anything; losses are kept to be compared."""

    run: Callable[[], Any]
    losses: list[Any] = field(default_factory=list)


def alternate(ways: dict[str, Way], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way, round after round, one way after the other, and of each one's first run, which compiles."""
    first = {}
    for name, way in ways.items():
        start = time.perf_counter()
        jax.block_until_ready(way.run())
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            # Once untimed: the first run after another program pays for the memory that one gave back.
            jax.block_until_ready(way.run())
            start = time.perf_counter()
            jax.block_until_ready(way.run())
            seconds[name].append(time.perf_counter() - start)
    return seconds, first


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul_way() -> tuple[Way, float]:
    """A large square product, float32 on a CPU and bfloat16 elsewhere, and its FLOPs."""
    on_cpu = jax.devices()[0].platform == "cpu"
    size, dtype = (CPU_MATMUL, jnp.float32) if on_cpu else (ACCELERATOR_MATMUL, jnp.bfloat16)
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return Way(lambda: product(a, a)), 2.0 * size**3


def peak_memory_mb() -> float:
    """The most memory used so far: of the device where it tells, of this process on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> dict[str, Any]:
    """Hardware and versions, for the JSON."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    versions = {}
    for package in ("jax", "jaxlib", "torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"device": devices, "cpu": cpu, "versions": versions}
