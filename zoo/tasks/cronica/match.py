"""A football match as facts, the text block a crónica model reads, and the one-line form people type.

The block is the one of the published crónica dataset: a line a fact, between `<STATS>` and `</STATS>`.
"""

import dataclasses
import re
import unicodedata

from zoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal of a match.

    Attributes:
        minute: of the match; 45+2 is minute 45 with 2 added.
        scorer: who scored it.
        club: for which club.
        added: minutes of added time.
    """

    minute: int
    scorer: str
    club: str
    added: int = 0

    def clock(self) -> str:
        """Returns the minute as a block writes it, without the apostrophe: '23' or '45+2'."""
        return f"{self.minute}+{self.added}" if self.added else str(self.minute)


@dataclasses.dataclass(frozen=True)
class Match:
    """The facts of a match. Empty `league` or `date` (YYYY-MM-DD) and None elsewhere mean: not known."""

    league: str
    date: str
    home: str
    away: str
    home_goals: int
    away_goals: int
    goals: tuple[Goal, ...] = ()
    stadium: str | None = None
    attendance: int | None = None
    referee: str | None = None

    @property
    def score(self) -> str:
        """The result as a block writes it: '2-1'."""
        return f"{self.home_goals}-{self.away_goals}"


def to_block(match: Match) -> str:
    """Returns the facts as a block, goals in order of minute. Facts that are not known get no line."""
    goals = sorted(match.goals, key=lambda goal: (goal.minute, goal.added))
    lines = ["<STATS>"]
    if match.league:
        lines.append(f"liga: {match.league}")
    if match.date:
        lines.append(f"fecha: {match.date}")
    lines += [f"local: {match.home}", f"visitante: {match.away}", f"resultado: {match.score}"]
    lines.append("goles:" if goals else "goles: (sin detalle)")
    lines += [f"  - {goal.clock()}' {goal.scorer} ({goal.club})" for goal in goals]
    if match.stadium:
        lines.append(f"estadio: {match.stadium}")
    if match.attendance is not None:
        lines.append(f"asistencia: {match.attendance:,}".replace(",", "."))
    if match.referee:
        lines.append(f"árbitro: {match.referee}")
    lines.append("</STATS>")
    return "\n".join(lines)


_SCORE = r"(\d{1,2})\s*[-–—:]\s*(\d{1,2})"
_CLOCK = r"(\d{1,3})(?:\s*\+\s*(\d{1,2}))?\s*['’′]?"
_GOAL_LINE = re.compile(rf"^\s*[-•*]\s*{_CLOCK}\s+(.+?)\s*(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\))?\s*$")
_FIELDS = {
    "liga": "league", "fecha": "date", "local": "home", "visitante": "away", "resultado": "score",
    "goles": "goals", "estadio": "stadium", "asistencia": "attendance", "arbitro": "referee",
}  # fmt: skip


def parse_block(text: str, *, source: str = "the stats block") -> Match:
    """Reads a block, with or without its `<STATS>` lines; unknown lines are skipped.

    `goles: (sin detalle)` means that the scorers are not known. `source` names the text in errors.

    Raises:
        UserError: clubs or result are missing or unreadable; names the field.
    """
    facts: dict[str, str] = {}
    goals = []
    for line in text.splitlines():
        if goal := _GOAL_LINE.match(line):
            minute, added, scorer, club = goal.groups()
            goals.append(Goal(int(minute), scorer, (club or "").strip(), int(added or 0)))
            continue
        name, colon, value = line.partition(":")
        field = _FIELDS.get(fold(name.strip()))
        if colon and field:
            facts.setdefault(field, value.strip())
    for spanish, field in (("local", "home"), ("visitante", "away"), ("resultado", "score")):
        if not facts.get(field):
            raise UserError(f"{source} has no line `{spanish}: ...`; local, visitante and resultado are needed")
    score = re.fullmatch(_SCORE, facts["score"])
    if not score:
        raise UserError(f"{source}: resultado is {facts['score']!r}; write it as 2-1")
    return Match(
        league=facts.get("league", ""),
        date=facts.get("date", ""),
        home=facts["home"],
        away=facts["away"],
        home_goals=int(score[1]),
        away_goals=int(score[2]),
        goals=tuple(goals),
        stadium=facts.get("stadium") or None,
        attendance=_attendance(facts.get("attendance", ""), source),
        referee=facts.get("referee") or None,
    )


def parse_line(text: str, *, league: str = "", date: str = "") -> tuple[Match, list[str]]:
    """Reads a match typed on one line, and says what in it does not fit.

    `Rayo 2-1 Betis; 23 Pérez; 67 López (Betis); 80 García; estadio: Vallecas`: first the result, then one
    goal a part (minute, scorer, the club in brackets where it is not plain) and any line of a block. A goal
    without a club goes to the side that still lacks goals.

    Returns the match and warnings, one line each (empty when all is consistent).

    Raises:
        UserError: the result or a goal cannot be read, or a goal's club does not play.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    result = re.fullmatch(rf"(.+?)\s+{_SCORE}\s+(.+?)", parts[0]) if parts else None
    if not result:
        raise UserError(
            f"cannot read the match {text.strip()!r}; write it as: Rayo 2-1 Betis; 23 Pérez; 67 López (Betis)"
        )
    home, home_goals, away_goals, away = result[1].strip(), int(result[2]), int(result[3]), result[4].strip()
    facts = {"league": league, "date": date}
    goals: list[Goal] = []
    for part in parts[1:]:
        name, colon, value = part.partition(":")
        field = _FIELDS.get(fold(name.strip()))
        if colon and field in ("league", "date", "stadium", "attendance", "referee"):
            facts[field] = value.strip()
        else:
            goals += _typed_goals(part, home, away)
    goals, warnings = _assign_clubs(goals, home, away, home_goals, away_goals)
    match = Match(
        league=facts["league"],
        date=facts["date"],
        home=home,
        away=away,
        home_goals=home_goals,
        away_goals=away_goals,
        goals=tuple(sorted(goals, key=lambda goal: (goal.minute, goal.added))),
        stadium=facts.get("stadium") or None,
        attendance=_attendance(facts.get("attendance", ""), "the match"),
        referee=facts.get("referee") or None,
    )
    return match, warnings + disagreements(match)


def disagreements(match: Match) -> list[str]:
    """Returns a line for each side whose listed goals contradict the result; without listed goals, none does."""
    if not match.goals:
        return []
    lines = []
    for club, scored in ((match.home, match.home_goals), (match.away, match.away_goals)):
        listed = sum(goal.club == club for goal in match.goals)
        if listed != scored:
            lines.append(f"the result {match.score} gives {club} {_goals(scored)}, but {listed} listed")
    return lines


def fold(text: str) -> str:
    """Returns `text` in lower case and without accents, for comparing what people type."""
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _goals(number: int) -> str:
    return "1 goal" if number == 1 else f"{number} goals"


def _attendance(text: str, source: str) -> int | None:
    if not text:
        return None
    digits = re.sub(r"[.,\s']", "", text)
    if not digits.isdecimal():
        raise UserError(f"{source}: asistencia is {text!r}; write a whole number such as 31.503")
    return int(digits)


def _typed_goals(part: str, home: str, away: str) -> list[Goal]:
    """Returns the goals of one typed part: `23 Pérez`, `Pérez 23'`, `23 y 67 Pérez (Betis)`; club may be ""."""
    body, club = part, ""
    if bracket := re.search(r"\(([^()]+)\)\s*$", part):
        body, club = part[: bracket.start()].strip(), _which_club(bracket[1].strip(), part, home, away)
    clocks = rf"{_CLOCK}(?:\s*(?:,|y|e|&)\s*{_CLOCK})*"
    before = re.match(rf"^(?P<clocks>{clocks})\s+(?P<name>\D.*)$", body)
    after = re.match(rf"^(?P<name>.*\D)\s+(?P<clocks>{clocks})$", body)
    typed = before or after
    if not typed:
        raise UserError(f"cannot read the goal {part!r}; write it as: 67 López (Betis)")
    return [
        Goal(int(minute), typed["name"].strip(" ,-:'"), club, int(added or 0))
        for minute, added in re.findall(_CLOCK, typed["clocks"])
    ]


def _which_club(typed: str, part: str, home: str, away: str) -> str:
    words = fold(typed)
    for club in (home, away):
        if words == fold(club):
            return club
    inside = [club for club in (home, away) if words in fold(club)]
    if len(inside) == 1:
        return inside[0]
    raise UserError(f"the goal {part!r} is given to {typed!r}, but the match is {home} against {away}")


def _assign_clubs(
    goals: list[Goal], home: str, away: str, home_goals: int, away_goals: int
) -> tuple[list[Goal], list[str]]:
    """Gives goals without a club to the side that still lacks goals, the home side first."""
    lacking = {home: home_goals, away: away_goals}
    for goal in goals:
        if goal.club:
            lacking[goal.club] -= 1
    done, warnings = [], []
    for goal in sorted(goals, key=lambda goal: (goal.minute, goal.added)):
        if not goal.club:
            club = home if lacking[home] > 0 or lacking[away] <= 0 else away
            if lacking[home] > 0 and lacking[away] > 0:
                warnings.append(f"{goal.clock()}' {goal.scorer}: no club given, taken as a goal of {club}")
            lacking[club] -= 1
            goal = dataclasses.replace(goal, club=club)
        done.append(goal)
    return done, warnings
