"""`zoo plot RUN [RUN...]`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Axis(StrEnum):
    """What the x axis counts."""

    step = "step"
    tokens = "tokens"


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="NAME", help="Write NAME.png and NAME.html (default: plot, in the run if there is one)."),
    ] = None,
    x: Annotated[Axis, typer.Option("--x", help="What runs along the x axis.")] = Axis.step,
) -> None:
    """Draw runs: loss raw and smoothed, learning rate, gradient norm and throughput; a PNG and a page of its own.

    Runs that differ in nothing but the seed are drawn as mean and deviation, and the published loss beside models of
    the published size. Unfinished runs are drawn as far as they are.

    \b
    Examples:
      zoo plot runs/quickstart
      zoo plot runs/seed0 runs/seed1 runs/seed2 --out seeds
    """
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed here
    from zoo.errors import UserError
    from zoo.plotting import runs as plots

    plotted = [plots.read_run(path) for path in dict.fromkeys(runs)]
    for run in plotted:
        for note in run.notes:
            print(f"zoo plot: {run.path}: {note}", file=sys.stderr)
    if out is None:
        out = (plotted[0].path if len(plotted) == 1 else Path()) / "plot"
    out = out.with_suffix("") if out.suffix in (".png", ".html") else out
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no directory {out.parent}; make it, or name another")
    for path in plots.write(plotted, out, x=x.value):
        print(path)
