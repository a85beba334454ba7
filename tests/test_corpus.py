"""The built-in corpus: what it promises about matches, texts and splits."""

import collections
import math
import re
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.tasks.cronica import names
from zoo.tasks.cronica.corpus import generate, style
from zoo.tasks.cronica.match import disagreements, parse_block
from zoo.tasks.cronica.text import MAX_WORDS, MIN_WORDS, Style, expand, problems
from zoo.tasks.cronica.tokens import STYLES

PER_STYLE = 400
# The words by which the original's metric knows a style; a classifier must do without them.
MARKERS = (
    "gooool goool qué partido qué espectáculo la jerarquía marcador ventaja encuentro barrilete alma magia sinfonía "
    "poema telenovela salud por como si qué tal ni en la tarde afición dirección encuentro dominical los diablos "
    "espn mítico cope buenas noches oyentes señor transiciones sistema estructura presión alta bloque"
).split()


@pytest.fixture(scope="module")
def records():
    return generate(PER_STYLE * len(STYLES))


def told_names(match):
    """Every name of a match that its text may hold, the longer ones first."""
    people = [goal.scorer for goal in match.goals] + [match.referee or ""]
    found = {match.home, match.away, match.league, match.stadium or "", *people}
    found |= {person.split()[-1] for person in people if person}
    return sorted(filter(None, found), key=len, reverse=True)


def masked_words(record):
    text = record["cronica"]
    for name in told_names(parse_block(record["stats_block"])):
        text = text.replace(name, "name")
    return re.findall(r"\w+", text.lower())


def test_the_same_seed_gives_the_same_records_and_a_longer_corpus_begins_with_the_shorter(records):
    assert generate(40) == records[:40]
    assert generate(8, seed=1) != records[:8]


def test_records_have_the_published_fields_and_styles_in_equal_number(records):
    fields = {"match_id", "stats_block", "style_label", "style_token", "cronica", "model"}
    assert all(record.keys() == fields for record in records)
    assert len({record["match_id"] for record in records}) == len(records)
    assert all(record["style_token"] == f"<style:{record['style_label']}>" for record in records)
    assert set(collections.Counter(record["style_label"] for record in records).values()) == {PER_STYLE}


def test_blocks_agree_with_themselves(records):
    matches = [parse_block(record["stats_block"]) for record in records]
    assert not [found for match in matches for found in disagreements(match)]
    assert all(len(match.goals) == match.home_goals + match.away_goals for match in matches)
    assert all([g.minute for g in m.goals] == sorted({g.minute for g in m.goals}) for m in matches)
    for field in ("stadium", "attendance", "referee"):
        share = sum(getattr(match, field) is not None for match in matches) / len(matches)
        assert 0.2 < share < 0.6, f"{field} is given in {share:.0%} of the matches"


def test_every_fact_is_told_in_100_to_260_words(records):
    for record in records:
        match, text = parse_block(record["stats_block"]), record["cronica"]
        assert MIN_WORDS <= len(text.split()) <= MAX_WORDS, record["match_id"]
        assert match.home in text and match.away in text and re.search(rf"\b{match.score}\b", text), record
        told = {match.stadium, match.referee, match.attendance and f"{match.attendance:,}".replace(",", ".")}
        assert all(fact in text for fact in told - {None}), record
        for goal in match.goals:
            assert goal.scorer.split()[-1] in text, record
            assert len(re.findall(rf"\b{goal.minute}\b", text)) >= 2, record  # in a sentence and in the recap
            assert f"{goal.minute}' {goal.scorer} ({goal.club})" in text, record


def test_nothing_but_the_block_is_told(records):
    """No other score and no other number than those of the block."""
    for record in records:
        in_block = set(re.findall(r"\d+", record["stats_block"]))
        in_text = set(re.findall(r"\d+", record["cronica"]))
        assert in_text <= in_block | {number.lstrip("0") for number in in_block}, record


def test_names_stand_after_what_they_stand_after_in_the_block_so_that_their_tokens_are_the_same(records):
    for record in records:
        text = record["cronica"]
        for name in told_names(parse_block(record["stats_block"])):
            for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                before = text[: found.start()][-1:]
                assert before == " " or (before == "(" and f"({name})" in record["stats_block"]), (name, record)


def test_no_template_is_broken():
    assert {label: problems(style(label)) for label in STYLES} == {label: [] for label in STYLES}


def test_problems_finds_what_is_wrong():
    good = style("comentario_tecnico")
    sections = good.sections()
    broken = {"opening": ("{home} y {away}.",), "signature": ("Sin punto",), "short_goal": ("Gol de «{scorer}».",)}
    found = "\n".join(problems(Style(label="x", **(sections | broken))))
    assert "begins with a name" in found and "no full stop" in found
    assert "slot missing ['minute']" in found and "glued" in found


def test_expand_draws_nested_choices_and_mends_spaces():
    template = "(uno|dos (tres|)) {x} , por la {league}."
    slots = {"x": "Gol", "league": "La Liga"}
    assert expand(template, lambda n: 0, slots) == "Uno Gol, por La Liga."
    assert expand(template, lambda n: n - 1, slots) == "Dos Gol, por La Liga."


@pytest.mark.parametrize("label", STYLES)
def test_no_twelve_words_stand_in_more_than_a_twentieth_of_a_style(records, label):
    counts = collections.Counter()
    for record in records:
        if record["style_label"] == label:
            words = masked_words(record)
            counts.update({tuple(words[i : i + 12]) for i in range(len(words) - 11)})
    sequence, number = counts.most_common(1)[0]
    assert number <= 0.05 * PER_STYLE, f"{number / PER_STYLE:.1%} of the texts have: {' '.join(sequence)}"


def test_a_bag_of_words_without_the_markers_tells_the_styles_apart(records):
    """Naive Bayes, trained on half of the texts, names masked."""
    bags = [(record["style_label"], set(masked_words(record)) - set(MARKERS)) for record in records]
    half = len(bags) // 2
    seen = {label: collections.Counter() for label in STYLES}
    for label, bag in bags[:half]:
        seen[label].update(bag)
    texts = half / len(STYLES)

    def score(bag, label):
        return sum(math.log((seen[label][word] + 0.5) / (texts + 1)) for word in bag)

    right = sum(max(STYLES, key=lambda other: score(bag, other)) == label for label, bag in bags[half:])
    assert right / (len(bags) - half) >= 0.90


def test_the_pools_are_large():
    people = len(names.given()) * len(names.surnames())
    assert people >= 20_000 and len(names.surnames()) >= 2_000
    assert len(set(names.clubs())) >= 1_000


def test_unseen_matches_share_no_club_surname_or_stadium_with_training(records):
    def all_names(some):
        matches = [parse_block(record["stats_block"]) for record in some]
        people = {g.scorer.split()[-1] for m in matches for g in m.goals}
        people |= {m.referee.split()[-1] for m in matches if m.referee}
        return people | {m.home for m in matches} | {m.away for m in matches} | {m.stadium for m in matches} - {None}

    unseen = all_names(generate(400, split="unseen"))
    assert len(unseen) > 800
    assert not unseen & all_names(records)
    for pool in (names.surnames, names.places):
        seen, kept_out = ({w for o in names.ORIGINS for w in pool(origin=o, unseen=u)} for u in (False, True))
        assert not seen & kept_out and len(kept_out) > len(seen) / 15


def test_heldout_matches_are_not_in_training(records):
    heldout = generate(200, split="heldout")
    assert not {r["stats_block"] for r in heldout} & {r["stats_block"] for r in records}


def test_errors_name_the_field():
    with pytest.raises(UserError, match=r"data\.split.*train, heldout, unseen"):
        generate(1, split="validation")
    with pytest.raises(UserError, match=r"data\.num_pairs"):
        generate(-1)


def test_the_docs_show_texts_of_this_corpus():
    page = (Path(__file__).parent.parent / "docs" / "corpus.md").read_text()
    for record in generate(16, split="heldout"):
        assert record["stats_block"] in page and record["cronica"] in page
