"""`zoo cronica LINE`."""

import datetime
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from zoo import registry
from zoo.cli.common import ready_to_compute
from zoo.errors import UserError
from zoo.models.specs import CRONICA_5M
from zoo.terminal import unguarded


def cronica(
    line: Annotated[str, typer.Argument(metavar="LINE", help="The match: result, then goals, parted by semicolons.")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Default: the crónica run in runs/ last trained.")
    ] = None,
    style: Annotated[str, typer.Option(help="One of the 8 styles, or all.")] = "rioplatense_apasionado",
    league: Annotated[str, typer.Option(help="The block's `liga`.")] = "La Liga",
    date: Annotated[str | None, typer.Option(help="The block's `fecha`, YYYY-MM-DD. Default: today.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = CRONICA_5M.sampling["temperature"],
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
) -> None:
    """Write the crónica of a match given on one line, and mark what is not in the match.

    A goal is minute, scorer and, where it is not plain, the club in brackets; `estadio: X`, `asistencia: N`
    and `árbitro: X` may follow. Marked (red on a terminal, [brackets] elsewhere) are names, minutes and
    scores that the match does not hold.

    \b
    Examples:
      zoo cronica "Rayo 2-1 Betis; 23 Pérez; 67 López (Betis); 80 García" --style all
      zoo cronica "Boca 1-0 River; 88 Juan Gómez; estadio: La Bombonera" runs/cronica_5m
    """
    if "cronicas" not in registry.TASKS:
        raise UserError("this zoo cannot write crónicas: zoo.registry.TASKS has no task cronicas")
    from zoo.cli.generate import show
    from zoo.tasks.cronica.match import parse_line, to_block
    from zoo.tasks.cronica.tokens import STYLES, check_style

    if style != "all":
        check_style(style)
    if date is not None:
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise UserError(f"--date is {date!r}; write it as YYYY-MM-DD") from None
    match, warnings = parse_line(line, league=league, date=date or datetime.date.today().isoformat())
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    path = model if model is not None else _last_run()
    print(f"{to_block(match)}\n", file=sys.stderr, flush=True)

    from zoo.language_model import load
    from zoo.tasks.cronica.grounding import Lexicon
    from zoo.tasks.cronica.marking import Marker

    ready_to_compute()
    lm = load(path)
    lm.check_cronica()
    lexicon = Lexicon.learn()
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    before, after = ("\033[1;31m", "\033[0m") if colour else ("[", "]")
    marked = 0
    for label in STYLES if style == "all" else [style]:
        print(f"{label} ({STYLES[label][0]})", flush=True)
        marker = Marker(match, lexicon, before, after)
        started = time.perf_counter()
        show(partial(lm.stream_cronica, match, label, temperature=temperature, seed=seed), started, marker)
        print()
        marked += marker.marked
    if marked:
        shown = f"{before}like this{after}"
        print(f"{marked} marked {shown}: not in the match", file=unguarded(sys.stderr))


def _last_run() -> str:
    """Returns the directory in ./runs, of those trained on crónicas, whose checkpoints changed last."""
    runs = [path.parent for path in Path("runs").glob("*/checkpoints") if _is_cronica_run(path.parent)]
    if not runs:
        raise UserError(
            "there is no trained crónica run in ./runs; name a MODEL, or train one: zoo-train recipes/quickstart.yaml"
        )
    newest = max(runs, key=lambda path: (path / "checkpoints").stat().st_mtime)
    print(f"model: {newest}", file=sys.stderr)
    return str(newest)


def _is_cronica_run(run: Path) -> bool:
    from zoo.recipe import load_recipe

    if not (run / "recipe.yaml").is_file():
        return False
    try:
        return load_recipe(run / "recipe.yaml", check_files=False).data.holds_pairs
    except UserError:  # of another version, perhaps; it can still be named
        return False
