"""Grounding: the names, minutes and scores that a crónica tells, each checked against its block.

The search is cautious: a word counts as a name when it is written with a capital inside a sentence, or is a known
name. Its rate on reference texts, which tell the truth, is therefore reported beside a model's: it is the error of the
search itself.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence

from zoo.tasks.cronica import corpus, names
from zoo.tasks.cronica.match import Match, fold, parse_block

BUILT_IN_TEXTS = 400  # enough for every sentence of the built-in styles to turn up
KINDS = ("clubs", "surnames", "names", "minutes", "scores")

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CONNECTORS = frozenset(["de", "del", "la", "las", "los", "el", "y"])
_SENTENCE_START = re.compile(r"(?:^|[.!?…:\n])[\s\"'«»“”()—–-]*$|[¡¿][\s\"'«“(]*$")
_CLOCK = r"(\d{1,3})(?:\s?\+\s?(\d{1,2}))?"
_MINUTES = (
    re.compile(rf"(?<![\d.,]){_CLOCK}\s?['’′](?!\w)"),
    re.compile(rf"\bmin(?:utos?\b|\.)\s+{_CLOCK}(?![\d.,]\d)", re.IGNORECASE),
    re.compile(rf"(?<![\d.,+])\b{_CLOCK}\s+minutos?\b", re.IGNORECASE),
    re.compile(rf"\blos\s+{_CLOCK}(?=[,;:!?]|\.(?!\d)|\s+(?:y|cuando)\b)", re.IGNORECASE),
    re.compile(rf"\b(?:a los|al)\s+{_CLOCK}(?![\d.,]\d|\s*(?:%|años|mil\b))", re.IGNORECASE),
)
_WHOLE_HALVES = (45, 90)  # "en 90 minutos" is the length of a match, no goal
_SCORE = re.compile(r"(?<![\d.,–-])(\d{1,2})\s?[-–]\s?(\d{1,2})(?![\d–-])")


@dataclasses.dataclass(frozen=True)
class Mention:
    """A fact that a text tells.

    Attributes:
        start: index of its first character.
        end: index after its last character.
        kind: one of KINDS.
        grounded: whether the block has it.
    """

    start: int
    end: int
    kind: str
    grounded: bool


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Words that are names, and words that are none although written with a capital; folded as by `match.fold`.

    Attributes:
        people: given names and surnames.
        clubs: words of clubs' names.
        ordinary: words that are no names.
    """

    people: frozenset[str]
    clubs: frozenset[str]
    ordinary: frozenset[str]

    @classmethod
    def learn(cls, *corpora: Sequence[dict]) -> "Lexicon":
        """Returns the built-in pools of names, and the ordinary words of the built-in and the given reference texts.

        Ordinary is a word that references write small, or write with a capital inside a sentence, without
        its standing in their block, in at least 1% (and at least 2) of the texts of a corpus: "Dios", "VAR".
        """
        people, clubs, ordinary = set(), set(), set()
        for origin, unseen in itertools.product(names.ORIGINS, (False, True)):
            people.update(names.given(origin=origin), names.surnames(origin=origin, unseen=unseen))
            clubs.update(word for club in names.clubs(unseen=unseen) for word in club.split())
        for records in (corpus.generate(BUILT_IN_TEXTS), *corpora):
            ordinary |= _ordinary_words(records)
        return cls(
            frozenset(map(_fold, people)),
            frozenset(map(_fold, clubs)) - _CONNECTORS,
            frozenset(ordinary),
        )


def _ordinary_words(records: Sequence[dict]) -> set[str]:
    small, capital = set(), Counter()
    for record in records:
        text, known, strange = record["cronica"], set(_words(record["stats_block"])), set()
        for word in _WORD.finditer(text):
            if word[0].islower():
                small.add(_fold(word[0]))
            elif _fold(word[0]) not in known and not _starts_sentence(text, word.start()):
                strange.add(_fold(word[0]))
        capital.update(strange)
    return small | {word for word, times in capital.items() if times >= max(2, len(records) / 100)}


def mentions(text: str, match: Match, lexicon: Lexicon) -> list[Mention]:
    """Returns the names, minutes and scores that `text` tells, in order, each checked against the block's facts.

    Clubs and surnames (with given names) are distinguished by the block and by the lexicon; "names" are capital
    words that neither knows. A score is grounded when it is the result or stood at some time of the match,
    home goals first; a minute is grounded when a goal fell in it.
    """
    facts = [*_names(text, match, lexicon), *_minutes(text, match), *_scores(text, match)]
    return sorted(facts, key=lambda mention: mention.start)


def sentences(text: str) -> list[str]:
    """Returns `text` cut at full stops, exclamation and question marks and line ends."""
    return [part for part in re.split(r"(?<=[.!?…])\s+|\n+", text) if part.strip()]


def has_word(text: str, word: str) -> bool:
    """Returns whether `word` stands in `text` with no letter or digit beside it; case is ignored."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


_fold = functools.lru_cache(maxsize=100_000)(fold)


def _words(text: str) -> list[str]:
    return [_fold(word) for word in _WORD.findall(text)]


def _starts_sentence(text: str, at: int) -> bool:
    return _SENTENCE_START.search(text, max(0, at - 12), at) is not None or at == 0


def _minutes(text: str, match: Match) -> list[Mention]:
    scored = {(goal.minute, goal.added) for goal in match.goals}
    scored |= {(minute + added, 0) for minute, added in scored} | {(minute, 0) for minute, _ in scored}
    known = bool(match.goals) or match.home_goals + match.away_goals == 0
    minutes: dict[int, Mention] = {}
    for number, pattern in enumerate(_MINUTES):
        for clock in pattern.finditer(text):
            minute, added = int(clock[1]), int(clock[2] or 0)
            grounded = (minute, added) in scored
            length_of_match = number == 2 and minute in _WHOLE_HALVES and not grounded
            if known and not length_of_match:
                start, end = clock.start(1), clock.end(2) if clock[2] else clock.end(1)
                minutes[start] = Mention(start, end, "minutes", grounded)
    return list(minutes.values())


def _scores(text: str, match: Match) -> list[Mention]:
    standing = {(0, 0), (match.home_goals, match.away_goals)}
    home = away = 0
    for goal in sorted(match.goals, key=lambda goal: (goal.minute, goal.added)):
        home, away = home + (goal.club == match.home), away + (goal.club == match.away)
        standing.add((home, away))
    if not match.goals:  # not known in which order they fell: any score on the way is possible
        standing |= {(h, a) for h in range(match.home_goals + 1) for a in range(match.away_goals + 1)}
    return [
        Mention(score.start(), score.end(), "scores", (int(score[1]), int(score[2])) in standing)
        for score in _SCORE.finditer(text)
    ]


def _names(text: str, match: Match, lexicon: Lexicon) -> list[Mention]:
    entities = [("clubs", match.home), ("clubs", match.away)]
    entities += [("surnames", goal.scorer) for goal in match.goals]
    entities += [("surnames", match.referee or ""), ("", match.stadium or ""), ("", match.league)]
    block = [(kind, _significant(_words(name))) for kind, name in entities]
    named = []
    for run in _capital_runs(text):
        if _starts_sentence(text, run[0].start()) and not _is_name(run[0], block, lexicon):
            run = run[1:]
        named += _ground(run, block, lexicon)
    return named


def _significant(words: list[str]) -> list[str]:
    return [word for word in words if word not in _CONNECTORS]


def _capital_runs(text: str) -> list[list[re.Match]]:
    """Returns runs of words with a capital that have only spaces and small connectors between them."""
    runs: list[list[re.Match]] = []
    previous, linked = None, False
    for word in _WORD.finditer(text):
        gap = "" if previous is None else text[previous.end() : word.start()]
        adjacent = previous is not None and gap.strip(" ") == ""
        if word[0][0].isupper() and _fold(word[0]) not in _CONNECTORS:
            if adjacent and linked:
                runs[-1].append(word)
            else:
                runs.append([word])
            linked = True
        else:
            linked = linked and adjacent and _fold(word[0]) in _CONNECTORS
        previous = word
    return runs


def _is_name(word: re.Match, block: list, lexicon: Lexicon) -> bool:
    """Whether a word at the start of a sentence is a name and not merely a first word."""
    folded = _fold(word[0])
    if any(folded in name for _, name in block):
        return True
    return folded not in lexicon.ordinary and (folded in lexicon.people or folded in lexicon.clubs)


def _ground(run: list[re.Match], block: list, lexicon: Lexicon) -> list[Mention]:
    """Cuts a run into the longest pieces that stand in the block, and what is left between them."""
    folded = [_fold(word[0]) for word in run]
    pieces, at = [], 0
    while at < len(run):
        kind, size = _longest(folded[at:], block)
        if size:
            if kind:
                pieces.append(Mention(run[at].start(), run[at + size - 1].end(), kind, True))
            at += size
            continue
        start, kinds = at, set()
        while at < len(run) and not _longest(folded[at:], block)[1]:
            kinds.add(_kind(run[at][0], lexicon))
            at += 1
        for kind in ("surnames", "clubs", "names"):
            if kind in kinds:
                pieces.append(Mention(run[start].start(), run[at - 1].end(), kind, False))
                break
    return pieces


def _longest(words: list[str], block: list) -> tuple[str, int]:
    """Returns the kind and length of the longest beginning of `words` that stands together in a name of the block."""
    best = ("", 0)
    for kind, name in block:
        for offset in range(len(name)):
            size = 0
            while size < len(words) and offset + size < len(name) and name[offset + size] == words[size]:
                size += 1
            if size > best[1]:
                best = (kind, size)
    return best


def _kind(word: str, lexicon: Lexicon) -> str:
    """Returns the kind of a capital word that is not in the block; "" for one that is no name."""
    folded = _fold(word)
    if folded in lexicon.people:
        return "surnames"
    if folded in lexicon.clubs:
        return "clubs"
    return "" if folded in lexicon.ordinary or (len(word) > 1 and word.isupper()) else "names"


def parse(record: dict) -> Match:
    """Returns the facts of a record's block. Raises UserError, naming the match, where it is no block."""
    return parse_block(record["stats_block"], source=f"match {record.get('match_id', '')}".strip())
