"""Results of tasks and texts, and comparisons of two, as Markdown tables."""

from typing import Any

from zoo.evaluate.card import CARD_TABLE, CHOICE_TASKS, LAMBADA

# Shares are shown in percent; whatever else has these names is none.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "acc_mutual_info")


def markdown(result: dict[str, Any]) -> str:
    """The tables of any result of `zoo.evaluate`'s lm_eval, card, perplexity and compare."""
    if result["suite"] == "compare":
        return _compared(result)
    tables = [_card(result)] if result["suite"] == "kodalite-card" else [_tasks(result)]
    return "\n\n".join([*tables, _about(result)])


def _tasks(result: dict[str, Any]) -> str:
    rows = [["task", "shots", "n", "metric", "value", "standard error"]]
    harness = result["suite"] == "lm-eval"
    for name, task in result["tasks"].items():
        for metric, found in task["metrics"].items():
            shots = str(task["num_fewshot"]) if harness else ""
            rows.append([name, shots, str(task["n"]), metric, *_value(metric, found)])
    for name, group in result.get("groups", {}).items():
        for metric, found in group["metrics"].items():
            rows.append([f"{name} (group)", "", "", metric, *_value(metric, found)])
    if not harness:
        rows = [[row[0], *row[2:]] for row in rows]
    return _table(rows)


def _value(metric: str, found: dict[str, Any]) -> list[str]:
    share = metric.split(",")[0] in _SHARES and 0 <= found["value"] <= 1
    scale, digits = (100, 2) if share else (1, 4)
    error = found["stderr"]
    mark = "%" if share else ""
    return [
        f"{scale * found['value']:.{digits}f}{mark}",
        "unknown" if error is None else f"{scale * error:.{digits}f}",
    ]


def _card(result: dict[str, Any]) -> str:
    """The model beside the card's nine, in percent, as the card has them."""
    tasks, average = result["tasks"], result["average"]
    short = {"hellaswag": "HellaSwag", "arc_easy": "ARC-E", "arc_challenge": "ARC-C", "winogrande": "WinoGr."}
    short |= {"piqa": "PIQA", "boolq": "BoolQ", "openbookqa": "OBQA"}
    rows = [["model", "params", "tokens", "avg", *(short[name] for name in CHOICE_TASKS), "LAMBADA acc / ppl"]]
    own = [f"{_percent(tasks[name]['metrics']['acc'])}" if name in tasks else "" for name in CHOICE_TASKS]
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
    return "\n".join([_table(rows), "", *notes])


def _percent(found: dict[str, Any]) -> str:
    error = found["stderr"]
    return f"{100 * found['value']:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _about(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items() if value is not None)
    lines = [f"{result['model']}; {result['suite']}; {settings}."]
    for name, task in result["tasks"].items():
        if "tokens" in task:
            parts = [f"{task['tokens']:,} tokens predicted", f"{task['tokens_left_out']:,} left out"]
            parts += [f"{task['bytes']:,} bytes"] if "bytes" in task else []
            lines.append(f"{name}: {', '.join(parts)}.")
    if "published" in result:
        stated = result["published"]
        lines.append(
            f"{stated['model']} as published: {stated['nats_per_token']:.3f} nats a token, perplexity "
            f"{stated['perplexity']:.2f}."
        )
    return "\n".join(lines)


def _compared(result: dict[str, Any]) -> str:
    rows = [["task", "metric", "n", "first", "second", "difference", "95% interval", "p", "only first", "only second"]]
    found = [(name, metric, one) for name, task in result["tasks"].items() for metric, one in task["metrics"].items()]
    if result.get("average"):
        found.append(("average", "acc", result["average"]))
    for name, metric, one in found:
        shares = metric.split(",")[0] in _SHARES
        scale, digits = (100, 2) if shares else (1, 4)
        interval = "unknown"
        if one["low"] is not None:
            interval = f"{scale * one['low']:+.{digits}f} to {scale * one['high']:+.{digits}f}"
        first, second = (f"{scale * one[which]:.{digits}f}{'%' if shares else ''}" for which in ("first", "second"))
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
    return "\n".join([_table(rows), "", *notes])


def _table(rows: list[list[str]]) -> str:
    header, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *rest])
