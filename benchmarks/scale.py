"""Whether every model trains the same on every mesh: twenty steps of each, held against one device.

    python benchmarks/scale.py                                  # the whole table, as Markdown
    python benchmarks/scale.py --models gelu-d12 --layouts "fsdp 8" "2 processes: tensor 8" --json

Tiny models with a vocabulary of 257 and, where the model has such, two kv heads (a tensor axis of 4 divides neither) in
float32 on eight virtual CPU devices, in one process or in two that talk over gloo. All begin with the same parameters
and see the same batches, whose rows have different numbers of targets. A line of the table is one layout of one model
and says by how much at most it is off one device:

    losses       relative, over all steps
    gradients    after the first step (its first moments, which are the clipped gradient times 1 - b1), by leaf,
                 relative to the leaf's largest number
    state        parameters and both moments after the last step, likewise

The exit code is 1 where a loss is off by more than 1e-5, a gradient by more than 1e-4 or the state by more than 1e-3,
or where parameters and moments do not lie as the model's logical axes say.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STEPS, ROWS, LENGTH, VOCAB = 20, 8, 16, 257
LIMITS = {"losses": 1e-5, "gradients": 1e-4, "state": 1e-3}
SIZES = dict(vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=8, head_dim=4, mlp_dim=48, max_seq_len=LENGTH)
MODELS = {
    "cronica-5m": {},
    "kodalite-1.3b": dict(num_kv_heads=2),
    # Of two layers it would back out the last stream itself: the gradient of that scale is zero but for rounding.
    "gelu-d12": dict(num_layers=3, num_kv_heads=2, vocab_pad_multiple=1, window_pattern="SL"),
    "bwetaf-97m": dict(num_kv_heads=2, rope_dtype="float32"),
    "tiny-lm": {},
}
ONE = "1 device"
# name: (processes, mesh section)
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "data 8": (1, dict(data=8, fsdp=1, tensor=1)),
    "fsdp 8": (1, dict(data=1, fsdp=8, tensor=1)),
    "data 2 x tensor 4": (1, dict(data=2, fsdp=1, tensor=4)),
    "data 2 x fsdp 2 x tensor 2": (1, dict(data=2, fsdp=2, tensor=2)),
    "2 processes: data 2 x fsdp 2 x tensor 2": (2, dict(data=2, fsdp=2, tensor=2)),
    "2 processes: tensor 8": (2, dict(data=1, fsdp=1, tensor=8)),
}


def main() -> None:
    options = _arguments()
    if options.worker:
        _work(**json.loads(options.worker))
        return
    with tempfile.TemporaryDirectory() as directory:
        rows = [row for model in options.models for row in measure(model, options.layouts, Path(directory))]
    print(json.dumps(rows, indent=1) if options.json else as_markdown(rows))
    bad = [f"{row['model']}, {row['layout']}" for row in rows if not agrees(row)]
    if bad:
        print(f"not within {LIMITS}: {'; '.join(bad)}", file=sys.stderr)
    raise SystemExit(1 if bad else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def agrees(row: dict[str, Any]) -> bool:
    """Whether a line of the table is within the limits."""
    return all(row[name] <= limit for name, limit in LIMITS.items())


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| model | layout | last loss | losses | gradients | state |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = " | ".join(f"{row[name]:.1e}" for name in LIMITS)
        lines.append(f"| {row['model']} | {row['layout']} | {row['loss']:.6f} | {numbers} |")
    return "\n".join(lines)


def measure(model: str, layouts: Sequence[str], directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of one model; what one device gives is kept in `directory` for the others."""
    by_processes = {count: [name for name in layouts if LAYOUTS[name][0] == count] for count in (1, 2)}
    if by_processes[1] or not (directory / f"{model}.npz").exists():
        yield from _run([dict(model=model, layouts=by_processes[1], directory=str(directory))], devices=8)
    if by_processes[2]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        common = dict(model=model, layouts=by_processes[2], directory=str(directory), address=address)
        yield from _run([common | {"process": process} for process in (0, 1)], devices=4)


def _run(tasks: Sequence[dict[str, Any]], devices: int) -> list[dict[str, Any]]:
    """What the first of the worker processes prints."""
    # Compiled with little effort: it is the results that count, and there are forty programs.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    # Eight devices that wait for one another want as many threads, however few cores there are.
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, NPROC="32")
    command = [sys.executable, __file__, "--worker"]
    workers = [
        subprocess.Popen([*command, json.dumps(task)], env=env, text=True, stdout=subprocess.PIPE, stderr=stderr)
        for task, stderr in zip(tasks, (None, subprocess.DEVNULL), strict=False)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    for worker in workers:
        if worker.returncode:
            raise SystemExit(f"a worker ended with code {worker.returncode}")
    return [json.loads(line) for line in printed[0].splitlines() if line.startswith("{")]


def _work(model: str, layouts: Sequence[str], directory: str, address: str = "", process: int = 0) -> None:
    """Train on every layout and print how far it is off one device, a JSON object a line."""
    import jax

    if address:
        jax.distributed.initialize(address, num_processes=2, process_id=process)
    file = Path(directory) / f"{model}.npz"
    if not file.exists():
        one = train(model, dict(data=1, fsdp=1, tensor=1), None)
        np.savez(file, **one)
        print(json.dumps(dict(model=model, layout=ONE, loss=float(one["losses"][-1]), **dict.fromkeys(LIMITS, 0.0))))
    one = dict(np.load(file))
    for layout in layouts:
        other = train(model, LAYOUTS[layout][1], one)
        off = {name: 0.0 for name in LIMITS}
        for name, value in other.items():
            kind, wanted = name.split(" ")[0], one[name]
            if kind in off:
                scale = np.abs(wanted) if kind == "losses" else np.abs(wanted).max()
                worst = np.abs(value - wanted) / np.maximum(scale, 1e-30)
                off[kind] = max(off[kind], float(worst.max()) if np.isfinite(value).all() else np.inf)
        print(json.dumps(dict(model=model, layout=layout, loss=float(other["losses"][-1]), **off)), flush=True)


def train(model: str, sizes: dict[str, int], start: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Train on a mesh of these sizes: losses, and by leaf "start", "gradients" and "state".

    Args:
        model: of MODELS.
        sizes: the recipe's mesh section; devices that it leaves over have a rest.
        start: what one device gave: its "start" leaves are begun with; None makes them.
    """
    import jax
    import optax

    from zoo.recipe import make_recipe
    from zoo.train.mesh import make_mesh, own_rows, put_batch
    from zoo.train.program import Program

    recipe = make_recipe(
        {
            "name": "scale",
            "model": {"name": model, **SIZES, **MODELS[model]},
            "data": {"batch_size": ROWS, "seq_len": LENGTH},
            "optimizer": {"peak_lr": 3e-3, "warmup_steps": 2, "warmup_init_lr": 1e-3},
            "train": {"steps": STEPS, "compute_dtype": "float32"},
            "mesh": sizes,
        }
    )
    mesh = make_mesh(recipe.mesh, jax.devices()[: int(np.prod(list(sizes.values())))])
    program = Program(recipe, mesh)
    start = _start(program) if start is None else start
    abstract, structure = jax.tree.flatten(program.params)
    leaves = [
        jax.make_array_from_callback(leaf.shape, leaf.sharding, start[f"start {number}"].__getitem__)
        for number, leaf in enumerate(abstract)
    ]
    params = jax.tree.unflatten(structure, leaves)
    opt_state = program.new_opt_state(params)
    found = _named("start", params)
    step = program.step(program.frozen)
    losses = []
    for number, batch in enumerate(_batches()):
        params, opt_state, metrics = step(params, opt_state, put_batch(own_rows(batch, mesh), mesh), number)
        losses.append(float(metrics["loss"]))
        if number == 0:
            found |= _named("gradients", optax.tree.get(opt_state, "mu"))
    for leaf, sharding in zip(jax.tree.leaves((params, opt_state)), jax.tree.leaves(program.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (leaf.shape, leaf.sharding, sharding)
    return found | _named("state", (params, opt_state)) | {"losses": np.array(losses)}


def _start(program: Any) -> dict[str, np.ndarray]:
    """New parameters with nothing left at zero: gradients that are zero but for rounding could not be compared."""
    rng = np.random.default_rng(0)
    created = _named("start", program.create()[0])
    return {
        name: np.asarray(value + 0.1 * rng.standard_normal(value.shape), np.float32) for name, value in created.items()
    }


def _batches() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
        targets = rng.integers(0, LENGTH + 1, (ROWS, 1))
        mask = (np.arange(LENGTH) < targets).astype(np.float32)
        yield {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "loss_mask": mask}


def _named(kind: str, tree: Any) -> dict[str, np.ndarray]:
    """Every leaf as a whole, wherever it lies."""
    import jax

    leaves = jax.tree.leaves(tree)
    if jax.process_count() > 1:
        everywhere = jax.sharding.NamedSharding(leaves[0].sharding.mesh, jax.sharding.PartitionSpec())
        leaves = [leaf.addressable_data(0) for leaf in jax.jit(lambda x: x, out_shardings=everywhere)(leaves)]
    return {f"{kind} {number}": np.array(leaf) for number, leaf in enumerate(leaves)}


if __name__ == "__main__":
    main()
