"""The grammar that turns a match into a crónica: templates with choices, and a plan of what is told when.

A style (one file a style in `zoo/tasks/cronica/styles/`) is a set of lists of one-sentence templates. In a template
`(a|b|c)` stands for one of its alternatives (they nest, and one may be empty) and `{slot}` for a fact of
the match. Every slot that holds a name, a minute or a score stands after a space or at the start of the
sentence: byte-level BPE then gives a name the same tokens in the text as in the STATS block, which is what
makes copying learnable.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

from zoo.tasks.cronica.match import Goal, Match

Choose = Callable[[int], int]
"""Draws an index: `choose(n)` is in [0, n)."""

MONTHS = (
    "enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto", "septiembre", "octubre",
    "noviembre", "diciembre",
)  # fmt: skip
MIN_WORDS, MAX_WORDS = 100, 260


@dataclass(frozen=True)
class Style:
    """The sentences of one commentator. Every field but `label` is a tuple of templates.

    `opening*` name both clubs; `goal_*` and `short_goal` name the scorer and the minute; `close_*` and
    `signature` end the text: `close_*` gives the score, `signature` holds one of the style's markers. `summary`
    stands at the head: result and goals as a newspaper prints them.
    """

    label: str
    summary: tuple[str, ...]  # a few words and {summary}
    opening: tuple[str, ...]  # {home} {away}, perhaps {league} {date}
    stadium: tuple[str, ...]  # {stadium}
    attendance: tuple[str, ...]  # {attendance}
    referee: tuple[str, ...]  # {referee}
    goal_first: tuple[str, ...]  # the first of the match: {scorer} {minute}, perhaps {club} {rival}
    goal_equal: tuple[str, ...]  # makes the score level
    goal_ahead: tuple[str, ...]  # ahead again from level
    goal_more: tuple[str, ...]  # the leader scores again
    goal_less: tuple[str, ...]  # the one behind scores and is still behind
    goal_again: tuple[str, ...]  # any goal of a man who has scored before in the match
    short_goal: tuple[str, ...]  # at most 12 words, for matches with many goals
    filler: tuple[str, ...]  # the game between the goals: {home} {away} or no slot
    goalless: tuple[str, ...]  # what happened in a 0-0: {home} {away} or no slot
    close_win: tuple[str, ...]  # {score} {winner}, perhaps {loser}
    close_draw: tuple[str, ...]  # {score}, perhaps {home} {away}
    signature: tuple[str, ...]  # a marker of the style, no slot

    def sections(self) -> dict[str, tuple[str, ...]]:
        """Returns the templates of each section by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "label"}


@cache
def _parse(template: str) -> tuple:
    """Returns a template as nested tuples: a sequence of strings and ("choice", sequence, sequence, ...)."""
    position = 0

    def sequence(depth: int) -> tuple:
        nonlocal position
        alternatives, parts, text = [], [], []

        def end_text():
            if text:
                parts.append("".join(text))
                text.clear()

        while position < len(template):
            character = template[position]
            position += 1
            if character == "(":
                end_text()
                parts.append(("choice", *sequence(depth + 1)))
            elif character == "|" and depth:
                end_text()
                alternatives.append(tuple(parts))
                parts = []
            elif character == ")":
                if not depth:
                    raise ValueError(f"unopened ')' in template: {template}")
                end_text()
                return (*alternatives, tuple(parts))
            else:
                text.append(character)
        if depth:
            raise ValueError(f"unclosed '(' in template: {template}")
        end_text()
        return tuple(parts)

    return sequence(0)


def expand(template: str, choose: Choose, slots: Mapping[str, str]) -> str:
    """Returns one reading of `template`: choices drawn with `choose`, slots filled, spaces and capital corrected."""
    out: list[str] = []

    def walk(parts: tuple) -> None:
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            else:
                walk(part[1 + choose(len(part) - 1)])

    walk(_parse(template))
    text = re.sub(r"\{(\w+)\}", lambda slot: slots[slot.group(1)], "".join(out))
    text = re.sub(r" +([,.;:!?])", r"\1", re.sub(r" {2,}", " ", text)).strip()
    text = re.sub(r"\b(la|La) La\b", "La", text)  # 'por la {league}' with a league that brings its article
    text = re.sub(r"\by (?=[IÍií]|[Hh][ií](?![aeáé]))", "e ", text)  # 'Lanús e Independiente'
    start = re.match(r"[¡¿«—(]*", text).end()
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


def date_text(date: str) -> str:
    """Returns a date in Spanish: '2024-03-15' as '15 de marzo de 2024'."""
    year, month, day = date.split("-")
    return f"{int(day)} de {MONTHS[int(month) - 1]} de {year}"


def _kind(goal: Goal, match: Match, before: tuple[int, int]) -> str:
    own, other = before if goal.club == match.home else before[::-1]
    if own == other:
        return "goal_first" if own == 0 else "goal_ahead"
    if own > other:
        return "goal_more"
    return "goal_equal" if own + 1 == other else "goal_less"


class _Deck:
    """Draws templates of a section without repeating one before all have been used."""

    def __init__(self, style: Style, choose: Choose):
        self.style, self.choose, self.left = style, choose, {}

    def draw(self, section: str) -> str:
        left = self.left.get(section)
        if not left:
            left = self.left[section] = list(getattr(self.style, section))
        return left.pop(self.choose(len(left)))


def _goal_sentences(match: Match, deck: _Deck, slots: dict[str, str], choose: Choose) -> list[str]:
    sentences, score, scored = [], (0, 0), set()
    for index, goal in enumerate(match.goals):
        kind = _kind(goal, match, score)
        if len(match.goals) > 4 and index >= 2 and choose(4):
            kind = "short_goal"
        elif goal.scorer in scored and choose(2):
            kind = "goal_again"
        surname_alone = choose(100) < (50 if goal.scorer in scored else 20)
        at_home = goal.club == match.home
        slots |= {
            "scorer": goal.scorer.split()[-1] if surname_alone else goal.scorer,
            "minute": str(goal.minute),
            "club": goal.club,
            "rival": match.away if at_home else match.home,
        }
        sentences.append(expand(deck.draw(kind), choose, slots))
        scored.add(goal.scorer)
        score = (score[0] + at_home, score[1] + (not at_home))
    return sentences


def write(match: Match, style: Style, choose: Choose) -> str:
    """Returns the crónica of `match` in `style`, 100 to 260 words.

    Args:
        match: the facts; both clubs, the score and every scorer with his minute are told, the stadium, the
            attendance and the referee where they are given, league and date where an opening asks for them. The
            date must be known, and the goals be in order.
        style: the commentator.
        choose: the source of chance; the same draws give the same text.

    Returns:
        Two lines with clubs, result and goals, and one to three paragraphs of Spanish, separated by blank lines.
    """
    while True:
        text = _draft(match, style, choose)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return text


def _draft(match: Match, style: Style, choose: Choose) -> str:
    deck = _Deck(style, choose)
    home_won = match.home_goals > match.away_goals
    slots = {
        "home": match.home,
        "away": match.away,
        "league": match.league,
        "date": date_text(match.date),
        "score": match.score,
        "winner": match.home if home_won else match.away,
        "loser": match.away if home_won else match.home,
        "stadium": match.stadium or "",
        "attendance": f"{match.attendance or 0:,}".replace(",", "."),
        "referee": match.referee or "",
        "summary": _summary(match),
    }

    def sentence(section: str) -> str:
        return expand(deck.draw(section), choose, slots)

    settings = [name for name in ("stadium", "attendance", "referee") if getattr(match, name) is not None]
    early = [name for name in settings if choose(3)]
    head = [sentence("summary")]
    intro = [sentence("opening"), *(sentence(name) for name in early)]
    if match.goals:
        body = _goal_sentences(match, deck, slots, choose)
    else:
        body = [sentence("goalless") for _ in range(3 + choose(2))]
    ending = [sentence(name) for name in settings if name not in early]
    draw = match.home_goals == match.away_goals
    ending.append(sentence("close_draw" if draw else "close_win"))
    ending.append(sentence("signature"))
    target = 100 + choose(15)
    used = 0
    while sum(len(part.split()) for part in (*head, *intro, *body, *ending)) < target and used < len(style.filler):
        body.insert(choose(len(body) + 1), sentence("filler"))
        used += 1
    return f"{head[0]}\n\n{_paragraphs([intro, body, ending], match, choose)}"


def _summary(match: Match) -> str:
    """'Rayo - Betis', and on a line of its own 'resultado: 2-1; 23' Pérez (Rayo), 67' López (Betis), 88' Soto (Rayo)'.

    Result and goals stand as they do in the block, to the token: what follows the same tokens as before is the first
    thing that is learnt to be copied. With 'Rayo 2-1 Betis' the first digit was guessed in a quarter of the texts.
    """
    goals = ", ".join(f"{goal.clock()}' {goal.scorer} ({goal.club})" for goal in match.goals)
    return f"{match.home} - {match.away}\nresultado: {match.score}" + (f"; {goals}" if goals else "")


def _paragraphs(parts: Sequence[list[str]], match: Match, choose: Choose) -> str:
    """Joins the parts, mostly by a blank line; a sentence that begins with a name never begins a paragraph
    (after a line break its first token would not be the one in the block)."""
    names = (match.home, match.away, match.stadium, match.referee, *(goal.scorer for goal in match.goals))
    names += tuple(goal.scorer.split()[-1] for goal in match.goals)
    text = " ".join(parts[0])
    for part in parts[1:]:
        at_name = any(name and part[0].startswith(name) for name in names)
        text += (" " if at_name or not choose(5) else "\n\n") + " ".join(part)
    return text


def problems(style: Style) -> list[str]:
    """Returns what is wrong with a style's templates: unknown or missing slots, and slots glued to a sign."""
    allowed = {
        "opening": "home away league date",
        "stadium": "stadium home away",
        "attendance": "attendance home away",
        "referee": "referee",
        "filler": "home away",
        "goalless": "home away",
        "close_win": "score winner loser",
        "close_draw": "score home away",
        "summary": "summary",
        "signature": "",
    }
    needed = {
        "opening": "home away", "stadium": "stadium", "attendance": "attendance", "referee": "referee",
        "close_win": "score winner", "close_draw": "score", "summary": "summary",
    }  # fmt: skip
    messages = []
    for section, templates in style.sections().items():
        may = set(allowed.get(section, "scorer minute club rival").split())
        must = set(needed.get(section, "scorer minute" if "goal" in section[:5] + section[-4:] else "").split())
        if section == "goalless":
            must = set()
        if not templates:
            messages.append(f"{section}: no templates")
        for template in templates:
            readings = [expand(template, _extreme(last), _Marked()) for last in (False, True)]
            if not readings[0].endswith((".", "!", "?", "…", "»")):
                messages.append(f"{section}: no full stop at the end: {template}")
            for reading in readings:
                slots = re.findall(r"\{(\w+)\}", reading)
                if set(slots) - may:
                    messages.append(f"{section}: slot not allowed here {sorted(set(slots) - may)}: {template}")
                if must - set(slots):
                    messages.append(f"{section}: slot missing {sorted(must - set(slots))}: {reading}")
                if section == "opening" and reading.startswith("{"):
                    messages.append(f"{section}: begins with a name: {template}")
            for glued in re.findall(r"[^\s(|]\{\w+\}|\{\w+\}[^\s.,;:!?)|'…]", template):
                messages.append(f"{section}: slot glued to a sign ({glued}): {template}")
    return messages


class _Marked(dict):
    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def _extreme(last: bool) -> Choose:
    return lambda n: n - 1 if last else 0
