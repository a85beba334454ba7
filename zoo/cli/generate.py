"""`zoo generate MODEL`."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import given, late_interrupt, ready_to_compute
from zoo.errors import UserError
from zoo.models.specs import CRONICA_5M
from zoo.terminal import unguarded, visible
from zoo.util import parse_json

if TYPE_CHECKING:
    from zoo.generate.text import TextStream
    from zoo.language_model import LanguageModel

_CRONICA = CRONICA_5M.sampling

# Options that `zoo chat` has too.
Temperature = Annotated[
    float | None, typer.Option(help=f"0 is greedy. Default: 1, for a crónica {_CRONICA['temperature']}.")
]
TopK = Annotated[int | None, typer.Option(help=f"0 keeps all. Default: 0, for a crónica {_CRONICA['top_k']}.")]
TopP = Annotated[float | None, typer.Option(help=f"1 keeps all. Default: 1, for a crónica {_CRONICA['top_p']}.")]
MinP = Annotated[float | None, typer.Option(help="0 keeps all. Default: 0.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="1 is none. Default: 1.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends a text; may be given several times.")]
RopeScaling = Annotated[
    str | None, typer.Option(metavar="ntk:FACTOR", help="Stretch the context of a Llama model, such as ntk:2.")
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights, such as bfloat16. Default: float32.")]

Raw = Annotated[bool, typer.Option("--raw", help="Print control characters as the model writes them.")]


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")],
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Text to go on from; - reads it from stdin.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line, of .jsonl the field `prompt`; - is stdin."),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A match's stats block instead of a prompt; - is stdin."),
    ] = None,
    style: Annotated[str | None, typer.Option(help="With --stats: one of the 8 crónica styles.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="original: the settings on the model's card; other options change them.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 128, for a crónica 400.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Texts a prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a text, a line each.")] = False,
    raw: Raw = False,
    rope_scaling: RopeScaling = None,
    dtype: Dtype = None,
) -> None:
    """Write on from a prompt, or write the crónica of a match; the text comes as it is written.

    Several prompts (or --n) are written in batches, and shown as [prompt]text. Control characters that a model writes
    are shown as \\u001b is; line breaks and tabs stay.

    \b
    Examples:
      zoo generate runs/cronica_5m --stats match.txt --style rioplatense_apasionado
      zoo generate runs/cronica_5m "El partido" --temperature 0
      zoo generate gelu-d12 --preset original --prompts prompts.txt --json > texts.jsonl
      zoo generate kodalite-1.3b "Once upon a time" --rope-scaling ntk:2 --stop "The end"
    """
    if sum((bool(prompt), prompts is not None, stats is not None)) != 1:
        raise UserError("give a PROMPT, or --prompts FILE, or --stats FILE with --style")
    if (stats is None) != (style is None):
        raise UserError("--stats and --style go together: one names the match's file, the other a crónica style")
    if stats is not None:
        texts = [_read(stats, "--stats")]
    elif prompts is not None:
        texts = _read_prompts(prompts)
    else:
        texts = [_read(Path("-"), "PROMPT") if text == "-" else text for text in prompt]
    settings = given(
        preset=preset,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
    )
    lm = open_model(model, rope_scaling, dtype)
    started = time.perf_counter()
    if len(texts) == 1 and n == 1 and not as_json and prompts is None:
        settings["seed"] = seed
        begin = partial(lm.stream_cronica, texts[0], style) if stats else partial(lm.stream, texts[0])
        show(partial(begin, **settings), started, raw=raw)
        return
    settings |= {"seed": seed, "n": n, "batch_size": batch_size, "on_progress": _progress}
    groups = lm.cronicas([(texts[0], style)], **settings) if stats else lm.generate(texts, **settings)
    seconds = time.perf_counter() - started
    tokens = sum(len(item.tokens) for group in groups for item in group)
    out = unguarded(sys.stdout) if raw else sys.stdout
    for text, group in zip(texts, groups, strict=True):
        for number, item in enumerate(group):
            if as_json:
                print(json.dumps(_record(text, item, seed + number), ensure_ascii=False), file=out)
            else:
                print(f"[{text}]{item.text}\n" if not stats else f"{item.text}\n", file=out)
    rate = f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
    print(f"{len(texts) * n:,} texts, {rate}", file=sys.stderr)


def open_model(model: str, rope_scaling: str | None, dtype: str | None) -> "LanguageModel":
    """Loads a model with the options `--rope-scaling` and `--dtype`. Raises UserError for a bad one."""
    from zoo.convert.base import storage_dtype
    from zoo.generate.rope_scaling import overrides
    from zoo.language_model import load
    from zoo.weights.resolve import find

    stored = None if dtype is None else storage_dtype(dtype, "--dtype")
    ready_to_compute()
    fields = {} if rope_scaling is None else overrides(find(model).config, rope_scaling)
    return load(model, dtype=stored, **fields)


def open_stdin(what: str) -> Any:
    """Returns the process's stdin. Raises UserError, which begins with `what`, where the process has none."""
    if sys.stdin is None:
        raise UserError(f"{what}: reads stdin, which is closed; give it a file or a pipe")
    return sys.stdin


def show(begin: Callable[[], "TextStream"], started: float, transform=None, *, raw: bool = False) -> None:
    """Prints a stream to stdout as it comes, and its speed to stderr.

    Args:
        begin: returns the stream.
        started: `time.perf_counter` at the time of the call.
        transform: an object with `push` and `flush` that changes the text before it is printed; None: unchanged.
        raw: whether control characters are printed as they are, else made visible.
    """
    out = unguarded(sys.stdout) if raw or transform else sys.stdout  # what a transform puts in is zoo's own
    with late_interrupt() as interrupted:
        stream = begin()
        first = time.perf_counter()
        for piece in stream:
            if interrupted():
                break
            shown = piece if raw else visible(piece)
            print(transform.push(shown) if transform else shown, end="", flush=True, file=out)
        print(transform.flush() if transform else "", flush=True, file=out)
        if interrupted():
            raise KeyboardInterrupt
    ended = time.perf_counter()
    tokens = len(stream.generation.tokens)
    rate = f", then {(tokens - 1) / (ended - first):.0f} tokens/s" if tokens > 1 else ""
    print(f"{tokens} tokens: the first after {first - started:.1f} s{rate}", file=sys.stderr)


def _record(prompt: str, item, seed: int) -> dict[str, Any]:
    record = {"prompt": prompt, "seed": seed, "text": item.text, "finish": item.finish}
    return {**record, "tokens": item.tokens, "logprobs": item.logprobs}


def _progress(done: int, total: int) -> None:
    """Prints how many texts are written: one line that changes on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total} texts", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _read_prompts(path: Path) -> list[str]:
    # Split at newlines alone: other characters at which `splitlines` splits may stand inside a JSON text.
    lines = [(number, line) for number, line in enumerate(_read(path, "--prompts").split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts: {path} holds no prompt")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--prompts: {path}, line {number} is no JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise UserError(f"--prompts: {path}, line {number} has no text in a field `prompt`")
        prompts.append(record["prompt"])
    return prompts


def _read(path: Path, what: str) -> str:
    try:
        if str(path) == "-":
            return open_stdin(what).read()
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{what}: {path} cannot be read: {reason}") from None
