"""`zoo eval MODEL`."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import ready_to_compute

SUITES = ("cronica", "kodalite-card", "wikitext")


def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help=f"What to measure: {', '.join(SUITES)} (default: cronica).")] = None,
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
    temperature: Annotated[float | None, typer.Option(help="Of crónicas; 0 is greedy (default: 0.85).")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of crónicas; 0 keeps all (default: 50).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of crónicas; 1 keeps all (default: 0.9).")] = None,
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
    from zoo.errors import UserError

    chosen = {"--suite": suite, "--tasks": tasks, "--perplexity": perplexity, "--compare": compare}
    given = [name for name, value in chosen.items() if value is not None]
    if len(given) > 1 and not (given == ["--suite", "--tasks"] and suite == "kodalite-card"):
        raise UserError(f"{' and '.join(given)} ask for different things; give one of them")
    if out is not None:
        _check_out(out)
    options = {
        "--data": data,
        "--include-path": include_path,
        "--limit": limit,
        "--num-fewshot": num_fewshot,
        "--batch-size": batch_size,
        "--max-length": max_length,
        "--add-bos": add_bos,
        "--dtype": dtype,
        "--cache": cache,
        "--cronicas": cronicas,
        "--max-new-tokens": max_new_tokens,
        "--temperature": temperature,
        "--top-k": top_k,
        "--top-p": top_p,
        "--seed": seed,
    }
    if compare is not None:
        if model is not None:
            raise UserError(f"--compare takes two results and no model; leave {model!r} out")
        _check_options("--compare", options)
        _finish(_compared(*compare), out, as_json)
        return
    if model is None:
        raise UserError("MODEL is missing: a run directory, a model directory or a name")
    suite = suite or ("cronica" if not given else None)
    if suite is not None and suite not in SUITES:
        raise UserError(f"--suite is {suite!r}; there is: {', '.join(SUITES)}")
    kind = suite or given[0]
    _check_options(kind, options)
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"--limit is {limit:g}; it must be a number above 0")
    batch_size = 32 if batch_size is None else batch_size
    if kind == "cronica":
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        result = _cronica(model, data, 200 if cronicas is None else cronicas, seed or 0, batch_size, dtype, sampling)
        _finish(result, out, as_json)
        return
    if kind == "--tasks":
        _need_lm_eval()
    if perplexity is not None and not perplexity.is_file():
        raise UserError(f"--perplexity: there is no file {perplexity}")

    from zoo.evaluate.cache import ResultCache, identity_of

    lm = _load(model, dtype or ("bfloat16" if suite == "kodalite-card" else None))
    shared: dict[str, Any] = {"batch_size": batch_size, "on_progress": _Progress("")}
    shared["cache"] = None if cache is None else ResultCache(cache, identity_of(lm))
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if kind == "--tasks":
        from zoo.evaluate import lm_eval

        result = lm_eval.evaluate(
            lm,
            names,
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            max_length=max_length,
            add_bos=add_bos,
            **shared,
        )
    elif kind == "kodalite-card":
        from zoo.evaluate import card

        result = card.evaluate(lm, names or tuple(card.TASKS), data=data, limit=_whole(limit), **shared)
    elif kind == "wikitext":
        from zoo.evaluate.perplexity import wikitext

        result = wikitext(lm, data=data, limit=_whole(limit), **shared)
    else:
        from zoo.evaluate.perplexity import of_texts, read_texts

        result = of_texts(lm, read_texts(perplexity), name=perplexity.name, max_length=max_length, **shared)
    _finish({**result, "model": model}, out, as_json)


# What each way of measuring takes of the options that not all take.
_COMPUTING = ("--batch-size", "--dtype")
_TAKES = {
    "cronica": (
        "--data",
        *_COMPUTING,
        *("--cronicas", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed"),
    ),
    "kodalite-card": ("--data", "--limit", "--cache", *_COMPUTING),
    "wikitext": ("--data", "--limit", "--cache", *_COMPUTING),
    "--tasks": ("--include-path", "--limit", "--num-fewshot", "--max-length", "--add-bos", "--cache", *_COMPUTING),
    "--perplexity": ("--max-length", "--cache", *_COMPUTING),
    "--compare": (),
}


def _check_options(kind: str, options: dict[str, Any]) -> None:
    from zoo.errors import UserError

    for name, value in options.items():
        if value is not None and name not in _TAKES[kind]:
            what = kind if kind.startswith("--") else f"--suite {kind}"
            raise UserError(f"{name} has no meaning with {what}; leave it out")


def _whole(limit: float | None) -> int | None:
    from zoo.errors import UserError

    if limit is not None and (limit < 1 or limit != int(limit)):
        raise UserError(f"--limit is {limit:g}; it must be a whole number of at least 1")
    return None if limit is None else int(limit)


def _load(model: str, dtype: str | None):
    from zoo.errors import UserError
    from zoo.language_model import load

    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; it is float32 or bfloat16")
    ready_to_compute()
    return load(model, dtype=dtype)


def _need_lm_eval() -> None:
    import importlib.util

    from zoo.errors import UserError

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs the package lm-eval: pip install 'zoo-nnx[eval]'")


def _cronica(model, data, cronicas, seed, batch_size, dtype, sampling) -> dict[str, Any]:
    sets = None if data is None else {"data": _records(data, cronicas)}
    from zoo.errors import UserError
    from zoo.tasks.cronica.evaluation import evaluate as run

    lm = _load(model, dtype)
    try:
        lm.check_cronica()
    except UserError as error:
        raise UserError(f"--suite cronica: {error}; others are measured by --tasks or --perplexity") from None
    result = run(
        lm,
        num_cronicas=cronicas,
        sets=sets,
        seed=seed,
        batch_size=batch_size,
        on_progress=_Progress(" crónicas"),
        **sampling,
    )
    return {**result, "model": model}


def _records(path: Path, count: int) -> list[dict]:
    from zoo.errors import UserError
    from zoo.recipe.data import DataSection
    from zoo.tasks.cronica.records import load_records

    if count < 1:
        raise UserError(f"--cronicas is {count}; it must be at least 1")
    source = "parquet" if path.is_dir() or path.suffix == ".parquet" else "jsonl"
    return load_records(DataSection(source=source, path=str(path), num_pairs=count))


def _compared(first: Path, second: Path) -> dict[str, Any]:
    from zoo.evaluate.compare import compare, read

    return compare(read(first), read(second))


def _check_out(out: Path) -> None:
    from zoo.errors import UserError

    if out.is_dir():
        raise UserError(f"--out: {out} is a directory; name a JSON file, as {out / 'result.json'}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no directory {out.parent}")
    if out.suffix == ".md":
        raise UserError(f"--out: {out} is where the tables would go; name a JSON file, as {out.with_suffix('.json')}")


def _finish(result: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write the whole result, and print it without its items and texts."""
    from zoo.util import atomic_write

    if result["suite"] == "cronica":
        from zoo.tasks.cronica.report import markdown
    else:
        from zoo.evaluate.tables import markdown
    text = markdown(result)
    if out is not None:
        atomic_write(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        atomic_write(out.with_suffix(".md"), text + "\n")
    for found in result.get("sets", {}).values():
        del found["texts"]
    for found in result.get("tasks", {}).values():
        found.pop("items", None)
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


class _Progress:
    """A line on stderr after each batch, at most one a second: how many, and how long it will take."""

    def __init__(self, unit: str):
        self._unit, self._name, self._started, self._first, self._shown = unit, "", 0.0, 0, 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        from zoo.util import human_duration

        now = time.perf_counter()
        if name != self._name:
            self._name, self._started, self._first, self._shown = name, now, done, 0.0
        if now - self._shown < 1 and done < total:
            return
        self._shown = now
        fresh = done - self._first
        left = f", {human_duration((now - self._started) / fresh * (total - done))} left" if fresh else ""
        print(f"{name}: {done} of {total}{self._unit}{left}", file=sys.stderr, flush=True)
