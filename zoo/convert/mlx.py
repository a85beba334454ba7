"""Directories that mlx-lm opens (github.com/ml-explore/mlx-lm): Llama-shaped models, float16 or quantised.

They are Hugging Face directories with float16 weights; with 8 or 4 bits, each matrix becomes packed integers with a
scale and a bias for every 64 numbers of a row: w = scale * q + bias, as MLX computes it.
"""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from zoo.convert import files, hf, llama, llama_shaped
from zoo.convert.base import Published, Tensor
from zoo.convert.format import SAFETENSORS, Exported, Format
from zoo.errors import UserError
from zoo.util import atomic_write

GROUP = 64
BITS = (4, 8)


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a quantised directory of MLX. One that is not quantised is an ordinary Hugging Face one."""
    path = Path(path)
    if not path.is_dir() or not files.has_safetensors(path):
        return False
    quantisation = files.peek_json(path / "config.json").get("quantization")
    return isinstance(quantisation, dict) and {"group_size", "bits"} <= quantisation.keys()


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path`, its tensors as the numbers they stand for; no array is read.

    UserError for other bits than BITS, parts that do not fit together, and what `zoo.convert.llama` refuses.
    """
    path = Path(path)
    about = files.safe_join(path, "config.json")
    theirs = files.read_json(about)
    quantisation = theirs["quantization"]
    group, bits = quantisation["group_size"], quantisation["bits"]
    if type(group) is not int or group < 1 or type(bits) is not int or bits not in BITS:
        raise UserError(f"{about}: quantization is {quantisation}; zoo reads {BITS} bits in groups")
    if theirs.get("quantization_config") == quantisation:  # mlx-lm writes it twice, for transformers as well
        del theirs["quantization_config"]
    found = llama.examine(path, theirs=theirs)
    tensors = dict(found.tensors)
    for name in [name for name in found.tensors if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        parts = [tensors.pop(f"{module}.{part}", None) for part in ("weight", "scales", "biases")]
        matrices = None not in parts and all(len(part.shape) == 2 for part in parts)
        if not matrices or parts[0].dtype != np.uint32 or parts[1].shape != parts[2].shape:
            raise UserError(f"{found.file}: {module} has not the weight, scales and biases of a quantised matrix")
        tensors[f"{module}.weight"] = _dequantised(*parts, group, bits, f"{found.file}: {module}")
    return Published(**{**vars(found), "tensors": tensors, "kind": f"MLX directory, {bits} bits"})


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
        config["quantization"] = {"group_size": GROUP, "bits": bits}
        for name in [name for name, array in tensors.items() if array.ndim == 2 and array.shape[-1] % GROUP == 0]:
            module = name.removesuffix(".weight")
            tensors[name], tensors[f"{module}.scales"], tensors[f"{module}.biases"] = quantise(tensors[name], bits)
    files.save_safetensors(directory / files.SINGLE, tensors, {"format": "mlx"})
    atomic_write(directory / "config.json", json.dumps(config, indent=2) + "\n")


def quantise(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed uint32 [out, in * bits / 32], scales and biases float16 [out, in / 64] of a float16 matrix [out, in].

    By MLX's rule (github.com/ml-explore/mlx); 64 must divide `in`.
    """
    groups = weight.astype(np.float32).reshape(weight.shape[0], -1, GROUP)
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
    half = array.astype(np.float32).astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(f"mlx: {name} holds numbers that float16 does not reach")
    return half


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
    open=examine,
    write=write,
    accepts=partial(llama_shaped.refusal, "mlx"),
    options=("bits",),
    own_dtypes=True,
    official=False,
    community=True,
    hub_files=(SAFETENSORS,),
    opened_by="mlx-lm",
)
