"""The card of an export that comes from a run: what the run's directory tells, and nothing that is not its own."""

import json

import numpy as np
import pytest
import yaml

from zoo import registry
from zoo.recipe import make_recipe
from zoo.train.report import read_report, write_report
from zoo.weights import model_card
from zoo.weights.export import Exported

MODEL = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24, "vocab_size": 400}
FACTS = {"Model": "m", "Data": "8 rows | of text", "Plan": "4 steps of 2 x 8", "Versions": "zoo 0.1.0, jax 0.10.2"}


@pytest.fixture
def run(tmp_path):
    """A finished run on texts, as training leaves it, without its checkpoint."""
    directory = tmp_path / "run"
    directory.mkdir()
    content = {
        "name": "mine",
        "description": "a small one",
        "model": {"name": "cronica-5m", **MODEL},
        "data": {"source": "roneneldan/TinyStories", "seq_len": 8, "batch_size": 2},
        "optimizer": {"peak_lr": 0.002, "warmup_steps": 1, "clip_norm": None},
        "train": {"steps": 4},
    }
    (directory / "recipe.yaml").write_text(make_recipe(content).to_yaml())
    lines = [{"step": step, "tokens": 16 * step, "loss": 6.0 - step, "seconds": 1.0} for step in range(1, 5)]
    lines[-1]["heldout_loss"] = 2.25
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = {"Evaluation": "| set | loss |\n|---|---|\n| tales | 2.5 |", "A sample": "> **Once** more"}
    write_report(directory, title="mine", status="Finished.", facts=FACTS, sections=sections)
    evaluation = {"sets": {"tales": {"loss": 2.5}}}
    result = {"format": 1, "step": 4, "evaluation": evaluation, "sample": {"prompt": "Once", "text": " upon\n\na time"}}
    (directory / "result.json").write_text(json.dumps(result))
    return directory


def card(path, tmp_path, step=4):
    spec = registry.describe("cronica-5m")
    out = tmp_path / f"out{step}"
    out.mkdir()
    arguments = {"params": {"x": np.zeros(3)}, "tokenizer": None}
    model_card.write(out, Exported("mine", spec, spec.make_config(**MODEL), path=path, step=step, **arguments), "hf")
    text = (out / "README.md").read_text("utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text, out


def test_a_run_fills_its_card(run, tmp_path):
    head, text, out = card(run, tmp_path)
    for row in (
        "| Recipe | mine: a small one |",
        "| Data | 8 rows \\| of text |",
        "| Plan | 4 steps of 2 x 8 |",
        "| Versions | zoo 0.1.0, jax 0.10.2 |",
        "| Steps | 4 |",
        "| Tokens (batch positions) | 64 |",
        "| First loss | 5.0000 (step 1) |",
        "| Final loss | 2.0000 (mean of the last 1 logged steps) |",
        "| Heldout loss | 2.2500 (lowest 2.2500 at step 4) |",
        "| tales | 2.5 |",
    ):
        assert row in text
    assert "adamw, learning rate 0.002 after 1 steps, then cosine to 3e-05; betas 0.9 and 0.95" in text
    assert "clip none" in text and "> **Once** upon\n>\n> a time" in text
    assert head["datasets"] == ["roneneldan/TinyStories"] and "license" not in head
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 2.5
    assert "![loss](loss.png)" in text and (out / "loss.png").read_bytes() == (run / "loss.png").read_bytes()
    # The authors' figures are of their weights.
    assert "4.34" not in text and "Apple" not in text


def test_weights_from_the_middle_of_a_run_have_no_figures_of_its_end(run, tmp_path):
    head, text, _ = card(run, tmp_path, step=2)
    assert "model-index" not in head and "upon" not in text and "tales" not in text
    assert "| Steps | 2 |" in text and "| Tokens (batch positions) | 32 |" in text and "Heldout" not in text


def test_a_run_that_has_just_begun_has_a_card_too(run, tmp_path):
    for name in ("metrics.jsonl", "report.md", "result.json", "loss.png"):
        (run / name).unlink()
    head, text, out = card(run, tmp_path)
    assert "| Recipe | mine: a small one |" in text and "loss.png" not in text
    assert "model-index" not in head and not (out / "loss.png").exists()


def test_a_reply_stands_apart_from_its_prompt(run, tmp_path):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["kind"], recipe["eval"]["prompt"] = "chat", "Once"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "> **Once**\n>\n>  upon\n" in card(run, tmp_path)[1]


def test_a_report_reads_back(run):
    report = read_report(run)
    assert report.facts["Data"] == "8 rows | of text" and report.facts["Final loss"].startswith("2.0000")
    assert list(report.sections) == ["Evaluation", "A sample"] and report.sections["A sample"] == "> **Once** more"
    assert read_report(run / "nowhere").facts == {}
