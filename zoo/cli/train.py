"""`zoo-train RECIPE`: start a run, or go on with it."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import new_app, run_command
from zoo.distributed import runtime
from zoo.distributed.cluster import find_cluster
from zoo.distributed.runtime import LOST_AFTER, STEP_LIMIT
from zoo.distributed.supervisor import WORKER, python_command, supervise
from zoo.errors import UserError


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.FIELD=VALUE", help="Values that replace the recipe's."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run's directory and start over.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, write nothing.")
    ] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run 20 steps, stopped by SIGTERM and resumed; compare; leave nothing.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Several processes: the address of process 0.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(metavar="N", help="Several processes: how many.")] = None,
    process_id: Annotated[int | None, typer.Option(metavar="I", help="Several processes: which this is.")] = None,
    lost_after: Annotated[
        int, typer.Option(metavar="SECONDS", min=5, help="A process silent for so long ends the others.")
    ] = LOST_AFTER,
    step_limit: Annotated[
        int, typer.Option(metavar="SECONDS", min=5, help="Several processes: no step done for so long ends all.")
    ] = STEP_LIMIT,
    phase: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Train the model of a recipe; run again after any interruption to go on from the last checkpoint.

    Several processes are found by themselves on a TPU slice, under srun and under Open MPI's mpirun; elsewhere the
    same command is given on each host, with the address of process 0, their number and its own.

    \b
    Examples:
      zoo-train recipes/quickstart.yaml
      zoo-train recipes/cronica_5m.yaml train.steps=200 optimizer.warmup_steps=20 name=short
      zoo-train recipes/cronica_5m.yaml --dry-run
      zoo-train recipes/kodalite_1b.yaml --rehearse
      zoo-train recipes/kodalite_1b.yaml --coordinator host0:8476 --num-processes 2 --process-id 1

    --debug shows the traceback of an error.
    """
    from zoo.rundir.layout import load_run_recipe

    if rehearse and (fresh or dry_run):
        raise UserError("--rehearse trains in a directory of its own; leave --fresh and --dry-run out")
    say = (lambda text: None) if WORKER in os.environ else print  # else a parent has said it
    loaded = load_run_recipe(recipe, overrides or (), say)
    cluster = find_cluster(coordinator, num_processes, process_id)
    # The same command, for a process under this one that uses the devices.
    again = [*python_command("zoo.cli.train"), str(recipe), *(overrides or ())]
    again += [f"--lost-after={lost_after}", f"--step-limit={step_limit}"]
    again += ["--fresh"] * fresh + ["--dry-run"] * dry_run + ["--debug"] * ("--debug" in sys.argv)
    if coordinator is not None:
        again += [f"--coordinator={coordinator}"]
    for name, number in (("num-processes", num_processes), ("process-id", process_id)):
        again += [] if number is None else [f"--{name}={number}"]
    if rehearse:
        from zoo.run import rehearse as rehearsal

        def start(phase: str) -> int:
            return supervise([*again, f"--phase={phase}"], cluster)

        return rehearsal.rehearse(loaded, start, main=cluster is None or cluster.process_id == 0)
    if cluster is not None and WORKER not in os.environ:
        return supervise(again, cluster, verbose="--debug" in sys.argv)

    from zoo.hardware import compile_cache
    from zoo.run.job import run  # after the recipe is known to be good: this imports JAX

    compile_cache.enable()
    if cluster is not None:
        runtime.initialize(cluster, lost_after=lost_after, step_limit=step_limit)
    try:
        if phase is not None:
            from zoo.run import rehearse as rehearsal

            return rehearsal.phase(loaded, phase)
        return run(loaded, fresh=fresh, dry_run=dry_run)
    except Exception as error:
        if runtime.active():
            if "--debug" in sys.argv:
                traceback.print_exc()
            runtime.fail(error)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-train`; returns the exit code."""
    app = new_app()
    app.command()(train)
    code = run_command(app, argv, "zoo-train", lasting=True)
    runtime.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
