"""The result of the crónica suite as Markdown tables."""

from collections.abc import Callable
from typing import Any

from zoo.tasks.cronica.evaluation import share

_ROWS: tuple[tuple[str, Callable[[dict], Any]], ...] = (
    ("home club named", lambda found: found["home"]),
    ("away club named", lambda found: found["away"]),
    ("result told literally", lambda found: found["score"]),
    ("scorers' last names", lambda found: found["scorers"]),
    ("style marker", lambda found: found["style"]),
    ("style marker, strict", lambda found: found["style_strict"]),
    ("both clubs named", lambda found: found["both"]),
    ("both clubs in full", lambda found: found["clubs_in_full"]),
    ("goals: name and minute in a sentence", lambda found: found["goals"]),
    ("both clubs named, after the first paragraph", lambda found: found["both_later"]),
    ("scorers' last names, after the first paragraph", lambda found: found["scorers_later"]),
    ("goals: name and minute, after the first paragraph", lambda found: found["goals_later"]),
    ("clubs told that are right", lambda found: found["told"]["clubs"]),
    ("surnames told that are right", lambda found: found["told"]["surnames"]),
    ("minutes told that are right", lambda found: found["told"]["minutes"]),
    ("scores told that are right", lambda found: found["told"]["scores"]),
    ("nothing told that is not in the block", lambda found: found["clean"]),
)


def markdown(result: dict[str, Any]) -> str:
    """Tables of `zoo.tasks.cronica.evaluation.evaluate`'s result: metrics, styles, the card's match."""
    return "\n\n".join([_metrics(result), _styles(result), _card(result)])


def _metrics(result: dict[str, Any]) -> str:
    sets, original = result["sets"], result["original"]
    header, columns = ["metric"], []
    for name, found in sets.items():
        header += [f"{name} (n={found['generated']['n']})", f"{name}: reference texts"]
        columns += [found["generated"], found["reference"]]
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
        *(f"{name}: {found['about']}." for name, found in sets.items()),
    ]
    return "\n".join([*lines, "", *notes])


def _styles(result: dict[str, Any]) -> str:
    """Style by style: the original's test and the strict one."""
    sets, published = result["sets"], result["original"]["styles"]
    header = ["style"]
    for name in sets:
        header += [name, f"{name}, strict", f"{name}: reference, strict"]
    lines = [_line([*header, "original (other data)"]), _line(["---"] * (len(header) + 1))]
    labels = list(dict.fromkeys(label for found in sets.values() for label in found["generated"]["styles"]))
    for label in labels:
        cells = [label]
        for found in sets.values():
            own, reference = (found[kind]["styles"].get(label) for kind in ("generated", "reference"))
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
