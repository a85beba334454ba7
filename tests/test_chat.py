"""Conversations: templates, what ends a reply, history that fits, and `zoo chat`."""

import io
import json
import os
import signal

import pytest
from scripted_model import scripted_lm

import zoo.language_model
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.generate import chat
from zoo.generate.text import TextStream
from zoo.recipe import make_recipe
from zoo.weights import resolve

TURNS = [
    {"role": "user", "content": "the user"},
    {"role": "assistant", "content": "Sí."},
    {"role": "user", "content": "and"},
]


@pytest.fixture(scope="module")
def lm():
    return scripted_lm("the end.\n<|end|>and on and on")


def test_a_reply_is_what_stands_before_the_end_mark(lm):
    for messages in (TURNS, "the user"):
        found = lm.chat(messages, temperature=0)
        assert (found.text, found.finish) == ("the end.", "stop")
        assert "".join(lm.stream_chat(messages, temperature=0)) == "the end."


def test_the_prompt_is_the_templates(lm):
    parts = ["<|user|>\nthe user", "\n<|assistant|>\n", "Sí.", "\n", "<|user|>\nand", "\n<|assistant|>\n"]
    ids = chat.encode(lm.tokenizer, TURNS, "kodalite")
    assert ids == [i for part in parts for i in lm.tokenizer.encode(part)]
    with_system = chat.encode(lm.tokenizer, [{"role": "system", "content": "Sí!"}, *TURNS], "kodalite")
    assert lm.tokenizer.decode(with_system).startswith("<|user|>\nSí!\n\nthe user\n<|assistant|>\n")


def test_a_model_that_writes_the_next_users_turn_is_stopped():
    for text in ("the end.\n<|user|>\nand", "the end.<|user|>\nand"):
        assert scripted_lm(text).chat("user", temperature=0).text == "the end."


def test_settings_are_the_cards_unless_given():
    found = scripted_lm("the end").reply_settings("kodalite", {"top_k": 3, "stop": [5, "and"]})
    assert (found.temperature, found.top_k, found.max_new_tokens) == (0.7, 3, 150)
    assert found.stop[:2] == [5, "and"] and {"<|end|>", "\n<|end|>", "\n<|user|>"} <= set(found.stop)
    # A base model that somebody trained on conversations: its card does not speak of them.
    other = scripted_lm("the end", name="bwetaf-97m").reply_settings("kodalite", {})
    assert (other.temperature, other.ignore_eos) == (1.0, False)


def test_a_model_without_a_template_says_so():
    lm = scripted_lm("the end<|end|>", name="gelu-d12")
    with pytest.raises(UserError, match="gelu-d12 has no chat template"):
        lm.chat("user")
    assert lm.chat("user", template="kodalite", temperature=0).text == "the end"
    with pytest.raises(UserError, match="unknown chat template"):
        lm.chat("user", template="kodalit")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "no messages"),
        (TURNS[:2], "last message"),
        (TURNS[1:], "message 1"),
        ([*TURNS[:1], {"role": "system", "content": "x"}], "message 2"),
        ([{"role": "system", "content": "x"}], "system"),
        ([{"role": "system"}, *TURNS], "system"),
    ],
)
def test_impossible_conversations_are_refused(lm, messages, named):
    with pytest.raises(UserError, match=named):
        lm.chat(messages)


def test_fit_leaves_out_the_oldest_turns_and_keeps_the_system_text(lm):
    system = {"role": "system", "content": "Sí."}
    messages = [system, *TURNS[:2] * 5, TURNS[2]]
    whole = len(chat.encode(lm.tokenizer, messages, "kodalite"))
    assert chat.fit(lm.tokenizer, messages, "kodalite", whole) == (messages, 0)
    kept, dropped = chat.fit(lm.tokenizer, messages, "kodalite", whole - 1)
    assert dropped == 2 and kept == [system, *messages[3:]]
    assert len(chat.encode(lm.tokenizer, kept, "kodalite")) < whole
    kept, dropped = chat.fit(lm.tokenizer, messages, "kodalite", 1)
    assert dropped == 10 and kept == [system, TURNS[2]]


def test_a_saved_conversation_is_read_again(tmp_path):
    path = tmp_path / "talk.json"
    messages = [{"role": "system", "content": "¡Sí!"}, *TURNS[:2]]
    chat.save(path, messages)
    assert chat.read(path) == messages
    for content, named in (("[1]", "no conversation"), ("{", "no JSON"), (json.dumps(TURNS), "user.*assistant")):
        path.write_text(content)
        with pytest.raises(UserError, match=named):
            chat.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        chat.read(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be written"):
        chat.save(tmp_path / "nowhere" / "talk.json", messages)


@pytest.fixture
def talk(lm, monkeypatch, capsys):
    """Type lines into `zoo chat`; gives stdout, stderr and what the model was asked each time."""

    def run(*lines, model=lm, options=(), code=0):
        asked = []
        plain = model.stream_chat

        def stream_chat(messages, **settings):
            asked.append([message["content"] for message in messages])
            return plain(messages, **settings)

        monkeypatch.setattr(model, "stream_chat", stream_chat)
        monkeypatch.setattr(zoo.language_model, "load", lambda *_, **__: model)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        assert main(["chat", "MODEL", "--temperature", "0", *options]) == code
        return *capsys.readouterr(), asked

    return run


def test_chat_keeps_the_history(talk):
    out, err, asked = talk("the user", "", "and on", "/reset", "user")
    assert out == "the end.\n" * 3
    assert asked == [["the user"], ["the user", "the end.", "and on"], ["user"]]
    assert "forgotten" in err


def test_messages_of_several_lines(talk):
    _, _, asked = talk('"""the', "user", 'and"""', "on \\", "and on", '"""on"""', "/exit", "never")
    assert [turn[-1] for turn in asked] == ["the\nuser\nand", "on \nand on", "on"]


@pytest.mark.parametrize("lines", [('"""the', "user"), ("the\\", "user\\")])
def test_a_message_that_the_input_cuts_short_is_answered(talk, lines):
    out, _, asked = talk(*lines)
    assert asked == [["the\nuser"]] and out == "the end.\n"


def test_what_a_pipe_could_not_get_is_no_success(talk, monkeypatch, capsys):
    out, err, _ = talk("the user " * 60, code=2)
    assert out == "" and "shorten it" in err
    monkeypatch.setattr(zoo.language_model, "load", lambda *_, **__: pytest.fail("loaded first"))
    assert main(["chat", "MODEL", "--template", "kodalit"]) == 2
    assert "did you mean kodalite" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where the process was given none
    assert main(["chat", "MODEL"]) == 2
    assert "stdin, which is closed" in capsys.readouterr().err


def test_replies_that_may_be_endless_leave_room_for_the_conversation(talk):
    _, err, asked = talk("user", "and", options=["--max-new-tokens", "1000"])
    assert "left out" not in err and asked[1] == ["user", "the end.", "and"]


def test_a_message_that_is_not_utf8_costs_only_itself(talk):
    out, err, asked = talk("a\udcff", "user", code=2)
    assert "message 1 is not UTF-8" in err and asked == [["a\udcff"], ["user"]] and out == "the end.\n"


def test_system_and_unknown_commands(talk):
    _, err, asked = talk("/system Sí.", "user", "/system", "and", "/nothing", "/help", code=2)
    assert asked == [["Sí.", "user"], ["user", "the end.", "and"]]
    assert "unknown command /nothing" in err and "/save FILE" in err


def test_save_and_history(talk, tmp_path):
    path = tmp_path / "talk.json"
    _, err, _ = talk("user", f"/save {path}", "/save", options=["--system", "Sí."], code=2)
    assert "2 messages" in err and "/save needs" in err
    assert [message["role"] for message in json.loads(path.read_text())] == ["system", "user", "assistant"]
    _, _, asked = talk("and", options=["--history", str(path)])
    assert asked == [["Sí.", "user", "the end.", "and"]]


def test_old_turns_are_left_out_when_there_is_no_room(talk):
    small = scripted_lm("the end.\n<|end|>", max_seq_len=100)
    out, err, asked = talk(*["the user and the user"] * 4, model=small, options=["--max-new-tokens", "16"])
    assert out == "the end.\n" * 4
    assert "oldest messages left out" in err
    assert len(asked[0]) == 1 and len(asked[-1]) < 7
    # A message that does not fit by itself is refused, and the conversation goes on.
    out, err, _ = talk("the user " * 60, "and", model=small, options=["--max-new-tokens", "16"], code=2)
    assert "tokens; the model takes 100" in err and out == "the end.\n"


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: programs in the background begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_reply_and_not_the_program(talk, monkeypatch, ctrl_c):
    lm = scripted_lm("the user and the user and the user and the end<|end|>")
    shown = []
    plain = TextStream.__next__

    def interrupted(self):
        piece = plain(self)
        shown.append(piece)
        if len(shown) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return piece

    monkeypatch.setattr(TextStream, "__next__", interrupted)
    out, err, asked = talk("user", "and", model=lm)
    first, second = out.splitlines()
    assert "(stopped)" in err and 0 < len(first) < len(second)
    assert second.startswith(first) and second.endswith("the end")
    assert asked[1] == ["user", first.strip(), "and"]


def test_an_empty_reply_is_not_remembered(talk):
    out, err, asked = talk("user", "and", model=scripted_lm("\n<|end|>"))
    assert out == "\n\n" and err.count("no reply") == 2
    assert asked == [["user"], ["and"]]


def test_a_run_on_conversations_names_its_own_template(tmp_path):
    data = {"kind": "chat", "source": "jsonl", "path": str(tmp_path / "gone.jsonl"), "seq_len": 64}
    for template in ("kodalite", "kodalite_eos"):
        content = {"name": "r", "model": {"name": "gelu-d12"}, "data": {**data, "chat_template": template}}
        recipe = make_recipe({**content, "tokenizer": {"name": "gpt2"}}, check_files=False)
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        lm = scripted_lm("the end", name="gelu-d12")
        lm.origin = resolve.find(tmp_path)
        assert lm.chat_template == template
    with pytest.raises(UserError, match="gelu-d12"):
        _ = scripted_lm("the end", name="gelu-d12").chat_template
