"""A published format is one module and one line in the table, which reading, writing, hub and command ask."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
import zoo.convert
from zoo.convert import FORMATS, find_format
from zoo.errors import UserError
from zoo.weights import hub

MODULE = '''"""Parameters by zoo's own paths, with the config beside them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from zoo.convert import files
from zoo.convert.base import Published, Rule
from zoo.convert.format import Format, HubFiles
from zoo.models import build


def detect(path):
    """Returns whether `path` holds a sample."""
    return (Path(path) / "sample.json").is_file()


def open_published(path):
    """Opens a sample."""
    config, tensors = files.read_json(Path(path) / "sample.json"), files.open_safetensors(Path(path) / "sample.bin")
    published = Published("a sample", Path(path), "tiny-lm", config, tensors, {})
    return replace(published, rules={name: Rule(name) for name in published.shapes})


def write(model, directory, *, bits=None):
    """Writes a sample."""
    files.write_json(directory / "sample.json", model.config.to_dict())
    flat = build.flatten(model.params)
    files.save_safetensors(directory / "sample.bin", {name: np.asarray(leaf) for name, leaf in flat.items()})


FORMAT = Format(
    name="sample",
    detect=detect,
    open=open_published,
    write=write,
    aliases=("specimen",),
    model_name="tiny-lm",
    options=("bits",),
    hub_files=(HubFiles(90, lambda names: [name for name in names if name.startswith("sample.")]),),
    opened_by="a program of samples",
)
'''
USE = """
import sys
from pathlib import Path

import numpy as np
import zoo
import zoo.convert
from zoo.cli.main import main
from zoo.weights import hub

out = Path(sys.argv[1])
assert str(out) in zoo.__file__
lm = zoo.create("tiny-lm", num_layers=1)
lm.export(out / "written", "specimen", bits=8)
assert zoo.convert.detect_format(out / "written") is zoo.convert.FORMATS["sample"]
again = zoo.load(out / "written")
np.testing.assert_array_equal(lm.logits([1, 2]), again.logits([1, 2]))
assert "These files are for a program of samples." in (out / "written" / "README.md").read_text()
assert hub.needed(["sample.json", "sample.bin", "other"]) == ["sample.bin", "sample.json"]
try:
    lm.export(out / "none", "hf", bits=4)
except zoo.UserError as error:
    assert "option of the format sample and mlx" in str(error)
assert main(["convert", str(out / "written"), str(out / "again"), "--to", "sample", "--verify"]) == 0
assert main(["inspect", str(out / "again")]) == 0
main(["convert", "--help"])
"""


def test_a_new_format_is_a_module_and_a_line(tmp_path):
    shutil.copytree(Path(zoo.__file__).parent, tmp_path / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "zoo" / "convert" / "__init__.py"
    (table.parent / "sample.py").write_text(MODULE)
    text = table.read_text()
    assert text.count('    "tiny",\n') == 1
    table.write_text(text.replace('    "tiny",\n', '    "tiny",\n    "sample",\n'))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for shown in ("written as sample", "would load as tiny-lm", "tiny, sample, gguf"):
        assert shown in result.stdout


def test_the_table_is_whole():
    """Every format is named as its module is, says what opens it, and no two have a name in common."""
    names = [name for known in FORMATS.values() for name in (known.name, *known.aliases)]
    assert len(set(names)) == len(names)
    for name, known in FORMATS.items():
        assert known.name == name and known.opened_by and (known.adapters or known.write is not None)
        for alias in (name, *known.aliases):
            assert find_format(alias) is known
    with pytest.raises(UserError, match=r"format 'gguff' is none; did you mean 'gguf'\? there are portable, "):
        find_format("gguff")


def test_listing_the_formats_imports_none():
    heavy = "[name for name in ('jax', 'numpy') if name in sys.modules]"
    code = f"import sys; from zoo.convert import FORMATS; print(list(FORMATS), {heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"{list(FORMATS)} []\n"


def test_old_names_are_accepted(tmp_path):
    lm = zoo.create(
        "kodalite-1.3b", num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=64, vocab_size=20
    )
    for old, name in (("llama", "hf"), ("kodalite", "koda")):
        lm.export(tmp_path / old, old)
        assert zoo.convert.detect_format(tmp_path / old).name == name


def test_of_several_forms_in_a_repository_one_is_fetched():
    ranks = [form.rank for known in FORMATS.values() for form in known.hub_files]
    assert len(set(ranks)) == len({form for known in FORMATS.values() for form in known.hub_files})
    names = [
        "ckpt_000001.pkl",
        "good_stuff.pkl",
        "understanding_good_stuff.json",
        "model.safetensors",
        "m.gguf",
        "zoo.json",
    ]
    for wanted in (["model.safetensors", "zoo.json"], ["good_stuff.pkl", "understanding_good_stuff.json"]):
        assert hub.needed(names) == wanted
        names = [name for name in names if name not in ("zoo.json",)]
    assert hub.needed(["1/model/a", "x.pt", "m.gguf", "adapter_config.json", "adapter_model.safetensors"]) == ["m.gguf"]
    assert hub.needed(["1/model/a", "x.pt", "step_1.orbax/a"]) == ["1/model/a"]
    assert hub.needed(["x.pt", "step_1.orbax/a"]) == ["step_1.orbax/a"]
