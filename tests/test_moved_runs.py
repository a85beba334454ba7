"""Runs that are moved, whose files are changed, and that nobody watches any more."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import zoo
from zoo.cli.main import main as zoo_main
from zoo.cli.train import main as train
from zoo.errors import UserError
from zoo.run import job
from zoo.terminal import LastingStream
from zoo.tokenizers import bpe
from zoo.train.logging.log import read_metrics
from zoo.weights import resolve

TEXTS = [f"hello world {number} and {number * 7} " * 4 for number in range(80)]
MODEL = {
    "name": "kodalite-1.3b",
    "vocab_size": 300,
    "num_layers": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
}
MODEL |= {"head_dim": 8, "mlp_dim": 16, "max_seq_len": 32}


def project(directory: Path, **sections) -> Path:
    """A directory with a recipe, its data and its tokenizer, all named by relative paths."""
    directory.mkdir()
    bpe.train(TEXTS, 262, eos_token="<|endoftext|>").save(directory / "tok")
    (directory / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    content = {
        "name": "r",
        "model": MODEL,
        "tokenizer": {"path": "tok", "train": False},
        "data": {"kind": "text", "source": "jsonl", "path": "a.jsonl", "seq_len": 32, "batch_size": 2, "workers": 1},
        "optimizer": {"warmup_steps": 1, "peak_lr": 1e-3},
        "train": {"steps": 4},
        "eval": {"num_pairs": 2, "final_sample": False},
        "logging": {"every": 1},
    }
    (directory / "r.yaml").write_text(yaml.safe_dump(content | sections))
    return directory


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(job, "peak_flops", lambda: (1e11, "not measured"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose run has done four steps; to be copied."""
    directory = project(tmp_path_factory.mktemp("run") / "project", lora={"rank": 2, "alpha": 4.0})
    before = Path.cwd()
    os.chdir(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "peak_flops", lambda: (1e11, "not measured"))
        assert train(["r.yaml"]) == 0
    os.chdir(before)
    return directory


@pytest.fixture
def moved(trained, tmp_path, monkeypatch):
    """The same project at another place, which is the working directory."""
    shutil.copytree(trained, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")]


def test_a_moved_project_goes_on(moved, capsys):
    assert train(["r.yaml", "train.steps=6"]) == 0
    assert "going on from the checkpoint of step 4" in capsys.readouterr().out
    assert steps(moved / "runs" / "r") == [1, 2, 3, 4, 5, 6]


def test_a_recipe_beside_its_checkpoints_means_that_run(moved, tmp_path, monkeypatch, capsys):
    (moved / "runs" / "r").rename(moved / "runs" / "r_v1")
    shutil.rmtree(moved / "tok")  # the run has its own copy
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    recipe = moved / "runs" / "r_v1" / "recipe.yaml"
    assert train([str(recipe), "train.steps=6"]) == 0
    told = capsys.readouterr().out
    assert f"going on from {recipe.parent}, where the recipe lies" in told and "checkpoint of step 4" in told
    assert steps(recipe.parent) == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "home" / "runs").exists() and not (moved / "runs" / "r").exists()
    # With a name of its own it is another run's recipe, as any other file.
    assert train([str(recipe), "name=other", "--dry-run"]) == 0
    assert "dry run: would start in" in capsys.readouterr().out


def test_another_tokenizer_under_another_path_is_refused(moved, capsys):
    bpe.train([text.upper() for text in TEXTS], 262, eos_token="<|endoftext|>").save("other")
    assert train(["r.yaml", "tokenizer.path=other", "train.steps=6"]) == 2
    assert "other is another tokenizer than that of runs/r" in capsys.readouterr().err
    shutil.copytree("tok", "same")
    assert train(["r.yaml", "tokenizer.path=same", "train.steps=6", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("model.rope_theta", "rope_theta: 10000.0", "rope_theta: 10000.1"),
        ("model.norm_eps", "norm_eps: 1.0e-06", "norm_eps: 1.0e-02"),
        ("lora.alpha", "alpha: 4.0", "alpha: 5.0"),
        ("data.seed", "seed: 0", "seed: 1"),
    ],
)
def test_a_changed_recipe_is_refused_by_name(moved, capsys, field, old, new):
    path = moved / "runs" / "r" / "recipe.yaml"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    words = rf"recipe\.yaml: {field} is .*, and the checkpoint was trained with .*put the file back"
    with pytest.raises(UserError, match=words):
        zoo.load("runs/r")
    assert zoo_main(["inspect", "runs/r"]) == 1
    assert field in capsys.readouterr().err
    assert train(["runs/r/recipe.yaml", "train.steps=6"]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert steps(moved / "runs" / "r") == [1, 2, 3, 4]
    path.write_text(content)
    zoo.load("runs/r")


def test_what_may_change_in_a_recipe_still_loads(moved):
    path = moved / "runs" / "r" / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    content["train"]["steps"], content["data"]["path"] = 9, "/nowhere/b.jsonl"
    content["tokenizer"]["path"] = "/nowhere/tok"
    path.write_text(yaml.safe_dump(content))
    right = zoo.load(moved / "runs" / "r").logits([1, 2, 3])
    np.testing.assert_array_equal(zoo.load("runs/r@4").logits([1, 2, 3]), right)


def test_another_tokenizer_in_the_run_is_refused(moved):
    shutil.rmtree("runs/r/tokenizer")
    bpe.train([text.upper() for text in TEXTS], 262, eos_token="<|endoftext|>").save("runs/r/tokenizer")
    with pytest.raises(UserError, match=r"tokenizer: is not the tokenizer that the checkpoint of step 4 was trained"):
        zoo.load("runs/r")


def test_runs_that_start_from_one_another_are_refused(moved):
    for name, other in (("r", "s"), ("s", "r")):
        if name == "s":
            shutil.copytree("runs/r", "runs/s")
        path = moved / "runs" / name / "recipe.yaml"
        content = yaml.safe_load(path.read_text()) | {"name": name, "from": {"source": str(moved / "runs" / other)}}
        path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="runs start from one another without end"):
        resolve.find_source(resolve.find("runs/r").recipe, None, moved / "runs" / "r")


def test_adapters_that_name_one_another_are_refused(moved):
    zoo.load("runs/r").export("one", "peft")
    shutil.copytree("one", "two")
    for name, other in (("one", "two"), ("two", "one")):
        file = Path(name, "adapter_config.json")
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(Path(other).absolute())})
        )
    with pytest.raises(UserError, match="adapters on adapters, more than 8 deep"):
        zoo.load("one")


def test_a_stream_without_a_reader_takes_what_is_written():
    reading, writing = os.pipe()
    with open(writing, "w", buffering=1) as raw:
        stream = LastingStream(raw)
        assert stream.write("read\n") == 5 and os.read(reading, 10) == b"read\n"
        os.close(reading)
        assert stream.write("not read\n") == 9
        stream.flush()
        print("nor this", file=raw, flush=True)  # what libraries write past it
        assert not stream.isatty()


def test_other_faults_of_a_stream_are_survived_too():
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write

        def fileno(self):
            raise ValueError("no file")

    assert LastingStream(Full()).write("text") == 4
