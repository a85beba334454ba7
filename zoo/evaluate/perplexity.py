"""Loss on texts: the wikitext-103 protocol of gelu-d12, and nats a token and bits a byte of any texts."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.data import documents, readers
from zoo.errors import UserError
from zoo.evaluate import measures
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.local_data import HubData, records
from zoo.evaluate.protocol import Progress, check_limit, check_tokenizer, make_result, progress_of
from zoo.evaluate.scoring import Row, Scored, Scorer, check_max_length, windows
from zoo.language_model import LanguageModel
from zoo.models.spec import ModelSpec
from zoo.recipe.data import SourceFields
from zoo.util import sha256_hex

WIKITEXT = HubData("Salesforce/wikitext", "wikitext-103-raw-v1", "test")
WIKITEXT_TASK = "wikitext-103"  # in results, and in the `figures` of a ModelSpec


def wikitext(
    lm: LanguageModel,
    *,
    data: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    cache: ResultCache | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures the loss on wikitext-103 by the protocol of gelu-d12 (huggingface.co/mlnomad/gelu-d12-chinchilla-261M).

    The lines of the test split that are not blank, with their line ends and two more between them, are tokenised at
    once, BOS first where there is one. Windows of max_seq_len inputs and their next tokens follow each other without
    overlap; what does not fill the last one is left out. (The protocol leaves out targets that are the pad token; here
    no text holds one.)

    Args:
        lm: the model, with its tokenizer.
        data: a text file with the split's lines, or .jsonl or .parquet with a `text` each; None: the hub's.
        limit: windows.
        batch_size, cache: see `Scorer`.
        on_progress: called with "windows", windows done and their number.

    Returns:
        A JSON-serialisable dict like that of `of_texts`; its items are windows. "published" holds the figures of a
        model's card by this protocol: the model's own, or those that another one publishes.

    Raises:
        UserError: no data, or less than a window.
    """
    started = time.perf_counter()
    check_tokenizer(lm)
    lines = _lines(data) if data is not None else [row["text"] for row in records("wikitext", WIKITEXT, None)]
    text = "\n\n".join(line for line in lines if line.strip())
    ids, length = lm.tokenizer.encode(text, add_special=True), lm.config.max_seq_len
    number = (len(ids) - 1) // length
    if number < 1:
        raise UserError(f"the text has {len(ids)} tokens; a window of this model takes {length + 1}")
    check_limit(limit)
    number = number if limit is None else min(number, limit)
    rows = [Row(tuple(ids[at * length : (at + 1) * length + 1]), length) for at in range(number)]
    scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
    task = _by_windows(rows, scorer.score(rows, on_progress=progress_of("windows", on_progress)))
    task["tokens_left_out"] = len(ids) - 1 - number * length
    settings = {"limit": limit, "window": length, "dtype": str(lm.computing.dtype)}
    result = make_result(lm, "wikitext", {WIKITEXT_TASK: task}, settings, started)
    published = _published(lm.spec)
    return result if published is None else result | {"published": published}


def _published(spec: ModelSpec) -> dict[str, Any] | None:
    """Returns the name and figures of the model, else of the first registered one, whose card has this protocol's."""
    for candidate in (spec, *registry.BUILT_IN.values()):
        if WIKITEXT_TASK in candidate.figures:
            return {"model": candidate.name, **candidate.figures[WIKITEXT_TASK]}
    return None


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
    """Measures the loss on texts, each by itself, in nats a token and in bits a byte of UTF-8.

    Each text begins with BOS (where there is none, with EOS, or what else parts documents), and each of its tokens is
    predicted once, in windows of `max_length`: see `zoo.evaluate.scoring.windows`. With none of these tokens the
    first token of a text is not predicted ("tokens_left_out").

    Args:
        lm: the model, with its tokenizer.
        texts: those without a token to predict are left out.
        name: of the texts, in the result.
        max_length: tokens the model sees at once; None: the config's max_seq_len.
        batch_size, cache: see `Scorer`.
        on_progress: called with "windows", windows done and their number.

    Returns:
        A JSON-serialisable dict, see docs/evaluation.md. Its items are texts, or windows if there is only one text:
        standard errors take items for independent.

    Raises:
        UserError: no text with anything to predict, a character the tokenizer does not know.
    """
    started = time.perf_counter()
    check_tokenizer(lm)
    max_length, tokenizer = check_max_length(lm.config, max_length), lm.tokenizer
    starts = [i for i in (tokenizer.bos_id, tokenizer.eos_id, *tokenizer.separator_ids[-1:]) if i is not None]
    scored_texts, rows = [], []
    for text, ids in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        prefix, ids = (starts[0], ids) if starts else (ids[0] if ids else 0, ids[1:])
        if ids:
            scored_texts.append(text)
            rows.append(windows(ids, prefix, max_length))
    if not rows:
        raise UserError(f"{name}: there is no text with tokens to predict")
    scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
    every_row = [row for group in rows for row in group]
    scored = scorer.score(every_row, on_progress=progress_of("windows", on_progress))
    sizes = [len(text.encode()) for text in scored_texts]
    if len(scored_texts) > 1:
        task = _by_texts(scored_texts, sizes, rows, iter(scored))
    else:
        # One text: its windows are the items, and of its bytes only the sum is known.
        task = _by_windows(every_row, scored)
        per_byte = task["tokens"] / sizes[0] / math.log(2)
        loss = task["metrics"]["nats_per_token"]
        error = None if loss["stderr"] is None else loss["stderr"] * per_byte
        task["metrics"]["bits_per_byte"] = measures.measured(loss["value"] * per_byte, error, False)
    task |= {"texts": len(rows), "bytes": sum(sizes), "tokens_left_out": 0 if starts else len(rows)}
    settings = {"max_length": max_length, "begins_with": starts[0] if starts else None}
    return make_result(lm, "perplexity", {name: task}, settings | {"dtype": str(lm.computing.dtype)}, started)


def read_texts(path: Path) -> list[str]:
    """Reads the texts of a file: .jsonl (plain or compressed) or .parquet with a `text` a record; else it is one text.

    Raises UserError that names the place for what cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = path.name.lower()
    source = (
        "jsonl"
        if name.endswith(registry.file_format("jsonl").SUFFIXES)
        else "parquet"
        if name.endswith(".parquet")
        else "text"
    )
    texts = []
    for item in readers.to_keep(documents.read(SourceFields(source=source, path=str(path)), "text"), [path]):
        if isinstance(item, documents.Fault):
            raise UserError(item.reason)
        texts.append(item)
    return texts


def _lines(path: Path) -> list[str]:
    """Reads the lines of a text file with their ends, as the hub's rows have them; or the texts of records."""
    texts = read_texts(path)
    if path.suffix.lower() in (".jsonl", ".parquet") or len(texts) != 1:
        return texts
    return [line + "\n" for line in texts[0].split("\n")]


def _by_texts(
    texts: Sequence[str], sizes: Sequence[int], rows: Sequence[Sequence[Row]], scored: Iterator[Scored]
) -> dict[str, Any]:
    items = []
    for number, (text, size, group) in enumerate(zip(texts, sizes, rows, strict=True)):
        nats = -math.fsum(next(scored).logprob for _ in group)
        tokens = sum(row.scored for row in group)
        item = {"id": number, "hash": sha256_hex(text.encode())}
        items.append(item | {"nats_per_token": [nats, tokens], "bits_per_byte": [nats / math.log(2), size]})
    return _task(items, ("nats_per_token", "bits_per_byte"))


def _by_windows(rows: Sequence[Row], scored: Sequence[Scored]) -> dict[str, Any]:
    items = [
        {
            "id": number,
            "hash": sha256_hex(json.dumps(row.tokens).encode()),
            "nats_per_token": [-score.logprob, row.scored],
        }
        for number, (row, score) in enumerate(zip(rows, scored, strict=True))
    ]
    return _task(items, ("nats_per_token",))


def _task(items: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Returns a task of a result: the items, and the metrics `names` and perplexity over them."""
    metrics = {}
    for name in names:
        value, error = measures.ratio(*zip(*(item[name] for item in items), strict=True))
        metrics[name] = measures.measured(value, error, False)
    loss = metrics["nats_per_token"]
    metrics["perplexity"] = measures.perplexity(loss["value"], loss["stderr"])
    tokens = sum(item["nats_per_token"][1] for item in items)
    return {"n": len(items), "tokens": tokens, "metrics": metrics, "items": items}
