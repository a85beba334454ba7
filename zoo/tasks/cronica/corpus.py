"""The built-in corpus of invented matches and their crónicas in eight styles, deterministic in a seed.

Records have the fields of the published dataset (cronicas-d2t): match_id, stats_block, style_label,
style_token, cronica, model. No network is needed, and the published Parquet file drops in by changing
`data.source` in a recipe.
"""

import datetime
import itertools
import random
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources

from zoo.errors import UserError
from zoo.tasks.cronica import names
from zoo.tasks.cronica.match import Goal, Match, to_block
from zoo.tasks.cronica.text import Choose, Style, write
from zoo.tasks.cronica.tokens import STYLES

VERSION = 4
"""Raised whenever the same seed would give other texts: a run made before then is not silently mixed up."""
SPLITS = ("train", "heldout", "unseen")


@cache
def style(label: str) -> Style:
    """Returns the grammar of one of the eight styles, from its file in `styles/`."""
    file = resources.files("zoo.tasks.cronica").joinpath("styles", f"{label}.toml")
    sections = tomllib.loads(file.read_text(encoding="utf-8"))
    return Style(label=label, **{name: tuple(templates) for name, templates in sections.items()})


def generate(num_pairs: int, *, seed: int = 0, split: str = "train") -> list[dict[str, str]]:
    """Returns `num_pairs` records, each of another match; the styles take turns.

    Record i depends on (seed, split, i) alone: a longer corpus begins with the shorter one.

    Args:
        num_pairs: how many records.
        seed: another seed gives other matches.
        split: "train"; "heldout": matches that are not in training, between clubs and with players of the
            same names; "unseen": no club, surname or stadium of theirs occurs in training.

    Raises:
        UserError: the split is unknown, or the number is negative.
    """
    if num_pairs < 0:
        raise UserError(f"data.num_pairs: {num_pairs} is negative")
    return list(itertools.islice(items(seed=seed, split=split), num_pairs))


def items(start: int = 0, *, seed: int = 0, split: str = "train") -> Iterator[dict[str, str]]:
    """Returns the records of `generate` from number `start` on, without end. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"data.split: {split!r} is not a split of the built-in corpus; it has {', '.join(SPLITS)}")
    return (_pair(seed, split, index) for index in itertools.count(start))


def _pair(seed: int, split: str, index: int) -> dict[str, str]:
    source = random.Random(f"zoo-cronicas/{VERSION}/{seed}/{split}/{index}")

    def choose(n: int) -> int:
        return int(source.random() * n)  # random() alone is promised to stay the same in every Python

    labels = tuple(STYLES)
    match = invent(choose, unseen=split == "unseen")
    label = labels[index % len(labels)]
    return {
        "match_id": f"{split}-{seed}-{index:06d}",
        "stats_block": to_block(match),
        "style_label": label,
        "style_token": f"<style:{label}>",
        "cronica": write(match, style(label), choose),
        "model": f"zoo-cronicas-{VERSION}",
    }


def invent(choose: Choose, *, unseen: bool = False) -> Match:
    """Invents a match: league, date, two clubs, the goals; stadium, attendance and referee now and then."""

    def pick(options):
        return options[choose(len(options))]

    # Some matches come without accents, as feeds do: names are to be copied as they stand, not corrected.
    spell = _without_accents if not choose(8) else str
    home, away = (spell(club) for club in _clubs(choose, pick, unseen))
    home_goals, away_goals = _goals(choose, 1.6), _goals(choose, 1.2)
    minutes = set()
    while len(minutes) < home_goals + away_goals:
        minutes.add(2 + choose(89))  # 'a los 1 minutos' would be bad Spanish
    sides = [home] * home_goals + [away] * away_goals
    goals, used = [], set()
    for minute in sorted(minutes):
        club = sides.pop(choose(len(sides)))
        own = [goal.scorer for goal in goals if goal.club == club]
        scorer = pick(own) if own and not choose(5) else spell(_person(choose, pick, unseen, used))
        goals.append(Goal(minute, scorer, club))
    ground = spell(pick(names.places(origin=_origin(choose), unseen=unseen)))
    day = datetime.date(1985, 1, 1) + datetime.timedelta(days=choose(41 * 365))
    return Match(
        league=pick(names.LEAGUES),
        date=day.isoformat(),
        home=home,
        away=away,
        home_goals=home_goals,
        away_goals=away_goals,
        goals=tuple(goals),
        stadium=names.stadium(ground, choose(1000)) if choose(100) < 40 else None,
        attendance=1_000 + choose(69_000) if choose(100) < 35 else None,
        referee=spell(_person(choose, pick, unseen, used)) if choose(100) < 35 else None,
    )


def _clubs(choose: Choose, pick, unseen: bool) -> tuple[str, str]:
    """Draws home and away; one match in twelve is a derby between two clubs of one place."""

    def place() -> str:
        return pick(names.places(origin=_origin(choose), unseen=unseen))

    home, derby = place(), not choose(12)
    away = home if derby else place()
    while away == home and not derby:
        away = place()
    return names.club(home), names.club(away, rank=int(derby))


def _origin(choose: Choose) -> names.Origin:
    """Draws where a name comes from: half are Spanish, a third are coined."""
    drawn = choose(12)
    return "coined" if drawn < 4 else "foreign" if drawn < 6 else "spanish"


def _person(choose: Choose, pick, unseen: bool, used: set[str]) -> str:
    """Draws a name whose surname nobody else in the match bears."""
    origin = _origin(choose)
    while True:
        surname = pick(names.surnames(origin=origin, unseen=unseen))
        if surname not in used:
            used.add(surname)
            return surname if not choose(12) else f"{pick(names.given(origin=origin))} {surname}"


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(c for c in decomposed if c not in "\u0301\u0308"))


def _goals(choose: Choose, mean: float) -> int:
    """Draws the goals of one side from Poisson(`mean`), at most 4."""
    weights, term = [], 1.0
    for count in range(5):
        weights.append(term)
        term *= mean / (count + 1)
    left = choose(1_000_000) / 1_000_000 * sum(weights)
    for count, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return count
    return 4
