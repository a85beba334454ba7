"""Models out: directories and files that other programs open. See docs/checkpoints.md.

Everything is written beside the target first and renamed when it is whole, so that a refusal or a full disk leaves
nothing behind.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from zoo import registry
from zoo.convert import bwetaf, cronica, gguf, huggingface, kodalite, mlx, nanochat, tiny
from zoo.convert.base import storage_dtype
from zoo.errors import UserError
from zoo.models.bwetaf import BwetafConfig
from zoo.models.config import ModelConfig
from zoo.models.cronica import CronicaConfig
from zoo.models.llama import LlamaConfig
from zoo.models.nanochat import NanochatConfig
from zoo.models.tiny import TinyConfig
from zoo.tokenizers.base import Tokenizer
from zoo.util import nearest
from zoo.weights import model_card

# Why a class has no place in the formats of other programs.
REASONS = {
    BwetafConfig: "no program but BwETAF turns the embedding and whole queries and keys at once; its format is bwetaf",
    TinyConfig: "no other program has its learned positions, biases and characters together; its format is tiny",
    NanochatConfig: "it cannot express smear, value embeddings, backout and the blend with x0; take hf, which brings "
    "PyTorch code along, or nanochat",
}


@dataclass(frozen=True)
class Exported:
    """A model to be written.

    name: of the files and the card. params: nested dict of arrays, in the dtype to be written. path: where it was
    loaded from, None for random weights. step: of training, where known. official, foreign: as
    `zoo.weights.sources.Weights` has them (`is_community_model`).
    """

    name: str
    spec: registry.ModelSpec
    config: ModelConfig
    params: Any
    tokenizer: Tokenizer | None
    path: Path | None
    step: int | None
    official: bool = False
    foreign: bool = False


def export(
    model: Exported,
    directory: str | os.PathLike,
    format: str,
    *,
    dtype: DTypeLike | None = None,
    quantization: str | None = None,
    bits: int | None = None,
) -> Path:
    """Write `model` into `directory`, which is created and must hold nothing yet; returns it.

    Args:
        format: one of FORMATS.
        dtype: of the tensors written, None: as they are. gguf and mlx have their own.
        quantization: of gguf: F16 (the default), Q8_0 or Q4_K_M.
        bits: of mlx: 8 or 4; None is float16.

    Raises:
        UserError: an unknown format, one that cannot express this model (with the reason), a directory that is
            not empty, an option that the format does not have. Nothing has been written then.
    """
    if format not in FORMATS:
        near = nearest(format, FORMATS)
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"format {format!r} is none; {hint}there are {', '.join(FORMATS)}")
    for option, value, owner in (("quantization", quantization, "gguf"), ("bits", bits, "mlx")):
        if value is not None and format != owner:
            raise UserError(f"{option} is an option of the format {owner}, not of {format}")
    if dtype is not None:
        if format in ("gguf", "mlx"):
            raise UserError(f"dtype is no option of the format {format}, which has types of its own")
        stored = storage_dtype(dtype)
        model = replace(model, params=jax.tree.map(lambda leaf: np.asarray(leaf).astype(stored), model.params))
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{directory} is there already and not empty; choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        FORMATS[format](model, staging, {"quantization": quantization, "bits": bits})
        model_card.write(staging, model, format)
        if target.exists():
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Path(directory)


def _hf(model: Exported, directory: Path, options: dict) -> None:
    if isinstance(model.config, NanochatConfig):
        huggingface.save_gelu(directory, model.config, model.params, model.tokenizer)
    else:
        huggingface.save_llama(directory, _llama(model, "hf"))


def _gguf(model: Exported, directory: Path, options: dict) -> None:
    gguf.save(directory, _llama(model, "gguf"), name=model.name, kind=options["quantization"] or "F16")


def _mlx(model: Exported, directory: Path, options: dict) -> None:
    mlx.save(directory, _llama(model, "mlx"), bits=options["bits"])


def _llama(model: Exported, format: str) -> huggingface.LlamaShaped:
    found = huggingface.llama_shaped(model.config, model.params, model.tokenizer)
    if found is None:
        reason = REASONS.get(type(model.config), "it is of models that are Llamas")
        raise UserError(f"{model.spec.name} has no place in the format {format}: {reason}")
    if model.foreign:  # KodaLite's template is not its own, whatever its tokenizer
        found = replace(found, family="llama", chat_template=None, stop_strings=())
    return found


def _native(module: Any, kind: type) -> Callable[[Exported, Path, dict], None]:
    def write(model: Exported, directory: Path, options: dict) -> None:
        if not isinstance(model.config, kind):
            raise UserError(f"{model.spec.name} is no {kind.__name__.removesuffix('Config')}, of which this format is")
        arguments = {"config": model.config, "params": model.params, "tokenizer": model.tokenizer}
        module.save(directory, step=model.step or 0, **arguments)

    return write


FORMATS: dict[str, Callable[[Exported, Path, dict], None]] = {
    "hf": _hf,
    "gguf": _gguf,
    "mlx": _mlx,
    "cronica": _native(cronica, CronicaConfig),
    "bwetaf": _native(bwetaf, BwetafConfig),
    "nanochat": _native(nanochat, NanochatConfig),
    "koda": _native(kodalite, LlamaConfig),
    "tiny": _native(tiny, TinyConfig),
}
