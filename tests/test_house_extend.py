"""A new optimizer, and a new format of files, is one new file and one new line."""

import csv
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from zoo.data import stories
from zoo.recipe.training import OPTIMIZERS

ROOT = Path(__file__).parent.parent
SGD = '''
"""Stochastic gradient descent with momentum."""

from zoo.recipe.fields import Fraction
from zoo.recipe.optimizers.base import Optimizer, Transformation


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: Fraction = 0.9

    def build(self, *last: Transformation) -> Transformation:
        """Returns the optimizer."""
        import optax

        return optax.chain(optax.trace(self.momentum), *last)
'''
CSV = '''
"""CSV files with a line of column names."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.data.readers import Record

SUFFIXES = (".csv",)


def read(files: Iterable[Path], columns: Sequence[str], *, whole: bool = False, start: int = 0) -> Iterator[Record]:
    """Yields the rows of the files from number `start` on."""
    for number, row in enumerate(itertools.chain(*(csv.DictReader(path.open(newline="")) for path in files))):
        if number >= start:
            yield Record(f"row {number + 1}", row)
'''
RECIPE = {
    "model": {"name": "cronica-5m", "num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
    | {"max_seq_len": 64},
    "tokenizer": {"kind": "characters"},
    "data": {"kind": "text", "packing": "windows", "seq_len": 32, "batch_size": 4, "workers": 1, "max_tokens": 4000},
    "train": {"steps": 2},
    "logging": {"every": 1},
    "eval": {"num_pairs": 2, "final_sample": False},
}


class House:
    """A copy of the package in a directory, and what commands and programs in it say."""

    def __init__(self, directory: Path):
        self.directory = directory
        shutil.copytree(ROOT / "zoo", directory / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
        self._env = os.environ | {"PYTHONPATH": str(directory), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def add(self, file: str, content: str, after: str, line: str) -> None:
        """Writes a new file, and a new line behind the line `after` of the registry."""
        (self.directory / file).write_text(content.lstrip())
        registry = self.directory / "zoo" / "registry.py"
        assert registry.read_text().count(after) == 1
        registry.write_text(registry.read_text().replace(after, f"{after}{line}"))

    def changes(self) -> list[str]:
        """The files that are not those of the repository, and how many lines more those have that changed."""
        files = {path.relative_to(self.directory) for path in (self.directory / "zoo").rglob("*.py")}
        assert {path.relative_to(ROOT) for path in (ROOT / "zoo").rglob("*.py")} <= files
        changed = []
        for file in sorted(files):
            old, new = ROOT / file, self.directory / file
            if not old.exists():
                changed.append(f"new {file}")
            elif not filecmp.cmp(old, new, shallow=False):
                before, after = old.read_text().splitlines(), new.read_text().splitlines()
                assert [line for line in after if line in before] == before
                changed.append(f"{len(after) - len(before)} line in {file}")
        return changed

    def train(self, *arguments: str) -> subprocess.CompletedProcess:
        code = "import sys; from zoo.cli.train import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=self.directory, env=self._env, capture_output=True, text=True)

    def write(self, name: str, **sections: dict) -> str:
        content = {**RECIPE, **{key: RECIPE.get(key, {}) | fields for key, fields in sections.items()}}
        (self.directory / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return f"{name}.yaml"


@pytest.fixture
def house(tmp_path) -> House:
    return House(tmp_path)


def test_a_new_optimizer_is_one_file_and_one_line(house):
    house.add(
        "zoo/recipe/optimizers/sgd.py",
        SGD,
        after='    "muon": "zoo.recipe.optimizers.muon:Muon",\n',
        line='    "sgd": "zoo.recipe.optimizers.sgd:Sgd",\n',
    )
    assert house.changes() == ["new zoo/recipe/optimizers/sgd.py", "1 line in zoo/registry.py"]

    fields = {"schedule": "constant", "warmup_steps": 0, "peak_lr": 0.1}
    recipe = house.write("sgd", optimizer=fields | {"name": "sgd", "momentum": 0.8})
    first = house.train(recipe)
    assert first.returncode == 0, first.stdout + first.stderr
    kept = yaml.safe_load((house.directory / "runs" / "sgd" / "recipe.yaml").read_text())["optimizer"]
    assert (kept["name"], kept["momentum"], list(kept)[-1]) == ("sgd", 0.8, "momentum")
    resumed = house.train(recipe, "train.steps=4")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "step 4/4" in resumed.stdout and "step 2/4" not in resumed.stdout

    for field, name, owners in (("momentum", "adamw", "sgd"), ("b1", "sgd", "adamw or muon")):
        refused = house.train(house.write("other", optimizer=fields | {"name": name, field: 0.5}))
        assert refused.returncode == 2
        assert f"optimizer.{field} is for optimizer.name {owners}; leave it out" in refused.stderr


def test_a_new_format_of_files_is_one_file_and_one_line(house):
    house.add(
        "zoo/data/formats/csv_files.py",
        CSV,
        after='    "parquet": "zoo.data.formats.parquet",\n',
        line='    "csv": "zoo.data.formats.csv_files",\n',
    )
    assert house.changes() == ["new zoo/data/formats/csv_files.py", "1 line in zoo/registry.py"]

    with (house.directory / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["title", "body"], *(["a", text] for text in stories.generate(8))])
    recipe = house.write(
        "table", data={"source": "csv", "path": "texts.csv", "text_field": "body"}, optimizer={"warmup_steps": 0}
    )
    run = house.train(recipe)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 documents" in run.stdout
    refused = house.train(recipe, "data.source=cvs")
    assert refused.returncode == 2 and "did you mean csv?" in refused.stderr
    refused = house.train(recipe, "data.config=en")
    assert refused.returncode == 2 and "data.config is for source hub; leave it out" in refused.stderr


def test_a_field_has_one_default_whichever_optimizer_has_it():
    defaults = {}
    for optimizer in OPTIMIZERS.values():
        for name, field in optimizer.model_fields.items():
            assert defaults.setdefault(name, field.get_default(call_default_factory=True)) == field.get_default(
                call_default_factory=True
            )
