"""Two saved results compared item by item: the same questions, so that their difficulty drops out."""

import math
import os
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.evaluate import measures, tables
from zoo.evaluate.kodalite_card import CHOICE_TASKS
from zoo.evaluate.protocol import FORMAT
from zoo.util import parse_json


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a result that `zoo eval --out` wrote. Raises UserError for anything else."""
    try:
        result = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--compare: there is no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--compare: {path} cannot be read as JSON ({error})") from None
    tasks = result.get("tasks") if isinstance(result, dict) else None
    items_there = isinstance(tasks, dict) and all(
        isinstance(task, dict) and isinstance(task.get("items"), list) and isinstance(task.get("metrics"), dict)
        for task in tasks.values()
    )
    if not items_there or result.get("format") != FORMAT:
        raise UserError(f"--compare: {path} is no result of tasks; write one by zoo eval MODEL --tasks ... --out FILE")
    return result


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Compares two results by the items that both have: what does the second one have over the first?

    Args:
        first, second: results of one suite, as `read` gives them.

    Returns:
        A JSON-serialisable dict: "tasks", each with "metrics": "first" and "second" (over the common items),
        "difference" (second - first) with its paired "stderr", "low" and "high" of the 95% interval, "p" (two-sided:
        the exact sign test where items are right or wrong, that is McNemar's, else from the normal distribution),
        "n", and for right and wrong "only_first" and "only_second": the items that one alone has right. "notes"
        says what was left out. Of the card's suite, "average" likewise.

    Raises:
        UserError: results of different suites, or without a common item.
    """
    if first["suite"] != second["suite"]:
        raise UserError(f"--compare: the results are of different suites, {first['suite']} and {second['suite']}")
    common = [name for name in first["tasks"] if name in second["tasks"]]
    tasks, notes = {}, []
    for name in [*first["tasks"], *(name for name in second["tasks"] if name not in first["tasks"])]:
        if name not in common:
            notes.append(f"{name}: in one of the results only")
            continue
        tasks[name], task_notes = _task(name, first["tasks"][name], second["tasks"][name])
        notes += task_notes
    if not any(task["metrics"] for task in tasks.values()):
        raise UserError(f"--compare: the results have no items in common ({'; '.join(notes) or 'no tasks'})")
    notes += _settings(first.get("settings", {}), second.get("settings", {}))
    result = {
        "format": FORMAT,
        "suite": "compare",
        "of": first["suite"],
        "first": first.get("model"),
        "second": second.get("model"),
        "tasks": tasks,
        "notes": notes,
    }
    if first.get("average") and second.get("average"):
        result["average"] = _average(tasks)
    return result


def _settings(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    names = sorted({*first, *second})
    return [
        f"settings differ: {name} {first.get(name)} and {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def _task(name: str, first: dict[str, Any], second: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the compared metrics of a task, and notes on what was left out."""
    pairs, notes = _pairs(first["items"], second["items"]), []
    missing = max(len(first["items"]), len(second["items"])) - len(pairs)
    if missing:
        notes.append(f"{name}: {missing} items are not in both results, or not the same in both")
    metrics = {}
    for metric, measured in first["metrics"].items():
        values = [(one[metric], other[metric]) for one, other in pairs if metric in one and metric in other]
        if values and metric in second["metrics"]:
            # Items hold the loss of a perplexity; the difference of its logarithms is a mean over them.
            label = f"log {metric}" if metric.endswith("perplexity") else metric
            metrics[label] = _difference(values) | {"higher_is_better": measured.get("higher_is_better")}
    return {"metrics": metrics}, notes


def _pairs(first: list[dict], second: list[dict]) -> list[tuple[dict, dict]]:
    """Returns the pairs of items that are the same question: equal number and content."""
    others = {(item.get("id"), item.get("hash")): item for item in second}
    keys = [(item.get("id"), item.get("hash")) for item in first]
    return [(item, others[key]) for item, key in zip(first, keys, strict=True) if key in others]


def _difference(values: list[tuple[Any, Any]]) -> dict[str, Any]:
    weighted = [(one, other) for one, other in values if isinstance(one, list) and isinstance(other, list)]
    if weighted:
        return _of_ratios([one for one, _ in weighted], [other for _, other in weighted])
    first, second = [float(one) for one, _ in values], [float(other) for _, other in values]
    difference, error = measures.mean([other - one for one, other in zip(first, second, strict=True)])
    result = {"first": measures.mean(first)[0], "second": measures.mean(second)[0], "n": len(values)}
    result |= _interval(difference, error)
    if all(value in (0.0, 1.0) for value in [*first, *second]):
        only_first = sum(one > other for one, other in values)
        only_second = sum(other > one for one, other in values)
        result |= {"only_first": only_first, "only_second": only_second}
        result["p"] = measures.sign_test(only_first, only_second)
    return result


def _of_ratios(first: list[list[float]], second: list[list[float]]) -> dict[str, Any]:
    """Returns the difference of sum / weight, each with its own weights: tokens differ where tokenizers do."""
    n = len(first)
    (up, down), (other_up, other_down) = zip(*first, strict=True), zip(*second, strict=True)
    one, other = measures.ratio(up, down)[0], measures.ratio(other_up, other_down)[0]
    total, other_total = math.fsum(down), math.fsum(other_down)
    parts = [
        (b[0] - other * b[1]) / other_total - (a[0] - one * a[1]) / total for a, b in zip(first, second, strict=True)
    ]
    error = math.sqrt(math.fsum(part**2 for part in parts) * n / (n - 1)) if n > 1 else None
    return {"first": one, "second": other, "n": n} | _interval(other - one, error)


def _interval(difference: float, error: float | None) -> dict[str, Any]:
    interval = {"difference": difference, "stderr": error, "low": None, "high": None, "p": None}
    if error is not None:
        interval |= {"low": difference - measures.Z95 * error, "high": difference + measures.Z95 * error}
        interval["p"] = measures.normal_p(difference / error) if error else float(difference == 0)
    return interval


def _average(tasks: dict[str, Any]) -> dict[str, Any] | None:
    """Compares the averages over the card's tasks with choices; None unless all of them are compared."""
    if not all(name in tasks and "acc" in tasks[name]["metrics"] for name in CHOICE_TASKS):
        return None
    each = [tasks[name]["metrics"]["acc"] for name in CHOICE_TASKS]
    means = {name: math.fsum(one[name] for one in each) / len(each) for name in ("first", "second", "difference")}
    error = measures.mean_error([one["stderr"] for one in each])
    return {**means, **_interval(means["difference"], error), "n": sum(one["n"] for one in each)}


def markdown(result: dict[str, Any]) -> str:
    """Returns the table of a `compare`."""
    rows = [["task", "metric", "n", "first", "second", "difference", "95% interval", "p", "only first", "only second"]]
    compared = [(name, *metric) for name, task in result["tasks"].items() for metric in task["metrics"].items()]
    if result.get("average"):
        compared.append(("average", "acc", result["average"]))
    for name, metric, one in compared:
        share = tables.is_share(metric)
        scale, digits = (100, 2) if share else (1, 4)
        interval = "unknown"
        if one["low"] is not None:
            interval = f"{scale * one['low']:+.{digits}f} to {scale * one['high']:+.{digits}f}"
        first, second = (f"{scale * one[which]:.{digits}f}{'%' if share else ''}" for which in ("first", "second"))
        difference = f"{scale * one['difference']:+.{digits}f}"
        chance = "unknown" if one["p"] is None else f"{one['p']:.4f}"
        only = [str(one.get(which, "")) for which in ("only_first", "only_second")]
        rows.append([name, metric, str(one["n"]), first, second, difference, interval, chance, *only])
    notes = [
        f"first: {result['first']}; second: {result['second']}. difference: second - first, over the items of both, "
        "paired.",
        "p: two-sided; for right and wrong answers the exact sign test (McNemar's), with the items that one alone has "
        "right.",
        *(f"{note}." for note in result["notes"]),
    ]
    return "\n".join([tables.table(rows), "", *notes])
