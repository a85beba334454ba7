"""The benchmark protocol of the KodaLite-1.3B card (https://huggingface.co/YoAbriel/KodaLite-1.3B).

It is not the harness's: context and continuation are tokenised apart and joined, what does not fit loses its
beginning, an answer's score is the mean log probability of its tokens, and the best answer is the model's. Its
figures can be compared with the card's table and with nothing else.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.evaluate import measures
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.local_data import HubData, records
from zoo.evaluate.scoring import Row, Scorer
from zoo.language_model import LanguageModel
from zoo.util import sha256_hex

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A context, its possible continuations and the number of the right one (there may be only that one)."""

    context: str
    choices: tuple[str, ...]
    gold: int


def _hellaswag(record: dict) -> Question:
    return Question(record["ctx"] + " ", tuple(record["endings"]), int(record["label"]))


def _arc(record: dict) -> Question:
    return _lettered(f"Question: {record['question']}\nAnswer:", record)


def _openbookqa(record: dict) -> Question:
    return _lettered(record["question_stem"], record)


def _lettered(context: str, record: dict) -> Question:
    choices = record["choices"]
    gold = list(choices["label"]).index(record["answerKey"].strip())
    return Question(context, tuple(f" {text}" for text in choices["text"]), gold)


def _winogrande(record: dict) -> Question:
    context, tail = record["sentence"].split("_", 1)
    return Question(context, (record["option1"] + tail, record["option2"] + tail), int(record["answer"]) - 1)


def _piqa(record: dict) -> Question:
    choices = (f" {record['sol1']}", f" {record['sol2']}")
    return Question(f"Question: {record['goal']}\nAnswer:", choices, int(record["label"]))


def _boolq(record: dict) -> Question:
    context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return Question(context, (" no", " yes"), int(record["answer"]))


def _lambada(record: dict) -> Question:
    context, word = record["text"].rsplit(" ", 1)
    return Question(context, (f" {word}",), 0)


LAMBADA = "lambada_openai"
TASKS: dict[str, tuple[HubData, Callable[[dict], Question]]] = {
    "hellaswag": (HubData("Rowan/hellaswag", None, "validation"), _hellaswag),
    "arc_easy": (HubData("allenai/ai2_arc", "ARC-Easy", "test"), _arc),
    "arc_challenge": (HubData("allenai/ai2_arc", "ARC-Challenge", "test"), _arc),
    "winogrande": (HubData("allenai/winogrande", "winogrande_xl", "validation"), _winogrande),
    "piqa": (HubData("baber/piqa", None, "validation"), _piqa),
    "boolq": (HubData("google/boolq", None, "validation"), _boolq),
    "openbookqa": (HubData("allenai/openbookqa", "main", "test"), _openbookqa),
    LAMBADA: (HubData("EleutherAI/lambada_openai", "default", "test"), _lambada),
}
CHOICE_TASKS = tuple(name for name in TASKS if name != LAMBADA)


@dataclass(frozen=True)
class CardRow:
    """A row of the card's table, in percent; LAMBADA as accuracy and perplexity; None where the card is silent."""

    model: str
    params: str
    tokens: str
    average: float | None
    choices: tuple[float | None, ...] = (None,) * len(CHOICE_TASKS)
    lambada: tuple[float, float] | None = None


# As the card publishes them; choices in the order of CHOICE_TASKS.
CARD_TABLE = (
    CardRow("TinyLlama-1.1B", "1.10B", "3000B", 50.3, (56.2, 43.9, 30.0, 52.2, 72.1, 60.6, 37.2)),
    CardRow(
        "Pythia-1.4B", "1.41B", "300B", 50.2, (49.21, 51.73, 29.01, 52.88, 71.22, 63.70, 33.40), lambada=(61.03, 3.8)
    ),
    CardRow("GPT-2-XL", "1.56B", "40B", 49.4, (47.94, 50.80, 28.16, 51.93, 70.89, 61.59, 34.20), lambada=(50.79, 6.4)),
    CardRow("OPT-1.3B", "1.32B", "180B", 49.1),
    CardRow("Pythia-1B", "1.01B", "300B", 47.6),
    CardRow("GPT-2-large", "0.77B", "40B", 46.2),
    CardRow("GPT-2-medium", "0.35B", "40B", 44.2),
    CardRow(
        "GPT-2-124M", "0.12B", "40B", 39.7, (29.22, 38.30, 22.70, 49.49, 62.24, 49.76, 26.40), lambada=(30.84, 17.5)
    ),
    CardRow("KodaLite-1.3B", "1.27B", "1.64B", 36.8, (25.65, 32.79, 21.50, 49.57, 58.92, 44.34, 25.00), (18.22, 93.78)),
    CardRow("random", "", "", None, (25.0, 25.0, 25.0, 50.0, 50.0, 50.0, 25.0)),
)


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    data: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    cache: ResultCache | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask a model the card's questions in the card's way.

    Args:
        lm: the card's figures were computed in bfloat16.
        tasks: names in `TASKS`; the average is made when all seven with choices are among them.
        data: a directory with <task>.jsonl, the hub's fields in each record; None: from the hub.
        limit: questions of each task.
        batch_size: rows computed at a time.
        cache: results found there are not computed again.
        on_progress: called with the task, rows done and their number.

    Returns:
        A JSON-serialisable dict like that of `zoo.evaluate.lm_eval.evaluate`, with "average": the mean accuracy over
        the seven tasks with choices. Shares are from 0 to 1.

    Raises:
        UserError: data that cannot be had or lack a field, a model without a tokenizer.
    """
    if lm.tokenizer is None:
        raise UserError(f"this {lm.spec.name} has no tokenizer; load trained weights to evaluate it")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1")
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--tasks: the card has no task {name!r}; it has {', '.join(TASKS)}")
    started = time.perf_counter()
    scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
    # All data before anything is computed: what is missing is known at once.
    asked = {name: _questions(name, data, limit) for name in tasks}
    found = {}
    for name, questions in asked.items():
        progress = None if on_progress is None else lambda *at, name=name: on_progress(name, *at)
        found[name] = _task(lm, scorer, name, questions, progress)
    return {
        "format": measures.FORMAT,
        "suite": "kodalite-card",
        "model": lm.spec.name,
        "settings": {"limit": limit, "max_length": lm.config.max_seq_len, "dtype": str(lm.computing.dtype)},
        "seconds": time.perf_counter() - started,
        "tasks": found,
        "average": _average(found),
    }


def _questions(name: str, data: Path | None, limit: int | None) -> list[Question]:
    hub, read = TASKS[name]
    found = []
    for number, record in enumerate(records(name, hub, data, limit), 1):
        try:
            question = read(record)
            if not 0 <= question.gold < len(question.choices) or not all(question.choices):
                raise ValueError("the right answer is none of the choices, or a choice is empty")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            known = ", ".join(map(str, record))
            raise UserError(
                f"{name}, record {number}: does not have the data set's fields ({type(error).__name__}: {error}); "
                f"it has {known}"
            ) from None
        found.append(question)
    return found


def _task(lm: LanguageModel, scorer: Scorer, name: str, questions: list[Question], on_progress) -> dict[str, Any]:
    encode, held = lm.tokenizer.encode_batch, lm.config.max_seq_len
    contexts = encode([question.context for question in questions])
    answers = iter(encode([choice for question in questions for choice in question.choices]))
    before = [i for i in (lm.tokenizer.bos_id, lm.tokenizer.eos_id) if i is not None][:1]
    rows = []
    for question, context in zip(questions, contexts, strict=True):
        rows.append([])
        for _ in question.choices:
            answer = next(answers)
            ids = tuple([*(context or before), *answer][-held:])
            rows[-1].append(Row(ids, min(len(answer), len(ids) - 1)))
    scored = iter(scorer.score([one for row in rows for one in row], on_progress=on_progress))
    items = []
    for number, (question, row) in enumerate(zip(questions, rows, strict=True)):
        results = [next(scored) for _ in row]
        text = "\x00".join([question.context, *question.choices, str(question.gold)])
        item = {"id": number, "hash": sha256_hex(text.encode())}
        if name == LAMBADA:
            item |= {"acc": float(results[0].greedy), "perplexity": [-results[0].logprob, row[0].scored]}
        else:
            means = [result.logprob / max(one.scored, 1) for result, one in zip(results, row, strict=True)]
            item |= {"acc": float(means.index(max(means)) == question.gold), "scores": means}
        items.append(item)
    metrics = {"acc": measures.measured(*measures.mean([item["acc"] for item in items]), True)}
    if name == LAMBADA:
        rate, error = measures.ratio(*zip(*(item["perplexity"] for item in items), strict=True))
        metrics["perplexity"] = measures.perplexity(rate, error)
    return {"n": len(items), "metrics": metrics, "items": items}


def _average(found: dict[str, Any]) -> dict[str, Any] | None:
    """Mean accuracy over the seven tasks with choices, None unless all are there."""
    if not all(name in found for name in CHOICE_TASKS):
        return None
    accuracies = [found[name]["metrics"]["acc"] for name in CHOICE_TASKS]
    errors = [one["stderr"] for one in accuracies]
    stderr = None if None in errors else math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    return measures.measured(math.fsum(one["value"] for one in accuracies) / len(accuracies), stderr, True)
