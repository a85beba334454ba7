"""Loss on texts: the wikitext-103 protocol of gelu-d12, and nats a token and bits a byte of any texts."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.data import documents
from zoo.errors import UserError
from zoo.evaluate import measures
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.local_data import HubData, records
from zoo.evaluate.scoring import Row, Scored, Scorer, check_max_length, windows
from zoo.language_model import LanguageModel
from zoo.recipe.data import SourceFields
from zoo.util import sha256_hex

Progress = Callable[[str, int, int], None]

WIKITEXT = HubData("Salesforce/wikitext", "wikitext-103-raw-v1", "test")
# What the card of gelu-d12 states, over about 330,000 tokens of its tokenizer.
PUBLISHED = {"model": "gelu-d12", "nats_per_token": 3.840, "perplexity": 46.52}


def wikitext(
    lm: LanguageModel,
    *,
    data: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    cache: ResultCache | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The loss on wikitext-103 by the protocol of gelu-d12 (huggingface.co/mlnomad/gelu-d12-chinchilla-261M).

    The lines of the test split that are not blank, with their line ends and two more between them, are tokenised at
    once, BOS first where there is one. Windows of max_seq_len inputs and their next tokens follow each other without
    overlap; what does not fill the last one is left out. (The protocol leaves out targets that are the pad token; here
    no text holds one.)

    Args:
        data: a text file with the split's lines, or .jsonl or .parquet with a `text` each; None: the hub's.
        limit: windows.
        batch_size, cache: see `Scorer`.
        on_progress: called with what is done, windows done and their number.

    Returns:
        A JSON-serialisable dict like that of `of_texts`; its items are windows.

    Raises:
        UserError: no data, or less than a window.
    """
    started = time.perf_counter()
    _need_tokenizer(lm)
    lines = _lines(data) if data is not None else [row["text"] for row in records("wikitext", WIKITEXT, None)]
    text = "\n\n".join(line for line in lines if line.strip())
    ids, held = lm.tokenizer.encode(text, add_special=True), lm.config.max_seq_len
    number = (len(ids) - 1) // held
    if number < 1:
        raise UserError(f"the text has {len(ids)} tokens; a window of this model takes {held + 1}")
    number = number if limit is None else min(number, _at_least_one(limit))
    rows = [Row(tuple(ids[at * held : (at + 1) * held + 1]), held) for at in range(number)]
    progress = None if on_progress is None else lambda *at: on_progress("windows", *at)
    scored = Scorer(lm.computing, batch_size=batch_size, cache=cache).score(rows, on_progress=progress)
    task = _by_windows(rows, scored)
    task["tokens_left_out"] = len(ids) - 1 - number * held
    settings = {"limit": limit, "window": held, "dtype": str(lm.computing.dtype)}
    return _result(lm, "wikitext", {"wikitext-103": task}, settings, started) | {"published": PUBLISHED}


def of_texts(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    name: str = "texts",
    max_length: int | None = None,
    batch_size: int = 32,
    cache: ResultCache | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Loss on texts, each by itself, in nats a token and in bits a byte of UTF-8.

    Each text begins with BOS (where there is none, with EOS, or what else parts documents), and each of its tokens is
    predicted once, in windows of `max_length`: see `zoo.evaluate.scoring.windows`. With none of these tokens the
    first token of a text is not predicted ("tokens_left_out").

    Args:
        name: of the texts, in the result.
        max_length: tokens the model sees at once; None: the config's max_seq_len.
        batch_size, cache: see `Scorer`.
        on_progress: called with what is done, rows done and their number.

    Returns:
        A JSON-serialisable dict, see docs/evaluation.md. Its items are texts, or windows if there is only one text:
        standard errors take items for independent.

    Raises:
        UserError: no text with anything to predict, a character the tokenizer does not know.
    """
    started = time.perf_counter()
    _need_tokenizer(lm)
    max_length, tokenizer = check_max_length(lm.config, max_length), lm.tokenizer
    starts = [i for i in (tokenizer.bos_id, tokenizer.eos_id, *tokenizer.separator_ids[-1:]) if i is not None]
    kept, rows = [], []
    for text, ids in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        prefix, ids = (starts[0], ids) if starts else (ids[0] if ids else 0, ids[1:])
        if ids:
            kept.append(text)
            rows.append(windows(ids, prefix, max_length))
    if not rows:
        raise UserError(f"{name}: there is no text with tokens to predict")
    progress = None if on_progress is None else lambda *at: on_progress("windows", *at)
    every = [row for some in rows for row in some]
    scored = Scorer(lm.computing, batch_size=batch_size, cache=cache).score(every, on_progress=progress)
    sizes = [len(text.encode()) for text in kept]
    task = _by_texts(kept, sizes, rows, iter(scored)) if len(kept) > 1 else _by_windows(every, scored)
    if len(kept) == 1:
        # One text: its windows are the items, and of its bytes only the sum is known.
        per_byte = task["tokens"] / sizes[0] / math.log(2)
        loss = task["metrics"]["nats_per_token"]
        error = None if loss["stderr"] is None else loss["stderr"] * per_byte
        task["metrics"]["bits_per_byte"] = measures.measured(loss["value"] * per_byte, error, False)
    task |= {"texts": len(kept), "bytes": sum(sizes), "tokens_left_out": 0 if starts else len(kept)}
    settings = {"max_length": max_length, "begins_with": starts[0] if starts else None}
    return _result(lm, "perplexity", {name: task}, settings | {"dtype": str(lm.computing.dtype)}, started)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: .jsonl (plain, gzip or zstd) or .parquet with a `text` in each record, else one text.

    Raises UserError that names the place for what cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = path.name.lower()
    jsonl = name.endswith(
        tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".json") for packed in ("", ".gz", ".zst"))
    )
    source = "jsonl" if jsonl else "parquet" if name.endswith(".parquet") else "text"
    found = []
    for item in documents.read(SourceFields(source=source, path=str(path)), "text"):
        if isinstance(item, documents.Fault):
            raise UserError(item.reason)
        found.append(item)
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a text file with their ends, as the hub's rows have them; or the texts of records."""
    texts = read_texts(path)
    if path.suffix.lower() in (".jsonl", ".parquet") or len(texts) != 1:
        return texts
    return [line + "\n" for line in texts[0].split("\n")]


def _by_texts(texts: Sequence[str], sizes: Sequence[int], rows: Sequence[Sequence[Row]], scored) -> dict[str, Any]:
    items = []
    for number, (text, size, some) in enumerate(zip(texts, sizes, rows, strict=True)):
        nats = -math.fsum(next(scored).logprob for _ in some)
        tokens = sum(row.scored for row in some)
        item = {"id": number, "hash": sha256_hex(text.encode())}
        items.append(item | {"nats_per_token": [nats, tokens], "bits_per_byte": [nats / math.log(2), size]})
    return _task(items, ("nats_per_token", "bits_per_byte"))


def _by_windows(rows: Sequence[Row], scored: Sequence[Scored]) -> dict[str, Any]:
    items = [
        {
            "id": number,
            "hash": sha256_hex(json.dumps(row.tokens).encode()),
            "nats_per_token": [-found.logprob, row.scored],
        }
        for number, (row, found) in enumerate(zip(rows, scored, strict=True))
    ]
    return _task(items, ("nats_per_token",))


def _task(items: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    metrics = {}
    for name in names:
        value, error = measures.ratio(*zip(*(item[name] for item in items), strict=True))
        metrics[name] = measures.measured(value, error, False)
    loss = metrics["nats_per_token"]
    metrics["perplexity"] = measures.perplexity(loss["value"], loss["stderr"])
    tokens = sum(item["nats_per_token"][1] for item in items)
    return {"n": len(items), "tokens": tokens, "metrics": metrics, "items": items}


def _result(lm: LanguageModel, suite: str, tasks: dict, settings: dict, started: float) -> dict[str, Any]:
    about = {"format": measures.FORMAT, "suite": suite, "model": lm.spec.name, "settings": settings}
    return about | {"seconds": time.perf_counter() - started, "tasks": tasks}


def _need_tokenizer(lm: LanguageModel) -> None:
    if lm.tokenizer is None:
        raise UserError(f"this {lm.spec.name} has no tokenizer; load trained weights to evaluate it")


def _at_least_one(limit: int) -> int:
    if limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1")
    return limit
