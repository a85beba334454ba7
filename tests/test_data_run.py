"""Runs on texts and chats from the command line: train, go on, look at the data, train a tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import yaml

import zoo
from zoo.cli.main import main as zoo_main
from zoo.cli.train import main as train
from zoo.recipe import load_recipe, resume_diff
from zoo.run import job as run_module
from zoo.train.logging.log import read_metrics

DATA = Path(__file__).parent / "data"
MODEL = {
    "name": "cronica-5m",
    "num_layers": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 24,
    "max_seq_len": 64,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
    monkeypatch.chdir(tmp_path)


def write(name, **sections):
    content = {
        "name": name,
        "model": MODEL,
        "tokenizer": {"kind": "characters"},
        "data": {"source": "stories", "packing": "windows", "seq_len": 32, "batch_size": 4, "workers": 1},
        "optimizer": {"schedule": "constant", "warmup_steps": 0, "peak_lr": 1e-2},
        "train": {"steps": 8},
        "checkpoint": {"every": 100},
        "logging": {"every": 1},
        "eval": {"every": 4, "num_pairs": 6, "prompt": "Once upon a time", "max_new_tokens": 8},
    }
    for section, fields in sections.items():
        content[section] = fields if section in ("model", "tokenizer") else content[section] | fields
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


def exact(name):
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "heldout_loss")
    lines = read_metrics(Path("runs", name, "metrics.jsonl"))
    return [{key: line[key] for key in keys if key in line} for line in lines]


def test_a_run_on_stories_from_beginning_to_end(capsys):
    path = write("whole", data={"max_tokens": 4000})
    assert train([path]) == 0
    said = capsys.readouterr().out
    assert "[Once upon a time]" in said and "finished" in said
    lines = exact("whole")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["heldout_loss"] > 0 and "heldout_loss" in lines[3]
    # The table is as large as the alphabet, and the run's recipe says so.
    kept = load_recipe("runs/whole/recipe.yaml")
    alphabet = json.loads(Path("runs/whole/tokenizer/characters.json").read_text())["characters"]
    assert kept.model.overrides["vocab_size"] == len(alphabet) == zoo.load("runs/whole").config.vocab_size
    result = json.loads(Path("runs/whole/result.json").read_text())
    assert result["evaluation"] is None and result["sample"]["prompt"] == "Once upon a time"
    assert result["sample"]["text"] in Path("runs/whole/report.md").read_text().replace("\n> ", "\n")
    assert "## A sample" in Path("runs/whole/report.md").read_text()
    # Stopped half-way, it gives the same numbers.
    half = write("half", data={"max_tokens": 4000}, train={"steps": 4})
    assert train([half]) == 0
    assert train([half, "train.steps=8"]) == 0
    assert exact("half") == lines
    capsys.readouterr()
    assert train([half, "train.steps=8"]) == 0
    assert "nothing is left to do\n\n[Once upon a time]" in capsys.readouterr().out
    # Other data are refused.
    assert train([half, "train.steps=9", "data.seed=1"]) == 2
    assert "data.seed: 0 in the run, 1 in the recipe" in capsys.readouterr().err


def test_what_a_run_decided_is_not_decided_again():
    opened = load_recipe(write("open"))
    begun = opened.with_resolved(vocab_size=61, max_tokens=1000)
    assert resume_diff(begun, opened) != []
    assert resume_diff(begun, opened.with_resolved_from(begun)) == []
    longer = load_recipe("open.yaml", ["train.steps=9000"])
    assert resume_diff(begun, longer.with_resolved_from(begun)) == []
    said = load_recipe("open.yaml", ["model.vocab_size=99", "data.max_tokens=5"])
    assert len(resume_diff(begun, said.with_resolved_from(begun))) == 2


def test_a_run_on_chats_with_documents_masked(capsys):
    data = {
        "kind": "chat",
        "source": "jsonl",
        "path": str(DATA / "chat.jsonl"),
        "packing": "best_fit",
        "document_mask": True,
        "seq_len": 64,
        "batch_size": 2,
    }
    path = write(
        "chat",
        model={**MODEL, "vocab_size": 400},
        tokenizer={"path": str(DATA / "small.tiktoken")},
        data=data,
        train={"steps": 3},
        eval={"num_pairs": 0, "prompt": "Tell me"},
    )
    assert train([path]) == 0
    assert exact("chat")[-1]["loss"] > 0
    assert "[Tell me]" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    before = set(tmp_path.iterdir())
    path = write("dry")
    assert train([path, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stories; up to 1,024 tokens are prepared in prepared" in said and "nothing was written" in said
    assert "parameters" in said and "Plan:" in said and "Devices:" in said
    assert set(tmp_path.iterdir()) - before == {tmp_path / "dry.yaml"}
    # What the run would be refused for, a dry run is refused for.
    for override, words in [
        ("optimizer.no_decay=[zzz/*]", "zzz"),
        (f"logging.runs_dir={path}", "is a file"),
        (f"logging.runs_dir={tmp_path}/none/runs", None),
    ]:
        assert train([path, "--dry-run", override]) == (2 if words else 0)
        assert (words or "") in capsys.readouterr().err


# zoo data


def test_prepare_then_nothing_is_left_for_training(capsys):
    path = write("p", tokenizer={"path": str(DATA / "small.tiktoken")}, model={**MODEL, "vocab_size": 400})
    assert zoo_main(["data", "prepare", path]) == 0
    done = capsys.readouterr()
    assert "prepared data: " in done.err and "prepared/stories" in done.out
    assert zoo_main(["data", "prepare", path]) == 0
    assert "prepared data" not in capsys.readouterr().err


def test_inspect_shows_rows_and_figures(capsys):
    path = write("i", data={"packing": "document"}, train={"steps": 30})
    assert zoo_main(["data", "inspect", path, "--rows", "2", "--step", "1", "--batches", "3"]) == 0
    said = capsys.readouterr().out
    assert said.count("-- row") == 2
    assert "3 batches: 384 positions" in said and "tokens/s" in said and "lengths:" in said
    assert zoo_main(["data", "inspect", path, "--heldout", "--rows", "1"]) == 0
    assert "2 batches" in capsys.readouterr().out


def test_a_tokenizer_is_trained_and_used_again(capsys):
    learnt = {"vocab_size": 300, "strip_accents": True, "eos_token": "<|EOS|>", "special_tokens": ["<|UK|>"]}
    path = write("t", tokenizer=learnt, model={**MODEL, "vocab_size": 300}, train={"steps": 60})
    assert zoo_main(["data", "tokenizer", path, "--out", "made"]) == 0
    assert "made: 300 entries" in capsys.readouterr().out
    assert zoo.tokenizers.load("made").special_tokens == {"<|EOS|>": 0, "<|UK|>": 1}
    assert zoo_main(["data", "tokenizer", path, "--out", "made"]) == 2
    Path("taken").write_text("")
    assert zoo_main(["data", "tokenizer", path, "--out", "taken/made"]) == 2
    assert "--out: taken/made cannot be written (Not a directory)" in capsys.readouterr().err
    again = write("u", tokenizer={"path": "made"}, model={**MODEL, "vocab_size": 300})
    assert zoo_main(["data", "prepare", again]) == 0


def test_a_text_begins_as_the_documents_of_the_run_did(capsys, tmp_path):
    """Behind the EOS of the document before, where there is no BOS: in samples, after loading and in all exports."""
    learnt = {"vocab_size": 300, "eos_token": "<|EOS|>"}
    path = write("begins", tokenizer=learnt, model={**MODEL, "vocab_size": 300}, eval={"temperature": 0.0})
    assert train([path]) == 0
    lm = zoo.load("runs/begins")
    prompt = "Once upon a time"
    ids = [lm.tokenizer.eos_id, *lm.tokenizer.encode(prompt)]
    greedy = {"temperature": 0.0, "max_new_tokens": 8}
    assert lm.prefix_ids == [0] and lm.score(prompt).tokens == ids
    with_eos = lm.generate(ids, **greedy).logprobs
    assert lm.generate(prompt, **greedy).logprobs == with_eos != lm.generate(ids[1:], **greedy).logprobs
    assert f"[{prompt}]{lm.generate(prompt, **greedy).text}" in capsys.readouterr().out
    lm.save(tmp_path / "saved")
    lm.export(tmp_path / "hf")
    for directory in ("saved", "hf"):
        again = zoo.load(tmp_path / directory).generate(prompt, **greedy)
        np.testing.assert_allclose(again.logprobs, with_eos, atol=1e-5)
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert exported.encode(prompt).ids == ids


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["prepare", "c.yaml"], "its data are crónicas"),
        (["prepare", "no.yaml"], "no such file"),
        (["inspect", "i.yaml", "--batches", "0"], "--batches"),
        (["inspect", "i.yaml", "--step", str(10**30)], "--step is 1000000"),
        (["inspect", "i.yaml", "--heldout", "eval.num_pairs=0"], "--heldout"),
        (["tokenizer", "p.yaml"], "tokenizer.train"),
        (["prepare", "i.yaml", "model.vocab_size=5"], "more than the model's vocab_size 5"),
        (["prepare", "i.yaml", "data.kind=txt"], "data.kind"),
    ],
)
def test_mistakes_are_one_line(capsys, command, words):
    Path("c.yaml").write_text("model: {name: cronica-5m}\n")
    write("i")
    write("p", tokenizer={"path": str(DATA / "small.tiktoken")}, model={**MODEL, "vocab_size": 400})
    assert zoo_main(["data", *command]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo")]
    assert len(error) == 1 and words in error[0]
