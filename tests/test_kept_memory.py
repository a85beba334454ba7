"""What a step on one CPU frees is kept for the next one; by whom it is not."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import resource
    import sys

    import jax
    import jax.numpy as jnp
    from test_memory import recipe_of

    from zoo.hardware import cpu
    from zoo.train import memory
    from zoo.train.malloc import keep_freed_memory
    from zoo.plan.layout import make_mesh_for
    from zoo.train.program import Program

    limit = int(sys.argv[1])
    if limit:
        memory.device_memory = lambda device: limit
    recipe = recipe_of()
    cpu.compute_in_calling_thread()
    kept = keep_freed_memory(Program(recipe, make_mesh_for(recipe)))
    large = jax.jit(jnp.outer)  # 64 MB
    x = jnp.ones(4096)
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        large(x, x).block_until_ready()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(int(kept), min(faults))  # something small may have been put into the block meanwhile
"""


def kept_and_faults(limit: int = 0, **environment: str) -> tuple[bool, int]:
    """Whether memory is said to be kept, and how many of its 16,384 pages a program finds anew at the least."""
    tests = str(Path(__file__).parent)
    dropped = {name: value for name, value in os.environ.items() if name != "JAX_CPU_ENABLE_ASYNC_DISPATCH"}
    environment = {**dropped, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": tests, **environment}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


def test_the_memory_of_a_step_is_kept_for_the_next():
    kept, faults = kept_and_faults()
    assert kept and faults < 1000


@pytest.mark.parametrize(
    ("limit", "environment"),
    [
        (1000, {}),  # it would be more than a quarter of the memory
        (0, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}),
        (0, {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"}),  # another thread computes
    ],
)
def test_it_is_given_back_where_keeping_it_is_of_no_use_or_would_cost_others(limit, environment):
    kept, faults = kept_and_faults(limit, **environment)
    assert not kept and faults > 10_000


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "False"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "True"),
        ({"JAX_NUM_CPU_DEVICES": "2"}, "True"),
        ({"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}, "True"),
    ],
)
def test_who_computes_in_the_calling_thread(environment, expected):
    program = """
        import jax

        from zoo.hardware import cpu

        cpu.compute_in_calling_thread()
        print(jax.config.read("jax_cpu_enable_async_dispatch"))
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", *environment)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**inherited, **environment})
    assert done.stdout.strip() == expected
