"""A task is a folder and its lines in the registry: zoo works without the one of crónicas."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys
import zoo
from zoo.cli import main, train

assert zoo.__file__.startswith(sys.argv[1]), zoo.__file__
assert main.main(["list"]) == 0
lm = zoo.create("cronica-5m", num_layers=1)
assert len(lm.generate([1, 2, 3], max_new_tokens=2).tokens) == 2
assert train.main([sys.argv[2], "train.steps=2"]) == 0
print(zoo.load("runs/tiny_lm_tiny").generate("One day", max_new_tokens=3, seed=1).text)
assert main.main(["cronica", "Rayo 1-0 Betis; 23 Pérez"]) == 2
assert train.main([sys.argv[3]]) == 2
"""


def without(path: Path, *parts: str) -> None:
    """Deletes the lines of a file that hold one of the parts; every part is found."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for part in parts:
        assert any(part in line for line in lines), part
    path.write_text("".join(line for line in lines if not any(part in line for part in parts)), encoding="utf-8")


def test_zoo_works_without_the_task_of_cronicas(tmp_path):
    package = tmp_path / "zoo"
    shutil.copytree(ROOT / "zoo", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(package / "tasks" / "cronica")
    without(package / "registry.py", '"zoo.tasks.cronica.')
    without(package / "models" / "specs.py", 'task="cronicas"')
    recipes = [str(ROOT / "recipes" / "tiny" / f"{name}.yaml") for name in ("tiny_lm", "quickstart")]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *recipes],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cronica-5m" in result.stdout and "finished: " in result.stdout
    # The command says in a line what is missing, and so does a run on such data.
    errors = [line for line in result.stderr.splitlines() if "crónicas" in line or "cronicas" in line]
    assert len(errors) == 2 and "no task" in errors[0] and "no task" in errors[1], result.stderr
    assert "Traceback" not in result.stderr


def test_the_corpora_are_importable_from_data():
    from zoo.data import cronicas, stories
    from zoo.tasks.cronica import corpus

    assert cronicas is corpus
    assert cronicas.generate(1, split="heldout")[0]["match_id"] == "heldout-0-000000"
    assert stories.__name__ == "zoo.data.stories"
