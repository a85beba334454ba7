"""The built-in stories: deterministic, plain, grammatical where a program can tell."""

import re

import pytest

from zoo.data import stories
from zoo.errors import UserError

STORIES = stories.generate(400)


def test_a_story_depends_on_its_number_alone():
    assert stories.generate(7) == STORIES[:7]
    assert stories.story(123) == STORIES[123]
    assert stories.generate(5, seed=1) != STORIES[:5]


def test_stories_do_not_change():
    # Runs go on with the texts they began with: other texts need another stories.VERSION.
    assert stories.story(0).splitlines()[0] == (
        "Once upon a time, a brave dog named Spot lived in a small house. Spot liked to play in the yard."
    )


def test_held_out_stories_are_others():
    heldout = stories.generate(400, split="heldout")
    assert not set(heldout) & set(STORIES)
    assert len(set(STORIES)) == len(STORIES)


def test_text_is_plain_and_finished():
    for text in STORIES:
        assert text.isascii()
        assert not re.search(r"[{}]|  |\n\n", text)
        assert 40 <= len(text.split()) <= 160
        for paragraph in text.splitlines():
            assert paragraph[0].isupper() or paragraph[0] == '"'
            assert paragraph[-1] in '.!?"'
            assert paragraph.count('"') % 2 == 0


def test_articles_and_pronouns_agree():
    for text in STORIES:
        assert not re.search(r"\b[Aa] [aeiou]", text)
        assert not re.search(r"\b[Aa]n [^aeiou]", text)
        assert not re.search(r"(?:^|[.!?] )[a-z]", text)


def test_words_are_few_enough_to_learn_and_many_enough_to_vary():
    words = {word.strip('.,!?"').lower() for text in STORIES for word in text.split()}
    assert 300 < len(words) < 700


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match=r"data\.split: 'test'"):
        stories.generate(1, split="test")
