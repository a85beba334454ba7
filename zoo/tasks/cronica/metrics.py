"""Metrics of crónicas against their matches: what is told, what of it is right, and in which style.

The original project's metrics are computed as it computed them (github.com/DanielRegaladoUMiami/cronica-jax,
scripts/compute_metrics.py), generous as they are; beside them stand stricter ones and precision:
what is told that the block does not hold.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from zoo.evaluate.statistics import Share, pooled, proportion
from zoo.tasks.cronica.grounding import KINDS, Lexicon, has_word, mentions, parse, sentences
from zoo.tasks.cronica.match import Goal, Match
from zoo.tasks.cronica.tokens import STYLES, check_style

MARKERS: dict[str, tuple[str, ...]] = {
    "rioplatense_apasionado": ("gooool", "goool", "¡goool", "¡qué partido", "qué espectáculo"),
    "rioplatense_tecnico": ("la jerarquía", "marcador", "ventaja", "encuentro"),
    "rioplatense_literario": ("barrilete", "alma", "magia", "sinfonía", "poema"),
    "mexicano_irreverente": ("telenovela", "salud por", "como si", "qué tal", "ni"),
    "mexicano_clasico": ("en la tarde", "afición", "dirección", "encuentro"),
    "centroamericano_espn": ("dominical", "los diablos", "espn", "mítico"),
    "espanol_radiofonico": ("cope", "buenas noches", "oyentes", "señor"),
    "comentario_tecnico": ("transiciones", "sistema", "estructura", "presión alta", "bloque"),
}
EMPTY_TESTS = ("ni", "encuentro")  # nearly any text holds them


def measure(records: Sequence[dict], texts: Sequence[str], lexicon: Lexicon) -> dict[str, Any]:
    """Returns all metrics of `texts`, one for each record, as `Share.to_dict` dicts; names as in docs/evaluation.md.

    The keys are home, away, both, score, scorers, style, style_strict; clubs_in_full, goals (name and minute in
    one sentence); both_later, scorers_later, goals_later: the same without the first paragraph, which in the
    built-in corpus lists the result; told (kind -> precision), clean; styles (label -> style, style_strict), n, words.
    """
    rows = [measure_one(record, text, lexicon) for record, text in zip(records, texts, strict=True)]
    metrics: dict[str, Any] = {"n": len(rows)}
    for name in ("home", "away", "both", "clubs_in_full", "score", "style", "style_strict", "clean", "both_later"):
        metrics[name] = proportion([row[name] for row in rows]).to_dict()
    given = [row["given"] for row in rows]
    for name in ("scorers", "goals", "scorers_later", "goals_later"):
        metrics[name] = pooled([row[name] for row in rows], given).to_dict()
    metrics["told"] = {
        kind: pooled([row["right"][kind] for row in rows], [row["told"][kind] for row in rows]).to_dict()
        for kind in KINDS
    }
    metrics["styles"] = {}
    for label in STYLES:
        own = [row for row in rows if row["label"] == label]
        if own:
            metrics["styles"][label] = {
                name: proportion([row[name] for row in own]).to_dict() for name in ("style", "style_strict")
            }
    metrics["words"] = sum(row["words"] for row in rows) / len(rows)
    return metrics


def measure_one(record: dict, text: str, lexicon: Lexicon) -> dict[str, Any]:
    """Returns the metrics of one text against a record's `stats_block` and `style_label`: yes or no, or counts."""
    match, low = parse(record), text.lower()
    _, blank, later = text.partition("\n\n")
    later = later if blank else text
    home, away = (club_named(club, low) for club in (match.home, match.away))
    facts = mentions(text, match, lexicon)
    told = {kind: sum(mention.kind == kind for mention in facts) for kind in KINDS}
    right = {kind: sum(mention.kind == kind and mention.grounded for mention in facts) for kind in KINDS}
    label = record["style_label"]
    return {
        "label": label,
        "home": home,
        "away": away,
        "both": home and away,
        "clubs_in_full": match.home.lower() in low and match.away.lower() in low,
        "score": score_told(match, text),
        "given": len(match.goals),
        "scorers": sum(last_name(goal) in low for goal in match.goals),
        "goals": sum(goal_told(goal, text) for goal in match.goals),
        "style": in_style(label, text),
        "style_strict": in_style(label, text, strict=True),
        "told": told,
        "right": right,
        "clean": told == right,
        "both_later": all(club_named(club, later.lower()) for club in (match.home, match.away)),
        "scorers_later": sum(last_name(goal) in later.lower() for goal in match.goals),
        "goals_later": sum(goal_told(goal, later) for goal in match.goals),
        "words": len(text.split()),
    }


def club_named(club: str, lowered: str) -> bool:
    """Returns whether a word of the club's name, longer than 3 letters, is in the lowered text: the original's test."""
    return any(word in lowered for word in club.lower().split() if len(word) > 3)


def score_told(match: Match, text: str) -> bool:
    """Returns whether the result occurs literally, with a hyphen or an en dash: the original's test."""
    return match.score in text or match.score.replace("-", "–") in text


def last_name(goal: Goal) -> str:
    """Returns the last word of the scorer's name, lowered."""
    return goal.scorer.split()[-1].lower()


def goal_told(goal: Goal, text: str) -> bool:
    """Returns whether one sentence has the scorer's last name and the goal's minute."""
    minutes = {goal.clock(), str(goal.minute), str(goal.minute + goal.added)}
    return any(
        has_word(part, last_name(goal)) and any(has_word(part, minute) for minute in minutes)
        for part in sentences(text)
    )


def in_style(label: str, text: str, *, strict: bool = False) -> bool:
    """Returns whether a marker of the style occurs; `strict`: as whole words, and without the nearly empty tests."""
    check_style(label)
    low = text.lower()
    if not strict:
        return any(marker in low for marker in MARKERS[label])
    return any(has_word(low, marker) for marker in MARKERS[label] if marker not in EMPTY_TESTS)


def share(stored: dict[str, Any]) -> Share:
    """Returns the `Share` whose `to_dict` is `stored`."""
    return Share(**{field.name: stored[field.name] for field in dataclasses.fields(Share)})
