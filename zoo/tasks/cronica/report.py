"""The result of the crónica suite as Markdown tables."""

from collections.abc import Callable
from typing import Any

from zoo.tasks.cronica.metrics import share

_ROWS: tuple[tuple[str, Callable[[dict], Any]], ...] = (
    ("home club named", lambda metrics: metrics["home"]),
    ("away club named", lambda metrics: metrics["away"]),
    ("result told literally", lambda metrics: metrics["score"]),
    ("scorers' last names", lambda metrics: metrics["scorers"]),
    ("style marker", lambda metrics: metrics["style"]),
    ("style marker, strict", lambda metrics: metrics["style_strict"]),
    ("both clubs named", lambda metrics: metrics["both"]),
    ("both clubs in full", lambda metrics: metrics["clubs_in_full"]),
    ("goals: name and minute in a sentence", lambda metrics: metrics["goals"]),
    ("both clubs named, after the first paragraph", lambda metrics: metrics["both_later"]),
    ("scorers' last names, after the first paragraph", lambda metrics: metrics["scorers_later"]),
    ("goals: name and minute, after the first paragraph", lambda metrics: metrics["goals_later"]),
    ("clubs told that are right", lambda metrics: metrics["told"]["clubs"]),
    ("surnames told that are right", lambda metrics: metrics["told"]["surnames"]),
    ("minutes told that are right", lambda metrics: metrics["told"]["minutes"]),
    ("scores told that are right", lambda metrics: metrics["told"]["scores"]),
    ("nothing told that is not in the block", lambda metrics: metrics["clean"]),
)


def markdown(result: dict[str, Any]) -> str:
    """Returns tables of the result of `zoo.tasks.cronica.evaluation.evaluate`: metrics, styles, the card's match."""
    return "\n\n".join([_metrics(result), _styles(result), _card(result)])


def _metrics(result: dict[str, Any]) -> str:
    sets, original = result["sets"], result["original"]
    header, columns = ["metric"], []
    for name, measured in sets.items():
        header += [f"{name} (n={measured['generated']['n']})", f"{name}: reference texts"]
        columns += [measured["generated"], measured["reference"]]
    lines = [_line([*header, "original (other data)"]), _line(["---"] * (len(header) + 1))]
    published = ("home", "away", "score", "scorers")
    for (label, get), name in zip(_ROWS, (*published, *[None] * len(_ROWS)), strict=False):
        past = original[name] if name in published else None
        shown = f"{100 * past['value']:.1f}% ({past['hits']} of {past['total']})" if past else "not stated"
        lines.append(_line([label, *(str(share(get(column))) for column in columns), shown]))
    strange = [column["told"]["names"]["total"] / column["n"] for column in columns]
    lines.append(_line(["unknown names a text", *(f"{number:.2f}" for number in strange), "not stated"]))
    lines.append(_line(["words a text", *(f"{column['words']:.0f}" for column in columns), "not stated"]))
    ended = [f"{share(column['finished'])}" if "finished" in column else "" for column in columns]
    lines.append(_line(["ended by itself", *ended, "not stated"]))
    notes = [
        "In brackets: 95% intervals (Wilson; for pooled shares a bootstrap over matches).",
        f"original: {original['about']}.",
        *(f"{name}: {measured['about']}." for name, measured in sets.items()),
    ]
    return "\n".join([*lines, "", *notes])


def _styles(result: dict[str, Any]) -> str:
    """Returns a line a style: the original's test and the strict one."""
    sets, published = result["sets"], result["original"]["styles"]
    header = ["style"]
    for name in sets:
        header += [name, f"{name}, strict", f"{name}: reference, strict"]
    lines = [_line([*header, "original (other data)"]), _line(["---"] * (len(header) + 1))]
    labels = list(dict.fromkeys(label for measured in sets.values() for label in measured["generated"]["styles"]))
    for label in labels:
        cells = [label]
        for measured in sets.values():
            own, reference = (measured[kind]["styles"].get(label) for kind in ("generated", "reference"))
            shares = (own["style"], own["style_strict"], reference["style_strict"]) if own else ()
            cells += [str(share(stored)) for stored in shares] or [""] * 3
        past = published.get(label)
        cells.append(f"{100 * past['value']:.0f}% ({past['hits']} of {past['total']})" if past else "not measured")
        lines.append(_line(cells))
    return "\n".join(lines)


def _card(result: dict[str, Any]) -> str:
    lines = [
        "The published card's match (Real Madrid 2-1 Atletico Madrid), a crónica a style:",
        "",
        _line(["style", "home", "away", "2-1", "scorers", "with their minute", "style", "nothing else told"]),
        _line(["---"] * 8),
    ]
    for label, row in result["card"]["styles"].items():
        yes = {name: "yes" if row[name] else "no" for name in ("home", "away", "score", "style", "clean")}
        counts = [f"{row['scorers']} of 3", f"{row['goals']} of 3"]
        cells = [yes["home"], yes["away"], yes["score"], *counts, yes["style"], yes["clean"]]
        lines.append(_line([label, *cells]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
