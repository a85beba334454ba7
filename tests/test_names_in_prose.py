"""Names of modules, functions and files in prose: documents, comments of recipes, docstrings and comments of code."""

import ast
import dataclasses
import importlib
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"(?<![\w./-])zoo(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(r"(?<![\w./~$:-])(?:zoo|recipes|docs|tests|benchmarks|examples)/(?:[\w.-]+/?)*")
FILE = re.compile(r"(?<![\w./*-])\w+\.py\b")
OTHER_FILES = (".json", ".tar")  # zoo.json, zoo.tar
OTHER_PROJECTS = {"setup.py", "train.py"}


def prose_of_code(text: str) -> str:
    """Docstrings and comments."""
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def prose_of_notebook(text: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def comments(text: str) -> str:
    return "\n".join(re.findall(r"#.*", text))


READERS = {".md": str, ".yaml": comments, ".py": prose_of_code, ".ipynb": prose_of_notebook, ".toml": comments}
SOURCES = [ROOT / "README.md", ROOT / "pyproject.toml"]
for folder in ("docs", "recipes", "zoo", "benchmarks", "examples"):
    SOURCES += sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in READERS)
FILES = {path.name for folder in ("zoo", "docs", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute or a field of what stands before it."""
    parts = name.split(".")
    value, rest = importlib.import_module(parts[0]), parts[1:]
    for index, part in enumerate(rest, 1):
        if not hasattr(value, part):
            try:
                value = importlib.import_module(".".join(parts[: index + 1]))
                continue
            except ModuleNotFoundError as error:
                if not error.name.startswith("zoo"):  # the module is there, and needs a package that is not installed
                    return True
                fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else ()
                return part in fields or part in getattr(value, "model_fields", ())
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_paths_in_prose_are_those_of_the_tree(path):
    text = READERS[path.suffix](path.read_text("utf-8"))
    names = {name for name in NAME.findall(text) if not name.endswith(OTHER_FILES)}
    assert not [name for name in sorted(names) if not resolves(name)]
    paths = {name.rstrip(".-") for name in PATH.findall(text) if not re.search(r"/[A-Z]+\.", name)}  # not NAME.png
    assert not [name for name in sorted(paths) if not (ROOT / name).exists()]
    assert FILES.issuperset(set(FILE.findall(text)) - OTHER_PROJECTS)


def test_a_name_that_is_gone_is_noticed():
    assert resolves("zoo.recipe.schema.Recipe.data") and resolves("zoo.load") and resolves("zoo.layers.lora")
    assert not resolves("zoo.recipe.schema.Recipes") and not resolves("zoo.beginning")
