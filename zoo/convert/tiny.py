"""tiny-lm as an .npz of dotted names, `blocks.0.attn.Wq` (the course project after nanoGPT publishes no weights).

A directory with params.npz (and perhaps config.json), or one such file: its shapes are enough.
"""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import Format, writer
from zoo.convert.layouts import head_last
from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

MODEL_NAME = "tiny-lm"
WEIGHTS = "params.npz"

# their config field -> ours; the other fields of a config.json are about training
CONFIG_NAMES = {
    "context_len": "max_seq_len",
    "embed_dim": "embed_dim",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "alphabet_size": "vocab_size",
}

TOP_NAMES = {
    "token_embedding": "embed/embedding",
    "position_embedding": "position/embedding",
    "ln_f.scale": "final_norm/scale",
    "ln_f.bias": "final_norm/bias",
    "lm_head.W": "lm_head/kernel",
    "lm_head.b": "lm_head/bias",
}
HEADS = {"attn.Wq": "attn/q/kernel", "attn.Wk": "attn/k/kernel", "attn.Wv": "attn/v/kernel"}
LAYER_NAMES = {
    "ln1.scale": "attn_norm/scale",
    "ln1.bias": "attn_norm/bias",
    **HEADS,
    "attn.aff.W": "attn/o/kernel",
    "attn.aff.b": "attn/o/bias",
    "ln2.scale": "mlp_norm/scale",
    "ln2.bias": "mlp_norm/bias",
    "ffwd.fc1.W": "mlp/up/kernel",
    "ffwd.fc1.b": "mlp/up/bias",
    "ffwd.fc2.W": "mlp/down/kernel",
    "ffwd.fc2.b": "mlp/down/bias",
}


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is such an .npz, or a directory with one."""
    file = _weights(Path(path))
    if file is None or not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return {"token_embedding.npy", "blocks.0.attn.Wq.npy"} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path`; no array is read. UserError if it is not what `detect` says or does not fit."""
    file = _weights(Path(path))
    if file is None:
        raise UserError(f"{path}: holds no {WEIGHTS}")
    tensors = files.open_npz(files.safe_join(file.parent, file.name))
    config = _config(tensors, file)
    about = files.existing(file.parent, "config.json")
    if about is not None:
        theirs = files.read_json(about)
        for name, ours in CONFIG_NAMES.items():
            if name in theirs and theirs[name] != config[ours]:
                raise UserError(
                    f"{about}: {name} is {theirs[name]!r}, but the arrays of {file.name} say {config[ours]}"
                )
    return Published(
        kind="tiny-lm (npz)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config),
        tokenizer_path=files.existing(file.parent, "characters.json") or files.existing(file.parent, "tokenizer.json"),
    )


def save(
    directory: str | os.PathLike,
    *,
    config: Any,
    params: Any,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write params.npz (float32) and config.json (and the tokenizer where given); returns the .npz's path.

    `step` has no place in the format. UserError for a model that the original does not compute.
    """
    ours = config.to_dict()
    fixed = {"norm_eps": 1e-5, "tie_embeddings": False, "head_dim": ours["embed_dim"] // ours["num_heads"]}
    fixed["mlp_dim"] = 4 * ours["embed_dim"]
    for name, value in fixed.items():
        if ours[name] != value:
            raise UserError(f"model.{name}: the npz is of models with {value}, this one has {ours[name]}")
    tensors = {name: np.asarray(array, np.float32) for name, array in to_original(params, ours).items()}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{WEIGHTS}.tmp"
    with temporary.open("wb") as stream:
        np.savez(stream, **tensors)
    temporary.replace(directory / WEIGHTS)
    theirs = {name: ours[field] for name, field in CONFIG_NAMES.items()}
    atomic_write(directory / "config.json", json.dumps(theirs, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(directory)
    return directory / WEIGHTS


def rules(config: Mapping[str, Any]) -> Rules:
    """Where each parameter of a model of this config stands in the .npz."""
    found = {ours: Rule(theirs) for theirs, ours in TOP_NAMES.items()}
    heads = head_last(config["num_heads"])
    for i in range(config["num_layers"]):
        for theirs, ours in LAYER_NAMES.items():
            name = f"blocks.{i}.{theirs}"
            found[f"layers/{i}/{ours}"] = Rule(name, heads) if theirs in HEADS else Rule(name)
    return found


def to_original(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters or gradients by the original's names ("blocks.0.attn.Wq") and shapes."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[Any, Any]:
    """Our nested parameters or gradients from the original's."""
    return base.from_original(rules(config), tensors)


def _weights(path: Path) -> Path | None:
    file = path / WEIGHTS if path.is_dir() else path
    return file if file.is_file() else None


def _config(tensors: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """The sizes, from the shapes."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            raise UserError(f"{file}: {name} is missing or has not {rank} axes")
        return tensors[name].shape

    layers = {match[1] for match in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if match}
    vocab, width = shape("token_embedding", 2)
    ours = {
        "vocab_size": vocab,
        "num_layers": len(layers),
        "embed_dim": width,
        "num_heads": shape("blocks.0.attn.Wq", 3)[2],
        "head_dim": shape("blocks.0.attn.Wq", 3)[1],
        "mlp_dim": shape("blocks.0.ffwd.fc1.W", 2)[1],
        "max_seq_len": shape("position_embedding", 2)[0],
    }
    return base.full_config(MODEL_NAME, ours)


FORMAT = Format(
    name="tiny",
    detect=detect,
    open=examine,
    write=writer(save),
    model_name=MODEL_NAME,
    tokenizer_file="characters.json",
    opened_by="any program that reads NumPy's npz",
)
