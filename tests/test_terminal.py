"""What is printed steers no terminal: control characters out of files, and of what a model writes, are shown."""

import io
import json
import logging
import os
import pty
import sys

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import zoo
from zoo.cli.common import new_app, print_columns, run_command
from zoo.cli.main import main
from zoo.cli.train import main as train
from zoo.data.inspect import show_row
from zoo.errors import UserError
from zoo.plotting.page import page
from zoo.tasks.base import say
from zoo.terminal import GuardedStream, guard, guarded, one_line, unguarded, visible
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.train.logging.progress import ProgressDisplay
from zoo.train.report import write_report

TITLE = "\x1b]0;pwned\x07"
SHOWN = "\\u001b]0;pwned\\u0007"
CONTROLS = [chr(i) for i in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F))]
CONTROLS += [chr(i) for i in (*range(0x2066, 0x206A), 0xD800, 0xDFFF)]
RECIPE = """name: d
model: {{name: tiny-lm, num_layers: 1, embed_dim: 16, num_heads: 2, head_dim: 8, mlp_dim: 32, max_seq_len: 32}}
tokenizer: {{kind: characters, train: true}}
data: {{kind: text, source: jsonl, path: {d}/d.jsonl, seq_len: 32, batch_size: 2, prepared_dir: {d}/p, workers: 1}}
train: {{steps: 4}}
optimizer: {{warmup_steps: 1}}
logging: {{runs_dir: {d}/runs}}
eval: {{num_pairs: 2}}
"""


def raw(text):
    return [character for character in CONTROLS if character in text]


def test_every_control_character_is_shown_and_all_else_stays():
    text = "".join(CONTROLS)
    assert not raw(visible(text)) and visible(text) == "".join(f"\\u{ord(c):04x}" for c in CONTROLS)
    plain = "ñ \t\n 中文 👩‍👧 עברית\u200f ✓ \\u001b \ufffd"
    assert visible(plain) == plain and visible(visible(text)) == visible(text)
    assert one_line("a\tb\nc\u2028\x1b") == "a\\u0009b\\u000ac\\u2028\\u001b"
    # A line of JSON means what it meant.
    record = {"text": text.replace("\ud800", "").replace("\udfff", "")}
    assert json.loads(visible(json.dumps(record, ensure_ascii=False))) == record


def test_streams_are_guarded_in_the_block_and_zoo_may_pass():
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with guarded():
            assert guard(sys.stdout) is sys.stdout and unguarded(sys.stdout) is out and unguarded(out) is out
            print("a", TITLE, "b\r\tc")
            print("\x1b[1mbold\x1b[0m", file=unguarded(sys.stdout))
            sys.stdout.writelines(["x\x9b", "y\n"])
            sys.stderr.write("\r50%")
            sys.stderr.write("\n\x1b[A")
            sys.stderr.write("done\r\x1b[2K\n")
            logging.getLogger("zoo.test_terminal").warning("name %s", TITLE)
        assert sys.stdout is out and sys.stderr is err
    finally:
        sys.stdout, sys.stderr = before
    assert out.getvalue() == f"a {SHOWN} b\\u000d\tc\n\x1b[1mbold\x1b[0m\nx\\u009by\n"
    assert err.getvalue().startswith("\r50%\n\x1b[Adone\\u000d\\u001b[2K\n")
    assert TITLE not in err.getvalue()
    assert guard(None) is None and not GuardedStream(io.StringIO()).isatty()


def test_errors_of_every_kind_are_shown(capsys):
    assert str(UserError(f"{TITLE}\nnext")) == f"{SHOWN}\nnext"
    for error in (UserError(f"x{TITLE}"), RuntimeError(f"x{TITLE}")):
        app = new_app()

        def fail(error=error):
            raise error

        app.command()(fail)
        for argv in ([], ["--debug"]):
            assert run_command(app, argv, "zoo x") != 0
            told = capsys.readouterr().err
            assert not raw(told) and SHOWN in told
    assert main([f"list{TITLE}"]) == 2
    assert not raw(capsys.readouterr().err)


def test_cells_are_one_line_each(capsys):
    print_columns([("a\nzoo: would load", "1"), ("b\x1b", "2")])
    assert capsys.readouterr().out.splitlines() == ["a\\u000azoo: would load  1", "b\\u001b                 2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose alphabet is an escape sequence, and which has a tensor named by one."""
    directory = tmp_path_factory.mktemp("escapes") / "model"
    lm = zoo.create("tiny-lm", vocab_size=8, num_layers=1, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=64)
    lm.tokenizer = CharacterTokenizer("\x1b]0;pw\x07n")
    lm.save(directory)
    return directory


def test_what_a_model_writes_is_shown_unless_raw_is_asked_for(model, capsys):
    options = ["--max-new-tokens", "80", "--seed", "3"]
    assert main(["generate", str(model), "pwn", *options]) == 0
    text = capsys.readouterr().out
    assert not raw(text) and "\\u001b" in text
    assert main(["generate", str(model), "pwn", *options, "--raw"]) == 0
    written = capsys.readouterr().out
    assert "\x1b" in written and visible(written) == text
    assert main(["generate", str(model), "pwn", "nwp", *options]) == 0
    assert not raw(capsys.readouterr().out)
    assert main(["generate", str(model), "pwn", *options, "--json"]) == 0
    line = capsys.readouterr().out
    assert not raw(line) and f"{json.loads(line)['text']}\n" == written


def test_replies_are_shown_unless_raw_is_asked_for(model, capsys, monkeypatch):
    from zoo.cli.chat import Session

    lm = zoo.load(model)
    monkeypatch.setattr(type(lm), "stream_chat", lambda *_, **__: iter(["a\x1b]0;", "x\x07"]))
    for options, shown in (({}, "a\\u001b]0;x\\u0007\n"), ({"raw": True}, "a\x1b]0;x\x07\n")):
        session = Session(lm, "kodalite", {"max_new_tokens": 4}, 0, **options)
        monkeypatch.setattr(session, "_fitting", lambda message: [message])
        with guarded():
            session.reply("hello")
        assert capsys.readouterr().out == shown
        assert session.messages[-1]["content"] == "a\x1b]0;x\x07"


def test_names_of_tensors_are_shown(model, tmp_path, capsys):
    content = load_file(model / "model.safetensors")
    directory = tmp_path / "model"
    lm = zoo.load(model)
    lm.save(directory)
    save_file({**content, f"x{TITLE}": np.zeros(0, np.float32)}, directory / "model.safetensors")
    main(["inspect", str(directory)])
    told = capsys.readouterr()
    assert not raw(told.out + told.err) and f"x{SHOWN}" in told.out


def test_texts_and_keys_of_a_recipe_are_shown(tmp_path, capsys):
    lines = (json.dumps({"text": f"hello {TITLE}\x9b world {i} " * 5}) + "\n" for i in range(60))
    (tmp_path / "d.jsonl").write_text("".join(lines))
    recipe = tmp_path / "d.yaml"
    recipe.write_text(RECIPE.format(d=tmp_path))
    assert main(["data", "inspect", str(recipe)]) == 0
    told = capsys.readouterr()
    assert not raw(told.out + told.err) and SHOWN in told.out
    recipe.write_text('name: k\n"a\\e]0;pwned\\x07": 1\nmodel: {name: tiny-lm}\n')
    assert train([str(recipe), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert not raw(error) and SHOWN in error


def test_rows_of_batches_have_zoos_colours_alone():
    tokenizer = CharacterTokenizer("\x1b]0;pw\x07n")
    ids = np.array([tokenizer.encode("\x1b]0;p\x07")], np.int32)
    ones = np.ones_like(ids)
    batch = {"tokens": ids, "targets": ids, "loss_mask": ones.astype(np.float32), "segment_ids": ones}
    row = show_row(batch, 0, tokenizer, colour=True)
    assert "\\u001b]0;p\\u0007" in row and raw(row) == ["\x1b"] and row.count("\x1b") == row.count("\x1b[")


def test_the_progress_of_a_run_is_shown_on_terminals_and_elsewhere(capsys):
    numbers = {"tokens_per_s": 1.0, "loss": 1.0, "lr": 1.0, f"heldout_{TITLE}": 2.0}
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200, color_system=None, markup=False)
        with guarded(), ProgressDisplay(9, 0, console) as display:
            display.show({"step": 1, **numbers})
            display.note(f"{TITLE}\x9b[bold]x[/y]")
            print(f"printed {TITLE}\x9b")
            say(f"said {TITLE}")
            assert isinstance(sys.stdout, GuardedStream) and isinstance(sys.stderr, GuardedStream)
        text = out.getvalue()
        assert "]0;pwned\x07" not in text and "\x9b" not in text and f"heldout_{SHOWN} 2.0000" in text
        assert f"{SHOWN}\\u009b[bold]x[/y]" in text
    said = capsys.readouterr().out
    assert not raw(said) and f"printed {SHOWN}\\u009b" in said and f"said {SHOWN}" in said


def test_a_bar_on_a_terminal_is_drawn_and_nothing_else_reaches_it():
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as out:
        before, sys.stdout = sys.stdout, out
        try:
            with guarded(), ProgressDisplay(9, 0) as display:
                display.advance(1)
                display.note(TITLE)
                print(f"printed {TITLE}\x9b")
        finally:
            sys.stdout = before
        out.flush()
        text = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert "\x1b[" in text and "\x1b]" not in text and "\x07" not in text and "\x9b" not in text
    assert text.count(SHOWN) == 2


def test_pages_and_reports_hold_no_control_characters(tmp_path):
    html = page(f"<b>{TITLE}", "<svg></svg>", [("", [TITLE], [{TITLE: f"<script>{TITLE}"}])], [TITLE])
    assert not raw(html) and "<script>" not in html and "<b>" not in html and SHOWN in html
    write_report(
        tmp_path, title=f"t{TITLE}\n# x", status="s", facts={"a": f"{TITLE}\n| b | c |"}, sections={"A": TITLE}
    )
    report = (tmp_path / "report.md").read_text()
    assert not raw(report) and report.startswith(f"# t{SHOWN}\\u000a# x\n")
    assert report.count("\n| ") == 2
