"""`zoo eval MODEL`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")],
    suite: Annotated[str, typer.Option(help="What to measure: cronica.")] = "cronica",
    cronicas: Annotated[int, typer.Option(help="Crónicas to write for each set of matches.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pairs to use instead of the built-in sets: JSON lines or Parquet."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest crónica.")] = 400,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.85,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 50,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Crónicas written at a time.")] = 32,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write result and texts there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")] = False,
) -> None:
    """Measure a model: what its crónicas tell of held-out matches, and in which style.

    docs/evaluation.md says what each figure means.

    \b
    Examples:
      zoo eval runs/cronica_5m --suite cronica
      zoo eval runs/cronica_5m --cronicas 400 --out crónicas.json
      zoo eval runs/cronica_5m --data pairs.parquet --json
    """
    from zoo.errors import UserError

    if suite != "cronica":
        raise UserError(f"--suite is {suite!r}; there is: cronica")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no directory {out.parent}")
    sets = None if data is None else {"data": _records(data, cronicas)}

    from zoo.evaluate.cronica import evaluate as run
    from zoo.evaluate.report import markdown
    from zoo.language_model import load
    from zoo.util import atomic_write

    result = run(
        load(model),
        num_cronicas=cronicas,
        sets=sets,
        seed=seed,
        batch_size=batch_size,
        on_progress=_Progress(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    result["model"] = model
    if out is not None:
        atomic_write(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    for found in result["sets"].values():
        del found["texts"]
    print(json.dumps(result, ensure_ascii=False) if as_json else markdown(result))


def _records(path: Path, count: int) -> list[dict]:
    from zoo.data.sources import load_records
    from zoo.errors import UserError
    from zoo.recipe import DataSection

    if count < 1:
        raise UserError(f"--cronicas is {count}; it must be at least 1")
    source = "parquet" if path.is_dir() or path.suffix == ".parquet" else "jsonl"
    return load_records(DataSection(source=source, path=str(path), num_pairs=count))


class _Progress:
    """A line on stderr after each batch: how many, how fast, how long it will take."""

    def __init__(self):
        self._name, self._started = "", 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        from zoo.util import human_duration

        if done == 0:
            self._name, self._started = name, time.perf_counter()
        took = time.perf_counter() - self._started
        left = f", {human_duration(took / done * (total - done))} left" if done else ""
        print(f"{name}: {done} of {total} crónicas{left}", file=sys.stderr, flush=True)
