"""Directories that mlx-lm opens (github.com/ml-explore/mlx-lm): Llama-shaped models, float16 or quantised.

They are Hugging Face directories with float16 weights; with 8 or 4 bits, each matrix becomes packed integers with a
scale and a bias for every 64 numbers of a row (32 where 64 does not divide it): w = scale * q + bias, as MLX has it.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from zoo.convert import base, files, hf, llama, llama_shaped
from zoo.convert.base import Published, Tensor
from zoo.convert.format import SAFETENSORS, Exported, Format
from zoo.errors import UserError

GROUPS = (64, 32)  # numbers of a row that share a scale, as mlx-lm takes them; the first is its own choice
BITS = (4, 8)


def detect(path: str | os.PathLike) -> bool:
    """Returns whether `path` is a quantised directory of MLX; others of MLX are Hugging Face directories."""
    path = Path(path)
    if not path.is_dir() or not files.has_safetensors(path):
        return False
    quantisation = files.peek_json(path / "config.json").get("quantization")
    return isinstance(quantisation, dict) and {"group_size", "bits"} <= quantisation.keys()


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`, with its tensors as the numbers they stand for; no array is read.

    Raises UserError for other bits than BITS, parts that do not fit together, and what `zoo.convert.llama` refuses.
    """
    path = Path(path)
    config_file = files.safe_join(path, "config.json")
    source_config = files.read_json(config_file)
    quantisation = source_config["quantization"]
    group, bits = quantisation["group_size"], quantisation["bits"]
    if type(group) is not int or group < 1 or type(bits) is not int or bits not in BITS:
        raise UserError(f"{config_file}: quantization is {quantisation}; zoo reads {BITS} bits in groups")
    if source_config.get("quantization_config") == quantisation:  # mlx-lm writes it twice, for transformers as well
        del source_config["quantization_config"]

    def decoded(file: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = dict(stored)
        for name in [name for name in stored if name.endswith(".scales")]:
            module = name.removesuffix(".scales")
            parts = [tensors.pop(f"{module}.{part}", None) for part in ("weight", "scales", "biases")]
            matrices = None not in parts and all(len(part.shape) == 2 for part in parts)
            if not matrices or parts[0].dtype != np.uint32 or parts[1].shape != parts[2].shape:
                raise UserError(f"{file}: {module} has not the weight, scales and biases of a quantised matrix")
            tensors[f"{module}.weight"] = _dequantised(*parts, group, bits, f"{file}: {module}")
        return tensors

    stored = llama.open_published(path, source_config=source_config, decoded=decoded)
    return replace(stored, kind=f"MLX directory, {bits} bits")


def write(model: Exported, directory: Path, *, bits: int | None = None) -> None:
    """Writes the directory: float16, or with `bits` (8 or 4) quantised matrices and float16 for the rest.

    Raises UserError for other bits, numbers beyond float16, and what transformers' Llama does not compute.
    """
    if bits is not None and bits not in BITS:
        raise UserError(f"mlx: bits is {bits}; there are {BITS}")
    hf.save_llama(directory, llama_shaped.as_llama(model))
    tensors = {
        name: _half(name, item.read()) for name, item in files.open_safetensors(directory / files.SINGLE).items()
    }
    config = files.read_json(directory / "config.json") | {"torch_dtype": "float16"}
    if bits is not None:
        matrices = {name: array.shape[-1] for name, array in tensors.items() if array.ndim == 2}
        group = _group_size(matrices, bits)
        config["quantization"] = {"group_size": group, "bits": bits}
        for name in matrices:
            module = name.removesuffix(".weight")
            tensors[name], tensors[f"{module}.scales"], tensors[f"{module}.biases"] = quantise(
                tensors[name], bits, group
            )
    files.save_safetensors(directory / files.SINGLE, tensors, {"format": "mlx"})
    files.write_json(directory / "config.json", config)


def _group_size(widths: Mapping[str, int], bits: int) -> int:
    """Returns the largest of GROUPS that divides the rows of all matrices. Raises UserError where none does."""
    group = next((group for group in GROUPS if all(width % group == 0 for width in widths.values())), None)
    if group is None:
        name, width = next((name, width) for name, width in widths.items() if width % GROUPS[-1])
        raise UserError(
            f"mlx: {name} has rows of {width}, and {bits} bits are stored in groups of "
            f"{' or '.join(map(str, GROUPS))} numbers; leave --bits out for float16"
        )
    return group


def quantise(weight: np.ndarray, bits: int, group: int = GROUPS[0]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantises a float16 matrix [out, in] by MLX's rule (github.com/ml-explore/mlx); `group` must divide `in`.

    Returns packed uint32 [out, in * bits / 32], and scales and biases, float16 [out, in / group].
    """
    groups = weight.astype(np.float32).reshape(weight.shape[0], -1, group)
    low, high = groups.min(-1), groups.max(-1)
    # The end of the range that is farther from zero is met exactly, and zero itself is one of the steps.
    steps = 2**bits - 1
    scale = np.maximum((high - low) / steps, 1e-7)
    from_low = np.abs(low) > np.abs(high)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    zero = np.round(edge / scale)
    scale = np.where(zero != 0, edge / np.where(zero != 0, zero, 1), scale)
    bias = np.where(zero != 0, edge, 0)
    scale, bias = scale.astype(np.float16), bias.astype(np.float16)
    wide = scale.astype(np.float32)[..., None]
    q = np.round((groups - bias.astype(np.float32)[..., None]) / np.where(wide == 0, 1, wide))
    q = np.clip(q, 0, steps).astype(np.uint32).reshape(weight.shape[0], -1, 32 // bits)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(q << shifts, axis=-1), scale, bias


def _half(name: str, array: np.ndarray) -> np.ndarray:
    return base.cast_array(array, np.float16, f"mlx: {name}")


def _dequantised(weight: Tensor, scales: Tensor, biases: Tensor, group: int, bits: int, name: str) -> Tensor:
    shape = (weight.shape[0], weight.shape[1] * 32 // bits)
    if scales.shape != (shape[0], shape[1] // group) or shape[1] % group:
        raise UserError(f"{name}: a quantised matrix of shape {shape} has scales of shape {scales.shape}")

    def read() -> np.ndarray:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        q = (weight.read()[..., None] >> shifts) & np.uint32(2**bits - 1)
        q = q.reshape(shape[0], -1, group).astype(np.float32)
        parts = (part.read().astype(np.float32)[..., None] for part in (scales, biases))
        scale, bias = parts
        return (q * scale + bias).reshape(shape)

    return Tensor(shape, np.dtype(np.float32), read)


FORMAT = Format(
    name="mlx",
    detect=detect,
    open=open_published,
    write=write,
    accepts=partial(llama_shaped.refusal, "mlx"),
    options=("bits",),
    own_dtypes=True,
    official=False,
    community=True,
    hub_files=(SAFETENSORS,),
    opened_by="mlx-lm",
)
