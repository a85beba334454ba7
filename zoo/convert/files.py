"""Opening files that others wrote: they may be broken, claim too much, or lead elsewhere."""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from zoo.convert.base import Tensor
from zoo.errors import UserError
from zoo.files import is_lfs_pointer, refuse_lfs_pointer, replacement, safe_join
from zoo.util import atomic_write, first_line, parse_json

LARGEST_JSON = 64 << 20  # bytes; a tokenizer of 256,000 entries has 20 million
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def existing(directory: Path, name: str) -> Path | None:
    """Returns `safe_join`, or None where there is no such file."""
    path = safe_join(directory, name)
    return path if path.is_file() or path.is_symlink() else None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError if the file cannot be read or holds none."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path}: larger than {LARGEST_JSON >> 20} MB, which no such file is")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse_lfs_pointer(path)
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object with fields")
    return content


def peek_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, {} if there is none: for telling formats apart."""
    try:
        return read_json(path) if path.is_file() else {}
    except UserError:
        return {}


def write_json(path: Path, content: Mapping[str, Any], *, ascii: bool = True) -> None:
    """Writes an object as indented JSON, atomically; `ascii` escapes all other characters."""
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=ascii) + "\n")


def zip_names(path: Path) -> list[str]:
    """Returns the names in a zip archive, [] where the file is none or its list is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # ValueError: a name that is not UTF-8
        return []


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file. Reading one gives a view of the mapped file, which takes no memory.

    Raises UserError if the file is damaged or is none.
    """
    try:
        with safe_open(path, framework="np") as file:  # checks the head: sizes, overlaps, the file's length
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            kinds = {
                name: (tuple(part.get_shape()), np.dtype(_SAFETENSORS_DTYPES.get(part.get_dtype(), "V1")))
                for name, part in slices.items()
            }
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            head = parse_json(stream.read(length))
        content = np.memmap(path, np.uint8, "r")[8 + length :] if kinds else np.empty(0, np.uint8)
    except (SafetensorError, OSError, ValueError) as error:
        refuse_lfs_pointer(path)
        raise UserError(f"{path}: cannot be read as safetensors ({first_line(error)})") from None
    return {
        name: Tensor(shape, dtype, _reader(content, head[name]["data_offsets"], shape, dtype))
        for name, (shape, dtype) in kinds.items()
    }


def _reader(content, offsets, shape, dtype):
    start, end = offsets
    return lambda: content[start:end].view(dtype).reshape(shape)


def open_sharded(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """Returns the tensors of `model.safetensors`, or of all files that `model.safetensors.index.json` lists.

    Before them it returns the file that errors about them should name. Raises UserError if neither is there, or the
    index names files or tensors that are not.
    """
    single, index = existing(directory, SINGLE), existing(directory, INDEX)
    if single is not None:
        return single, open_safetensors(single)
    if index is None:
        raise UserError(f"{directory}: holds neither {SINGLE} nor {INDEX}")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index}: has no weight_map from tensor names to file names")
    shards = {}
    for name in sorted(set(where.values())):
        if existing(directory, name) is None:
            raise UserError(f"{index}: lists {name}, which is not there; fetch it as well")
        shards[name] = open_safetensors(safe_join(directory, name))
    for tensor, name in where.items():
        if tensor not in shards[name]:
            raise UserError(f"{directory / name}: lacks {tensor}, which {index.name} says it holds")
    return index, {tensor: shards[name][tensor] for tensor, name in where.items()}


def model_directory(path: Path) -> Path:
    """Returns the directory of a model that is named by one of its weight files; any other path as it is."""
    directory = path.parent
    if not path.is_file() or path.suffix not in (".safetensors", ".json") or not (directory / "config.json").is_file():
        return path
    whole = path.name in (SINGLE, INDEX)
    index = peek_json(directory / INDEX) if not whole and path.suffix == ".safetensors" else {}
    shards = index.get("weight_map")
    return directory if whole or (isinstance(shards, dict) and path.name in shards.values()) else path


def why_unknown(path: Path) -> str | None:
    """Returns what a path holds that looks like a model and that zoo does not read, with the remedy; None elsewhere."""
    directory = path if path.is_dir() else path.parent
    weights = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.pkl", "*.npz")
    named = [path] if path.is_file() else sorted(file for pattern in weights for file in directory.glob(pattern))
    named.append(directory / "config.json")
    if pointer := next((file for file in named if is_lfs_pointer(file)), None):
        return f"{pointer.name} is a pointer of Git LFS, not the file; fetch it with `git lfs pull`, or download it"
    names = [file.name for file in named[:-1]]
    parts = [name for name in names if re.fullmatch(r".+-\d{5}-of-\d{5}\.safetensors", name)]
    if parts and not (directory / INDEX).is_file():
        return f"{parts[0]} is a part of a model, and {INDEX}, which lists the parts, is missing; fetch it as well"
    other = next((name for name in names if name.endswith(".safetensors")), None)
    if other is not None and not (directory / "config.json").is_file():
        return f"{other} has no config.json beside it, which says what model it is; fetch that as well"
    if other not in (None, SINGLE):
        return f"{other} is not called {SINGLE}; give it that name"
    pickled = next((name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))), None)
    if pickled is not None:
        return (
            f"{pickled} is a pickle of PyTorch, which could run code and which zoo does not open; fetch the same model "
            f"as {SINGLE}, or write it with save_pretrained(..., safe_serialization=True)"
        )
    return None


def has_safetensors(directory: Path) -> bool:
    """Returns whether the directory holds weights as `open_sharded` reads them."""
    return any((directory / name).exists() for name in (SINGLE, INDEX))


def save_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name and renames it."""
    from safetensors.numpy import save_file

    with replacement(path) as temporary:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary, metadata)
        temporary.chmod(0o644)  # the library writes for its owner alone


MAX_EXPANSION = 20  # weights shrink by a tenth or so; hundreds of times is a bomb


def check_expansion(path: Path, claimed: int, stored: int) -> None:
    """Raises UserError where `stored` bytes claim to hold `claimed` bytes of weights, far more than packing saves."""
    if claimed > max(MAX_EXPANSION * stored, 1 << 28):
        raise UserError(f"{path}: {stored:,} bytes that claim to unpack to {claimed:,}: no trained weights do")


def open_npz(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of an .npz file, of which only heads are read.

    Raises UserError if the file is damaged, and for object arrays, lengths that do not agree, and sizes that no
    weights have.
    """
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](stream)
                    head = stream.tell()
                if dtype.hasobject or info.file_size != head + math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{info.filename} is no plain array of the length it says")
                name = info.filename.removesuffix(".npy")
                tensors[name] = Tensor(tuple(shape), dtype, _npz_reader(path, name))
            claimed, stored = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        check_expansion(path, claimed, stored)
    except UserError:
        raise
    except Exception as error:  # NumPy gives a head to Python's own tokenizer and parser, which raise their own
        raise UserError(f"{path}: cannot be read as npz ({first_line(error)})") from None
    return tensors


def _npz_reader(path, name):
    def read():
        try:
            with np.load(path, allow_pickle=False) as archive:
                return archive[name]
        except Exception as error:  # of the archive's bytes, which nothing has looked at before
            raise UserError(f"{path}: {name} cannot be read ({first_line(error)})") from None

    return read
