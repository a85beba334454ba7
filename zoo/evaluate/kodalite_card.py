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
from zoo.evaluate import measures, tables
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.local_data import HubData, records
from zoo.evaluate.protocol import Progress, check_limit, check_tokenizer, make_result, progress_of
from zoo.evaluate.scoring import Row, Scorer
from zoo.language_model import LanguageModel
from zoo.util import sha256_hex


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        context: the text that every answer follows.
        choices: the possible answers; of LAMBADA the right one alone.
        gold: the number of the right one.
    """

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
    """A row of the card's table; None where the card gives nothing.

    Attributes:
        model: as the card names it.
        params: number of parameters, in words.
        tokens: tokens it was trained on, in words.
        average: mean of the accuracies in `choices`, in percent.
        choices: accuracies in percent, in the order of CHOICE_TASKS.
        lambada: accuracy in percent, and perplexity.
    """

    model: str
    params: str
    tokens: str
    average: float | None
    choices: tuple[float | None, ...] = (None,) * len(CHOICE_TASKS)
    lambada: tuple[float, float] | None = None


CARD_TABLE = (
    CardRow("TinyLlama-1.1B", "1.10B", "3000B", 50.3, (56.2, 43.9, 30.0, 52.2, 72.1, 60.6, 37.2)),
    CardRow("Pythia-1.4B", "1.41B", "300B", 50.2, (49.21, 51.73, 29.01, 52.88, 71.22, 63.70, 33.40), (61.03, 3.8)),
    CardRow("GPT-2-XL", "1.56B", "40B", 49.4, (47.94, 50.80, 28.16, 51.93, 70.89, 61.59, 34.20), (50.79, 6.4)),
    CardRow("OPT-1.3B", "1.32B", "180B", 49.1),
    CardRow("Pythia-1B", "1.01B", "300B", 47.6),
    CardRow("GPT-2-large", "0.77B", "40B", 46.2),
    CardRow("GPT-2-medium", "0.35B", "40B", 44.2),
    CardRow("GPT-2-124M", "0.12B", "40B", 39.7, (29.22, 38.30, 22.70, 49.49, 62.24, 49.76, 26.40), (30.84, 17.5)),
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
    """Asks a model the card's questions in the card's way.

    Args:
        lm: the card's figures were computed in bfloat16.
        tasks: names in `TASKS`; the average is made when all seven with choices are among them.
        data: a directory with <task>.jsonl, the hub's fields in each record; None: the hub's records.
        limit: questions of each task.
        batch_size: rows computed at a time.
        cache: results that it holds are not computed again.
        on_progress: called with the task, rows done and their number.

    Returns:
        A JSON-serialisable dict like that of `zoo.evaluate.lm_eval.evaluate`, with "average": the mean accuracy over
        the seven tasks with choices. Shares are from 0 to 1.

    Raises:
        UserError: data that cannot be had or lack a field, a model without a tokenizer.
    """
    check_tokenizer(lm)
    check_limit(limit)
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--tasks: the card has no task {name!r}; it has {', '.join(TASKS)}")
    started = time.perf_counter()
    scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
    # All data are read before anything is computed, so that missing ones are reported at once.
    questions = {name: _questions(name, data, limit) for name in tasks}
    results = {name: _task(lm, scorer, name, questions[name], progress_of(name, on_progress)) for name in tasks}
    settings = {"limit": limit, "max_length": lm.config.max_seq_len, "dtype": str(lm.computing.dtype)}
    return make_result(lm, "kodalite-card", results, settings, started) | {"average": _average(results)}


def _questions(name: str, data: Path | None, limit: int | None) -> list[Question]:
    hub, read = TASKS[name]
    questions = []
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
        questions.append(question)
    return questions


def _task(lm: LanguageModel, scorer: Scorer, name: str, questions: list[Question], on_progress) -> dict[str, Any]:
    """Returns the task's metrics and items, as results hold them."""
    rows = _rows(lm, questions)
    scored = iter(scorer.score([row for group in rows for row in group], on_progress=on_progress))
    items = []
    for number, (question, group) in enumerate(zip(questions, rows, strict=True)):
        scores = [next(scored) for _ in group]
        text = "\x00".join([question.context, *question.choices, str(question.gold)])
        item = {"id": number, "hash": sha256_hex(text.encode())}
        if name == LAMBADA:
            item |= {"acc": float(scores[0].greedy), "perplexity": [-scores[0].logprob, group[0].scored]}
        else:
            means = [score.logprob / max(row.scored, 1) for score, row in zip(scores, group, strict=True)]
            item |= {"acc": float(means.index(max(means)) == question.gold), "scores": means}
        items.append(item)
    metrics = {"acc": measures.measured(*measures.mean([item["acc"] for item in items]), True)}
    if name == LAMBADA:
        rate, error = measures.ratio(*zip(*(item["perplexity"] for item in items), strict=True))
        metrics["perplexity"] = measures.perplexity(rate, error)
    return {"n": len(items), "metrics": metrics, "items": items}


def _rows(lm: LanguageModel, questions: list[Question]) -> list[list[Row]]:
    """Returns a row for each choice of each question; an empty context begins with BOS, else with EOS."""
    encode, longest = lm.tokenizer.encode_batch, lm.config.max_seq_len
    contexts = encode([question.context for question in questions])
    answers = iter(encode([choice for question in questions for choice in question.choices]))
    start = [i for i in (lm.tokenizer.bos_id, lm.tokenizer.eos_id) if i is not None][:1]
    return [
        [Row.of(context or start, next(answers), longest) for _ in question.choices]
        for question, context in zip(questions, contexts, strict=True)
    ]


def _average(tasks: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the mean accuracy over the seven tasks with choices, None unless all are there."""
    if not all(name in tasks for name in CHOICE_TASKS):
        return None
    accuracies = [tasks[name]["metrics"]["acc"] for name in CHOICE_TASKS]
    stderr = measures.mean_error([one["stderr"] for one in accuracies])
    return measures.measured(math.fsum(one["value"] for one in accuracies) / len(accuracies), stderr, True)


def markdown(result: dict[str, Any]) -> str:
    """Returns the table of an `evaluate`: the model beside the card's nine, in percent, as the card has them."""
    return "\n\n".join([_table(result), tables.summary(result)])


def _table(result: dict[str, Any]) -> str:
    tasks, average = result["tasks"], result["average"]
    short = {"hellaswag": "HellaSwag", "arc_easy": "ARC-E", "arc_challenge": "ARC-C", "winogrande": "WinoGr."}
    short |= {"piqa": "PIQA", "boolq": "BoolQ", "openbookqa": "OBQA"}
    rows = [["model", "params", "tokens", "avg", *(short[name] for name in CHOICE_TASKS), "LAMBADA acc / ppl"]]
    own = [_percent(tasks[name]["metrics"]["acc"]) if name in tasks else "" for name in CHOICE_TASKS]
    lambada = ""
    if LAMBADA in tasks:
        metrics = tasks[LAMBADA]["metrics"]
        error = metrics["perplexity"]["stderr"]
        spread = "" if error is None else f" ± {error:.2f}"
        lambada = f"{_percent(metrics['acc'])} / {metrics['perplexity']['value']:.2f}{spread}"
    rows.append([f"**{result['model']}**", "", "", "" if average is None else _percent(average), *own, lambada])
    for row in CARD_TABLE:
        cells = [row.model, row.params, row.tokens, "" if row.average is None else f"{row.average}"]
        cells += ["" if value is None else f"{value}" for value in row.choices]
        rows.append([*cells, f"{row.lambada[0]} / {row.lambada[1]}" if row.lambada else ""])
    counts = ", ".join(f"{name} {task['n']}" for name, task in tasks.items())
    notes = [
        "Percent, ± standard error. The first row is this model; the others stand in the card of KodaLite-1.3B, whose",
        "protocol this is (it is not lm-eval's). avg: the seven tasks with choices, without LAMBADA.",
        f"Questions: {counts}.",
    ]
    return "\n".join([tables.table(rows), "", *notes])


def _percent(metric: dict[str, Any]) -> str:
    error = metric["stderr"]
    return f"{100 * metric['value']:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")
