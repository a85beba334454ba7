"""Everything public has a docstring that reads as a sentence in a tooltip, without the lines around it."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOREIGN = {"zoo.convert.gelu_gpt.modeling_gelu_gpt", "zoo.convert.gelu_gpt.configuration_gelu_gpt"}  # for transformers


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [name for name in map(module_name, sorted(ROOT.glob("zoo/**/*.py"))) if name not in FOREIGN]


def _is_def(value) -> bool:
    """Whether it is a function of its own; a lambda is the default of a field."""
    return inspect.isfunction(value) and value.__name__ != "<lambda>"


def public_objects(module):
    """Name and object of public functions and classes of a module, and of the classes' methods and properties."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield name, value
            for attribute, member in vars(value).items():
                plain = getattr(member, "__func__", member)  # what a class or static method wraps
                if not attribute.startswith("_") and (_is_def(plain) or isinstance(member, property)):
                    yield f"{name}.{attribute}", getattr(value, attribute)
        elif callable(value) and inspect.isfunction(inspect.unwrap(value)):
            yield name, value


def fault(value) -> str | None:
    """What is wrong with an object's docstring. A method without one has that of the method it overrides."""
    text = inspect.getdoc(value) if not inspect.isclass(value) else vars(value).get("__doc__")
    if not text:
        return "no docstring"
    summary = " ".join(re.split(r"\n\s*\n", inspect.cleandoc(text))[0].split())
    if re.match(r"See `[^`]*`\.?$", summary):
        return f"refers elsewhere: {summary}"
    if len(summary.split()) < 3:
        return f"too short: {summary}"
    if not re.search(r"[.:?!]`?\)?$", summary):
        return f"ends without a period: {summary}"
    return None


def faults(module) -> list[str]:
    return [f"{name}: {text}" for name, value in public_objects(module) if (text := fault(value))]


@pytest.mark.parametrize("name", MODULES)
def test_public_docstrings_are_sentences(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.startswith("zoo"):
            raise
        pytest.skip(f"{error.name} is not installed")
    assert module.__doc__ or not Path(module.__file__).read_text("utf-8"), "no module docstring"
    assert not faults(module)


class Sample:
    """Its sample."""

    def silent(self): ...

    def elsewhere(self):
        """See `Task`."""

    def half(self):
        """Returns the number of"""

    @property
    def good(self):
        """The number of bytes the tensor takes on disk."""

    def inherited(self):
        """Returns a copy of the sample."""


class Other(Sample):
    """A sample that overrides a method."""

    def inherited(self): ...


def test_faults_are_noticed():
    assert [fault(getattr(Sample, name)) for name in ("silent", "elsewhere", "half", "good")] == [
        "no docstring",
        "refers elsewhere: See `Task`.",
        "ends without a period: Returns the number of",
        None,
    ]
    assert fault(Sample) == "too short: Its sample." and fault(Other.inherited) is None
