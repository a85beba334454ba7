"""`zoo-train RECIPE`: start a run, or go on with it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import new_app, run_command


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
) -> int:
    """Train the model of a recipe; run again after any interruption to go on from the last checkpoint.

    \b
    Examples:
      zoo-train recipes/quickstart.yaml
      zoo-train recipes/cronica_5m.yaml train.steps=200 optimizer.warmup_steps=20 name=short
      zoo-train recipes/cronica_5m.yaml --dry-run

    --debug shows the traceback of an error.
    """
    from zoo.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())

    from zoo.run import run  # after the recipe is known to be good: this imports JAX

    return run(loaded, fresh=fresh, dry_run=dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-train`; returns the exit code."""
    app = new_app()
    app.command()(train)
    return run_command(app, argv, "zoo-train")


if __name__ == "__main__":
    sys.exit(main())
