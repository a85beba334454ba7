"""What a TPU would run of a recipe's step, by compiling it without one (pip install 'zoo-nnx[plan]').

    python benchmarks/tpu_check.py recipes/gelu_d12.yaml v6e:2x4 --json
    python benchmarks/tpu_check.py recipes/bwetaf_97m.yaml v3:2x2 model.float32_statistics=true

It says, and exits with 1 where it is not so, that attention is computed by the kernel meant for the chip, that no large
product of a bfloat16 step is in float32, and that nothing but parameters is gathered from other devices. The modelled
time of a step is the longest of computing at the chip's peak, of reading and writing memory, and of sending what the
compiled program sends: an upper bound on the MFU, see `zoo plan`.
"""

import argparse
import json
import math
import os
import re
import sys

TENSOR = r"tensor<([0-9x]+)x(\w+)>"
PRODUCT = re.compile(rf"stablehlo\.dot_general.* : \({TENSOR}, {TENSOR}\) -> {TENSOR}")
BATCHED = re.compile(r"batching_dims = \[([0-9, ]+)\]")
LARGE = 2**26  # multiply-adds from which a product counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("topology", help="v6e:2x4, v3:2x2, ...")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    options = parser.parse_intermixed_args()
    from zoo.hardware.topologies import parse_topology
    from zoo.plan.targets import devices, environment

    topology = parse_topology(options.topology)
    os.environ.update(environment(topology))  # before JAX is imported

    import jax.numpy as jnp

    from zoo.models import build
    from zoo.plan.report import make_plan
    from zoo.recipe import load_recipe
    from zoo.recipe.training import MeshSection
    from zoo.train.mesh import make_mesh
    from zoo.train.program import Program

    recipe = load_recipe(options.recipe, options.overrides, check_files=False)
    plan = make_plan(recipe, topology, trials=0, mfu=1.0, say=lambda text: print(text, file=sys.stderr, flush=True))
    program = Program(plan.recipe, make_mesh(MeshSection(**plan.mesh), devices(topology)))
    text = program.lower().as_text()
    sizes = (leaf.size for leaf in build.flatten(program.params).values())
    parameter_bytes = sum(sizes) * program.compute_dtype.itemsize
    gathered = None
    if plan.needs.collectives is not None:
        gathered = sum(one.payload for one in plan.needs.collectives if one.kind == "all-gather")
    kernels = [str(kernel) for kernel in program.attention_kernels]
    wide = float32_products(text) if program.compute_dtype != jnp.float32 else []
    old = topology.chip.name in ("v2", "v3")
    checks = {
        "attention by the chip's kernel": all(kernel == "splash" for kernel in kernels) or old,
        "kernels in the program": old or "tpu_custom_call" in text,
        "no large product in float32": not wide,
        # Forward and backward each gather every parameter at most once.
        "nothing but parameters gathered": gathered is None or gathered <= 2.1 * parameter_bytes,
    }
    bound = plan.bounds.step()
    result = {
        "recipe": recipe.name,
        "topology": topology.text,
        "mesh": plan.mesh,
        "attention": kernels,
        "float32_products": wide,
        "gathered_bytes": gathered,
        "parameter_bytes": parameter_bytes,
        "fits": plan.fits,
        "bounds_ms": {name: getattr(plan.bounds, name) and 1e3 * getattr(plan.bounds, name) for name in BOUNDS},
        "modelled_mfu": plan.bounds.compute / bound if bound else None,
        "checks": checks,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps(result))
    return 0 if all(checks.values()) else 1


BOUNDS = ("compute", "memory", "network")


def float32_products(text: str) -> list[str]:
    """The large products of float32 matrices in a lowered program, as `left x right`."""
    found = set()
    for line in text.splitlines():
        match = PRODUCT.search(line)
        if match is None or (match[2], match[4]) != ("f32", "f32"):
            continue
        sizes = [[int(size) for size in match[i].split("x")] for i in (1, 3, 5)]
        batched = BATCHED.search(line)
        axes = [int(axis) for axis in batched[1].split(",")] if batched else []
        batch = math.prod(sizes[0][axis] for axis in axes)
        # left * right * out is the square of the multiply-adds, once more by the batch.
        if math.isqrt(math.prod(map(math.prod, sizes)) // batch) >= LARGE:
            found.add(f"{match[1]} . {match[3]}")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
