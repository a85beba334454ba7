"""`zoo generate MODEL`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to go on from; - reads it from stdin.")
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A match's stats block instead of a prompt; - is stdin."),
    ] = None,
    style: Annotated[str | None, typer.Option(help="With --stats: one of the 8 crónica styles.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 128, for a crónica 400.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: 1, for a crónica 0.85.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps all. Default: 0, for a crónica 50.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 keeps all. Default: 1, for a crónica 0.9.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
) -> None:
    """Write on from a prompt, or write the crónica of a match; the text comes as it is written.

    \b
    Examples:
      zoo generate runs/cronica_5m --stats match.txt --style rioplatense_apasionado
      zoo generate runs/cronica_5m "El partido" --temperature 0
    """
    from zoo.errors import UserError

    if (prompt is None) == (stats is None):
        raise UserError("give a PROMPT, or --stats FILE with --style")
    if (stats is None) != (style is None):
        raise UserError("--stats and --style go together: one names the match's file, the other a crónica style")
    text = _read(stats, "--stats") if stats else _read(Path("-"), "PROMPT") if prompt == "-" else prompt
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    from zoo.language_model import load

    lm = load(model)
    started = time.perf_counter()
    stream = lm.stream_cronica(text, style, **settings) if stats else lm.stream(text, **settings)
    show(stream, started)


def show(stream, started: float, transform=None) -> None:
    """Print a stream to stdout as it comes, and how fast it came to stderr.

    `transform` (with `push` and `flush`) changes the text on its way; `started` is when the call was made.
    """
    first = time.perf_counter()
    for piece in stream:
        print(transform.push(piece) if transform else piece, end="", flush=True)
    print(transform.flush() if transform else "", flush=True)
    ended = time.perf_counter()
    tokens = len(stream.generation.tokens)
    rate = f", then {(tokens - 1) / (ended - first):.0f} tokens/s" if tokens > 1 else ""
    print(f"{tokens} tokens: the first after {first - started:.1f} s{rate}", file=sys.stderr)


def _read(path: Path, what: str) -> str:
    from zoo.errors import UserError

    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{what}: {path} cannot be read: {reason}") from None
