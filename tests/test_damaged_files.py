"""Small files of runs, prepared data and tokenizers that are damaged: set aside, rebuilt or refused by name."""

import base64
import contextlib
import errno
import json
import logging
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest

from zoo import tokenizers
from zoo.checkpoints import orbax_io
from zoo.checkpoints.checksums import DamagedCheckpoint
from zoo.checkpoints.directory import CheckpointDirectory
from zoo.convert import files as weight_files
from zoo.data import conversations, documents, packing, shards
from zoo.errors import UserError
from zoo.evaluate import compare
from zoo.generate import chat
from zoo.plotting import runs as plots
from zoo.recipe import load_recipe, make_recipe
from zoo.recipe.data import SourceSection
from zoo.run import job
from zoo.run.evaluations import add_sample
from zoo.run.status import RunStatus
from zoo.rundir import layout
from zoo.rundir.mirror import _Lock
from zoo.tasks.text import TextTask
from zoo.tokenizers.bpe import train as train_bpe
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.train import report
from zoo.train.logging.log import MetricsLog, count_damaged, read_events, read_lines, read_metrics
from zoo.util import parse_json, sha256_hex

DEEP = "[" * 3000 + "]" * 3000
MODEL = {"name": "tiny-lm", "vocab_size": 10}
RECIPE = make_recipe(
    {
        "name": "d",
        "description": "from $DATA/a_b_c to $OUT",
        "model": MODEL,
        "data": {"kind": "text", "source": "stories", "seq_len": 16},
        "tokenizer": {"kind": "characters", "train": True},
    }
)


def line(step, **more):
    values = {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": None, "seconds": 1.0}
    return {"step": step, "tokens": 64 * step, **values, **more}


LINES = [line(1), line(2), line(3), {"step": 3, "event": "recipe changed", "changes": ["train.steps: 3 -> 4"]}]


def encoded(lines):
    return "".join(json.dumps(part) + "\n" for part in lines).encode()


# ------------------------------------------------------------------------------------------------ the log


def test_every_bit_of_a_log_may_flip(tmp_path):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.damaged"
    whole = encoded(LINES)
    set_aside = 0
    for bit in range(0, 8 * len(whole), 5):  # 5 and 8 have no common divisor: all bits of a byte are met
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        aside.unlink(missing_ok=True)
        lines, damaged = read_lines(path)
        MetricsLog(path, step=3).close()
        assert len(lines) >= len(LINES) - 2  # the end of a line joins two
        assert (aside.read_bytes() if aside.exists() else b"") == b"".join(part + b"\n" for part in damaged)
        assert read_lines(path)[1] == [] and count_damaged(path) == len(damaged)
        set_aside += bool(damaged)
    assert set_aside > len(whole) // 3


def test_damaged_lines_are_set_aside_and_counted_once(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encoded(LINES[:1]) + b"\xff\xfe\n" + encoded(LINES[1:]) + b'{"step": 4, "lo')
    assert count_damaged(path) == 1
    with caplog.at_level(logging.WARNING):
        MetricsLog(path, step=3).close()
    assert "a damaged line is set aside in metrics.jsonl.damaged" in caplog.text
    assert path.read_bytes() == encoded(LINES) and (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\xff\xfe\n"
    path.write_bytes(path.read_bytes() + b"nonsense\n[]\n")
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(path, step=3)
    assert "2 damaged lines are set aside" in caplog.text
    log.write(line(4))
    log.close()
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\xff\xfe\nnonsense\n[]\n"
    assert [part["step"] for part in read_metrics(path)] == [1, 2, 3, 4] and len(read_events(path)) == 1
    report.write_report(tmp_path, title="t", status="s", facts={})
    assert "| Damaged log lines | 3, left out |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "damaged",
    [
        '{"step": 1e999, "loss": 1}',
        '{"step": "5", "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": -5, "loss": 1}',
        '{"loss": 1}',
        DEEP,
        '{"step": 5, "loss": ' + "9" * 400 + "}",
        '{"step": 5, "loss": ' + "9" * 5000 + "}",
        '{"step": 5, "loss": NaN}',
        '{"step": 5, "loss": [1]}',
        '{"step": 5, "loss": 1, "seconds": "x"}',
        '{"step": 5, "loss": 1, "tokens": "x"}',
        '{"step": 5, "loss": 1, "heldout_loss": "x"}',
        '{"step": 5, "loss": 1, "unfinished": "x"}',
        '{"step": 5, "event": {}}',
        '{"step": 5, "event": "nonfinite", "back_to": "x"}',
        "5",
        '"text"',
    ],
)
def test_lines_that_zoo_has_not_written_are_damaged(tmp_path, damaged):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE.to_yaml())
    (run / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n" + damaged + "\n" + json.dumps(line(7)) + "\n")
    shown = plots.read_run(run)
    assert [part["step"] for part in shown.lines] == [1, 7]
    assert "1 damaged line of metrics.jsonl left out" in shown.notes
    assert report.summary(shown.lines)["Steps"] == "7"
    MetricsLog(run / "metrics.jsonl", step=7).close()
    assert "1 damaged line of metrics.jsonl left out" in plots.read_run(run).notes


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("text", ["from $DATA/a_b_c to $OUT", r"$\frac{$", "a $", r"\input{x} % &", "_x_", "$$"])
def test_names_are_no_mathematics(tmp_path, text, caplog):
    (tmp_path / "recipe.yaml").write_text(RECIPE.to_yaml())
    (tmp_path / "metrics.jsonl").write_bytes(encoded([line(1, **{f"heldout_{text}": 1.0}), line(2)]))
    report.write_report(tmp_path, title=text, status="s", facts={})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and not caplog.records
    plots.write([plots.read_run(tmp_path)], tmp_path / "plot")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_users_settings_of_matplotlib_start_no_tex(tmp_path):
    import matplotlib

    (tmp_path / "metrics.jsonl").write_bytes(encoded(LINES))
    with matplotlib.rc_context({"text.usetex": True}):
        report.write_report(tmp_path, title=r"\input{x}", status="s", facts={})
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "loss.png").is_file()


def test_a_report_goes_without_a_picture_that_cannot_be_drawn(tmp_path, monkeypatch, caplog):
    (tmp_path / "recipe.yaml").write_text(RECIPE.to_yaml())
    (tmp_path / "metrics.jsonl").write_bytes(encoded(LINES))

    def fail(*_):
        raise RuntimeError("no font\nis there")

    monkeypatch.setattr(report, "running_mean", fail)
    monkeypatch.setattr(plots, "running_mean", fail)
    report.write_report(tmp_path, title="t", status="s", facts={})
    text = (tmp_path / "report.md").read_text()
    assert "loss.png" not in text and "Final loss" in text and not (tmp_path / "loss.png").exists()
    assert [record.getMessage() for record in caplog.records] == [
        "loss.png cannot be drawn (RuntimeError: no font); the report goes without"
    ]
    with pytest.raises(UserError, match=r"cannot be drawn \(no font\)"):
        plots.write([plots.read_run(tmp_path)], tmp_path / "plot")


# ------------------------------------------------------------------------------------------------ a run's small files


def test_a_damaged_result_counts_as_none_and_names_the_remedy(tmp_path, caplog):
    path = tmp_path / "result.json"
    assert layout.read_result(tmp_path) is None and not caplog.records
    good = {"step": 5, "evaluation": None, "sample": {"prompt": "a", "text": "b"}}
    layout.write_result(tmp_path, good)
    assert layout.read_result(tmp_path) == {"format": 1, **good}
    for content in (
        '{"format": 1, "step"',
        "[]",
        DEEP,
        '{"format": 1, "step": "5"}',
        '{"format": "1", "step": 5}',
        '{"format": 1, "step": 5, "sample": "x"}',
        '{"format": 1, "step": 5, "evaluation": []}',
        b"\xff",
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        caplog.clear()
        assert layout.read_result(tmp_path) is None
        assert "result.json is damaged" in caplog.text and "zoo-train writes it again" in caplog.text
    path.write_text('{"format": 1, "stfp": 5}')
    assert not RunStatus(True, RECIPE, layout.read_result(tmp_path)).finished  # so it is evaluated again
    assert RunStatus(True, RECIPE, {"step": RECIPE.train.steps}).finished
    assert job._formatted(TextTask, {"promt": "a"}) is None and job._formatted(TextTask, None) is None
    assert job._formatted(TextTask, good["sample"]) == "\n[a]b"


def test_damaged_pins_are_none(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    directory.write_pin((3, {"heldout_loss": 1.0}))
    assert directory.read_pin() == (3, {"heldout_loss": 1.0})
    for content in ('{"step": 1e999, "reason": {}}', DEEP, "[]", '{"step": "x"}', "\x00"):
        (tmp_path / "best.json").write_text(content)
        assert directory.read_pin() is None


def test_a_damaged_lock_in_a_bucket_holds_nothing(tmp_path):
    lock = _Lock(tmp_path)
    for content in (
        '{"host": "h", "pid": 1e999, "time": 1}',
        '{"host": "h", "pid": -1, "time": 1}',
        '{"host": "h", "pid": 99999999999, "time": 1}',
        '{"host": "h", "pid": 5, "time": NaN}',
        DEEP,
    ):
        (tmp_path / "lock").write_text(content)
        assert lock._read() is None
    lock._write()
    assert lock._read()["token"] == lock._content["token"]


@pytest.mark.parametrize(
    "leaves",
    [
        {"model": {"a": ["xy", "float32"]}, "optimizer": {}},
        {"model": {"a": [[1], "1,2,3,4"]}, "optimizer": {}},
        {"model": {"a": [[-1], "float32"]}, "optimizer": {}},
        {"model": {"a": [[1.5], "float32"]}, "optimizer": {}},
        {"model": {"a": 5}, "optimizer": {}},
        {"model": {}},
        [],
    ],
)
def test_meta_data_of_a_checkpoint_that_describe_no_arrays_are_damage(tmp_path, leaves):
    content = {"format": 2, "step": 5, "leaves": leaves, "meta": {}}
    (tmp_path / "meta").mkdir()
    file = {"content": content, "sha256": sha256_hex(json.dumps(content, sort_keys=True).encode())}
    (tmp_path / "meta" / "data.json").write_text(json.dumps(file))
    with pytest.raises(DamagedCheckpoint):
        orbax_io.read_content(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"),
        ValueError("NOT_FOUND: Error opening 'x' [OS error 24: EMFILE Too many open files]"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_too_many_open_files_are_no_damage_of_a_checkpoint(error):
    with pytest.raises(type(error)), orbax_io._damage():
        raise error
    with pytest.raises(DamagedCheckpoint), orbax_io._damage():
        raise OSError(errno.EIO, os.strerror(errno.EIO), "x")


def test_reports_and_samples_are_read_as_far_as_they_go(tmp_path):
    (tmp_path / "report.md").write_bytes(b"# x\n\n| a | b\xff |\n\n## Evaluation\n\n\xffgood")
    found = report.read_report(tmp_path)
    assert found.facts == {"a": "b\ufffd"} and found.sections == {"Evaluation": "\ufffdgood"}
    samples = tmp_path / "samples.md"
    samples.write_bytes(b"## Step 5\n\n\xffa\n## Step " + b"9" * 5000 + b"\n\nb\n## Step 90\n\nc\n")
    add_sample(samples, 10, "new")
    text = samples.read_text()
    assert text.startswith("## Step 5\n\n\ufffda\n") and text.endswith("## Step 10\n\nnew\n") and "Step 90" not in text


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    "content",
    [
        "[a]: 1\n",
        "a: " + DEEP,
        "a: !!bool maybe\n",
        "a: !!timestamp x\n",
        "a: !!int x\n",
        "? {a: 1}\n: 1\n",
        "extends: " + "a" * 5000,
        'extends: "a\\0b"',
        "a: !!python/object/apply:os.system [x]",
    ],
)
def test_recipes_that_yaml_does_not_take_are_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"r\.yaml") as refusal:
        load_recipe(path)
    assert len(str(refusal.value)) < 700
    if not content.startswith(("extends", "[a]", "?")):
        with pytest.raises(UserError, match="not valid YAML"):
            load_recipe(path, [content.replace("a: ", "name=")])


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "~nobody-is-called-so/x"])
def test_paths_in_recipes_that_no_file_can_have_are_refused(path):
    plain = RECIPE.resolved()
    for section, field in (("data", "path"), ("tokenizer", "path")):
        changed = {**plain, section: {**plain[section], field: path}}
        if section == "data":
            changed["data"] |= {"source": "jsonl"}
        else:
            changed["tokenizer"] |= {"train": False, "kind": "bpe"}
        with pytest.raises(UserError, match=f"{section}.path: there is no file"):
            make_recipe(changed)
    assert make_recipe({**plain, "from": {"source": path}}).from_.source == path


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "~nobody-is-called-so/x"])
def test_directories_in_recipes_that_there_cannot_be_are_refused(path):
    plain = RECIPE.resolved()
    for section, field in (("logging", "runs_dir"), ("data", "prepared_dir")):
        changed = {**plain, section: {**plain[section], field: path}}
        with pytest.raises(UserError, match=f"recipe: {section}.{field}: .* names no directory"):
            make_recipe(changed)
        make_recipe(changed, check_files=False)  # a finished run may come from a machine where there is such a user


def test_any_byte_of_a_recipe_may_flip(tmp_path):
    whole, path = RECIPE.to_yaml().encode(), tmp_path / "recipe.yaml"
    rng = random.Random(0)
    for at in range(0, len(whole), 11):
        content = bytearray(whole)
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            load_recipe(path, check_files=False)


# ------------------------------------------------------------------------------------------------ tokenizers

PLAIN = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
PLAIN |= {"pre_tokenizer": None, "post_processor": None, "decoder": None}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
BPE |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "merges": []}
RANKS = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))


def plain(vocab):
    return json.dumps({**PLAIN, "model": {**BPE, "vocab": vocab}})


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("characters.json", '{"format": 1, "characters": 5}', "no text"),
        ("characters.json", '{"format": 1, "characters": ["ab"]}', "no text"),
        ("characters.json", '{"format": 1, "characters": "\\ud800ab"}', "no text"),
        ("characters.json", '{"format": 1, "characters": ""}', "no alphabet"),
        ("characters.json", f'{{"format": 1, "characters": {DEEP}}}', "cannot be read"),
        ("tokenizer.json", plain({}), "vocabulary is empty"),
        ("t.tiktoken", RANKS + b"YWI= 255\n", "a rank is given twice"),
        ("t.tiktoken", RANKS.replace(b"YQ== 97\n", b"YWI= 97\n"), "no token for the byte 97"),
        ("t.tiktoken", RANKS + b"YWI= -1\n", "no whole number"),
        ("t.tiktoken", RANKS + b"YWI= 4294967295\n", "no whole number"),
        ("t.tiktoken", RANKS + b"YWI= 99999999999999999999\n", "no whole number"),
    ],
)
def test_tokenizers_that_are_none_are_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        tokenizers.load(path)


@pytest.mark.parametrize(
    "config", [f'{{"a": {DEEP}}}', '{"eos_token": "\\ud800"}', '{"bos_token": {"content": "\\udfff"}}']
)
def test_settings_of_a_tokenizer_that_are_none_are_refused(tmp_path, config):
    (tmp_path / "tokenizer.json").write_text(plain({"a": 0, "b": 1}))
    assert tokenizers.load(tmp_path).vocab_size == 2
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_any_byte_of_a_tokenizer_may_flip(tmp_path, kind):
    made = CharacterTokenizer("abcdefñ\n") if kind == "characters" else train_bpe(["abab"], 258, eos_token="<eos>")
    made.save(tmp_path)
    rng = random.Random(0)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 + len(whole) // 150):
            content = bytearray(whole)
            content[at] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            with contextlib.suppress(UserError):
                found = tokenizers.load(tmp_path)
                assert len(found.fingerprint) == 64 and found.vocab_size
                found.decode(found.encode("ab"))
        path.write_bytes(whole)


# ------------------------------------------------------------------------------------------------ data


def source(path, **more):
    return SourceSection.model_validate({"source": "jsonl", "path": str(path), **more})


HUGE = "9" * 5000  # a whole number of more digits than Python converts


def test_a_number_of_too_many_digits_stops_nothing_where_nobody_reads_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "n": [1, -{HUGE}]}}\n{{"text": {HUGE}}}\n{{"text": "c", "n": {HUGE}, }}\n')
    good, fault, damaged = documents.read(source(path), "text")
    assert good == "a"
    assert fault.reason == f"{path}, line 2: field 'text' is float, not text"
    assert damaged.reason.startswith(f"{path}, line 3: not valid JSON (")
    assert parse_json(f'{{"n": [7, -{HUGE}], "x": 1.5}}') == {"n": [7, -math.inf], "x": 1.5}


def test_numbers_of_too_many_digits_in_settings_and_results_are_read(tmp_path):
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "seed": {HUGE}}}')
    assert weight_files.read_json(tmp_path / "config.json")["model_type"] == "llama"
    (tmp_path / "tokenizer.json").write_text(plain({"a": 0, "b": 1}))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "b", "model_max_length": {HUGE}}}')
    assert tokenizers.load(tmp_path).vocab_size == 2
    with pytest.raises(UserError, match="is no result of tasks"):
        (tmp_path / "out.json").write_text(f'{{"seed": {HUGE}}}')
        compare.read(tmp_path / "out.json")
    (tmp_path / "talk.json").write_text(
        f'[{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "a", "time": {HUGE}}}]'
    )
    assert [turn["content"] for turn in chat.read(tmp_path / "talk.json")] == ["q", "a"]


def test_a_result_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "out.json").write_text(DEEP)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        compare.read(tmp_path / "out.json")


TREE = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "lang": "en"}
REPLY = {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "r", "lang": "en"}


@pytest.mark.parametrize(
    "broken", [{"message_id": []}, {"text": 5.0}, {"parent_id": {}}, {"role": 1}, {"lang": None}, {"text": None}]
)
def test_messages_of_trees_that_are_no_text_are_left_out(tmp_path, broken):
    path = tmp_path / "a.jsonl"
    odd = {**REPLY, "message_id": "3", **broken}
    path.write_text("".join(json.dumps(record) + "\n" for record in (TREE, REPLY, odd)))
    talks = list(documents.read(source(path, format="oasst1"), "chat"))
    assert talks == [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]]


def test_a_context_that_is_no_text_is_refused():
    with pytest.raises(UserError, match="context"):
        conversations.from_record({"instruction": "a", "context": 5, "response": "b"}, "dolly")


MANIFEST = {
    "format": 1,
    "source": {},
    "tokenizer": "x",
    "vocab_size": 100,
    "loss_masks": False,
    "shard_tokens": 10,
    "exhausted": True,
    "skipped": {},
    "shards": [{"name": "a", "documents": 1, "tokens": 3, "items": 1, "sha256": "0"}],
}


def prepared(directory, manifest=MANIFEST):
    np.save(directory / "a.tokens.npy", np.arange(3, dtype=np.uint16))
    np.save(directory / "a.lengths.npy", np.array([3], np.uint32))
    content = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (directory / "manifest.json").write_text(content)
    return shards.Shards(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": []},
        {"vocab_size": -1},
        {"tokenizer": 5},
        {"exhausted": "true"},
        {"loss_masks": None},
        {"skipped": {"bad": "x"}},
        {"skipped": []},
        {"source": []},
        {"shards": 5},
        {"shards": [{**MANIFEST["shards"][0], "tokens": 1e999}]},
        {"shards": [{**MANIFEST["shards"][0], "name": 5}]},
    ],
)
def test_manifests_of_other_types_are_refused(tmp_path, change):
    assert prepared(tmp_path).document(0).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read.*prepare anew"):
        prepared(tmp_path, {**MANIFEST, **change})


def test_a_manifest_nested_too_deep_is_refused(tmp_path):
    with pytest.raises(UserError, match="prepare anew"):
        prepared(tmp_path, DEEP)


def test_any_byte_of_an_arrays_head_may_flip(tmp_path):
    prepared(tmp_path)
    path = tmp_path / "a.tokens.npy"
    whole = path.read_bytes()
    refused = 0
    for at in range(128):
        for bit in (0, 3, 5):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            path.write_bytes(content)
            try:
                shards.Shards(tmp_path)
            except UserError as error:
                assert "a.tokens.npy" in str(error)
                refused += 1
    assert refused > 100


def test_a_damaged_index_of_rows_is_made_anew(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 9, 10_000)
    order, rows = packing.cached_best_fit(tmp_path, lengths, 16)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in (*range(0, 128, 3), *range(128, len(whole), len(whole) // 20)):
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        again = packing.cached_best_fit(tmp_path, lengths, 16)
        assert (again[0] == order).all() and (again[1] == rows).all()
    assert path.read_bytes() == whole
    stamp = path.stat().st_mtime_ns
    packing.cached_best_fit(tmp_path, lengths, 16)
    assert path.stat().st_mtime_ns == stamp  # it is read where it is whole


# ------------------------------------------------------------------------------------------------ others


def test_a_conversation_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "h.json").write_text(DEEP)
    with pytest.raises(UserError, match=r"h\.json is no JSON"):
        chat.read(tmp_path / "h.json")


def test_names_in_a_zip_that_are_no_text_are_none(tmp_path):
    import zipfile

    path = Path(tmp_path, "m.pt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a\u00e9/data.pkl", b"x")
    assert weight_files.zip_names(path) == ["a\u00e9/data.pkl"]
    path.write_bytes(path.read_bytes().replace("a\u00e9".encode(), b"a\xe4\xe4"))
    assert weight_files.zip_names(path) == []
