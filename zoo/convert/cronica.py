"""The format of cronica-jax (github.com/DanielRegaladoUMiami/cronica-jax, Apache-2.0).

A directory with `ckpt_NNNNNN.pkl`, and beside them perhaps config.json and tokenizer.json; or one such file.
The pickle is {"step": int, "params": {...}, "config": {...}} of NumPy arrays, so it is enough by itself.
"""

import json
import math
import os
import pickle
import pickletools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files, safe_pickle
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import Format, HubFiles, writer
from zoo.convert.tokenizer_files import tokenizer_json
from zoo.errors import UserError
from zoo.models.cronica import CronicaConfig
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

MODEL_NAME = "cronica-5m"

# their config field -> ours
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "embed_dim",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "d_head": "head_dim",
    "d_ff": "mlp_dim",
    "max_seq_len": "max_seq_len",
    "rope_base": "rope_theta",
}
IGNORED_CONFIG = ("args",)  # the command line of their training run

# their parameter -> ours; kernels are (in, out) on both sides
TOP_NAMES = {"tok_embed": "embed/embedding", "final_norm": "final_norm/scale"}
LAYER_NAMES = {
    "attn_norm": "attn_norm/scale",
    "wq": "attn/q/kernel",
    "wk": "attn/k/kernel",
    "wv": "attn/v/kernel",
    "wo": "attn/o/kernel",
    "mlp_norm": "mlp_norm/scale",
    "w_gate": "mlp/gate/kernel",
    "w_up": "mlp/up/kernel",
    "w_down": "mlp/down/kernel",
}


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a crónica checkpoint, or a directory that holds one. Nothing is unpickled."""
    return _checkpoint(Path(path)) is not None


def examine(path: str | os.PathLike) -> Published:
    """Read a checkpoint, or the one with the highest number in a directory; a pickle can only be read whole.

    UserError for a file that is no such checkpoint, or that asks for objects which are no arrays (see
    `safe_pickle`).
    """
    file = _checkpoint(Path(path))
    if file is None:
        raise UserError(f"{path}: holds no crónica checkpoint (ckpt_NNNNNN.pkl)")
    content = safe_pickle.loads(files.safe_join(file.parent, file.name).read_bytes(), str(file))
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    for name in ("params", "config"):
        if not isinstance(content.get(name), dict):
            raise UserError(f"{file}: {name!r} is missing or no dictionary")
    config = _config(content["config"], file).to_dict()
    return Published(
        kind="cronica-jax (pickle of arrays)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=_tensors(content["params"], config, file),
        rules=rules(config),
        tokenizer_path=files.existing(file.parent, "tokenizer.json"),
        step=_step(content.get("step"), file),
    )


def save(
    directory: str | os.PathLike,
    *,
    config: CronicaConfig,
    params: dict[Any, Any],
    step: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write `ckpt_NNNNNN.pkl`, config.json and, where given, tokenizer.json; returns the checkpoint's path.

    Their format has no field for norm_eps, which is 1e-5 there: UserError for any other.
    """
    if not math.isclose(config.norm_eps, CronicaConfig().norm_eps):
        raise UserError(f"model.norm_eps: the cronica format knows only 1e-5, this model has {config.norm_eps}")
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in to_original(params, config.to_dict()).items()}
    theirs: dict[str, Any] = {name: arrays[name] for name in TOP_NAMES}
    theirs["layers"] = [{name: arrays[f"layers[{i}].{name}"] for name in LAYER_NAMES} for i in range(config.num_layers)]
    their_config = {name: getattr(config, ours) for name, ours in CONFIG_NAMES.items()}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"ckpt_{step:06d}.pkl"
    content = {"step": step, "params": theirs, "config": their_config}
    atomic_write(file, pickle.dumps(content, protocol=4))
    atomic_write(directory / "config.json", json.dumps(their_config, indent=2) + "\n")
    if tokenizer is not None:
        atomic_write(directory / "tokenizer.json", tokenizer_json(tokenizer))
    return file


def rules(config: Mapping[str, Any]) -> Rules:
    """Where each parameter of a model of this config stands: "tok_embed", "layers[0].wq"."""
    found = {ours: Rule(theirs) for theirs, ours in TOP_NAMES.items()}
    for i in range(config["num_layers"]):
        found |= {f"layers/{i}/{ours}": Rule(f"layers[{i}].{theirs}") for theirs, ours in LAYER_NAMES.items()}
    return found


def to_original(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters or gradients by cronica-jax's names, "layers[0].wq"."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[Any, Any]:
    """Our nested parameters or gradients from cronica-jax's."""
    return base.from_original(rules(config), tensors)


def _checkpoint(path: Path) -> Path | None:
    if path.is_file():
        return path if _looks_like_checkpoint(path) else None
    if not path.is_dir():
        return None
    # Longer names first, so that ckpt_1000000 comes before ckpt_999999.
    files = sorted(path.glob("*.pkl"), key=lambda file: (len(file.name), file.name), reverse=True)
    return next((file for file in files if _looks_like_checkpoint(file)), None)


def _looks_like_checkpoint(file: Path) -> bool:
    """A pickle whose first text is one of the three keys of a checkpoint."""
    with file.open("rb") as stream:
        if stream.read(1) != b"\x80":
            return False
        stream.seek(0)
        try:
            operations = zip(range(8), pickletools.genops(stream), strict=False)
            texts = [value for _, (_, value, _) in operations if isinstance(value, str)]
        except Exception:  # bytes that are no pickle
            return False
    return bool(texts) and texts[0] in ("step", "params", "config")


def _config(theirs: dict[str, Any], file: Path) -> CronicaConfig:
    ours = {}
    for name, value in theirs.items():
        if name in CONFIG_NAMES:
            ours[CONFIG_NAMES[name]] = value
        elif name not in IGNORED_CONFIG:
            raise UserError(f"{file}: config field {name!r} is not one of cronica-jax's")
    missing = sorted(set(CONFIG_NAMES) - set(theirs))
    if missing:
        raise UserError(f"{file}: config lacks {', '.join(missing)}")
    return CronicaConfig.from_dict(ours)


def _step(value: Any, file: Path) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{file}: 'step' is {value!r}, not a number") from None


def _tensors(theirs: dict[str, Any], config: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    layers = theirs.get("layers")
    if not isinstance(layers, list | tuple) or len(layers) != config["num_layers"]:
        raise UserError(f"{file}: 'layers' is not a list of {config['num_layers']}, as its config says")
    found = {name: value for name, value in theirs.items() if name != "layers"}
    for i, layer in enumerate(layers):
        if not isinstance(layer, dict):
            raise UserError(f"{file}: layers[{i}] is no dictionary")
        found |= {f"layers[{i}].{name}": value for name, value in layer.items()}
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{file}: {name} is a {type(value).__name__}, not an array")
    return {name: Tensor(array.shape, array.dtype, lambda array=array: array) for name, array in found.items()}


def _hub_files(names: Sequence[str]) -> list[str]:
    """Returns the checkpoint of the highest step."""
    steps = [name for name in names if re.fullmatch(r"ckpt_\d+\.pkl", name)]
    return [max(steps, key=lambda name: int(name[5:-4]))] if steps else []


FORMAT = Format(
    name="cronica",
    detect=detect,
    open=examine,
    write=writer(save),
    model_name=MODEL_NAME,
    hub_files=(HubFiles(20, _hub_files),),
    opened_by="cronica-jax",
)
