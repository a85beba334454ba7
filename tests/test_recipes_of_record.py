"""The recipes of record: their numbers as published, every value traced, and the very pipelines run in small."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from zoo import registry
from zoo.cli.train import main as train
from zoo.models import build
from zoo.recipe import load_recipe
from zoo.recipe.patterns import first_match
from zoo.run import job as run_module
from zoo.train.logging.log import read_metrics
from zoo.train.optimizers import make_schedule

ROOT = Path(__file__).parent.parent
TRACED = ("cronica_5m", "kodalite_1b", "gelu_d12", "bwetaf_97m", "tiny_lm", "kodalite_1b_sft", "kodalite_1b_2k")
TRACED += ("gelu_d12_muon",)
TINY = sorted((ROOT / "recipes" / "tiny").glob("*.yaml"))

# recipe -> (tokens of the whole run, fields)
PUBLISHED = {
    "kodalite_1b": (
        1_638_400_000,
        "data.batch_size=16 data.seq_len=1024 data.shuffle_buffer=10000 data.seed=42 data.packing=concat "
        "train.steps=100000 train.param_dtype=bfloat16 train.compute_dtype=bfloat16 "
        "optimizer.peak_lr=3e-4 optimizer.final_lr=3e-5 optimizer.warmup_steps=5000 optimizer.weight_decay=0.1 "
        "optimizer.clip_norm=1.0 optimizer.b1=0.9 optimizer.b2=0.999 optimizer.eps=1e-8 "
        "optimizer.moments_dtype=bfloat16",
    ),
    "gelu_d12": (
        5_221_908_480,
        "data.batch_size=256 data.seq_len=1024 train.steps=19920 optimizer.peak_lr=0.01 optimizer.schedule=cosine",
    ),
    "gelu_d12_muon": (
        5_221_908_480,
        "data.batch_size=256 data.seq_len=1024 train.steps=19920 optimizer.schedule=trapezoid "
        "optimizer.cooldown_fraction=0.65 optimizer.clip_norm=null optimizer.eps=1e-10 optimizer.muon_momentum=0.95 "
        "optimizer.muon_coefficients=polar_express optimizer.muon_b2=0.9 optimizer.muon_cautious_decay=true",
    ),
    "bwetaf_97m": (
        3_390_046_208,
        "data.batch_size=256 data.seq_len=2048 data.document_mask=true train.steps=6466 optimizer.peak_lr=1.5e-3 "
        "optimizer.warmup_init_lr=6e-4 optimizer.final_lr=1.8e-4 optimizer.warmup_steps=129 optimizer.b1=0.95 "
        "optimizer.b2=0.98 optimizer.eps=1.5e-8 optimizer.weight_decay=0.1 optimizer.moments_dtype=bfloat16 "
        "optimizer.clip_norm=null model.dropout=0.05 model.vocab_size=16384",
    ),
    "cronica_5m": (
        12_288_000,
        "data.batch_size=8 data.seq_len=768 train.steps=2000 train.seed=0 optimizer.peak_lr=3e-4 "
        "optimizer.final_lr=3e-5 optimizer.warmup_steps=100 optimizer.b2=0.95 optimizer.weight_decay=0.1 "
        "optimizer.clip_norm=1.0",
    ),
    "tiny_lm": (
        2_560_000,
        "data.batch_size=16 data.seq_len=32 data.packing=windows train.steps=5000 optimizer.schedule=constant "
        "optimizer.peak_lr=1e-3 optimizer.weight_decay=0.0 optimizer.clip_norm=null optimizer.warmup_steps=0 "
        "eval.max_new_tokens=2000 eval.final_sample=true tokenizer.kind=characters",
    ),
}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
    monkeypatch.chdir(ROOT)  # the presets name files of the repository


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_the_published_ones(name):
    recipe, (tokens, fields) = load_recipe(ROOT / "recipes" / f"{name}.yaml"), PUBLISHED[name]
    resolved = recipe.resolved()
    for field in fields.split():
        key, _, text = field.partition("=")
        section, _, leaf = key.partition(".")
        wanted = yaml.safe_load(text)
        wanted = float(text) if isinstance(wanted, str) and re.fullmatch(r"[\d.]+e-\d+", text) else wanted
        assert resolved[section][leaf] == wanted, key
    assert recipe.train.steps * recipe.data.batch_size * recipe.data.seq_len == tokens


def test_gelu_by_muon_has_nanochat_s_rates_betas_and_decay_for_every_parameter():
    """nanochat/gpt.py, setup_optimizer, with the options of scripts/base_train.py and half of its reference batch."""
    batch = math.sqrt(256 * 1024 / 2**19)
    matrix, decay = 0.02 * batch, 0.28 * batch
    groups = [  # learning rate, betas (of Adam), and weight decay times learning rate
        (r"embed/embedding", 0.3 * batch, [0.8, 0.995], 0.001),
        (r"layers/\d+/value_embed/embedding", 0.15 * batch, [0.8, 0.995], 0.01),
        (r"layers/\d+/blend/residual_scale", 0.005 * batch, [0.8, 0.95], 0.05),
        (r"layers/\d+/blend/x0_scale", 0.5 * batch, [0.96, 0.95], 0.0),
        (r"(smear|backout)/.*", 0.2, [0.8, 0.95], 0.0),
        # The decay of a matrix has the factor of its learning rate, sqrt(fan_out / fan_in) where that is above 1.
        (r"layers/\d+/mlp/up/kernel", matrix, None, decay * 2),
        (r"layers/\d+/.*kernel", matrix, None, decay),
    ]
    recipe = load_recipe(ROOT / "recipes" / "gelu_d12_muon.yaml")
    section, config = recipe.optimizer, recipe.model.make_config()
    _, params = build.abstract_params(registry.describe("gelu-d12").model_class(), config)
    seen = set()
    for path in build.flatten(params):
        number, (_, rate, betas, decays) = next(
            (number, group) for number, group in enumerate(groups) if re.fullmatch(group[0], path)
        )
        seen.add(number)
        assert section.peak_lr * first_match(section.lr_scales, path, 1.0) == pytest.approx(rate, rel=1e-4), path
        assert first_match(section.weight_decays, path, section.weight_decay) == pytest.approx(decays, rel=1e-4), path
        assert betas is None or first_match(section.betas, path, [section.b1, section.b2]) == betas, path
    assert len(seen) == len(groups)
    rate = make_schedule(section, recipe.train.steps)
    multipliers = {0: 1 / 40, 39: 1, 6972: 1, 13446: 0.525, 19919: 0.05 + 0.95 / 12948}
    assert {step: float(rate(step)) / matrix for step in multipliers} == pytest.approx(multipliers, rel=1e-4)


@pytest.mark.parametrize("name", TRACED)
def test_every_value_says_where_it_is_from(name):
    body = (ROOT / "recipes" / f"{name}.yaml").read_text("utf-8").split("\n\nname: ", 1)[1].splitlines()[2:]
    assert "Where a value is from" in (ROOT / "recipes" / f"{name}.yaml").read_text("utf-8")
    values = [line for line in body if re.match(r"  \w+:", line)]
    assert len(values) >= 20
    untraced = [line for line in values if not re.search(r"# .*\[(card|code|zoo)\]", line)]
    assert untraced == []


def test_every_recipe_of_record_has_a_preset_in_small_and_stands_in_the_docs():
    presets = {path.stem for path in TINY}
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == presets
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for name in PUBLISHED:
        assert name in presets
        assert f"(../recipes/{name}.yaml)" in text


def run_small(path, tmp_path, capsys, *more):
    """Run a preset and hold it against its whole recipe; its run directory."""
    assert f"zoo-train recipes/tiny/{path.name}" in path.read_text("utf-8").split("\n\n", 1)[0]
    preset, whole = load_recipe(path), load_recipe(ROOT / "recipes" / path.name)
    assert preset.name == f"{path.stem}_tiny"
    # What makes the pipeline is that of the whole recipe: packing, masks, dtypes, optimizer, tokenizer's kind.
    for section, fields in {
        "data": "kind packing document_mask shuffle_buffer chat_template",
        "optimizer": "name schedule peak_lr final_lr b1 b2 eps weight_decay clip_norm moments_dtype lr_scales no_decay",
        "train": "param_dtype compute_dtype on_nonfinite remat scan_layers trainable",
        "tokenizer": "kind strip_accents eos_token special_tokens",
        "model": "name",
    }.items():
        for field in fields.split():
            assert getattr(getattr(preset, section), field) == getattr(getattr(whole, section), field), field
    assert preset.lora == whole.lora and (preset.from_ is None) == (whole.from_ is None)
    places = [f"logging.runs_dir={tmp_path}/runs", *more]
    if preset.data.kind != "cronicas":
        places += [f"data.prepared_dir={tmp_path}/prepared", "data.workers=1"]
    assert train([str(path), *places]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / preset.name
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert "heldout_loss" in lines[1] and "heldout_loss" in lines[2]
    sample = json.loads((run / "result.json").read_text())["sample"]
    assert sample is not None and (run / "report.md").is_file() and (run / "loss.png").is_file()
    assert preset.eval.sample_every == 2 or preset.from_ is not None
    if preset.eval.sample_every:  # of step 2; the last step has the report's
        written = (run / "samples.md").read_text("utf-8")
        first = sample["stats_block"] if "stats_block" in sample else f"> **{sample['prompt']}**"
        assert written.startswith("## Step 2\n") and written.count("## Step") == 1 and first in written
    if preset.data.kind != "cronicas":
        assert sample["prompt"] == whole.eval.prompt
        assert f"[{sample['prompt']}]" in capsys.readouterr().out
    return run


LIFE = ("kodalite_1b", "kodalite_1b_sft", "kodalite_1b_sft_eot", "kodalite_1b_2k")
# Together a good part of the fast tests' time.
SLOW = ("gelu_d12", "gelu_d12_muon", "cronica_5m", "cronica_5m_high_lr", "quickstart", "tiny_lm", "bwetaf_97m")
ALONE = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else [], id=path.stem)
    for path in TINY
    if path.stem not in LIFE
]


@pytest.mark.parametrize("path", ALONE)
def test_the_pipeline_of_a_recipe_runs_in_small(path, quick, tmp_path, capsys):
    run_small(path, tmp_path, capsys)


@pytest.mark.slow
def test_the_life_of_kodalite_runs_in_small(quick, tmp_path, capsys):
    before = None
    for name in LIFE:
        path = ROOT / "recipes" / "tiny" / f"{name}.yaml"
        whole = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        if before is not None:  # each goes on from the run before, as the whole recipes do
            sources = [Path(load.from_.source).name for load in (whole, load_recipe(path))]
            assert sources == [before, f"{before}_tiny"]
        more = [] if before is None else [f"from={tmp_path}/runs/{before}_tiny"]
        run_small(path, tmp_path, capsys, *more)
        before = name
