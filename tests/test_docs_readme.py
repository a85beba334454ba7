"""README.md: the map of the tree, the table of models, links and length."""

import re
import tomllib
from pathlib import Path

import zoo
from zoo import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MAP = dict(
    line.split(maxsplit=1) for line in re.search(r"<!-- map -->\n```\n(.*?)^```", README, re.M | re.S)[1].splitlines()
)


def test_the_map_has_every_package_and_loose_module():
    entries = [path for path in (ROOT / "zoo").iterdir() if path.name not in ("__init__.py", "__pycache__")]
    packages = {f"zoo/{path.name}/" for path in entries if path.is_dir()}
    assert {path for path in MAP if path.startswith("zoo/")} == packages | {
        f"zoo/{path.name}" for path in entries if path.is_file()
    }


def test_every_file_of_the_map_exists():
    for path, text in MAP.items():
        assert (ROOT / path).exists(), path
        for name in re.findall(r"[\w/]+\.py\b|\b\w+/(?=[ ,)]|$)", text):
            assert any((ROOT / path).rglob(name)), f"{path}: {name}"


def test_the_map_is_in_the_order_of_the_imports():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["zoo"])
    floors = {name.strip(): floor for floor, layer in enumerate(layers) for name in layer.split("|")}
    order = [floors[Path(path).stem] for path in MAP if path.startswith("zoo/")]
    assert order == sorted(order)


def test_the_table_of_models_is_that_of_the_registry():
    rows = re.findall(r"^\| \[`([\w.-]+)`\]\(\S+\) \| ([\d,]+) \|", README, flags=re.M)
    assert dict(rows) == {name: f"{zoo.describe(name).num_params:,}" for name in registry.BUILT_IN}


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", README)
    assert len(targets) > 15
    for target in map("".join, targets):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        assert not anchor or f"# {anchor}\n" in (ROOT / path).read_text("utf-8"), target


def test_every_page_is_linked():
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)", README))


def test_two_screens_are_enough():
    assert len(README.splitlines()) <= 130
