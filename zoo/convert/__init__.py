"""Published formats: one module each, with `detect(path)`, `load(path)` and `save(directory, ...)`.

Formats are told apart by what is in the files, not by their names. The originals' own names for parameters
and config fields occur in these modules only.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

from zoo.convert.base import Loaded
from zoo.errors import UserError

FORMATS = ("cronica",)

__all__ = ["FORMATS", "Loaded", "detect_format", "load"]


def detect_format(path: str | os.PathLike) -> ModuleType | None:
    """The module of the format that the file or directory at `path` has, or None."""
    for name in FORMATS:
        module = importlib.import_module(f"zoo.convert.{name}")
        if module.detect(path):
            return module
    return None


def load(path: str | os.PathLike) -> Loaded:
    """Read a published model. UserError when there is nothing, or nothing zoo knows."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or directory")
    module = detect_format(path)
    if module is None:
        raise UserError(f"{path}: not in a published format zoo reads (known: {', '.join(FORMATS)})")
    return module.load(path)
