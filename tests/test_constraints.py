"""constraints.txt holds a tested version of every package that the tests need; .ci/run repeats all parity tests."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from update_constraints import constraints, versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pins(python):
    """The version that the file gives each package on a Python version."""
    lines = [Requirement(line) for line in LINES]
    held = [line for line in lines if not line.marker or line.marker.evaluate({"python_version": python})]
    assert len({line.name for line in held}) == len(held), "a package has two versions"
    return {line.name: str(line.specifier).removeprefix("==") for line in held}


def test_each_dependency_has_a_version_that_the_project_allows():
    needed = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    for python in ("3.11", "3.12"):
        for requirement in needed:
            if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
                assert requirement.specifier.contains(pins(python)[canonicalize_name(requirement.name)]), requirement


def test_the_file_holds_pinned_versions_alone():
    for line in LINES:
        assert re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (==|>=) "3\.\d+")?', line), line
    names = [line.split("==")[0] for line in LINES]
    assert names == sorted(names)


def test_pythons_with_other_versions_get_lines_of_their_own():
    resolved = {"3.9": {"a": "1", "b": "1"}, "3.10": {"a": "1", "b": "2", "c": "3"}}
    assert constraints(resolved) == [
        "a==1",
        'b==1; python_version == "3.9"',
        'b==2; python_version >= "3.10"',
        'c==3; python_version >= "3.10"',
    ]


def test_versions_are_read_from_the_report_of_pip():
    packages = [("zoo-nnx", "0.1.0", True), ("Ruamel_Yaml.x", "1.2", False), ("torch", "2.13.0+cpu", False)]
    report = {"install": [{"metadata": {"name": n, "version": v}, "requested": r} for n, v, r in packages]}
    assert versions(report) == {"ruamel-yaml-x": "1.2", "torch": "2.13.0"}


def test_all_parity_tests_are_repeated_with_the_newest_programs():
    listed = re.search(r'^PARITY="(.*?)"', (ROOT / ".ci" / "run").read_text(), flags=re.M | re.S)[1].split()
    program = re.compile(r"(?:^\s*(?:import|from)\s+|importorskip\(\")(?:transformers|peft|lm_eval|gguf)\b", flags=re.M)
    calling = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if program.search(path.read_text())]
    assert listed == [str(path.relative_to(ROOT)) for path in calling if path != Path(__file__)]
