"""Metrics of crónicas: on texts written for the test, on the built-in corpus, and through a tiny model."""

import json

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluate.statistics import pooled, proportion
from zoo.language_model import LanguageModel, create
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica import evaluation as suite
from zoo.tasks.cronica import tokens as cronica_tokens
from zoo.tasks.cronica.grounding import Lexicon, mentions, parse
from zoo.tasks.cronica.marking import Marker
from zoo.tasks.cronica.match import Goal, Match, to_block
from zoo.tasks.cronica.report import markdown
from zoo.tasks.cronica.tokens import STYLES

MATCH = Match(
    league="La Liga",
    date="2024-03-15",
    home="Rayo Vallecano",
    away="Real Betis",
    home_goals=2,
    away_goals=1,
    goals=(
        Goal(23, "Juan Pérez", "Rayo Vallecano"),
        Goal(45, "Luis López", "Real Betis", added=2),
        Goal(80, "Juan Pérez", "Rayo Vallecano"),
    ),
    stadium="Estadio de Vallecas",
    referee="Ana Soto",
)
RECORD = {"match_id": "m", "stats_block": to_block(MATCH), "style_label": "mexicano_clasico", "cronica": ""}


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon.learn()


def told(text, lexicon, match=MATCH):
    return [(text[m.start : m.end], m.kind, m.grounded) for m in mentions(text, match, lexicon)]


def test_wilson_interval():
    half = proportion([True] * 5 + [False] * 5)
    assert (half.hits, half.total, half.value) == (5, 10, 0.5)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    none, every = proportion([False] * 12), proportion([True] * 12)
    assert (none.low, none.high) == pytest.approx((0, 0.2425), abs=1e-4)
    assert (every.low, every.high) == pytest.approx((0.7575, 1), abs=1e-4)
    assert str(half) == "50.0% [23.7, 76.3]"
    assert str(proportion([])) == "none"


def test_bootstrap_draws_whole_matches():
    # 40 matches of 5 scorers, all told or none: 40 outcomes, not 200.
    together = pooled([5, 0] * 20, [5] * 40)
    assert together.value == 0.5 and (together.hits, together.total) == (100, 200)
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1)
    assert together == pooled([5, 0] * 20, [5] * 40)
    apart = pooled([3, 2] * 20, [5] * 40)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)
    uneven = pooled([1, 0], [1, 9])
    assert uneven.value == 0.1
    every = pooled([3] * 10, [3] * 10)
    assert (every.high, every.interval) == (1.0, "wilson over matches") and 0.6 < every.low < 0.8
    assert pooled([0], [0]).value is None


def test_the_originals_metrics_as_it_computed_them():
    assert suite.club_named("Real Betis", "el real se fue")  # any word of more than 3 letters
    assert not suite.club_named("FC AIK", "fc aik gana")  # no such word, never named
    assert suite.club_named("Rayo Vallecano", "los vallecanos")  # a part of a word will do
    assert suite.score_told(MATCH, "ganó 2-1") and suite.score_told(MATCH, "ganó 2–1")
    assert not suite.score_told(MATCH, "ganó 2 - 1 y no 1-2")
    text = "¡GOOOL de Pérez! López no."
    found = suite.measure([RECORD], [text], Lexicon(frozenset(), frozenset(), frozenset()))
    assert (found["scorers"]["hits"], found["scorers"]["total"]) == (3, 3)
    assert found["home"]["hits"] == 0
    assert suite.in_style("rioplatense_apasionado", text)
    assert not suite.in_style("rioplatense_apasionado", "gol")


def test_strict_style_is_words_and_leaves_the_empty_tests_out():
    assert suite.in_style("mexicano_irreverente", "un definitivo") and not suite.in_style(
        "mexicano_irreverente", "ni un definitivo", strict=True
    )
    assert suite.in_style("rioplatense_literario", "calmados") and not suite.in_style(
        "rioplatense_literario", "calmados", strict=True
    )
    assert suite.in_style("rioplatense_literario", "con el Alma.", strict=True)
    assert not suite.in_style("mexicano_clasico", "el encuentro", strict=True)
    texts = [record["cronica"] for record in corpus.generate(64, split="heldout")]
    for label in STYLES:
        loose, strict = ([suite.in_style(label, text, strict=flag) for text in texts] for flag in (False, True))
        assert not any(tight and not wide for tight, wide in zip(strict, loose, strict=True))
    with pytest.raises(UserError, match="mexicano_clasico"):
        suite.in_style("mexicano", "x")


def test_a_goal_is_told_when_name_and_minute_share_a_sentence():
    first, second, _ = MATCH.goals
    assert suite.goal_told(first, "Fue así. Al minuto 23 marcó Pérez, de cabeza.")
    assert not suite.goal_told(first, "Marcó Pérez. Era el minuto 23.")
    assert not suite.goal_told(first, "Al minuto 230 marcó Pérez.")
    assert not suite.goal_told(first, "Al minuto 23 marcó Perezoso.")
    assert suite.goal_told(second, "Con el 45+2 López empata") and suite.goal_told(second, "A los 47, López")


def test_mentions_of_what_is_and_is_not_in_the_block(lexicon):
    text = (
        "Agarrate: Rayo Vallecano recibió al Betis en el Estadio de Vallecas por La Liga. A los 23 minutos "
        "Juan Pérez hizo el 1-0 y a los 30 llegó Zubeldón. Minuto 45+2, empató López: 1-1. Después 3-1 de "
        "Deportivo Albablanca, 67' y 80'. Pitó Ana Soto tras 90 minutos; 4-4-2 y el 2-1 final el 15 de marzo."
    )
    assert told(text, lexicon) == [
        ("Rayo Vallecano", "clubs", True),
        ("Betis", "clubs", True),
        ("23", "minutes", True),
        ("Juan Pérez", "surnames", True),
        ("1-0", "scores", True),
        ("30", "minutes", False),
        ("Zubeldón", "names", False),
        ("45+2", "minutes", True),
        ("López", "surnames", True),
        ("1-1", "scores", True),
        ("3-1", "scores", False),
        ("Deportivo Albablanca", "clubs", False),
        ("67", "minutes", False),
        ("80", "minutes", True),
        ("Ana Soto", "surnames", True),
        ("2-1", "scores", True),
    ]


def test_mixed_up_names_are_not_in_the_block(lexicon):
    # Both words stand in the block, but in two names: two mentions.
    assert told("Marcó Luis Pérez.", lexicon) == [("Luis", "surnames", True), ("Pérez", "surnames", True)]
    assert told("El Vallecano Rayo.", lexicon) == [("Vallecano", "clubs", True), ("Rayo", "clubs", True)]
    assert told("Ganó Federico Pérez.", lexicon)[0] == ("Federico", "surnames", False)
    assert told("Ganó el Sporting Vallecano.", lexicon)[0] == ("Sporting", "clubs", False)


def test_goals_without_detail_make_no_minute_wrong(lexicon):
    bare = Match("La Liga", "2024-03-15", "Rayo", "Betis", 2, 1)
    assert told("A los 23 minutos 2-0 y 2-1, no 0-2", lexicon, bare) == [
        ("2-0", "scores", True),
        ("2-1", "scores", True),
        ("0-2", "scores", False),
    ]


@pytest.mark.parametrize("split", ["heldout", "unseen"])
def test_reference_texts_pass_and_swapped_ones_fail(split, lexicon):
    records = corpus.generate(64, split=split)
    texts = [record["cronica"] for record in records]
    own = suite.measure(records, texts, lexicon)
    for name in ("home", "away", "both", "clubs_in_full", "score", "scorers"):
        assert own[name]["value"] == 1
    assert own["style"]["value"] == 1 and own["goals"]["value"] > 0.9
    for kind in ("clubs", "surnames", "minutes", "scores"):
        assert own["told"][kind]["value"] > 0.99 and own["told"][kind]["total"] >= 60
    assert own["clean"]["value"] > 0.95
    other = suite.measure(records, texts[1:] + texts[:1], lexicon)
    for name in ("home", "away", "score", "scorers", "goals", "clean"):
        assert other[name]["value"] < 0.3
    for kind in ("clubs", "surnames", "minutes", "scores"):
        assert other["told"][kind]["value"] < 0.5
    assert set(own["styles"]) == set(STYLES)


def test_marker_shows_the_same_however_the_pieces_fall(lexicon):
    text = "El Rayo Vallecano ganó 2-1. Marcó Zubeldón a los 30 minutos, y a los 23 minutos Juan Pérez; fin"
    wanted = "El Rayo Vallecano ganó 2-1. Marcó <Zubeldón> a los <30> minutos, y a los 23 minutos Juan Pérez; fin"
    for size in (1, 7, 1000):
        marker = Marker(MATCH, lexicon, "<", ">")
        pieces = [marker.push(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join(pieces) + marker.flush() == wanted
        assert marker.marked == 2
    early = Marker(MATCH, lexicon, "<", ">")
    assert early.push("Ganó el Rayo. Marcó Zub") == "Ganó el Rayo."


@pytest.fixture(scope="module")
def lm():
    texts = (cronica_tokens.training_text(record) for record in corpus.generate(40))
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 1, "head_dim": 16, "mlp_dim": 24}
    bare = create("cronica-5m", vocab_size=600, **sizes)
    return LanguageModel(bare.module, cronica_tokens.train(texts, 600), bare.spec, bare.config)


@pytest.mark.slow
def test_the_suite_through_a_model(lm):
    calls = []
    settings = {"num_cronicas": 10, "max_new_tokens": 12}
    result = suite.evaluate(lm, on_progress=lambda *at: calls.append(at), **settings)
    assert json.loads(json.dumps(result)) == result
    assert calls == [("heldout", 0, 10), ("heldout", 10, 10), ("unseen", 0, 10), ("unseen", 10, 10)]
    for name, found in result["sets"].items():
        assert found["generated"]["n"] == found["reference"]["n"] == len(found["texts"]) == 10
        assert found["reference"]["home"]["value"] == 1 and found["generated"]["home"]["value"] < 0.5
        assert found["texts"][3]["match_id"] == corpus.generate(10, split=name)[3]["match_id"]
    again = suite.evaluate(lm, batch_size=4, **settings)
    assert again["sets"] == result["sets"] and again["card"] == result["card"]
    assert set(result["card"]["styles"]) == set(STYLES)
    tables = markdown(result)
    assert "16.7% (2 of 12)" in tables and "other data" in tables and "0.0% (0 of 39)" in tables
    assert all(label in tables for label in STYLES)
    widths = {line.count("|") for line in tables.split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def test_given_records_are_measured_alone(lm):
    records = [RECORD | {"cronica": "Rayo 2-1"}] * 3
    result = suite.evaluate(lm, num_cronicas=2, sets={"mine": records}, max_new_tokens=4)
    assert list(result["sets"]) == ["mine"] and result["sets"]["mine"]["generated"]["n"] == 2
    assert result["sets"]["mine"]["reference"]["home"]["value"] == 1
    assert "mine (n=2)" in markdown(result)
    with pytest.raises(UserError, match="at least 1"):
        suite.evaluate(lm, num_cronicas=0)
    with pytest.raises(UserError, match="mine"):
        suite.evaluate(lm, sets={"mine": []})


def test_errors_in_a_block_name_the_match():
    with pytest.raises(UserError, match="match m7"):
        parse({"match_id": "m7", "stats_block": "local: A"})


def test_published_figures_are_those_of_the_card():
    home, away, score, scorers = (suite.ORIGINAL[name] for name in ("home", "away", "score", "scorers"))
    assert [round(100 * hits / n, 1) for hits, n in (home, away, score)] == [16.7, 25.0, 0.0]
    assert scorers == (0, 39)
    assert np.isclose(suite.ORIGINAL_STYLES["comentario_tecnico"][0] / 4, 0.5)


def test_what_only_the_first_paragraph_lists_is_counted_apart(lexicon):
    head = "Final: Rayo Vallecano 2-1 Real Betis; 23' Juan Pérez, 45' Luis López, 80' Juan Pérez."
    story = "En el minuto 23 marcó Pérez para Rayo Vallecano."
    found = suite.measure([RECORD], [f"{head}\n\n{story}"], lexicon)
    assert [found[name]["hits"] for name in ("both", "scorers", "goals")] == [1, 3, 3]
    assert [found[name]["hits"] for name in ("both_later", "scorers_later", "goals_later")] == [0, 2, 1]
    alone = suite.measure([RECORD], [story], lexicon)  # nothing is left out of a single paragraph
    assert alone["goals_later"]["hits"] == 1
