"""GGUF files as they lie on disk: the parts of a model, and a check of their heads before anything is read.

The package `gguf` believes every count in a file. `check` therefore walks the head first, and holds each count against
the bytes that are there. The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import files
from zoo.convert.base import Tensor
from zoo.errors import UserError
from zoo.util import first_line

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_STRING, _ARRAY = 8, 9
_DEPTH = 4  # of arrays in arrays
_DIMENSIONS = 8  # of a tensor
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def choose(names: Iterable[str]) -> str | None:
    """Returns the one GGUF model among the names of files; of several the one in F16, else in Q8_0; else None.

    A model in parts is named by its first one.
    """
    models = [name for name in names if name.lower().endswith(".gguf")]
    models = [name for name in models if (part := _PART.fullmatch(name)) is None or int(part[2]) == 1]
    if len(models) == 1:
        return models[0]
    for kind in ("f16", "q8_0"):
        alike = [name for name in models if re.search(rf"(^|[-_.]){kind}(-00001-of-\d{{5}})?\.gguf$", name.lower())]
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None


def part_names(name: str) -> list[str]:
    """Returns the names of all parts of the model that one file is a part of; of a whole model the name alone."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    return [f"{part[1]}-{number:05}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1)]


def find(path: Path) -> list[Path]:
    """Returns the parts of the model at `path`, a file or a directory; most models are one file.

    Raises UserError where a directory holds several models, or a part is missing.
    """
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.gguf"))
        chosen = choose(names)
        if chosen is None:
            parts = [name for name in names if _PART.fullmatch(name)]
            if parts and len({part_names(name)[0] for name in names}) == 1:
                chosen = parts[0]  # the first one is missing, which is said below
            else:
                some = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
                reason = f"holds several GGUF files; name one ({some})" if names else "is no GGUF file"
                raise UserError(f"{path}: {reason}")
        path = files.safe_join(path, chosen)
    names = part_names(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path.parent / missing[0]}: is missing; the model lies in {len(names)} parts, get all of them"
        )
    return [path] if len(names) == 1 else [files.safe_join(path.parent, name) for name in names]


def read(gguf: Any, parts: list[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the fields of the first part and the tensors of all. Reading a tensor later gives its numbers.

    Args:
        gguf: the package.
        parts: see `find`.

    Raises:
        UserError: a damaged file, or one that is a part of another model than its name says.
    """
    fields: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for number, file in enumerate(parts):
        check(file)
        try:
            reader = gguf.GGUFReader(file)
            own = {name: field.contents() for name, field in reader.fields.items()}
            tensors |= {item.name: _tensor(item, gguf) for item in reader.tensors}
        except Exception as error:  # a damaged file makes it raise whatever NumPy or struct do
            raise UserError(f"{file}: cannot be read as GGUF ({first_line(error)})") from None
        count, place = own.get("split.count", 0) or 1, own.get("split.no", 0)
        if count != len(parts) or place != number:
            raise UserError(
                f"{file}: is part {place + 1} of {count} by its head, and {number + 1} of {len(parts)} by its name; "
                f"parts are called NAME-00001-of-{count:05}.gguf and so on, all in one directory"
            )
        fields = fields or own
    total = fields.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise UserError(f"{parts[0]}: the parts hold {len(tensors)} tensors, of the {total} that its head promises")
    return fields, tensors


def check(file: Path) -> None:
    """Raises UserError for a file whose head promises more than the file holds."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Head(content).check()
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{file}: cannot be read as GGUF ({first_line(error)})") from None


class _Head:
    """A walk over the head of a file; it raises ValueError at the first thing that does not fit into the file."""

    def __init__(self, content: mmap.mmap):
        self._content, self._at = content, 4
        little = struct.unpack_from("<I", content, 4)[0]
        self._order = ">" if little & 0xFFFF == 0 else "<"  # a version is a small number, whichever way it is written

    def check(self) -> None:
        if self._content[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I", 4)
        if version not in VERSIONS:
            raise ValueError(f"it is of version {version}; zoo reads {' and '.join(map(str, VERSIONS))}")
        tensors, fields = self._number("Q", 8), self._number("Q", 8)
        for _ in range(self._fits(fields, 13, "fields")):
            self._string("the name of a field")
            self._value(self._number("I", 4), 0)
        for _ in range(self._fits(tensors, 24, "tensors")):
            self._string("the name of a tensor")
            dimensions = self._number("I", 4)
            if dimensions > _DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self._skip(8 * dimensions + 12, "the shape of a tensor")

    def _value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._string("a text")
        elif kind == _ARRAY:
            inner, count = self._number("I", 4), self._number("Q", 8)
            if depth == _DEPTH:
                raise ValueError(f"arrays in arrays, deeper than {_DEPTH}")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner], f"an array of {count:,} numbers")
            else:
                for _ in range(self._fits(count, 8, "parts of an array")):
                    self._value(inner, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind], "a number")
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _string(self, what: str) -> None:
        self._skip(self._number("Q", 8), what)

    def _number(self, kind: str, size: int) -> int:
        start = self._at
        self._skip(size, "a number")
        return struct.unpack_from(self._order + kind, self._content, start)[0]

    def _skip(self, size: int, what: str) -> None:
        left = len(self._content) - self._at
        if size > left:
            raise ValueError(f"{what} takes {size:,} bytes, and {left:,} are left in the file")
        self._at += size

    def _fits(self, count: int, smallest: int, what: str) -> int:
        left = len(self._content) - self._at
        if count * smallest > left:
            raise ValueError(f"{count:,} {what} in {left:,} bytes")
        return count


def _tensor(item: Any, gguf: Any) -> Tensor:
    shape = tuple(int(size) for size in reversed(item.shape))

    def numbers() -> np.ndarray:
        if item.tensor_type in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32):
            return np.asarray(item.data).reshape(shape)
        return gguf.quants.dequantize(item.data, item.tensor_type).reshape(shape)

    half = item.tensor_type == gguf.GGMLQuantizationType.F16
    return Tensor(shape, np.dtype(np.float16 if half else np.float32), numbers)
