"""Documents out of every kind of source, and what happens with bad ones."""

import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from zoo.data import conversations, documents, readers, stories
from zoo.data.readers import Fault
from zoo.errors import UserError
from zoo.recipe.data import SourceSection

DATA = Path(__file__).parent / "data"
TEXTS = stories.generate(12, seed=7)


def source(kind="jsonl", path=None, **fields):
    return SourceSection(source=kind, path=None if path is None else str(path), **fields)


def read(section, kind="text", **options):
    return list(documents.read(section, kind, **options))


SOURCES = {
    "jsonl": source("jsonl", DATA / "stories.jsonl"),
    "gzip": source("jsonl", DATA / "stories.jsonl.gz"),
    "zstd": source("jsonl", DATA / "stories.jsonl.zst"),
    "parquet": source("parquet", DATA / "stories.parquet"),
    "text": source("text", DATA / "stories.txt", separator="<|endoftext|>"),
}


@pytest.mark.parametrize("section", SOURCES.values(), ids=SOURCES)
def test_every_file_gives_the_same_texts_from_anywhere(section):
    assert read(section) == TEXTS
    for start in (1, 5, 6, 11, 12, 40):
        assert read(section, start=start) == TEXTS[start:]


def test_stories_never_end():
    section = source("stories")
    assert list(itertools.islice(documents.read(section, "text", seed=7), 12)) == TEXTS
    assert list(itertools.islice(documents.read(section, "text", seed=7, start=5), 3)) == TEXTS[5:8]
    heldout = documents.read(source("stories", split="heldout"), "text", seed=7)
    assert next(heldout) == stories.story(0, seed=7, split="heldout")


def test_directories_and_patterns_are_read_in_the_order_of_names(tmp_path):
    for name, part in (("b.jsonl", TEXTS[6:]), ("a.jsonl", TEXTS[:6]), ("note.md", ["no"])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    assert read(source("jsonl", tmp_path)) == TEXTS
    assert read(source("jsonl", tmp_path / "*.jsonl")) == TEXTS
    assert read(source("jsonl", tmp_path / "b*")) == TEXTS[6:]
    for number, part in enumerate((TEXTS[:7], TEXTS[7:])):
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), tmp_path / f"{number}.parquet", row_group_size=2)
    for start in (0, 3, 7, 9):
        assert read(source("parquet", tmp_path), start=start) == TEXTS[start:]


def test_each_file_is_a_document_where_nothing_parts_it(tmp_path):
    for number, text in enumerate(TEXTS[:3]):
        (tmp_path / f"{number}.txt").write_text(text)
    assert read(source("text", tmp_path)) == TEXTS[:3]


def test_a_separator_is_found_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_BLOCK", 7)
    assert read(SOURCES["text"]) == TEXTS


def test_another_field_can_hold_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "hola"}\n')
    assert read(source("jsonl", tmp_path / "a.jsonl", text_field="body")) == ["hola"]


# The library of the hub


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_data_set_of_the_hubs_library(tmp_path, streaming):
    import datasets

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes((DATA / "stories.jsonl").read_bytes())
    datasets.Dataset.from_list([{"text": text} for text in TEXTS]).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "set", tmp_path / "saved"):
        section = source("hub", path, streaming=streaming)
        assert section.is_file
        assert read(section) == TEXTS
        assert read(section, start=5) == TEXTS[5:]


def test_a_stream_is_shuffled_in_a_buffer_the_same_way_each_time(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"text": text} for text in TEXTS]).save_to_disk(tmp_path / "saved")
    section = source("hub", tmp_path / "saved", shuffle_buffer=5)
    shuffled = read(section, seed=1)
    assert sorted(shuffled) == sorted(TEXTS) and shuffled != TEXTS
    assert read(section, seed=1) == shuffled != read(section, seed=2)
    assert read(section, seed=1, start=4) == shuffled[4:]


def test_an_unreachable_hub_is_told_at_once_in_one_line(monkeypatch):
    monkeypatch.setattr(readers.hub, "unreachable", lambda: "no route")
    with pytest.raises(UserError, match=r"^data\.path: the data set a/b cannot be fetched.*no route.*HF_HUB_OFFLINE=1"):
        read(source("hub", "a/b"))


def test_hub_data_without_the_column_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(UserError, match=r"no column 'text'.*its columns: body"):
        read(source("hub", tmp_path, streaming=False))
    with pytest.raises(UserError, match="cannot be read"):
        read(source("hub", tmp_path, split="nope"))


# Bad data


def test_bad_lines_are_faults_in_their_places(tmp_path):
    good = json.dumps({"text": "good"}).encode()
    lines = [
        good,
        b"{bad",
        b'{"text": "\xff"}',
        b'{"text": "a\\ud800"}',
        b'{"text": 3}',
        b'{"other": 3}',
        b"[1]",
        b"[" * 100_000,
        b"",
        good,
    ]
    for write, name in ((lambda b: b, "a.jsonl"), (gzip.compress, "a.jsonl.gz")):
        (tmp_path / name).write_bytes(write(b"\n".join(lines)))
        items = read(source("jsonl", tmp_path / name))
        assert [isinstance(item, Fault) for item in items] == [False, *[True] * 7, False]
        reasons = [item.reason for item in items[1:-1]]
        for number, (reason, words) in enumerate(
            zip(
                reasons,
                ["JSON", "not UTF-8 (byte 11", "surrogate", "is int", "no field 'text'", "list", "JSON"],
                strict=True,
            ),
            2,
        ):
            assert reason.startswith(f"{tmp_path / name}, line {number}: ") and words in reason and "\n" not in reason
        assert "its fields: other" in reasons[4]


def test_bytes_that_are_no_text_are_faults(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one<sep>t\xffo<sep>three")
    items = read(source("text", tmp_path / "a.txt", separator="<sep>"))
    assert [item if isinstance(item, str) else item.reason.split(": ")[1] for item in items] == [
        "one",
        "not UTF-8 (byte 2)",
        "three",
    ]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert isinstance(read(source("text", tmp_path / "b.txt"))[0], Fault)


@pytest.mark.parametrize("name", ["stories.jsonl.gz", "stories.jsonl.zst", "stories.parquet"])
def test_damaged_files_stop_in_one_line(tmp_path, name):
    content = (DATA / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    kind = "parquet" if name.endswith("parquet") else "jsonl"
    with pytest.raises(UserError) as caught:
        read(source(kind, tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_columns_are_named(tmp_path):
    for kind in ("jsonl", "parquet", "text"):
        with pytest.raises(UserError, match="does not exist"):
            read(source(kind, tmp_path / "no"))
        with pytest.raises(UserError, match=r"no \.\w+ file in it"):
            read(source(kind, tmp_path))
    with pytest.raises(UserError, match=r"no column 'body'.*'text'"):
        read(source("parquet", DATA / "stories.parquet", text_field="body"))


# Conversations


def test_messages_are_read_as_they_are():
    talks = read(source("jsonl", DATA / "chat.jsonl"), "chat")
    assert [len(talk) for talk in talks] == [2, 4, 2]
    assert talks[1][2] == {"role": "user", "content": "Why?"}


def test_the_weight_of_a_turn_is_kept(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    assert read(source("jsonl", tmp_path / "a.jsonl"), "chat") == [talk]
    # Parquet gives every turn the column.
    rows = pyarrow.table({"messages": [[{"role": "user", "content": "q", "weight": None}, talk[1]]]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    assert read(source("parquet", tmp_path / "a.parquet"), "chat")[0][1] == talk[1]


def test_dollys_context_goes_behind_the_instruction():
    plain, with_context = read(source("jsonl", DATA / "dolly.jsonl", format="dolly"), "chat")
    assert plain[0]["content"] == "Name three colours."
    assert with_context == [
        {
            "role": "user",
            "content": "Who found the ball?\n\nContext:\nAnna lost her ball. Ben found it under a bush.",
        },
        {"role": "assistant", "content": "Ben did."},
    ]


def test_oasst1_gives_the_path_to_every_english_answer():
    section = source("parquet", DATA / "oasst1.parquet", format="oasst1")
    talks = [[message["content"] for message in talk] for talk in read(section, "chat")]
    assert talks == [
        ["How do I bake bread?", "Mix flour, water, yeast and salt."],
        ["How do I bake bread?", "Buy it."],
        ["How do I bake bread?", "Mix flour, water, yeast and salt.", "And then?", "Let it rise, then bake it."],
        ["¿Qué hora es?", "Two o'clock."],
    ]
    assert [talk[1]["role"] for talk in read(section, "chat")] == ["assistant"] * 4
    assert [[m["content"] for m in talk] for talk in read(section, "chat", start=3)] == talks[3:]


def test_a_circle_of_messages_does_not_hang():
    table = [
        {"message_id": "a", "parent_id": "b", "role": "assistant", "text": "x", "lang": "en"},
        {"message_id": "b", "parent_id": "a", "role": "prompter", "text": "y", "lang": "en"},
    ]
    assert all(len(talk) <= 3 for talk in conversations.from_trees(table))


@pytest.mark.parametrize(
    ("record", "layout", "words"),
    [
        ({}, "messages", "'messages' is missing"),
        ({"messages": [1]}, "messages", "not a list of messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "a turn of the user was due"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "must be one of the assistant"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "weight": 0.5}]},
            "messages",
            "message 2 has weight 0.5; it must be 0 (no loss) or 1",
        ),
        ({"instruction": "x"}, "dolly", "is missing"),
        ({"instruction": "x", "response": ""}, "dolly", "has no text"),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "x"}]},
            "messages",
            "surr",
        ),
    ],
)
def test_bad_conversations_are_faults(tmp_path, record, layout, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (item,) = read(source("jsonl", tmp_path / "a.jsonl", format=layout), "chat")
    assert isinstance(item, Fault) and words in item.reason
