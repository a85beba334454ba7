"""Published formats: one module each, which ends in its `FORMAT`, and one table of them, `FORMATS`.

Formats are told apart by what is in the files, not by their names. The originals' own names for parameters
and config fields occur in these modules only: `rules` of each say where parameters stand, `base.to_original` and
`base.from_original` carry them, or gradients, over. Listing the names imports none of the modules.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.util import nearest

if TYPE_CHECKING:
    from zoo.convert.base import Loaded, Published
    from zoo.convert.format import Format

__all__ = ["FORMATS", "detect_format", "examine", "find_format", "load"]

# The formats' modules, in the order in which they are tried on a file. A new format is a module and a line here.
MODULES = (
    "portable",
    "cronica",
    "bwetaf",
    "nanochat",
    "koda",
    "tiny",
    "gguf",
    "mlx",
    "hf",
    "peft",
)


class _Formats(Mapping[str, "Format"]):
    """The table: `MODULES` as name -> `Format`; a module is imported when its format is asked for."""

    def __getitem__(self, name: str) -> "Format":
        if name not in MODULES:
            raise KeyError(name)
        return importlib.import_module(f"zoo.convert.{name}").FORMAT

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


FORMATS: Mapping[str, "Format"] = _Formats()


def find_format(name: str) -> "Format":
    """Returns the format of that name or alias. Raises UserError, with the nearest name, where there is none."""
    if name in FORMATS:
        return FORMATS[name]
    for known in FORMATS.values():
        if name in known.aliases:
            return known
    near = nearest(name, FORMATS)
    hint = f"did you mean {near!r}? " if near else ""
    raise UserError(f"format {name!r} is none; {hint}there are {', '.join(FORMATS)}")


def detect_format(path: str | os.PathLike) -> "Format | None":
    """Returns the format of the whole model that the file or directory at `path` holds, None where zoo knows none."""
    return next((known for known in FORMATS.values() if not known.adapters and known.detect(path)), None)


def examine(path: str | os.PathLike) -> "Published":
    """Returns what lies at `path`, without its arrays.

    Raises UserError when there is nothing, or nothing that zoo knows.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or directory")
    known = detect_format(path)
    if known is None:
        raise UserError(f"{path}: not in a published format zoo reads (known: {', '.join(FORMATS)})")
    return known.open(path)


def load(path: str | os.PathLike) -> "Loaded":
    """Reads a published model whole. Errors as in `examine`, and for tensors that do not fit or are damaged."""
    return examine(path).load()
