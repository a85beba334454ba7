"""Writes constraints.txt: the newest versions that pip resolves for `.[dev]`, on each Python that is given.

    python tests/update_constraints.py python3.11 python3.12

Nothing is installed: each interpreter resolves in an empty environment of its own. Run the tests afterwards.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """\
# The versions that the tests were last run with, for the test command of README.md (pip install -c constraints.txt).
# Written by `python tests/update_constraints.py python3.11 python3.12`; do not edit by hand.
"""


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Returns the interpreter's version (such as "3.11") and the version of each package, by its normalised name."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([python, "-m", "venv", directory], check=True)
        report = Path(directory) / "report.json"
        pip = [str(Path(directory) / "bin" / "python"), "-m", "pip", "install", "--quiet", "--ignore-installed"]
        subprocess.run([*pip, "--dry-run", "--report", str(report), ".[dev]"], cwd=ROOT, check=True)
        resolved = json.loads(report.read_text())
    return resolved["environment"]["python_version"], versions(resolved)


def versions(report: dict) -> dict[str, str]:
    """Returns the versions in a report of pip, without local parts such as `+cpu`, by normalised name.

    zoo itself is left out, and setuptools, which a new environment brings along.
    """
    packages = [item["metadata"] for item in report["install"] if not item["requested"]]
    pins = {re.sub(r"[-_.]+", "-", item["name"]).lower(): item["version"].split("+")[0] for item in packages}
    pins.pop("setuptools", None)
    return pins


def constraints(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Returns the lines of the file from the packages of each Python version.

    A version that all agree on stands alone. Others carry a marker, whose last one holds for later Pythons too.
    """
    pythons = sorted(resolved, key=lambda version: int(version.split(".")[1]))
    lines = []
    for name in sorted(set().union(*resolved.values())):
        pins = {python: resolved[python][name] for python in pythons if name in resolved[python]}
        if len(set(pins.values())) == 1 and len(pins) == len(pythons):
            lines.append(f"{name}=={pins[pythons[0]]}")
            continue
        for python, version in pins.items():
            sign = ">=" if python == pythons[-1] else "=="
            lines.append(f'{name}=={version}; python_version {sign} "{python}"')
    return lines


if __name__ == "__main__":
    lines = constraints(dict(resolve(python) for python in sys.argv[1:] or [sys.executable]))
    (ROOT / "constraints.txt").write_text(HEAD + "".join(f"{line}\n" for line in lines))
    print(f"constraints.txt: {len(lines)} lines")
