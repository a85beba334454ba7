"""The command line: exit codes, one-line errors, nothing written by mistake, nothing heavy imported early."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from zoo import registry
from zoo.cli import common, main, train
from zoo.errors import UserError
from zoo.evaluate.suites import Suite

RECIPE = """
model: {name: cronica-5m, vocab_size: 300, num_layers: 1, embed_dim: 16, num_heads: 1, max_seq_len: 1600}
train: {steps: 3}
optimizer: {warmup_steps: 1}
data: {num_pairs: 4, seq_len: 1600, batch_size: 2}  # 300 entries make long rows
eval: {num_pairs: 0, cronicas: 0, final_sample: false}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A tiny recipe in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = Path("tiny.yaml")
    path.write_text(RECIPE)
    return path


def files_below(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def refused(capsys, tmp_path, *argv: str) -> str:
    """Run zoo-train, hold it to refusing properly, give back its one line."""
    before = files_below(tmp_path)
    assert train.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert files_below(tmp_path) == before
    assert err.startswith("zoo-train: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    return err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", ["train.stepz", "train.steps"]),
        ("train.steps=soon", ["train.steps", "whole number", "soon"]),
        ("train.steps=-3", ["train.steps", "-3"]),
        ("model.num_layer=2", ["num_layer", "num_layers"]),
        ("tokenizer.vocab_size=301", ["tokenizer.vocab_size 301", "300"]),
        ("tokenizer.path=nowhere.json", ["tokenizer.path", "nowhere.json"]),
    ],
)
def test_bad_recipe_is_refused(recipe, tmp_path, capsys, override, words):
    err = refused(capsys, tmp_path, str(recipe), override)
    for word in words:
        assert word in err


def test_missing_recipe_is_refused(recipe, tmp_path, capsys):
    assert "nowhere.yaml" in refused(capsys, tmp_path, "nowhere.yaml")


def test_malformed_line_of_the_data_is_refused(recipe, tmp_path, capsys):
    good = {"stats_block": "<STATS>\n</STATS>", "style_label": "mexicano_clasico", "cronica": "Ganó."}
    Path("pairs.jsonl").write_text(f"{json.dumps(good)}\n{{not json\n")
    err = refused(capsys, tmp_path, str(recipe), "data.source=jsonl", "data.path=pairs.jsonl")
    assert "pairs.jsonl, line 2" in err


def test_wrong_types_of_model_fields_are_refused(recipe):
    # A process of its own: here the shape checker of the tests would speak first.
    done = run_python("import sys, zoo.cli.train as t; sys.exit(t.main(['tiny.yaml', 'model.num_layers=two']))")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "model.num_layers" in done.stderr
    assert "'two'" in done.stderr


def test_dry_run_writes_nothing(recipe, tmp_path, capsys):
    before = files_below(tmp_path)
    assert train.main([str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert files_below(tmp_path) == before
    for word in ("parameters", "3 steps", "runs/tiny"):
        assert word in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["lst"], ["No such command", "list"]),
        (["list", "--wrong"], ["--wrong", "zoo list --help"]),
        (["describe"], ["NAME", "zoo describe --help"]),
        (["describe", "cronica"], ["cronica-5m"]),
    ],
)
def test_bad_usage_is_two_lines_at_most(capsys, argv, words):
    assert main.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 2
    for word in words:
        assert word in err


def test_bad_usage_of_zoo_train(capsys):
    assert train.main([]) == 2
    assert "RECIPE" in capsys.readouterr().err
    assert train.main(["x.yaml", "--frsh"]) == 2
    assert "--fresh" in capsys.readouterr().err


def test_zoo_alone_shows_its_help_and_fails(capsys):
    assert main.main([]) == 2
    assert "zoo describe cronica-5m" in capsys.readouterr().out


def test_list_and_describe(capsys):
    assert main.main(["list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cronica-5m"))
    assert "5,261,568" in line
    assert "Apache-2.0" in line
    assert main.main(["describe", "cronica-5m"]) == 0
    out = capsys.readouterr().out
    for word in ("5,261,568", "num_layers", "cronicas-d2t", "limits"):
        assert word in out


@pytest.mark.parametrize("command", [[], *([name] for name in main.COMMANDS)])
def test_every_command_has_help_with_an_example(capsys, command):
    assert main.main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert " ".join(["  zoo", *command]) in out


def test_help_of_zoo_train_has_an_example(capsys):
    assert train.main(["--help"]) == 0
    assert "  zoo-train recipes/quickstart.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("data.path: wrong"), 2, "prog: data.path: wrong"),
        (
            ValueError("two\nlines"),
            1,
            "prog: unexpected ValueError: two lines (add --debug for the traceback)",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(capsys, error, code, line):
    app = common.new_app()

    @app.command()
    def fail() -> None:
        raise error

    assert common.run_command(app, [], "prog") == code
    assert capsys.readouterr().err.strip() == line
    assert common.run_command(app, ["--debug"], "prog") == code
    assert ("Traceback" in capsys.readouterr().err) == bool(line)


def test_a_command_returns_its_code_and_keeps_what_follows_two_dashes(capsys):
    app = common.new_app()

    @app.command()
    def echo(words: list[str]) -> int:
        print(*words)
        return 3

    assert common.run_command(app, ["--debug", "--", "--debug", "a"], "prog") == 3
    assert capsys.readouterr().out == "--debug a\n"
    assert isinstance(app, typer.Typer)


def markdown(result):
    """The table of ToySuite."""
    return f"limit {result['rows']['a']['limit']:g}"


class ToySuite(Suite):
    """What a task adds to `zoo eval`."""

    spelling = "--suite toy"
    options = ("limit",)
    tables = __name__
    items = ("rows", "texts")

    def run(self, load, on_progress, options):
        """Returns its option; no model is loaded."""
        return {"suite": "toy", "rows": {"a": {**options, "texts": ["long"]}}}


def test_a_registered_suite_has_its_own_options_and_tables(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(registry.SUITES, "toy", f"{__name__}:ToySuite")
    command = ["eval", "MODEL", "--suite", "toy", "--limit", "3"]
    assert main.main([*command, "--out", str(tmp_path / "toy.json")]) == 0
    assert capsys.readouterr().out == (tmp_path / "toy.md").read_text() == "limit 3\n"
    saved = json.loads((tmp_path / "toy.json").read_text())
    assert saved == {"suite": "toy", "rows": {"a": {"limit": 3, "texts": ["long"]}}, "model": "MODEL"}
    assert main.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"a": {"limit": 3}}  # without its items
    assert main.main([*command, "--batch-size", "3"]) == 2
    assert capsys.readouterr().err == "zoo: --batch-size has no meaning with --suite toy; leave it out\n"


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = """
import sys
heavy = {"jax", "numpy", "flax", "optax", "orbax", "datasets", "matplotlib", "tokenizers"}
def check(what, allowed=()):
    found = heavy & set(sys.modules) - set(allowed)
    assert not found, f"{what} imports {sorted(found)}"
import zoo
check("zoo")
assert "pydantic" not in sys.modules and "typer" not in sys.modules
import zoo.cli.main, zoo.cli.train, zoo.recipe
check("the command line")
assert zoo.cli.main.main(["--help"]) == 0
assert zoo.cli.train.main(["--help"]) == 0
check("--help")
assert zoo.cli.main.main(["list"]) == 0
check("list")
for name in zoo.cli.main.COMMANDS:
    assert zoo.cli.main.main([name, "--help"]) == 0
check("--help of the commands")
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -c 'import sys, zoo.cli.main as m; sys.exit(m.main([\"list\"]))' | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "recipe.yaml"], "training has a command of its own: zoo-train RECIPE"),
        (["genrate", "x"], "did you mean zoo generate?"),
        (["plot", "x", "--x", "time"], "Invalid value for '--x': 'time' is not one of 'step', 'tokens'"),
    ],
)
def test_what_is_meant_is_suggested(capsys, argv, words):
    assert main.main(argv) == 2
    told = capsys.readouterr().err
    assert words in told and "Value error" not in told


def test_list_counts_what_a_spec_does_not_state(capsys, monkeypatch):
    spec = registry.describe("tiny-lm")
    facts = {name: text for name, text in spec.facts.items() if name != "parameters"}
    monkeypatch.setitem(registry.BUILT_IN, "tiny-lm", dataclasses.replace(spec, facts=facts))
    assert main.main(["list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny-lm"))
    assert "214,244" in line and "parameters not stated" not in line
