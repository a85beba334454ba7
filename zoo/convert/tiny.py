"""tiny-lm as an .npz of dotted names, `blocks.0.attn.Wq` (the course project after nanoGPT publishes no weights).

A directory with params.npz (and perhaps config.json), or one such file: its shapes are enough.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rules, Tensor
from zoo.convert.format import Exported, Format
from zoo.convert.layouts import head_last
from zoo.errors import UserError
from zoo.files import replacement

MODEL_NAME = "tiny-lm"
WEIGHTS = "params.npz"

# the original's config field -> zoo's; the other fields of a config.json are about training
CONFIG_NAMES = {
    "context_len": "max_seq_len",
    "embed_dim": "embed_dim",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "alphabet_size": "vocab_size",
}

# the original's parameter -> zoo's
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
    """Returns whether `path` is such an .npz, or a directory with one."""
    file = _weights(Path(path))
    return file is not None and {"token_embedding.npy", "blocks.0.attn.Wq.npy"} <= set(files.zip_names(file))


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`; no array is read. Raises UserError where it does not fit."""
    file = _weights(Path(path))
    if file is None:
        raise UserError(f"{path}: holds no {WEIGHTS}")
    tensors = files.open_npz(files.safe_join(file.parent, file.name))
    config = _config_of_shapes(tensors, file)
    config_file = files.existing(file.parent, "config.json")
    source_config = {} if config_file is None else files.read_json(config_file)
    for name, field in CONFIG_NAMES.items():
        if name in source_config and source_config[name] != config[field]:
            raise UserError(
                f"{config_file}: {name} is {source_config[name]!r}, but the arrays of {file.name} say {config[field]}"
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


def write(model: Exported, directory: Path) -> None:
    """Writes params.npz (float32), config.json and, where the model has one, the tokenizer.

    The format has no place for the step. Raises UserError for a model that the original does not compute.
    """
    config = model.config.to_dict()
    fixed = {"norm_eps": 1e-5, "tie_embeddings": False, "head_dim": config["embed_dim"] // config["num_heads"]}
    base.check_fixed(config, {**fixed, "mlp_dim": 4 * config["embed_dim"]}, "the original")
    tensors = base.to_original(rules(config), model.params)
    with replacement(directory / WEIGHTS) as temporary:
        np.savez(temporary, **{name: np.asarray(array, np.float32) for name, array in tensors.items()})
    source_config = {name: config[field] for name, field in CONFIG_NAMES.items()}
    files.write_json(directory / "config.json", source_config)
    if model.tokenizer is not None:
        model.tokenizer.save(directory)


def rules(config: Mapping[str, Any]) -> Rules:
    """Returns where each parameter of a model of this config stands in the .npz, such as "blocks.0.attn.Wq"."""
    layouts = dict.fromkeys(HEADS.values(), head_last(config["num_heads"]))
    return base.layered_rules(TOP_NAMES, LAYER_NAMES, "blocks.{}.", config["num_layers"], layouts)


def _weights(path: Path) -> Path | None:
    file = path / WEIGHTS if path.is_dir() else path
    return file if file.is_file() else None


def _config_of_shapes(tensors: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """Returns the config that the tensors' shapes tell."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            raise UserError(f"{file}: {name} is missing or has not {rank} axes")
        return tensors[name].shape

    layers = {match[1] for match in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if match}
    vocab, width = shape("token_embedding", 2)
    config = {
        "vocab_size": vocab,
        "num_layers": len(layers),
        "embed_dim": width,
        "num_heads": shape("blocks.0.attn.Wq", 3)[2],
        "head_dim": shape("blocks.0.attn.Wq", 3)[1],
        "mlp_dim": shape("blocks.0.ffwd.fc1.W", 2)[1],
        "max_seq_len": shape("position_embedding", 2)[0],
    }
    return base.full_config(MODEL_NAME, config)


FORMAT = Format(
    name="tiny",
    detect=detect,
    open=open_published,
    write=write,
    model_name=MODEL_NAME,
    tokenizer_file="characters.json",
    opened_by="any program that reads NumPy's npz",
)
