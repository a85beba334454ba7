"""A model's facts stand in its spec alone: a new model is two files, and no other table is keyed by models' names."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_outside_model import MODEL

from zoo import registry

ROOT = Path(__file__).parent.parent
SPEC = """TOY = ModelSpec(
    name="toy",
    summary="one layer of attention",
    cls="zoo.models.toy:Toy",
    config_cls="zoo.models.toy:ToyConfig",
    sampling={"max_new_tokens": 3, "temperature": 0.5},
)

ALL = (TOY, """

USE = """
import zoo
lm = zoo.create("toy", vocab_size=300)
assert lm.spec.num_params == 600 * 32 + 4 * 32 * 32 + 32
assert lm.logits([[1, 2, 3]]).shape == (1, 3, 300)
assert len(lm.generate([1, 2, 3], preset="original").tokens) == 3
lm.save("saved")
assert zoo.load("saved").config == lm.config
print("used", zoo.__file__)
"""


def test_a_new_model_is_a_module_and_a_spec(tmp_path):
    package = tmp_path / "zoo"
    shutil.copytree(ROOT / "zoo", package, ignore=shutil.ignore_patterns("__pycache__"))
    module, separator, _ = MODEL.partition("SPEC = ")
    assert separator
    (package / "models" / "toy.py").write_text(module.replace("from zoo import ModelSpec\n", ""))
    specs = (package / "models" / "specs.py").read_text()
    assert specs.count("ALL = (") == 1
    (package / "models" / "specs.py").write_text(specs.replace("ALL = (", SPEC))

    def run(*command):
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)

    listed = run("-m", "zoo.cli.main", "list")
    assert "one layer of attention" in listed.stdout, listed.stderr
    used = run("-c", USE)
    assert used.stdout.split() == ["used", str(package / "__init__.py")], used.stderr[-2000:]
    described = run("-m", "zoo.cli.main", "describe", "toy")
    assert "attn/q/kernel" in described.stdout and "KV cache of one row" in described.stdout, described.stderr


def named(node):
    """Whether an expression is the name of a registered model."""
    return isinstance(node, ast.Constant) and node.value in registry.BUILT_IN


def asks_for_a_name(node):
    """Whether a node looks something up, or decides, by the name of a registered model."""
    if isinstance(node, ast.Dict):
        return any(map(named, node.keys))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        inner = [element for side in sides for element in getattr(side, "elts", [])]
        return any(map(named, [*sides, *inner]))
    return isinstance(node, ast.MatchValue) and named(node.value)


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ('TABLE = {"gelu-d12": 1}', True),
        ('if spec.name == "gelu-d12": pass', True),
        ('x = name not in ("gelu-d12", "tiny-lm")', True),
        ('match name:\n    case "gelu-d12": pass', True),
        ('MODEL_NAME = "gelu-d12"', False),
        ('"""As gelu-d12 has it."""', False),
    ],
)
def test_what_counts_as_asking_for_a_name(source, asks):
    assert any(map(asks_for_a_name, ast.walk(ast.parse(source)))) == asks


def test_nothing_but_the_specs_knows_a_model_by_its_name():
    places = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in sorted((ROOT / "zoo").rglob("*.py"))
        if path != ROOT / "zoo" / "models" / "specs.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if asks_for_a_name(node)
    ]
    assert places == []
