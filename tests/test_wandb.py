"""Weights & Biases as a board beside the log: offline, with the real library where it is installed."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from zoo.cli.train import main
from zoo.run import job as run_module
from zoo.train.logging.log import read_metrics

RECIPE = {
    "model": {"name": "tiny-lm", "num_layers": 1, "embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 8},
    "tokenizer": {"kind": "characters"},
    "data": {"source": "stories", "packing": "windows", "seq_len": 8, "batch_size": 2, "workers": 1},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 2},
    "logging": {"every": 1, "wandb": True},
    "eval": {"num_pairs": 2, "final_sample": False},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
    monkeypatch.chdir(tmp_path)
    Path("w.yaml").write_text(yaml.safe_dump(RECIPE))
    return "w.yaml"


@pytest.mark.slow
def test_lines_go_there_and_a_run_that_goes_on_is_the_same_one(recipe, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([recipe]) == 0
    name = Path("runs/w/wandb_id").read_text().strip()
    assert main([recipe, "train.steps=3"]) == 0
    assert [line["step"] for line in read_metrics("runs/w/metrics.jsonl")] == [1, 2, 3]
    written = sorted(Path("runs/w/wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(written) == 2  # one a start, of one run
    for path in written:
        content = path.read_bytes()
        assert all(word in content for word in (b"grad_norm", b"heldout_loss"))
        assert b"embed_dim" in content and json.dumps("tiny-lm").encode() in content  # the recipe


def test_without_the_package_it_is_refused_before_anything_is_written(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    assert main([recipe]) == 2
    assert "pip install 'zoo-nnx[wandb]'" in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("prepared").exists()


def test_a_start_that_fails_there_is_one_line(recipe, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")

    def refuse(**settings):
        raise wandb.errors.CommError("no network\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main([recipe]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "logging.wandb" in error and "no network" in error and "WANDB_MODE=offline" in error and "more" not in error
