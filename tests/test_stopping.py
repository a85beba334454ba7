"""Stop ids and stop strings, found in the text although they span tokens; no half of one is ever shown."""

import numpy as np
import pytest
from scripted_model import scripted_lm

from zoo.errors import UserError
from zoo.generate.stopping import StopText, split_stop
from zoo.language_model import create

REPLY = "Sí, the user < assistant | end of it."


def test_stop_text_never_shows_a_stop_string_or_its_beginning():
    stop = StopText(["<|end|>", "\n\n"])
    assert [stop.push(piece) for piece in ("Hola <", "b> ", "x\n", "y <|e", "nd", "|>zzz")] == [
        ("Hola ", False),
        ("<b> ", False),
        ("x", False),
        ("\ny ", False),
        ("", False),
        ("", True),
    ]
    unfinished = StopText(["fin"])
    assert unfinished.push("al fi") == ("al ", False)
    assert unfinished.flush() == "fi"
    assert StopText(["b", "ab"]).push("xab") == ("x", True)
    assert StopText([]).push("all of it") == ("all of it", False)


def test_split_stop():
    assert split_stop(None) == ([], [])
    assert split_stop(3) == ([3], [])
    assert split_stop(np.int64(3)) == ([3], [])
    assert split_stop([np.int64(3), "a", ""]) == ([3], ["a"])
    for stop in (1.5, [1.7], [None], True, [b"ab"]):
        with pytest.raises(UserError, match="stop holds"):
            split_stop(stop)


@pytest.fixture(scope="module")
def marked():
    """A model that writes a reply, the five tokens of <|end|> and more."""
    return scripted_lm(REPLY + "<|end|>and on and on and on and on and on")


def test_a_stop_string_of_five_tokens_is_cut_off(marked):
    found = marked.generate("user", temperature=0, stop="<|end|>")
    assert (found.text, found.finish) == (REPLY, "stop")
    # The ids that spell it are there, what came after them is not.
    assert marked.tokenizer.decode(found.tokens) == REPLY + "<|end|>"
    assert len(found.logprobs) == len(found.tokens)
    assert marked.generate("user", temperature=0, stop=["nowhere"]).text.startswith(REPLY + "<|end|>and on")


def test_a_stream_shows_no_half_of_it(marked):
    stream = marked.stream("user", temperature=0, stop="<|end|>")
    shown = ""
    for piece in stream:
        assert piece
        shown += piece
        # Whole characters, and never more than the text itself: the `<` and `|` of the reply come late, but come.
        assert REPLY.startswith(shown)
    assert shown == REPLY and stream.generation.finish == "stop"


@pytest.mark.parametrize("tail", ["<", "<|", "<|en", "<|end|"])
def test_what_only_looks_like_the_beginning_of_a_stop_string_is_text(tail):
    lm = scripted_lm("the end" + tail)
    assert lm.generate("user", temperature=0, stop="<|end|>").text == "the end" + tail
    assert "".join(lm.stream("user", temperature=0, stop="<|end|>")) == "the end" + tail


def test_the_first_of_several_stop_strings_counts(marked):
    assert marked.generate("user", temperature=0, stop=["<|end|>", "assistant"]).text == "Sí, the user < "


def test_rows_of_a_batch_stop_at_their_own_place(marked):
    both = marked.generate(["user", "and a longer user"], temperature=0, stop="<|end|>", n=2)
    assert [item.text for group in both for item in group] == [REPLY] * 4


def test_eos_ends_a_text_unless_it_is_ignored():
    lm = scripted_lm("the end")
    stopped = lm.generate("user", temperature=0, max_new_tokens=20)
    assert (stopped.text, stopped.finish) == ("the end", "stop")
    on = lm.generate("user", temperature=0, max_new_tokens=20, ignore_eos=True)
    assert len(on.tokens) == 20 and on.finish == "length" and on.text == "the end"
    assert on.tokens[len(stopped.tokens) :] == [lm.tokenizer.eos_id] * (20 - len(stopped.tokens))


def test_stop_strings_need_a_tokenizer():
    sizes = dict(vocab_size=40, num_layers=1, embed_dim=16, num_heads=1, head_dim=16, mlp_dim=24)
    with pytest.raises(UserError, match="need a tokenizer"):
        create("cronica-5m", **sizes).generate([1, 2], stop="x")
