"""Recipes: strictness, layers, round trip, what may change on resume, and the recipes that ship."""

import re
from pathlib import Path

import pytest
import yaml

from zoo.errors import UserError
from zoo.recipe import Recipe, load_recipe, make_recipe, resume_diff

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A small good recipe in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "base.yaml"
    path.write_text("model: {name: cronica-5m}\ndescription: small\ntrain: {steps: 2000}\n")
    return path


def error_of(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_validate_and_say_how_to_run_them(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    header = path.read_text("utf-8").split("\n\n", 1)[0]
    assert f"zoo-train recipes/{path.name}" in header
    for word in ("command", "hardware", "time", "result"):
        assert word in header


def test_published_run_is_as_published():
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "cronica_5m"))
    optimizer = recipe.optimizer
    assert (recipe.train.steps, recipe.data.batch_size, recipe.data.seq_len) == (2000, 8, 768)
    assert (optimizer.peak_lr, optimizer.final_lr, optimizer.warmup_steps) == (3e-4, 3e-5, 100)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)
    assert recipe.model.overrides == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", ["train.stepz", "train.steps"]),
        ("trian.steps=3", ["trian", "did you mean train?"]),
        ("train.batch_size=3", ["did you mean data.batch_size?"]),
        ("train.steps=-5", ["train.steps", "at least 1", "-5"]),
        ("train.steps=ten", ["train.steps", "whole number", "'ten'"]),
        ("train.steps=true", ["train.steps", "whole number"]),
        ("train.steps=2.5", ["train.steps", "whole number"]),
        ("train.steps=50", ["optimizer.warmup_steps 100", "train.steps 50"]),
        ("train=3", ["train", "section"]),
        ("optimizer.peak_lr=fast", ["optimizer.peak_lr", "number"]),
        ("optimizer.peak_lr=true", ["optimizer.peak_lr", "number"]),
        ("optimizer.peak_lr=.nan", ["optimizer.peak_lr", "finite"]),
        ("optimizer.peak_lr=1e-6", ["optimizer.final_lr", "optimizer.peak_lr"]),
        ("optimizer.name=adam", ["optimizer.name", "adamw"]),
        ("optimizer.muon_rms=0.2", ["optimizer.muon_rms", "optimizer.name muon"]),
        ('optimizer.lr_scales={"embed":-1}', ["optimizer.lr_scales.embed", "above 0"]),
        ("optimizer.no_decay=3", ["optimizer.no_decay", "list"]),
        ("logging.wandb=maybe", ["logging.wandb", "true or false"]),
        ("model.name=cronica-6m", ["model.name", "cronica-5m"]),
        ("model.num_layer=3", ["model.num_layer", "num_layers"]),
        ("model.num_layers=0", ["model.num_layers"]),
        ("tokenizer.vocab_size=9000", ["tokenizer.vocab_size 9000", "model's vocab_size 8000"]),
        ("model.vocab_size=500 tokenizer.vocab_size=501", ["501", "500"]),
        ("tokenizer.path=tok.json", ["tokenizer.path", "tok.json"]),
        ("tokenizer.train=false", ["tokenizer.train", "tokenizer.path"]),
        ("tokenizer.path=base.yaml tokenizer.train=true", ["tokenizer.path", "exclude"]),
        ("tokenizer.path=base.yaml tokenizer.vocab_size=500", ["tokenizer.vocab_size", "leave"]),
        ("data.source=jsonl", ["data.path is missing"]),
        ("data.source=jsonl data.path=no.jsonl", ["data.path", "no.jsonl"]),
        ("data.source=jsonl data.path=base.yaml data.split=test", ["data.split"]),
        ("data.source=csv", ["data.source", "parquet"]),
        ("data.path=base.yaml", ["data.path", "cronicas"]),
        ("data.split=test", ["data.split", "heldout"]),
        ("data.revision=main", ["data.revision", "hub"]),
        ("data.seq_len=1000", ["data.seq_len 1000", "max_seq_len 768"]),
        ("data.batch_size=0", ["data.batch_size", "at least 1"]),
        ("mesh.data=0", ["mesh.data", "-1"]),
        ("mesh.fsdp=-1", ["mesh.data and mesh.fsdp"]),
        ("mesh=fsdp", ["mesh must be auto", "'fsdp'"]),
        ("mesh.tensor=null", ["mesh.tensor", "`mesh: auto`"]),
        ("train.microbatch=0", ["train.microbatch", "auto", "got 0"]),
        ("train.microbatch=3", ["train.microbatch 3", "data.batch_size"]),
        ("lora.rank=0", ["lora.rank", "at least 1"]),
        ("lora.target=[q]", ["did you mean lora.targets?"]),
        ("lora.dropout=0.1 train.scan_layers=true", ["lora.dropout and train.scan_layers exclude"]),
        ("from.stp=3", ["from.stp", "did you mean from.step?"]),
        ("from=3", ["from", "section"]),
        ("name=../x", ["name", "'../x'"]),
        ("name=3", ["name", "quotes"]),
        ("eval.top_p=1.5", ["eval.top_p", "at most 1"]),
        ("format=2", ["format 2"]),
        ("train.steps", ["section.field=value"]),
        ("train.=3", ["section.field=value"]),
        ("extends=other.yaml", ["section.field=value"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(base, override, words):
    text = error_of(base, *override.split(" "))
    assert text.startswith("command line: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["mapping"]),
        ("- 1\n", ["mapping"]),
        ("model:\n", ["model.name is missing"]),
        ("train: {steps: 5}\n", ["model is missing"]),
        ("model: cronica-5m\n", ["model", "section"]),
        ("modle: {name: cronica-5m}\n", ["unknown key modle; did you mean model?"]),
        ("model: {name: [cronica-5m}\n", ["line 1", "YAML"]),
        ("model: {name: cronica-5m}\ntrain:\n  steps: 3\n  steps: 4\n", ["line 4", "steps", "twice"]),
        ("model: {name: cronica-5m}\n1: 2\n", ["the key 1"]),
        ("extends: missing.yaml\n", ["missing.yaml", "no such file"]),
        ("extends: bad.yaml\n", ["circle", "bad.yaml -> bad.yaml"]),
        ("extends: [a, b]\n", ["extends"]),
        (
            "model: {name: cronica-5m}\nmodle: 3\ntrain: {step: 3}\n",
            ["train.step;", "train.steps", "(and 1 more)"],
        ),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(content)
    text = error_of("bad.yaml")
    assert text.startswith("bad.yaml")
    for word in words:
        assert word in text


def test_missing_recipe_names_the_nearest(base):
    assert "did you mean base.yaml?" in error_of("bsae.yaml")
    assert "directory" in error_of(".")


def test_defaults_and_what_follows_from_the_model(base):
    recipe = load_recipe(base, ["model.vocab_size=600"])
    assert recipe.name == "base"
    assert recipe.run_dir == base.parent / "runs" / "base"
    assert not recipe.run_dir.exists()
    assert recipe.tokenizer.train
    assert recipe.tokenizer.vocab_size == 600
    assert recipe.data.num_pairs == 16_000
    assert recipe.model.make_config().vocab_size == 600


def test_numbers_as_people_write_them(base):
    recipe = load_recipe(base, ["optimizer.peak_lr=1e-3", "optimizer.eps=1E-9", "optimizer.clip_norm=2"])
    assert (recipe.optimizer.peak_lr, recipe.optimizer.eps, recipe.optimizer.clip_norm) == (1e-3, 1e-9, 2.0)


def test_files_read_all_their_records_and_have_absolute_paths(base):
    (base.parent / "pairs.jsonl").write_text("{}\n")
    data = load_recipe(base, ["data.source=jsonl", "data.path=pairs.jsonl"]).data
    assert data.num_pairs is None
    assert data.path == str(base.parent / "pairs.jsonl")
    hub = load_recipe(base, ["data.source=hub", "data.path=someone/pairs", "data.num_pairs=7"]).data
    assert (hub.path, hub.num_pairs) == ("someone/pairs", 7)


def test_a_tokenizer_path_turns_training_off(base):
    (base.parent / "tokenizer.json").write_text("{}")
    tokenizer = load_recipe(base, ["tokenizer.path=tokenizer.json"]).tokenizer
    assert not tokenizer.train
    assert tokenizer.vocab_size is None


def test_extends_merges_section_by_section_and_overrides_come_last(base):
    base.write_text("model: {name: cronica-5m, num_layers: 2}\ntrain: {steps: 300, seed: 5}\nname: mine\n")
    (base.parent / "variants").mkdir()
    variant = base.parent / "variants" / "deep.yaml"
    variant.write_text("extends: ../base.yaml\nmodel: {num_layers: 3}\ntrain: {steps: 400}\n")
    recipe = load_recipe(variant, ["train.steps=500"])
    assert recipe.model.overrides == {"num_layers": 3}
    assert (recipe.train.steps, recipe.train.seed) == (500, 5)
    assert recipe.name == "deep"  # not its base's, whose run directory it would take
    base.write_text("model: {name: cronica-5m}\ntrain: {stepz: 3}\n")
    assert error_of(variant).startswith(str(variant.parent / ".." / "base.yaml"))


def test_resolved_yaml_has_every_default_and_reads_back(base):
    recipe = load_recipe(base, ["model.num_layers=2", "optimizer.eps=1e-9"])
    path = base.parent / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    content = yaml.safe_load(recipe.to_yaml())
    assert content["format"] == 1
    assert set(content) == {field.alias or name for name, field in Recipe.model_fields.items()}
    assert content["model"]["num_layers"] == 2
    assert content["model"]["embed_dim"] == 256
    assert content["optimizer"]["warmup_steps"] == 100
    again = load_recipe(path)
    assert again.resolved() == recipe.resolved()
    assert resume_diff(recipe, again) == []


def test_a_mesh_left_to_the_run_stays_so_in_its_recipe(base):
    recipe = load_recipe(base, ["mesh=auto"])
    assert recipe.mesh.auto
    assert recipe.resolved()["mesh"] == "auto"
    (base.parent / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe("recipe.yaml").mesh == recipe.mesh
    assert not load_recipe(base).mesh.auto


def test_a_finished_run_is_read_without_its_data(base):
    pairs = base.parent / "pairs.jsonl"
    pairs.write_text("{}\n")
    recipe = load_recipe(base, ["data.source=jsonl", "data.path=pairs.jsonl"])
    pairs.unlink()
    (base.parent / "recipe.yaml").write_text(recipe.to_yaml())
    assert "pairs.jsonl" in error_of("recipe.yaml")
    assert load_recipe("recipe.yaml", check_files=False).resolved() == recipe.resolved()


@pytest.mark.parametrize(
    ("section", "field", "value", "refused"),
    [
        ("model", "num_layers", 3, True),
        ("tokenizer", "vocab_size", 500, True),
        ("data", "batch_size", 4, True),
        ("data", "seq_len", 64, True),
        ("data", "seed", 1, True),
        ("data", "num_pairs", 5, True),
        ("data", "trim_to", 64, True),
        ("train", "seed", 1, True),
        ("train", "param_dtype", "bfloat16", True),
        ("train", "steps", 9000, False),
        ("train", "compute_dtype", "bfloat16", False),
        ("optimizer", "peak_lr", 1e-3, False),
        ("optimizer", "warmup_steps", 5, False),
        ("mesh", "fsdp", 2, False),
        ("train", "microbatch", "auto", False),
        ("train", "on_nonfinite", "skip", False),
        ("checkpoint", "keep", 9, False),
        ("checkpoint", "keep_best", True, False),
        ("checkpoint", "keep_every", 5000, False),
        ("logging", "runs_dir", "gs://bucket/runs", False),
        ("logging", "every", 1, False),
        ("eval", "every", 50, False),
        ("eval", "sample_every", 50, False),
        ("optimizer", "lr_scales", {"embed/*": 2.0}, False),
        ("optimizer", "no_decay", ["*/scale"], False),
        ("logging", "wandb", True, False),
    ],
)
def test_what_may_change_on_resume(section, field, value, refused):
    old = make_recipe({"name": "x", "model": {"name": "cronica-5m"}})
    content = {"name": "x", "model": {"name": "cronica-5m"}}
    content.setdefault(section, {})[field] = value
    lines = resume_diff(old, make_recipe(content))
    if refused:
        assert len(lines) == 1
        assert f"{section}.{field}: " in lines[0]
        assert f"{value} in the recipe" in lines[0]
    else:
        assert lines == []


def test_data_may_move(tmp_path):
    recipes = []
    for name in ("here.jsonl", "there.jsonl"):
        (tmp_path / name).write_text("{}\n")
        data = {"source": "jsonl", "path": str(tmp_path / name)}
        recipes.append(make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "data": data}))
    assert resume_diff(*recipes) == []


# Texts and chats

TEXT = "data.kind=text"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.source=stories data.path=base.yaml", ["data.path", "stories"]),
        ("data.source=stories data.split=test", ["data.split", "heldout"]),
        ("data.source=stories data.num_pairs=3", ["data.num_pairs", "data.num_documents"]),
        ("data.source=stories data.revision=x", ["data.revision", "hub"]),
        ("data.source=stories data.separator=x", ["data.separator", "source text"]),
        ("data.source=stories data.text_field=x", ["data.text_field"]),
        ("data.source=stories data.format=dolly", ["data.format", "chat"]),
        ("data.source=stories data.trim_to=8", ["data.trim_to", "document"]),
        ("data.source=stories data.packing=bestfit", ["data.packing", "best_fit"]),
        ("data.source=stories data.kind=chat", ["data.source stories", "conversations"]),
        ("data.source=stories data.kind=cronicas", ["data.source stories", "data.kind"]),
        ("data.source=stories data.chat_template=kodalite", ["data.chat_template", "chat"]),
        ("data.kind=chat data.source=jsonl data.path=base.yaml data.packing=concat", ["data.packing concat"]),
        (f"{TEXT} data.source=cronicas", ["data.source cronicas", "stories"]),
        (f"{TEXT} data.source=hub", ["data.path is missing", "hub"]),
        (f"{TEXT} data.source=parquet data.path=no.parquet", ["data.path", "no.parquet"]),
        (f"{TEXT} data.source=jsonl data.path=base.yaml data.config=en", ["data.config", "hub"]),
        ("data.sources=[]", ["data.sources", "at least one"]),
        ("data.sources=[{source: stories}] data.source=stories", ["data.source", "data.sources", "exclude"]),
        ("data.sources=[{source: stories, weight: 1}, {source: stories}]", ["data.sources", "weight"]),
        ("data.sources=[{source: stories, weight: 1}, {source: stories, epochs: 2}]", ["data.sources", "epochs"]),
        ("data.sources=[{source: stories, wieght: 1}]", ["data.sources.0.wieght", "data.sources.0.weight"]),
        ("data.sources=[{source: jsonl}]", ["data.sources.0.path is missing"]),
        ("data.sources=[{source: jsonl, path: no.jsonl}]", ["data.sources.0.path", "no.jsonl"]),
        ("data.sources=[{source: stories, weight: -1}]", ["data.sources.0.weight", "above 0"]),
        ("data.sources=stories", ["data.sources must be a list"]),
        ("data.source=stories data.validation={source: stories, epochs: 2}", ["data.validation", "epochs"]),
        ("data.source=stories data.validation={source: stories, path: x}", ["data.validation.path", "stories"]),
        ("data.document_mask=true", ["data.document_mask", "crónicas"]),
        ("data.streaming=false data.source=hub data.path=a/b", ["data.streaming", "crónicas"]),
        ("tokenizer.kind=characters", ["tokenizer.kind", "crónica"]),
        ("tokenizer.kind=characters tokenizer.vocab_size=50", ["tokenizer.vocab_size", "characters"]),
        ("tokenizer.kind=characters tokenizer.strip_accents=true", ["tokenizer.strip_accents", "characters"]),
        ("tokenizer.name=gpt2 tokenizer.path=base.yaml", ["tokenizer.path", "tokenizer.name", "exclude"]),
        ("tokenizer.name=gpt2 tokenizer.train=true", ["tokenizer.name gpt2", "tokenizer.train"]),
        ("tokenizer.name=gpt2 tokenizer.vocab_size=50", ["tokenizer.vocab_size", "tokenizer.name"]),
        ("tokenizer.name=gpt2 tokenizer.strip_accents=true", ["tokenizer.strip_accents", "trained"]),
        ("eval.prompt=Hello", ["eval.prompt", "crónica"]),
    ],
)
def test_bad_data_sections_are_one_line_that_names_the_field(base, override, words):
    # Values in braces hold spaces of their own.
    parts = re.split(r" (?=[a-z]+\.[a-z_]+=)", override)
    text = error_of(base, *parts)
    assert text.startswith("command line: ")
    for word in words:
        assert word in text


def test_published_data_sets_need_only_their_names(base):
    known = {
        "allenai/c4": ("text", "en", None),
        "HuggingFaceFW/fineweb": ("text", "sample-10BT", None),
        "roneneldan/TinyStories": ("text", None, None),
        "DKYoon/SlimPajama-6B": ("text", None, None),
        "emozilla/pg19": ("text", None, None),
        "Salesforce/wikitext": ("text", "wikitext-103-raw-v1", None),
        "databricks/databricks-dolly-15k": ("chat", None, "dolly"),
        "OpenAssistant/oasst1": ("chat", None, "oasst1"),
        "DanielRegaladoCardoso/cronicas-d2t": ("cronicas", None, None),
    }
    for name, expected in known.items():
        data = load_recipe(base, [f"data.source={name}"]).data
        assert (data.source, data.path) == ("hub", name)
        assert (data.kind, data.config, data.format) == expected
        assert load_recipe(base, ["data.source=hub", f"data.path={name}"]).data == data
    assert load_recipe(base, ["data.source=allenai/c4", "data.config=de"]).data.config == "de"


def test_sources_of_texts_are_one_list_however_they_are_spelt(base):
    one = load_recipe(base, ["data.source=stories", "data.num_documents=7"]).data
    assert (one.kind, one.packing) == ("text", "concat")
    assert [(s.source, s.num_documents) for s in one.document_sources] == [("stories", 7)]
    listed = load_recipe(base, ["data.sources=[{source: stories, num_documents: 7}]"]).data
    assert [s.model_dump() for s in listed.document_sources] == [s.model_dump() for s in one.document_sources]
    assert load_recipe(base, ["data.kind=text"]).data.source == "stories"


def test_resolved_text_recipes_read_back(base):
    (base.parent / "a.jsonl").write_text("{}\n")
    for overrides in (
        ["data.source=stories", "tokenizer.kind=characters", "optimizer.schedule=constant"],
        ["data.sources=[{source: jsonl, path: a.jsonl, weight: 2}, {source: a/b, weight: 1}]"],
        ["data.kind=chat", "data.source=jsonl", "data.path=a.jsonl", "tokenizer.name=gpt2", "model.vocab_size=60000"],
        ["data.source=stories", "data.validation={source: jsonl, path: a.jsonl}", "optimizer.clip_norm=null"],
    ):
        recipe = load_recipe(base, overrides)
        (base.parent / "resolved.yaml").write_text(recipe.to_yaml())
        again = load_recipe(base.parent / "resolved.yaml", ["name=base"])
        assert again.resolved() == recipe.resolved()
        assert resume_diff(recipe, again) == []
    assert recipe.data.validation.path == str(base.parent / "a.jsonl")


def test_files_of_texts_may_move_and_sources_may_not_change(tmp_path):
    def made(path, weight):
        (tmp_path / path).write_text("{}\n")
        sources = [{"source": "jsonl", "path": str(tmp_path / path), "weight": weight}, {"source": "a/b", "weight": 1}]
        return make_recipe({"name": "x", "model": {"name": "cronica-5m"}, "data": {"sources": sources}})

    assert resume_diff(made("here.jsonl", 2.0), made("there.jsonl", 2.0)) == []
    assert len(resume_diff(made("here.jsonl", 2.0), made("here.jsonl", 3.0))) == 1
    free = {"prepared_dir": "elsewhere", "workers": 3, "max_bad_records": 7}
    base = {"name": "x", "model": {"name": "cronica-5m"}}
    old, new = (make_recipe({**base, "data": {"source": "stories", **more}}) for more in ({}, free))
    assert resume_diff(old, new) == []


def test_published_text_runs_are_as_published():
    found = {path.stem: load_recipe(path) for path in RECIPES}
    numbers = {
        name: (recipe.train.steps, recipe.data.batch_size, recipe.data.seq_len, recipe.optimizer.peak_lr)
        for name, recipe in found.items()
    }
    assert numbers["tiny_lm"] == (5000, 16, 32, 1e-3)
    assert numbers["kodalite_1b"] == (100_000, 16, 1024, 3e-4)
    assert numbers["gelu_d12"] == (19_920, 256, 1024, 0.01)
    assert numbers["bwetaf_97m"] == (6466, 256, 2048, 1.5e-3)
    tiny, kodalite, bwetaf = (found[name] for name in ("tiny_lm", "kodalite_1b", "bwetaf_97m"))
    assert (tiny.optimizer.schedule, tiny.optimizer.weight_decay, tiny.optimizer.clip_norm) == ("constant", 0.0, None)
    assert (tiny.data.packing, tiny.characters) == ("windows", True)
    assert (kodalite.optimizer.warmup_steps, kodalite.optimizer.final_lr, kodalite.data.seed) == (5000, 3e-5, 42)
    optimizer = bwetaf.optimizer
    assert (optimizer.warmup_init_lr, optimizer.final_lr, optimizer.warmup_steps) == (6e-4, 1.8e-4, 129)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.95, 0.98, 1.5e-8)
    assert (optimizer.moments_dtype, optimizer.clip_norm) == ("bfloat16", None)
    assert bwetaf.data.document_mask and not any(found[n].data.document_mask for n in ("kodalite_1b", "gelu_d12"))
    assert not bwetaf.model.make_config().restart_positions


def test_aliases_that_unfold_to_millions_are_refused(tmp_path):
    lines = ["  k0: &k0 [xxxxxxxxx,x,x,x,x,x,x,x,x]"]
    lines += [f"  k{i}: &k{i} [{','.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("name: x\ndescription:\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"bomb\.yaml, line \d+: not valid YAML: aliases unfold to more than 100,000"):
        load_recipe(tmp_path / "bomb.yaml")
    (tmp_path / "circle.yaml").write_text("name: x\ndata: &a {b: *a}\n")
    with pytest.raises(UserError, match="an alias holds itself"):
        load_recipe(tmp_path / "circle.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(tmp_path / "bomb.yaml", ["data.path=&a [*a]"])
    (tmp_path / "honest.yaml").write_text(
        "name: x\nmodel: &m {name: kodalite-1.3b}\ntrain: {steps: &s 700}\nlogging: {every: *s}\n"
    )
    assert load_recipe(tmp_path / "honest.yaml").logging.every == 700
