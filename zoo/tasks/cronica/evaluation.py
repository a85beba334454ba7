"""The crónica suite: does a crónica tell the match it was given, in the style asked for? See docs/evaluation.md."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import UserError
from zoo.evaluate.statistics import proportion
from zoo.generate.text import Generation
from zoo.language_model import LanguageModel
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica.grounding import Lexicon
from zoo.tasks.cronica.match import Goal, Match, to_block
from zoo.tasks.cronica.metrics import measure, measure_one
from zoo.tasks.cronica.tokens import STYLES
from zoo.tasks.cronica.writing import SETTINGS

FORMAT = 1  # of the JSON result
SETS = {
    "heldout": "held-out matches, names known from training",
    "unseen": "held-out matches, names never seen in training",
}

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
    """Generates crónicas for held-out matches and measures them; the references are measured beside them.

    Args:
        lm: a crónica model with its tokenizer.
        num_cronicas: how many of each set; the built-in sets go through the 8 styles in turn.
        sets: name -> records with stats_block, style_label and cronica (the reference); None: both built-in
            sets, "heldout" and "unseen".
        seed: row i of a set is sampled with seed + i.
        batch_size: crónicas decoded at a time.
        on_progress: called with a set's name, crónicas done and their number.
        settings: those of `LanguageModel.cronica`, with its defaults.

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


def _endings(written: Sequence[Generation]) -> dict[str, Any]:
    return {"finished": proportion([item.finish == "stop" for item in written]).to_dict()}


def _text(record: dict, item: Generation) -> dict[str, Any]:
    fields = {key: record.get(key) for key in ("match_id", "stats_block", "style_label")}
    return {**fields, "cronica": item.text, "finish": item.finish}


def _card(lm: LanguageModel, lexicon: Lexicon, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the card's match in every style and measures each text."""
    block = to_block(CARD_MATCH)
    written = lm.cronicas([(block, label) for label in STYLES], seed=seed, **settings)
    rows = {}
    for label, item in zip(STYLES, written, strict=True):
        row = measure_one({"stats_block": block, "style_label": label}, item.text, lexicon)
        facts = {name: row[name] for name in ("home", "away", "score", "scorers", "goals", "style", "clean")}
        rows[label] = facts | {"cronica": item.text}
    return {"stats_block": block, "styles": rows}
