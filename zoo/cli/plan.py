"""`zoo plan RECIPE --topology v6e:2x4`: does it fit, and how fast could it be?"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import print_columns

if TYPE_CHECKING:
    from zoo.plan.report import Plan

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.FIELD=VALUE", help="Values that replace the recipe's."),
    ] = None,
    topology: Annotated[
        str, typer.Option("--topology", metavar="CHIP:SHAPE", help="v6e:2x4, v3:4x4, h200:8, cpu:8, ...")
    ] = "",
    trials: Annotated[
        int,
        typer.Option("--trials", min=0, help="Steps to compile in search of the largest batch; 0: no search."),
    ] = 4,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the peak FLOP/s assumed for the prediction.")
    ] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> int:
    """Say before anything is paid for whether a recipe fits on a topology, and how fast it could be.

    The recipe's real training step is compiled ahead of time, for TPUs by libtpu (pip install 'zoo-nnx[plan]'; no TPU
    is needed), for CPUs with as many virtual devices. For GPUs memory and collectives are estimated, and marked so. No
    data are read. Exit code 1: it does not fit; changes that would fit are named.

    \b
    Examples:
      zoo plan recipes/kodalite_1b.yaml --topology v6e:2x4 mesh.fsdp=8
      zoo plan recipes/bwetaf_97m.yaml --topology v3:2x2 --json
      zoo plan recipes/gelu_d12.yaml --topology h200:8 --trials 0
    """
    from zoo.errors import UserError
    from zoo.hardware.topologies import EXAMPLES, parse_topology
    from zoo.plan.targets import environment

    if not topology:
        raise UserError(f"--topology is missing; for example --topology {EXAMPLES.split(', ')[0]}, or {EXAMPLES}")
    try:
        target = parse_topology(topology)
    except ValueError as error:
        raise UserError(f"--topology: {error}") from None
    os.environ.update(environment(target))  # before JAX is imported

    from zoo.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), check_files=False)

    from zoo.plan.report import make_plan

    made = make_plan(loaded, target, trials=trials, mfu=mfu, say=lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
    else:
        _print(made)
    return 0 if made.fits else 1


def _print(plan: "Plan") -> None:
    recipe, needs, topology = plan.recipe, plan.needs, plan.topology
    sizes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    print(f"{recipe.name}: {recipe.model.name}, {plan.num_parameters:,} parameters")
    devices = "1 device" if topology.num_devices == 1 else f"{topology.num_devices} devices, mesh {sizes}"
    print(f"{topology.text}: {devices}; computes in {plan.compute_dtype}")
    if plan.how == "compiled":
        kernels = f", attention by {', '.join(plan.attention)}" if plan.attention else ""
        print(f"compiled by {plan.compiler} in {needs.compile_seconds:.0f} s{kernels}")
    else:
        print("ESTIMATED, not compiled")
    print()
    rows = f"{plan.microbatch} of {recipe.data.batch_size}" if plan.microbatch < recipe.data.batch_size else "all"
    name, unit = next(((name, unit) for name, unit in UNITS if needs.total >= unit), UNITS[-1])
    print(f"memory of a device, {name} (batch {recipe.data.batch_size} x {recipe.data.seq_len:,}, {rows} rows at once)")
    print_columns(list(_memory(plan, unit)))
    print()
    print_columns(list(_collectives(plan)))
    print()
    print(f"FLOPs a token  {plan.flops_per_token:,.0f} in training, by the model's formula")
    print(f"a step of {plan.tokens:,} tokens takes at least")
    print_columns(list(_bounds(plan)))
    if plan.tokens_per_s is not None:
        budget = plan.tokens * recipe.train.steps
        print(
            f"predicted      {plan.tokens_per_s:,.0f} tokens/s with products at {plan.mfu:.0%} of the peak (--mfu); "
            f"{recipe.train.steps:,} steps, {budget / 1e9:,.2f}B tokens, in {plan.days:,.2f} days"
        )
    print()
    for note in plan.notes:
        print(f"note: {note}")
    print(f"planned in {plan.seconds:.0f} s with {plan.host_bytes / 2**30:.1f} GiB of this machine's memory")


def _memory(plan: "Plan", unit: int) -> Iterator[tuple[str, str, str]]:
    def in_unit(size: int) -> str:
        return f"{size / unit:10,.2f}"

    needs, search = plan.needs, plan.search
    yield "  parameters", in_unit(needs.parameters), "exact"
    yield "  optimizer", in_unit(needs.optimizer), "exact"
    yield "  batch", in_unit(needs.batch), "exact"
    source = f"{plan.how}; of them gradients up to {in_unit(needs.gradients).strip()}"
    yield "  activations and temporaries", in_unit(needs.other), source
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield "  total", in_unit(needs.total), f"of {in_unit(plan.limit).strip()}: {verdict}"
    for number, change in enumerate(plan.changes):
        yield ("  would fit with" if number == 0 else "           or with"), "", change
    if search is not None:
        largest = "none" if search.fits is None else f"{search.fits} rows"
        beyond = "more not tried" if search.too_many is None else f"{search.too_many} do not fit"
        yield "  largest batch at once", "", f"{largest} ({beyond}; a search of {search.trials} more trials)"


def _collectives(plan: "Plan") -> Iterator[tuple[str, ...]]:
    collectives = plan.needs.collectives
    if not collectives:
        yield ("collectives of a step: none",)
        return
    yield "collectives of a step", "mesh axis", "count", "GB", f"sent by a device, GB ({plan.collectives_how})"
    for one in collectives:
        yield f"  {one.kind}", " x ".join(one.axes), str(one.count), _gb(one.payload), _gb(one.sent)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}" if size >= 5e5 else "<0.001"


def _bounds(plan: "Plan") -> Iterator[tuple[str, str, str]]:
    chip, topology = plan.topology.chip, plan.topology
    peak, links = chip.flops(plan.compute_dtype), topology.interconnect
    why = {
        "compute": "" if peak is None else f"{peak / 1e12:,.4g} TFLOP/s a device in {plan.compute_dtype}",
        "memory": "" if chip.bandwidth is None else f"{chip.bandwidth / 1e9:,.0f} GB/s a device",
        "network": "" if links is None else f"{links / 1e9:,.0f} GB/s a device over its links",
    }
    if topology.hosts > 1 and chip.network:
        why["network"] += f", {chip.network / 1e9:,.1f} between {topology.hosts} hosts"
    for name, reason in why.items():
        seconds = getattr(plan.bounds, name)
        yield f"  {name}", "not known" if seconds is None else f"{seconds * 1e3:,.2f} ms", reason
