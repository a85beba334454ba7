"""The pages about the models: numbers, links, commands and calls are those of the code; figures are drawn whole."""

import ast
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

import zoo
from zoo import registry
from zoo.cli import main
from zoo.language_model import LanguageModel
from zoo.models.summary import summarize
from zoo.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "docs" / "models"
INDEX = DIRECTORY / "README.md"
PAGES = ("cronica-5m", "bwetaf-97m", "gelu-d12", "kodalite-1.3b", "tiny-lm")


def page(name: str) -> str:
    return (DIRECTORY / f"{name}.md").read_text("utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def index_column(name: str) -> dict[str, str]:
    rows = [cells(line) for line in INDEX.read_text("utf-8").splitlines() if line.startswith("|")]
    column = next(i for i, cell in enumerate(rows[0]) if cell == f"[{name}]({name}.md)")
    return {row[0]: row[column] for row in rows[2:]}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_model_has_its_page():
    for name in registry.BUILT_IN:
        assert name in INDEX.read_text("utf-8")
    assert {path.stem for path in DIRECTORY.glob("*.md")} == {"README", *PAGES}
    assert set(registry.BUILT_IN) - set(PAGES) == {"nanochat-d12"}  # which is on gelu-d12's page
    assert "286,262,162" in page("gelu-d12")


@pytest.mark.parametrize("name", PAGES)
def test_index_says_what_the_code_says(name):
    spec, column = zoo.describe(name), index_column(name)
    config = spec.make_config()
    summary = summarize(spec.model_class(), config)
    cache = summary.cache["bfloat16"]
    kv_heads = getattr(config, "num_kv_heads", config.num_heads)
    assert column["parameters"] == f"{summary.parameters:,}"
    assert column["layers x width"] == f"{config.num_layers} x {config.embed_dim}"
    assert column["heads x size, kv heads"] == f"{config.num_heads} x {config.head_dim}, {kv_heads}"
    assert column["vocabulary"] == f"{config.vocab_size:,}"
    assert column["context"] == f"{config.max_seq_len:,}"
    assert column["training MFLOP a token"] == f"{summary.flops_training / 1e6:,.1f}"
    later = "" if cache.last_token == cache.first_token else f", then {cache.last_token:,}"
    assert column["cache bytes a token, bfloat16"] == f"{cache.first_token:,}{later}"
    assert column["tokens a parameter, of 20"] == spec.tokens_per_param_text
    assert column["licence"] == spec.licence
    assert (ROOT / column["recipe"].strip("`")).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_component_tables_add_up(name):
    lines = page(name).splitlines()
    start = lines.index("| component | shape | parameters |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append((cells(line)[0], int(cells(line)[2].replace(",", ""))))
    assert rows[-1] == ("total", zoo.describe(name).num_params)
    assert sum(count for _, count in rows[:-1]) == rows[-1][1]


@pytest.mark.parametrize("name", PAGES)
def test_pages_state_the_registry_facts(name):
    text, spec = page(name), zoo.describe(name)
    summary = summarize(spec.model_class(), spec.make_config())
    assert f"{summary.flops_training / 1e6:,.{2 if summary.flops_training < 1e7 else 0}f}" in text or (
        f"{summary.flops_training / 1e6:,.1f}" in text
    )
    assert f"{summary.cache['bfloat16'].first_token:,} bytes a" in text
    assert spec.source.split()[0] in text
    assert spec.licence in text
    rows = [row.lower() for row in re.split(r"\n\n|\n(?=\|)", text) if "not stated" in row]
    for label in ("licence", "hardware", "validation loss", "final loss"):
        if spec.published()[label] == registry.NOT_STATED:
            assert any(label.split()[-1] in row for row in rows), f"{name}.md: {label}"
    if spec.tokens_per_param is not None and name != "cronica-5m":
        share = re.search(r"\((.*)\)", spec.tokens_per_param_text)[1]
        assert share in text


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target
    for target in re.findall(r"`((?:zoo|recipes|docs|tests)/[\w./]+\.\w+)`", path.read_text("utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in "".join(blocks(page(name), "bash")).splitlines():
        program, *words = shlex.split(line)
        if program == "zoo-train":
            recipe, *overrides = words
            assert load_recipe(recipe, overrides, check_files=False).model.name == name
        else:
            assert program == "zoo"
            assert main.main([*words, "--help"]) == 0, capsys.readouterr().err  # unknown options are refused


@pytest.mark.parametrize("name", PAGES)
def test_calls_fit_their_functions(name):
    for block in blocks(page(name), "python"):
        for call in [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]:
            if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
                continue
            owner, function = call.func.value.id, call.func.attr
            target = getattr(zoo, function) if owner == "zoo" else getattr(LanguageModel, function)
            given = [
                ast.literal_eval(argument) if isinstance(argument, ast.Constant) else None for argument in call.args
            ]
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            inspect.signature(target).bind(*([] if owner == "zoo" else [None]), *given, **named)
            if owner == "zoo":
                fields = {key: value for key, value in named.items() if key not in inspect.signature(target).parameters}
                zoo.describe(given[0]).make_config(**fields)


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_drawn_with_the_sizes_of_the_config(name):
    drawing = load_script("draw_blocks").draw(name)
    drawing.figure.canvas.draw()
    renderer = drawing.figure.canvas.get_renderer()
    texts = []
    for patch, text in drawing.boxes:
        box, inside = patch.get_window_extent(renderer), text.get_window_extent(renderer)
        assert not text.get_text() or (box.x0 <= inside.x0 and inside.x1 <= box.x1), text.get_text()
        assert inside.height <= box.height, text.get_text()
        texts.append(text.get_text())
    config = zoo.describe(name).make_config()
    assert f"token table\n{config.vocab_size:,} x {config.embed_dim:,}" in texts
    assert f"q\n{config.embed_dim:,} → {config.num_heads} x {config.head_dim}" in texts
    assert (DIRECTORY / "figures" / f"{name}.png").is_file()
    assert f"(figures/{name}.png)" in page(name)


def test_figures_are_written(tmp_path):
    load_script("draw_rope_tables").main(tmp_path)
    script = load_script("draw_blocks")
    script.FIGURES = {"tiny-lm": script.FIGURES["tiny-lm"]}
    script.main(tmp_path / "new")
    for path in (tmp_path / "rope-tables.png", tmp_path / "new" / "tiny-lm.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_error_of_bfloat16_tables_grows_as_the_pages_say():
    """Widths and bases of the two models; the pages give the figures at single positions."""
    table_error = load_script("draw_rope_tables").table_error
    for width in (768, 64):
        where, error = table_error(1024, width, 10000.0)
        assert where[0] == 8.5 and where[15] == 248.5
        assert error[15] < 0.1  # up to position 256
        assert error[16] > 0.14  # from 257 on
