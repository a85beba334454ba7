"""Does a crónica tell the match it was given, and in the style asked for? See docs/evaluation.md.

The original project's metrics are computed as it computed them (github.com/DanielRegaladoUMiami/cronica-jax,
scripts/compute_metrics.py), generous as they are; beside them stand stricter ones and precision:
what is told that the block does not hold.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import UserError
from zoo.evaluate.statistics import Share, pooled, proportion
from zoo.generate.text import Generation
from zoo.language_model import LanguageModel
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica.grounding import KINDS, Lexicon, has_word, mentions, parse, sentences
from zoo.tasks.cronica.match import Goal, Match, to_block
from zoo.tasks.cronica.tokens import STYLES, check_style
from zoo.tasks.cronica.writing import SETTINGS

FORMAT = 1  # of the JSON result
SETS = {
    "heldout": "held-out matches, names known from training",
    "unseen": "held-out matches, names never seen in training",
}

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

# As published for crónica-5M: n = 12, on that project's own held-out matches.
ORIGINAL = {"home": (2, 12), "away": (3, 12), "score": (0, 12), "scorers": (0, 39)}
ORIGINAL_STYLES = {
    "rioplatense_apasionado": (4, 4),
    "rioplatense_literario": (4, 4),
    "comentario_tecnico": (2, 4),
}

# The published card's example.
CARD_MATCH = Match(
    league="La Liga",
    date="2024-03-15",
    home="Real Madrid",
    away="Atletico Madrid",
    home_goals=2,
    away_goals=1,
    goals=(
        Goal(23, "Vinicius Junior", "Real Madrid"),
        Goal(67, "Antoine Griezmann", "Atletico Madrid"),
        Goal(88, "Jude Bellingham", "Real Madrid"),
    ),
)


def evaluate(
    lm: LanguageModel,
    *,
    num_cronicas: int = 200,
    sets: dict[str, list[dict]] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Generate crónicas for held-out matches and measure them; the references are measured beside them.

    Args:
        lm: a crónica model with its tokenizer.
        num_cronicas: of each set; the built-in sets go through the 8 styles in turn.
        sets: name -> records with stats_block, style_label and cronica (the reference); None: both built-in
            sets, "heldout" and "unseen".
        seed: row i of a set is sampled with seed + i.
        batch_size: crónicas decoded at a time.
        on_progress: called with a set's name, crónicas done and their number.
        settings: of `LanguageModel.cronica`, its defaults where not given.

    Returns:
        A JSON-serialisable dict: "settings"; "sets", each with "generated" and "reference" as `measure` gives
        them and the "texts"; "card": the published card's match in every style; "original": the published
        figures, from other data.

    Raises:
        UserError: nothing to evaluate, or a model that is not one for crónicas.
    """
    if num_cronicas < 1:
        raise UserError(f"the number of crónicas is {num_cronicas}; it must be at least 1")
    lm.check_cronica()
    if sets is None:
        sets = {name: corpus.generate(num_cronicas, split=name) for name in SETS}
    sets = {name: records[:num_cronicas] for name, records in sets.items()}
    lexicon = Lexicon.learn(*sets.values())
    started = time.perf_counter()
    settings = SETTINGS | settings
    results = {}
    for name, records in sets.items():
        if not records:
            raise UserError(f"the set {name} holds no records; there is nothing to evaluate")
        written = lm.cronicas(
            [(record["stats_block"], record["style_label"]) for record in records],
            seed=[seed + row for row in range(len(records))],
            batch_size=batch_size,
            on_progress=None if on_progress is None else lambda *at, name=name: on_progress(name, *at),
            **settings,
        )
        results[name] = {
            "about": SETS.get(name, "records given"),
            "generated": measure(records, [item.text for item in written], lexicon) | _endings(written),
            "reference": measure(records, [record["cronica"] for record in records], lexicon),
            "texts": [_text(record, item) for record, item in zip(records, written, strict=True)],
        }
    card = _card(lm, lexicon, seed, settings)
    return {
        "format": FORMAT,
        "suite": "cronica",
        "model": lm.spec.name,
        "settings": {**settings, "seed": seed, "num_cronicas": num_cronicas},
        "seconds": time.perf_counter() - started,
        "sets": results,
        "card": card,
        "original": {
            "about": "the published model on that project's own data: other matches, other references",
            **{name: {"value": hits / n, "hits": hits, "total": n} for name, (hits, n) in ORIGINAL.items()},
            "styles": {
                name: {"value": hits / n, "hits": hits, "total": n} for name, (hits, n) in ORIGINAL_STYLES.items()
            },
        },
    }


def measure(records: Sequence[dict], texts: Sequence[str], lexicon: Lexicon) -> dict[str, Any]:
    """All metrics of `texts`, one for each record, as `Share.to_dict` dicts; names as in docs/evaluation.md.

    The keys: home, away, both, score, scorers, style, style_strict; clubs_in_full, goals (name and minute in
    one sentence); both_later, scorers_later, goals_later: the same without the first paragraph, which in the
    built-in corpus lists the result; told (kind -> precision), clean; styles (label -> style, style_strict), n, words.
    """
    rows = [_Row.of(record, text, lexicon) for record, text in zip(records, texts, strict=True)]
    found: dict[str, Any] = {"n": len(rows)}
    for name in ("home", "away", "both", "clubs_in_full", "score", "style", "style_strict", "clean", "both_later"):
        found[name] = proportion([getattr(row, name) for row in rows]).to_dict()
    given = [row.given for row in rows]
    for name in ("scorers", "goals", "scorers_later", "goals_later"):
        found[name] = pooled([getattr(row, name) for row in rows], given).to_dict()
    found["told"] = {
        kind: pooled([row.right[kind] for row in rows], [row.told[kind] for row in rows]).to_dict() for kind in KINDS
    }
    found["styles"] = {}
    for label in STYLES:
        own = [row for row in rows if row.label == label]
        if own:
            found["styles"][label] = {
                name: proportion([getattr(row, name) for row in own]).to_dict() for name in ("style", "style_strict")
            }
    found["words"] = sum(row.words for row in rows) / len(rows)
    return found


@dataclasses.dataclass(frozen=True)
class _Row:
    """What one text tells of its match: yes or no, or counts."""

    label: str
    home: bool
    away: bool
    both: bool
    clubs_in_full: bool
    score: bool
    given: int
    scorers: int
    goals: int
    style: bool
    style_strict: bool
    told: dict[str, int]
    right: dict[str, int]
    clean: bool
    both_later: bool
    scorers_later: int
    goals_later: int
    words: int

    @classmethod
    def of(cls, record: dict, text: str, lexicon: Lexicon) -> "_Row":
        match, low = parse(record), text.lower()
        _, blank, later = text.partition("\n\n")
        later = later if blank else text
        home, away = (club_named(club, low) for club in (match.home, match.away))
        found = mentions(text, match, lexicon)
        told = {kind: sum(mention.kind == kind for mention in found) for kind in KINDS}
        right = {kind: sum(mention.kind == kind and mention.grounded for mention in found) for kind in KINDS}
        label = record["style_label"]
        return cls(
            label=label,
            home=home,
            away=away,
            both=home and away,
            clubs_in_full=match.home.lower() in low and match.away.lower() in low,
            score=score_told(match, text),
            given=len(match.goals),
            scorers=sum(last_name(goal) in low for goal in match.goals),
            goals=sum(goal_told(goal, text) for goal in match.goals),
            style=in_style(label, text),
            style_strict=in_style(label, text, strict=True),
            told=told,
            right=right,
            clean=told == right,
            both_later=all(club_named(club, later.lower()) for club in (match.home, match.away)),
            scorers_later=sum(last_name(goal) in later.lower() for goal in match.goals),
            goals_later=sum(goal_told(goal, later) for goal in match.goals),
            words=len(text.split()),
        )


def club_named(club: str, lowered: str) -> bool:
    """The original's test: any word of the club's name longer than 3 letters occurs in the lowered text."""
    return any(word in lowered for word in club.lower().split() if len(word) > 3)


def score_told(match: Match, text: str) -> bool:
    """The original's test: the result occurs literally, with a hyphen or an en dash."""
    return match.score in text or match.score.replace("-", "–") in text


def last_name(goal: Goal) -> str:
    """The last word of the scorer's name, lowered."""
    return goal.scorer.split()[-1].lower()


def goal_told(goal: Goal, text: str) -> bool:
    """Whether one sentence has the scorer's last name and the goal's minute."""
    minutes = {goal.clock(), str(goal.minute), str(goal.minute + goal.added)}
    return any(
        has_word(part, last_name(goal)) and any(has_word(part, minute) for minute in minutes)
        for part in sentences(text)
    )


def in_style(label: str, text: str, *, strict: bool = False) -> bool:
    """Whether any marker of the style occurs; strict: as whole words, and without the nearly empty tests."""
    check_style(label)
    low = text.lower()
    if not strict:
        return any(marker in low for marker in MARKERS[label])
    return any(has_word(low, marker) for marker in MARKERS[label] if marker not in EMPTY_TESTS)


def _endings(written: Sequence[Generation]) -> dict[str, Any]:
    return {"finished": proportion([item.finish == "stop" for item in written]).to_dict()}


def _text(record: dict, item: Generation) -> dict[str, Any]:
    kept = {key: record.get(key) for key in ("match_id", "stats_block", "style_label")}
    return {**kept, "cronica": item.text, "finish": item.finish}


def _card(lm: LanguageModel, lexicon: Lexicon, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The card's match in every style: what each text tells of it."""
    block = to_block(CARD_MATCH)
    written = lm.cronicas([(block, label) for label in STYLES], seed=seed, **settings)
    rows = {}
    for label, item in zip(STYLES, written, strict=True):
        row = _Row.of({"stats_block": block, "style_label": label}, item.text, lexicon)
        facts = {name: getattr(row, name) for name in ("home", "away", "score", "scorers", "goals", "style", "clean")}
        rows[label] = facts | {"cronica": item.text}
    return {"stats_block": block, "styles": rows}


def share(stored: dict[str, Any]) -> Share:
    """A `Share` back from its `to_dict`."""
    return Share(**{field.name: stored[field.name] for field in dataclasses.fields(Share)})
