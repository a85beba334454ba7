"""The stats block, its reading, and the one-line form of a match."""

import dataclasses

import pytest

from zoo.errors import UserError
from zoo.tasks.cronica.match import Goal, Match, disagreements, parse_block, parse_line, to_block

FULL = Match(
    league="Premier League",
    date="2025-01-25",
    home="Wolverhampton Wanderers",
    away="Arsenal",
    home_goals=1,
    away_goals=2,
    goals=(Goal(74, "Riccardo Calafiori", "Arsenal"), Goal(9, "João Gomes", "Wolverhampton Wanderers"),
           Goal(90, "Leandro Trossard", "Arsenal", added=3)),
    stadium="Molineux",
    attendance=31503,
    referee="Michael Oliver",
)  # fmt: skip

BLOCK = """<STATS>
liga: Premier League
fecha: 2025-01-25
local: Wolverhampton Wanderers
visitante: Arsenal
resultado: 1-2
goles:
  - 9' João Gomes (Wolverhampton Wanderers)
  - 74' Riccardo Calafiori (Arsenal)
  - 90+3' Leandro Trossard (Arsenal)
estadio: Molineux
asistencia: 31.503
árbitro: Michael Oliver
</STATS>"""


def test_block_is_written_as_published_and_read_back():
    assert to_block(FULL) == BLOCK
    goals = tuple(sorted(FULL.goals, key=lambda goal: goal.minute))
    assert parse_block(BLOCK) == dataclasses.replace(FULL, goals=goals)


def test_unknown_facts_get_no_line():
    bare = Match(league="La Liga", date="", home="Rayo", away="Betis", home_goals=0, away_goals=0)
    lines = ["<STATS>", "liga: La Liga", "local: Rayo", "visitante: Betis", "resultado: 0-0"]
    assert to_block(bare).splitlines() == [*lines, "goles: (sin detalle)", "</STATS>"]
    assert parse_block(to_block(bare)) == bare


def test_block_reading_forgives_form():
    text = "Local:  Rayo\nvisitante: Betis (B)\nRESULTADO: 2 – 1\ngoles:\n- 5’ Ana O'Neil (Betis (B))\n"
    text += "arbitro: X\nnota: y"
    match = parse_block(text)
    assert (match.home, match.away, match.score, match.referee) == ("Rayo", "Betis (B)", "2-1", "X")
    assert match.goals == (Goal(5, "Ana O'Neil", "Betis (B)"),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("local: A\nvisitante: B", "resultado"),
        ("local: A\nresultado: 1-0", "visitante"),
        ("visitante: A\nresultado: 1-0", "local"),
        ("local: A\nvisitante: B\nresultado: uno a cero", "resultado"),
        ("local: A\nvisitante: B\nresultado: 1-0\nasistencia: muchos", "asistencia"),
    ],
)
def test_unreadable_block_names_the_field(text, named):
    with pytest.raises(UserError, match=named) as caught:
        parse_block(text, source="match.txt")
    assert str(caught.value).startswith("match.txt")


def test_line_with_clubs_left_out_where_plain():
    match, warnings = parse_line("Rayo 2-1 Betis; 80 García; 67 López (Betis); 23 Pérez; estadio: Vallecas")
    assert match.goals == (Goal(23, "Pérez", "Rayo"), Goal(67, "López", "Betis"), Goal(80, "García", "Rayo"))
    assert (match.stadium, match.score, warnings) == ("Vallecas", "2-1", [])


def test_line_forms_of_goals():
    match, warnings = parse_line(
        "Real Madrid 3-2 Schalke 04; Bellingham 45+2; 10 y 30' Vini (madrid); 5, 6 Raúl (Schalke)"
    )
    assert match.away == "Schalke 04"
    assert [(g.clock(), g.scorer, g.club) for g in match.goals] == [
        ("5", "Raúl", "Schalke 04"), ("6", "Raúl", "Schalke 04"), ("10", "Vini", "Real Madrid"),
        ("30", "Vini", "Real Madrid"), ("45+2", "Bellingham", "Real Madrid"),
    ]  # fmt: skip
    assert warnings == []


def test_line_warns_when_goals_and_score_disagree():
    _, warnings = parse_line("Rayo 2-1 Betis; 23 Pérez (Rayo); 67 López (Betis); 70 Gil (Betis)")
    assert warnings == [
        "the result 2-1 gives Rayo 2 goals, but 1 listed",
        "the result 2-1 gives Betis 1 goal, but 2 listed",
    ]
    assert parse_line("Rayo 2-1 Betis")[1] == []
    _, guessed = parse_line("Rayo 1-1 Betis; 23 Pérez; 67 López")
    assert guessed == ["23' Pérez: no club given, taken as a goal of Rayo"]


@pytest.mark.parametrize(
    "text", ["", "Rayo Betis", "Rayo 2-1", "Rayo 2-1 Betis; López", "Rayo 2-1 Betis; 67 L (Getafe)"]
)
def test_unreadable_line_is_one_clear_error(text):
    with pytest.raises(UserError) as caught:
        parse_line(text)
    assert "\n" not in str(caught.value)


def test_disagreements_of_a_consistent_match():
    assert disagreements(FULL) == []
