"""`zoo eval MODEL`."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import given, ready_to_compute
from zoo.errors import UserError
from zoo.evaluate import suites
from zoo.models.specs import CRONICA_5M
from zoo.terminal import visible
from zoo.util import atomic_write, human_duration

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

_CRONICA = CRONICA_5M.sampling


def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help=f"What to measure: {', '.join(suites.NAMES)} (default: {suites.NAMES[0]}).")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks of lm-eval instead, with commas; of the card with it.")
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Loss on these texts instead: plain, JSON lines or Parquet.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Two saved results instead of a MODEL, item by item."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Local data: pairs for cronica, a directory for the card, wikitext's lines."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own task files (YAML) for --tasks.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Questions of each task, or windows; below 1 a share (--tasks).")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each question (--tasks).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows computed at a time (default: 32).")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens the model sees at once (--tasks, --perplexity); default: as trained.")
    ] = None,
    add_bos: Annotated[
        bool | None,
        typer.Option("--add-bos/--no-add-bos", help="BOS before texts (--tasks); default: as in transformers."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compute in float32 or bfloat16 (default: float32, the card bfloat16)."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep results there, to go on after an interruption.")
    ] = None,
    cronicas: Annotated[int | None, typer.Option(help="Crónicas to write for each set (default: 200).")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest crónica (default: 400).")] = None,
    temperature: Annotated[
        float | None, typer.Option(help=f"Of crónicas; 0 is greedy (default: {_CRONICA['temperature']}).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Of crónicas; 0 keeps all (default: {_CRONICA['top_k']}).")] = None,
    top_p: Annotated[
        float | None, typer.Option(help=f"Of crónicas; 1 keeps all (default: {_CRONICA['top_p']}).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling of crónicas (default: 0).")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result there as JSON, and its tables as .md beside.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")] = False,
) -> None:
    """Measure a model: its crónicas, tasks of lm-eval, a card's benchmarks, its loss; or compare two results.

    docs/evaluation.md says what each figure means.

    \b
    Examples:
      zoo eval runs/cronica_5m --suite cronica
      zoo eval runs/cronica_5m --data pairs.parquet --json
      zoo eval kodalite-1.3b --tasks hellaswag,arc_easy,piqa,lambada_openai --out a.json
      zoo eval kodalite-1.3b --suite kodalite-card
      zoo eval gelu-d12 --suite wikitext
      zoo eval runs/tiny_lm --perplexity texts.txt
      zoo eval --compare a.json b.json
    """
    options = given(**locals())
    for name in ("model", "suite", "out", "as_json"):
        options.pop(name, None)
    _check_one_is_asked(suite, options)
    if out is not None:
        _check_out(out)
    if model is not None and compare is not None:
        raise UserError(f"--compare takes two results and no model; leave {model!r} out")
    if model is None and compare is None:
        raise UserError("MODEL is missing: a run directory, a model directory or a name")
    chosen = _choose(suite, options)
    chosen.check(options)
    result = chosen.run(partial(_load, model), _Progress(chosen.unit), options)
    if model is not None:
        result["model"] = model
    text = chosen.markdown(result)
    if out is not None:
        atomic_write(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        atomic_write(out.with_suffix(".md"), visible(text) + "\n")
    print(json.dumps(chosen.without_items(result), ensure_ascii=False) if as_json else text)


def _check_one_is_asked(suite: str | None, options: dict[str, Any]) -> None:
    """Raises UserError where several suites are asked for, but for options that the named suite takes."""
    asked = [name for name in suites.BY_OPTION if name in options]
    if suite in suites.NAMES and set(asked) <= set(suites.named(suite).options):
        return
    asked = [*(["suite"] if suite is not None else []), *asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in asked)} ask for different things; give one of them")


def _choose(suite: str | None, options: dict[str, Any]) -> suites.Suite:
    by_option = [suites.BY_OPTION[name] for name in suites.BY_OPTION if name in options]
    return by_option[0] if suite is None and by_option else suites.named(suite or suites.NAMES[0])


def _load(model: str, dtype: str | None) -> "LanguageModel":
    from zoo.language_model import load

    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; it is float32 or bfloat16")
    ready_to_compute()
    return load(model, dtype=dtype)


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out: {out} is a directory; name a JSON file, as {out / 'result.json'}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no directory {out.parent}")
    if out.suffix == ".md":
        raise UserError(f"--out: {out} is where the tables would go; name a JSON file, as {out.with_suffix('.json')}")


class _Progress:
    """Prints a line on stderr after each batch, at most one a second: how much is done, and how long it will take."""

    def __init__(self, unit: str):
        self._unit, self._name, self._started, self._first, self._printed = unit, "", 0.0, 0, 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if name != self._name:
            self._name, self._started, self._first, self._printed = name, now, done, 0.0
        if now - self._printed < 1 and done < total:
            return
        self._printed = now
        computed = done - self._first  # the rest was in a cache
        left = f", {human_duration((now - self._started) / computed * (total - done))} left" if computed else ""
        print(f"{name}: {done} of {total}{self._unit}{left}", file=sys.stderr, flush=True)
