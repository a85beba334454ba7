"""What a checkpoint costs here: how long a save holds up the training loop, and how fast it reaches the disk.

    python benchmarks/checkpoint.py --megabytes 400 --json
    python benchmarks/checkpoint.py --megabytes 4000 --directory /mnt/disk --rounds 5
    JAX_PLATFORMS=cpu python benchmarks/checkpoint.py --devices 4

The state is parameters in float32 and Adam's two moments, in matrices of --columns columns, their rows laid over all
devices. Beside each save stand, on
the same state and the same disk, the ways that cannot be beaten: `jax.device_get` of the whole state for the time that
the loop waits, and one file of the same bytes, written and synced, for the rate. Every round does all of them one after
the other, on arrays made anew (JAX remembers what it has copied), with saves first and second in turn; medians are
taken. A save counts as written when it is synced, renamed, and the one before it is deleted.

On a single CPU device `device_get` copies nothing: it gives a view of the memory. There a copy on the host, which
stands beside it, is the measure; over several (--devices, virtual ones) it puts the parts together and copies.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zoo.checkpoints.manager import Checkpoints

MB = 1e6


def main() -> None:
    options = arguments()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    state = make_state(options.megabytes, options.columns)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    count = len(jax.tree.leaves(state))
    print(f"{device}; {nbytes / MB:,.0f} MB in {count} arrays; {options.directory or tempfile.gettempdir()}")
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=options.directory))
    try:
        rounds = measure(state, directory, options.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    medians = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    found = {
        "blocked_s": medians["blocked"],
        "device_get_s": medians["device_get"],
        "host_copy_s": medians["host_copy"],
        "blocked_over_device_get": medians["blocked"] / medians["device_get"],
        "blocked_over_host_copy": medians["blocked"] / medians["host_copy"],
        "write_gb_per_s": nbytes / medians["written"] / 1e9,
        "raw_write_gb_per_s": nbytes / medians["raw_write"] / 1e9,
    }
    print(f"the loop waits     {found['blocked_s'] * 1e3:9.1f} ms")
    for name, way in (("device_get", "device_get"), ("copy on the host", "host_copy")):
        print(f"{name:18} {found[way + '_s'] * 1e3:9.1f} ms; waits {found['blocked_over_' + way]:.2f} x that")
    print(f"written            {found['write_gb_per_s']:9.2f} GB/s")
    print(f"one file, synced   {found['raw_write_gb_per_s']:9.2f} GB/s")
    if options.json:
        versions = {package: version(package) for package in ("jax", "orbax-checkpoint")}
        settings = {"device": device, "megabytes": nbytes / MB, "arrays": count, "rounds": options.rounds}
        print(json.dumps({**settings, **versions, **found}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=400, help="size of the state (default 400)")
    parser.add_argument("--columns", type=int, default=1024, help="of each matrix (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, help="virtual devices to make of the CPU")
    parser.add_argument("--directory", help="on the disk to measure; default: where temporary files go")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    return parser.parse_args()


def make_state(megabytes: float, columns: int) -> dict[str, Any]:
    """{"params", "mu", "nu"}, each of up to 32 matrices [rows, columns] in float32, together of that size."""
    elements, devices = megabytes * MB / 4 / 3, jax.device_count()
    matrices = max(1, min(32, int(elements / columns / devices)))
    shape = (devices * max(1, round(elements / columns / matrices / devices)), columns)
    rows = NamedSharding(jax.make_mesh((devices,), ("data",)), PartitionSpec("data"))

    @functools.partial(jax.jit, out_shardings=rows)
    def make() -> dict[str, Any]:
        keys = jax.random.split(jax.random.key(0), 3)
        return {
            name: {f"w{i}": jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(matrices)}
            for name, key in zip(("params", "mu", "nu"), keys, strict=True)
        }

    return jax.block_until_ready(make())


def measure(state: dict[str, Any], directory: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds of each way in each round; a first round, which compiles, is left out."""
    # A step of training: the arrays before are donated.
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.0001, tree), donate_argnums=0)
    found = []
    with Checkpoints(directory / "checkpoints", keep=1) as checkpoints:
        for number in range(rounds + 1):
            times: dict[str, float] = {}

            def save(state: Any, times: dict[str, float] = times, number: int = number) -> Any:
                state = jax.block_until_ready(step(state))
                begun = time.perf_counter()
                checkpoints.save(number, state["params"], {"mu": state["mu"], "nu": state["nu"]}, {})
                times["blocked"] = time.perf_counter() - begun
                state = step(state)  # as the loop goes on: what is being saved is donated
                checkpoints.wait()
                times["written"] = time.perf_counter() - begun
                return state

            def get(state: Any, times: dict[str, float] = times) -> Any:
                state = jax.block_until_ready(step(state))
                begun = time.perf_counter()
                on_host = jax.device_get(state)
                times["device_get"] = time.perf_counter() - begun
                begun = time.perf_counter()
                copied = [np.copy(leaf) for leaf in jax.tree.leaves(on_host)]
                times["host_copy"] = time.perf_counter() - begun
                times["raw_write"] = raw_write(copied, directory / "raw")
                return state

            for way in (save, get) if number % 2 else (get, save):
                state = way(state)
            found.append(times)
    return found[1:]


def raw_write(arrays: list[np.ndarray], path: Path) -> float:
    """Seconds to write the arrays into one new file, without a buffer of Python's, and to sync it."""
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for array in arrays:
            view = memoryview(array).cast("B")
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    took = time.perf_counter() - begun
    path.unlink()
    return took


if __name__ == "__main__":
    main()
