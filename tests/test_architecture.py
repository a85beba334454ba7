"""The house rules that a program can check: floors, lazy imports, typed public functions."""

import ast
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(*command):
    # The repository root is not put on the path: the installed package is what users import.
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})


def test_imports_only_go_down():
    linter = Path(sys.executable).with_name("lint-imports")
    result = _run(str(linter), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    result = _run(sys.executable, "-m", "ruff", "check", ".")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "statement", ["import zoo", "import zoo; zoo.list_models()", "import zoo.cli.main", "import zoo.recipe"]
)
def test_light_imports_leave_jax_alone(statement):
    heavy = ("jax", "flax", "orbax", "grain", "datasets", "matplotlib")
    code = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    result = _run(sys.executable, "-c", code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_few_modules_stand_outside_of_packages():
    loose = sorted(path.name for path in ROOT.glob("zoo/*.py"))
    assert len(loose) <= 8, loose


@pytest.mark.parametrize(
    "path", ["zoo.recipe.make_recipe", "zoo.checkpoints.Checkpoints", "zoo.data.cronicas.generate", "zoo.run.run"]
)
def test_paths_that_notebooks_use_stay(path):
    package, *names = path.removeprefix("zoo.").split(".")
    assert callable(functools.reduce(getattr, names, importlib.import_module(f"zoo.{package}")))


def _public_functions(tree):
    """Module functions, and methods of module classes; calls count as public, other dunder methods do not."""
    for node in tree.body:
        for function in node.body if isinstance(node, ast.ClassDef) else [node]:
            name = getattr(function, "name", "_")
            if isinstance(function, ast.FunctionDef) and (not name.startswith("_") or name == "__call__"):
                yield function


SHAPED = [*ROOT.glob("zoo/layers/*.py"), *ROOT.glob("zoo/models/*.py")]


@pytest.mark.parametrize("path", sorted(SHAPED), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_of_layers_and_models_have_shapes(path):
    """Every argument is annotated, and an array with its shape; of keys alone the type is enough."""
    for node in _public_functions(ast.parse(path.read_text())):
        where = f"{path}:{node.lineno} {node.name}"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            if argument.arg in ("self", "cls"):
                continue
            assert argument.annotation is not None, f"{where}: {argument.arg} has no annotation"
            text = ast.unparse(argument.annotation)
            bare = text in ("Array", "jax.Array", "Array | None", "jax.Array | None", "np.ndarray")
            assert not bare or argument.arg in ("key", "keys"), f"{where}: {argument.arg} has no shape"
        assert node.returns is not None, f"{where}: the result has no annotation"
        assert ast.unparse(node.returns) not in ("Array", "jax.Array"), f"{where}: the result has no shape"
