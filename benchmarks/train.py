"""How fast a recipe trains here: the very step of zoo-train, timed, and others beside it.

    python benchmarks/train.py recipes/cronica_5m.yaml --steps 10 --vs plain torch --json
    python benchmarks/train.py recipes/kodalite_1b.yaml train.scan_layers=true data.batch_size=64
    python benchmarks/train.py recipes/quickstart.yaml data.batch_size=4 --data

Every round times, one after the other, a step, a large matrix product (2048^3 in float32 on a CPU, 8192^3 in bfloat16
elsewhere) and the programs of --vs: `plain`, crónica in plain JAX; `torch`, the same model in PyTorch, eager and
compiled (transformers' Llama, or a plain module). All begin with the same parameters, see the same batch and must
agree on its loss. Medians over the rounds, so that a busy machine slows all of them alike. Then steps run as zoo-train
runs them, the loss fetched a step late, and the time the host takes is taken apart: waiting for data, laying them on
the devices, starting the step. The process is set as zoo-train sets its own (`zoo.hardware.cpu`, `zoo.train.malloc`).
Tokens are made up, or with --data the recipe's. --parts adds the forward pass alone, and forward and backward.

MFU is model FLOPs by formula (see `Program.flops_per_token`) over that product's rate, and over the device's peak where
the maker states one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Way, alternate, machine, matmul_way, medians, peak_memory_mb

from zoo.hardware import cpu
from zoo.hardware.devices import peak_flops
from zoo.plan.layout import make_mesh_for
from zoo.recipe import Recipe, load_recipe
from zoo.train import step as steps
from zoo.train.malloc import keep_freed_memory
from zoo.train.mesh import put_batch
from zoo.train.program import Program
from zoo.train.step import TrainStep

DOCUMENTS = 4  # in a made-up row, on average, where the recipe masks them

Batch = dict[str, np.ndarray]


def main() -> None:
    options = arguments()
    recipe = load_recipe(options.recipe, options.overrides, check_files=options.data)
    program = as_zoo_train(recipe)
    kernels = ", ".join(map(str, program.attention_kernels))
    print(f"{recipe.name} on {machine()['device']}; {program.compute_dtype.name}; attention by {kernels}", flush=True)
    batches = the_recipes_batches(program) if options.data else made_up_batches(recipe, options.targets)
    batch = next(batches)
    product, product_flops = matmul_way()
    ways = {"step": training_way(program, batch), "matmul": product}
    if options.parts:
        ways |= part_ways(program, batch)
    if "plain" in options.vs:
        from plain import plain_way

        ways["plain"] = plain_way(program, batch)
    if "torch" in options.vs:
        from peers_torch import torch_ways

        ways |= torch_ways(program, batch)
    seconds, first = alternate(ways, options.steps)
    peers = [name for name in ways if name == "plain" or name.startswith("torch")]
    for name in peers:
        agree(ways["step"], ways[name], name, program)
    result = report(program, batch, medians(seconds), first, product_flops, peers)
    result |= breakdown(program, batches, max(3 * options.steps, 10))
    print_breakdown(result)
    result |= {"attention": kernels, "rounds": options.steps, "memory_mb": peak_memory_mb(), **machine()}
    if options.json:
        print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe file")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the recipe")
    parser.add_argument("--steps", type=int, default=5, help="timed rounds after the first, which compiles")
    parser.add_argument("--targets", type=float, default=1.0, help="share of each row that bears loss, at its end")
    parser.add_argument("--vs", nargs="+", choices=["plain", "torch"], default=[], help="programs to time beside it")
    parser.add_argument("--parts", action="store_true", help="time the forward pass, and forward and backward, too")
    parser.add_argument("--data", action="store_true", help="take the recipe's own data")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    return parser.parse_intermixed_args()


def as_zoo_train(recipe: Recipe) -> Program:
    """The recipe's program, in a process that is set as zoo-train sets its own; to be called before JAX is used."""
    cpu.compute_in_calling_thread()
    program = Program(recipe, make_mesh_for(recipe))
    keep_freed_memory(program)
    return program


def made_up_batches(recipe: Recipe, targets: float) -> Iterator[Batch]:
    """The same random batch for ever; where documents are masked, rows of several."""
    rows, length = recipe.data.batch_size, recipe.data.seq_len
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, recipe.model.make_config().vocab_size, (rows, length + 1))
    mask = np.zeros((rows, length), np.float32)
    mask[:, length - round(targets * length) :] = 1
    batch = {"tokens": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32), "loss_mask": mask}
    if recipe.data.document_mask:
        begins = rng.random((rows, length)) < DOCUMENTS / length
        batch["segment_ids"] = 1 + np.cumsum(begins, axis=1, dtype=np.int32)
        batch["positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    while True:
        yield batch


def the_recipes_batches(program: Program) -> Iterator[Batch]:
    """As zoo-train reads them; prepared first where they have not been."""
    from zoo import registry

    task_class = registry.task_class(program.recipe.data.kind)
    yield from task_class.prepare(*task_class.resolve(program.recipe, None, print), print).batches(0)


def begin(program: Program) -> tuple[list[Any], Any]:
    """New parameters and optimizer state, and the parameters that are not trained."""
    return list(program.create()), program.create_frozen() if program.frozen else {}


def training_way(program: Program, batch: Batch) -> Way:
    state, frozen = begin(program)
    step_fn, done = program.step(frozen), 0

    def run():
        nonlocal done
        *state[:], metrics = step_fn(*state, put_batch(batch, program.mesh), done)
        way.losses.append(metrics["loss"])
        done += 1
        return state

    way = Way(run)
    return way


def part_ways(program: Program, batch: Batch) -> dict[str, Way]:
    params, frozen = begin(program)[0][0], begin(program)[1]
    evaluate, placed = program.evaluate(frozen), put_batch(batch, program.mesh)
    # Without an update the gradients still have to be there: their norm is reported.
    tx = optax.set_to_zero()
    shardings = (
        program.shardings[0],
        steps.opt_state_shardings(tx, program.params, program.shardings[0], program.mesh),
    )
    backward = steps.make_train_step(
        program.graphdef,
        frozen,
        tx,
        program.schedule,
        mesh=program.mesh,
        shardings=shardings,
        compute_dtype=program.compute_dtype,
        execution=program.execution,
    )
    state = [begin(program)[0][0], tx.init(params)]

    def run():
        *state[:], _ = backward(*state, placed, 0)
        return state

    return {"forward": Way(lambda: evaluate(params, placed)), "forward + backward": Way(run)}


def agree(ours: Way, peer: Way, name: str, program: Program) -> None:
    """Two programs that do not compute the same loss are not the same training.

    The first loss holds them to the same function; the later ones, where neither drops out, to the same updates.
    """
    exact, drops = program.compute_dtype == np.float32, getattr(program.config, "dropout", 0) > 0
    count = 1 if drops else min(len(ours.losses), len(peer.losses))
    mine, theirs = (np.array([float(loss) for loss in way.losses[:count]]) for way in (ours, peer))
    np.testing.assert_allclose(
        mine, theirs, rtol=2e-4 if exact and not drops else 2e-2, err_msg=f"zoo and {name} train differently"
    )


def breakdown(program: Program, batches: Iterator[Batch], count: int) -> dict[str, float]:
    """`count` steps as zoo-train runs them: each one's loss is waited for when the next has been started.

    A step on one CPU runs in the thread that starts it, so what starting alone takes is measured on a program of the
    same arrays that computes nothing.
    """
    state, frozen = begin(program)
    step_fn = program.step(frozen)
    parts = {"data": 0.0, "put": 0.0, "step": 0.0}
    last, whole = None, 0.0
    for number in range(count + 2):  # the first compiles, the second fills the pipeline
        marks = [time.perf_counter()]
        batch = next(batches)
        marks.append(time.perf_counter())
        placed = put_batch(batch, program.mesh)
        marks.append(time.perf_counter())
        *state[:], metrics = step_fn(*state, placed, number)
        if last is not None:
            float(last)
        last = metrics["loss"]
        marks.append(time.perf_counter())
        if number > 1:
            whole += marks[-1] - marks[0]
            for name, (start, end) in zip(parts, pairwise(marks), strict=True):
                parts[name] += end - start
    jax.block_until_ready(state)
    leaves, dispatch = len(jax.tree.leaves(state)), dispatch_seconds(program, state, placed)
    found = {f"loop_{name}_ms": 1e3 * total / count for name, total in parts.items()}
    host = (parts["data"] + parts["put"]) / count + dispatch
    found |= {"loop_dispatch_ms": 1e3 * dispatch, "leaves": leaves}
    return found | {"loop_ms": 1e3 * whole / count, "loop_host_share": host * count / whole}


def dispatch_seconds(program: Program, state: list[Any], batch: dict[str, jax.Array], rounds: int = 50) -> float:
    """Median time to start a program that takes what a step takes, gives what it gives, and computes nothing."""

    def nothing(params, opt_state, frozen, batch, step):
        # Without the barrier JAX would hand the arguments on and leave them out of the program.
        return *jax.lax.optimization_barrier((params, opt_state)), {"loss": jnp.float32(0)}

    empty = TrainStep(nothing, program.mesh, program.shardings, {})
    took = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        *state[:], _ = empty(*state, batch, number)
        took.append(time.perf_counter() - start)
        jax.block_until_ready(state)
    return statistics.median(took[1:])


def report(
    program: Program,
    batch: Batch,
    median: dict[str, float],
    first: dict[str, float],
    product_flops: float,
    peers: list[str],
) -> dict[str, Any]:
    rows, length = batch["tokens"].shape
    rate = rows * length / median["step"]
    flops, product_rate = program.flops_per_token(length), product_flops / median["matmul"]
    on_cpu = program.mesh.devices.flat[0].platform == "cpu"
    devices = program.mesh.size
    result = {
        "recipe": program.recipe.name,
        "rows": rows,
        "length": length,
        "targets": float(batch["loss_mask"].mean()),
        "dtype": program.compute_dtype.name,
        "tokens_per_s": rate,
        "step_ms": 1e3 * median["step"],
        "compile_s": first["step"] - median["step"],
        "matmul_gflop_per_s": product_rate / 1e9,
        # The convention counts the head for every position, whether or not it bears loss.
        "mfu": flops * rate / (product_rate * (1 if on_cpu else devices)),
        "mfu_of_peak": None if on_cpu else flops * rate / peak_flops()[0] / devices,
    }
    print(f"  {rows} rows of {length}, {result['targets']:.0%} of them targets: {rate:,.0f} tokens/s")
    print(f"  {result['mfu']:.0%} of {product_rate / 1e9:,.0f} GFLOP/s, the rate of a large product", end="")
    print("" if on_cpu else f"; {result['mfu_of_peak']:.0%} of the device's peak")
    print(f"  step {result['step_ms']:,.0f} ms; the first took {result['compile_s']:,.1f} s more, to compile")
    if "forward" in median:
        forward, both = median["forward"], median["forward + backward"]
        parts = {"forward": forward, "backward": both - forward, "update": median["step"] - both}
        result |= {f"{name}_ms": 1e3 * value for name, value in parts.items()}
        print("  " + ", ".join(f"{name} {1e3 * value:,.0f} ms" for name, value in parts.items()))
    result["peers"] = {
        name: {
            "tokens_per_s": rows * length / median[name],
            "ratio": median[name] / median["step"],
            "compile_s": first[name] - median[name],
        }
        for name in peers
    }
    for name, peer in result["peers"].items():
        print(f"  {name} {peer['tokens_per_s']:,.0f} tokens/s: zoo is {peer['ratio']:.2f} times as fast")
    if peers:
        result["ratio"] = min(peer["ratio"] for peer in result["peers"].values())
    return result


def print_breakdown(result: dict[str, Any]) -> None:
    parts = [f"{name} {result[f'loop_{name}_ms']:,.2f}" for name in ("data", "put", "dispatch")]
    print(
        f"  in a loop {result['loop_ms']:,.0f} ms a step, of which the host takes {result['loop_host_share']:.1%} "
        f"({', '.join(parts)}; {result['leaves']} arrays)"
    )


if __name__ == "__main__":
    main()
