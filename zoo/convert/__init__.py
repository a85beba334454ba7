"""Published formats: one module each, with `detect(path)`, `examine(path)`, `load(path)` and `save(directory, ...)`.

Formats are told apart by what is in the files, not by their names. The originals' own names for parameters
and config fields occur in these modules only; `to_original` and `from_original` of each carry parameters, and
gradients, from one naming to the other.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

from zoo.convert.base import Loaded, Published
from zoo.errors import UserError

FORMATS = ("portable", "cronica", "bwetaf", "nanochat", "kodalite", "tiny", "gguf", "mlx", "llama")

__all__ = ["FORMATS", "Loaded", "Published", "detect_format", "examine", "load"]


def detect_format(path: str | os.PathLike) -> ModuleType | None:
    """The module of the format that the file or directory at `path` has, or None."""
    for name in FORMATS:
        module = importlib.import_module(f"zoo.convert.{name}")
        if module.detect(path):
            return module
    return None


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path`, without its arrays. UserError when there is nothing, or nothing zoo knows."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or directory")
    module = detect_format(path)
    if module is None:
        raise UserError(f"{path}: not in a published format zoo reads (known: {', '.join(FORMATS)})")
    return module.examine(path)


def load(path: str | os.PathLike) -> Loaded:
    """Read a published model whole. Errors as in `examine`, and for tensors that do not fit or are damaged."""
    return examine(path).load()
