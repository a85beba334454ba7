"""Results of tasks and texts as Markdown tables."""

from typing import Any

# Metrics that are shares, shown in percent.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1", "acc_mutual_info")


def markdown(result: dict[str, Any]) -> str:
    """Returns the tables of a result of `zoo.evaluate`'s lm_eval and perplexity."""
    return "\n\n".join([_tasks(result), summary(result)])


def _tasks(result: dict[str, Any]) -> str:
    rows = [["task", "shots", "n", "metric", "value", "standard error"]]
    harness = result["suite"] == "lm-eval"
    for name, task in result["tasks"].items():
        for metric, measured in task["metrics"].items():
            shots = str(task["num_fewshot"]) if harness else ""
            rows.append([name, shots, str(task["n"]), metric, *_value(metric, measured)])
    for name, group in result.get("groups", {}).items():
        for metric, measured in group["metrics"].items():
            rows.append([f"{name} (group)", "", "", metric, *_value(metric, measured)])
    if not harness:
        rows = [[row[0], *row[2:]] for row in rows]
    return table(rows)


def _value(metric: str, measured: dict[str, Any]) -> list[str]:
    share = is_share(metric) and 0 <= measured["value"] <= 1
    scale, digits, mark = (100, 2, "%") if share else (1, 4, "")
    value, error = f"{scale * measured['value']:.{digits}f}{mark}", measured["stderr"]
    return [value, "unknown" if error is None else f"{scale * error:.{digits}f}"]


def is_share(metric: str) -> bool:
    """Returns whether a metric of the harness, "name" or "name,filter", is a share from 0 to 1."""
    return metric.split(",")[0] in _SHARES


def summary(result: dict[str, Any]) -> str:
    """Returns what stands below the tables: the model, the settings, counts of tokens and published figures."""
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


def table(rows: list[list[str]]) -> str:
    """Returns a Markdown table; the first row is its header."""
    header, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *rest])
