"""The native formats of Koda-v0.1 (Apache-2.0), the program behind YoAbriel/KodaLite-1.3B.

Flax safetensors keyed by the path of each variable, `['blocks'][0]['attention']['q_proj']['kernel'].value`,
and Orbax `step_NNNNNN.orbax`, the whole NNX state with random states and rotary tables. Rotary pairs are
neighbours in a head there and halves of it here, so q and k are permuted. The published Hugging Face directory
is read by `zoo.convert.llama`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import SAFETENSORS, Format, HubFiles, writer
from zoo.convert.layouts import interleaved
from zoo.convert.tokenizer_files import tokenizer_json
from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

MODEL_NAME = "kodalite-1.3b"
MLP_MULTIPLE = 64

# their config field -> ours
CONFIG_NAMES = {
    "maxlen": "max_seq_len",
    "vocab_size": "vocab_size",
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "num_blocks": "num_layers",
}
IGNORED_CONFIG = ("dropout_rate",)  # never active in their training

# their module -> ours
TOP_NAMES = {
    "token_emb.embedding": "embed/embedding",
    "norm_final.scale": "final_norm/scale",
    "output_layer.kernel": "lm_head/kernel",
}
LAYER_NAMES = {
    "norm1.scale": "attn_norm/scale",
    "attention.q_proj.kernel": "attn/q/kernel",
    "attention.k_proj.kernel": "attn/k/kernel",
    "attention.v_proj.kernel": "attn/v/kernel",
    "attention.o_proj.kernel": "attn/o/kernel",
    "norm2.scale": "mlp_norm/scale",
    "ffn.gate.kernel": "mlp/gate/kernel",
    "ffn.up.kernel": "mlp/up/kernel",
    "ffn.down.kernel": "mlp/down/kernel",
}
_TABLES = re.compile(r"\.rope_(cos|sin)(\.value)?$")
_RANDOM = re.compile(r"\.rngs(\..+)?\.(count|key)(\.value)?$")


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a directory with either, or the Orbax checkpoint itself."""
    path = Path(path)
    return _is_flax(path) or _orbax(path) is not None


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path` (safetensors first where both do); no array is read. UserError if it does not fit."""
    path = Path(path)
    if _is_flax(path):
        file, tensors = files.open_sharded(path)
        tensors = {_dotted(name): tensor for name, tensor in tensors.items()}
        about = files.safe_join(path, "config.json")
        config = _config(files.read_json(about), about, tensors)
        return _published("KodaLite, Flax safetensors", file, config, tensors, path)
    checkpoint = _orbax(path)
    if checkpoint is None:
        raise UserError(f"{path}: holds neither Flax safetensors of KodaLite nor step_NNNNNN.orbax")
    from zoo.convert import orbax_tree

    tensors = orbax_tree.open_tree(checkpoint)
    about = files.existing(checkpoint.parent, "config.json")
    config = (
        _config_of_tables(checkpoint, tensors) if about is None else _config(files.read_json(about), about, tensors)
    )
    step = re.fullmatch(r"step_(\d+)\.orbax", checkpoint.name)
    return _published(
        "KodaLite, Orbax state", checkpoint, config, tensors, checkpoint.parent, int(step[1]) if step else None
    )


def save(
    directory: str | os.PathLike,
    *,
    config: Any,
    params: Any,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write Flax safetensors and config.json (and tokenizer.json where given); returns the weights' path.

    The parameters keep their dtype; `step` has no place in the format. UserError for a Llama that Koda does
    not compute.
    """
    theirs = _their_config(config.to_dict())
    tensors = {_keyed(name): array for name, array in to_original(params, config.to_dict()).items()}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files.save_safetensors(directory / files.SINGLE, tensors)
    atomic_write(directory / "config.json", json.dumps(theirs, indent=2) + "\n")
    if tokenizer is not None:
        atomic_write(directory / "tokenizer.json", tokenizer_json(tokenizer))
    return directory / files.SINGLE


def rules(config: Mapping[str, Any]) -> Rules:
    """Where each parameter stands, by names such as "blocks.0.attention.q_proj.kernel"."""
    found = {ours: Rule(theirs) for theirs, ours in TOP_NAMES.items()}
    rotated = interleaved(config["head_dim"])
    for i in range(config["num_layers"]):
        for theirs, ours in LAYER_NAMES.items():
            name = f"blocks.{i}.{theirs}"
            found[f"layers/{i}/{ours}"] = Rule(name, rotated) if ours[:6] in ("attn/q", "attn/k") else Rule(name)
    return found


def to_original(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters or gradients by native names ("blocks.0.attention.q_proj.kernel") and in native order."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[Any, Any]:
    """Our nested parameters or gradients from native ones, keyed with dots or as in the safetensors file."""
    return base.from_original(rules(config), {_dotted(name): array for name, array in tensors.items()})


def mlp_dim(ff_dim: int) -> int:
    """The width of their SwiGLU: two thirds of ff_dim, rounded up to a multiple of 64."""
    return -(-int(2 * ff_dim / 3) // MLP_MULTIPLE) * MLP_MULTIPLE


def _published(kind, file, config, tensors, directory, step=None) -> Published:
    base.check_layers(config, tensors, file)
    return Published(
        kind=kind,
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules={ours: Rule(_stored(rule.theirs, tensors), rule.layout) for ours, rule in rules(config).items()},
        tokenizer_path=files.existing(directory, "tokenizer.json"),
        step=step,
        ignored=frozenset(name for name in tensors if _TABLES.search(name) or _RANDOM.search(name)),
    )


def _stored(name: str, tensors: dict[str, Tensor]) -> str:
    """Orbax of an nnx.State has a level `value` below each variable, a pure dict has none."""
    return f"{name}.value" if f"{name}.value" in tensors else name


def _is_flax(path: Path) -> bool:
    if not path.is_dir() or not files.has_safetensors(path):
        return False
    config = files.peek_json(path / "config.json")
    return {"maxlen", "num_blocks", "ff_dim"} <= config.keys()


def _orbax(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    if _is_state(path):
        return path
    found = [step for step in path.iterdir() if re.fullmatch(r"step_\d+\.orbax", step.name) and _is_state(step)]
    return max(found, key=lambda step: int(step.name[5:-6]), default=None)


def _is_state(path: Path) -> bool:
    """An Orbax tree with their names: the file of its names is JSON, so it can be asked for them."""
    try:
        text = (path / "_METADATA").read_text(encoding="utf-8") if (path / "_METADATA").is_file() else ""
    except (OSError, ValueError):
        return False
    return "'token_emb'" in text and "'norm_final'" in text


def _dotted(name: str) -> str:
    """ "['blocks'][0]['norm1']['scale'].value" as "blocks.0.norm1.scale"; other names as they are."""
    if not name.startswith("["):
        return name
    return ".".join(part.strip("'") for part in re.findall(r"\[([^\[\]]+)\]", name))


def _keyed(name: str) -> str:
    """The inverse of `_dotted`."""
    return "".join(f"[{part}]" if part.isdigit() else f"['{part}']" for part in name.split(".")) + ".value"


def _config(theirs: dict[str, Any], file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for name in theirs:
        if name not in CONFIG_NAMES and name not in (*IGNORED_CONFIG, "ff_dim"):
            raise UserError(f"{file}: field {name!r} is not one of Koda's")
    missing = sorted({*CONFIG_NAMES, "ff_dim"} - set(theirs))
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}")
    for name in (*CONFIG_NAMES, "ff_dim"):
        if type(theirs[name]) is not int or theirs[name] < 1:
            raise UserError(f"{file}: {name} is {theirs[name]!r}, not a whole number")
    if theirs["embed_dim"] % theirs["num_heads"]:
        raise UserError(f"{file}: embed_dim {theirs['embed_dim']} is no multiple of num_heads {theirs['num_heads']}")
    ours = {field: theirs[name] for name, field in CONFIG_NAMES.items()}
    ours |= {"head_dim": ours["embed_dim"] // ours["num_heads"], "mlp_dim": mlp_dim(theirs["ff_dim"])}
    return base.full_config(MODEL_NAME, ours)


def _config_of_tables(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The config that an Orbax state tells of itself: its rotary tables have [maxlen, head_dim / 2]."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = tensors.get(_stored(name, tensors))
        if tensor is None or len(tensor.shape) != rank:
            raise UserError(f"{path}: no config.json lies beside it, and it has no {name} to tell its sizes from")
        return tensor.shape

    (vocab, width), (length, half) = shape("token_emb.embedding", 2), shape("blocks.0.attention.rope_cos", 2)
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    ours = {
        "vocab_size": vocab,
        "num_layers": len(layers),
        "embed_dim": width,
        "head_dim": 2 * half,
        "num_heads": width // (2 * half),
        "num_kv_heads": shape("blocks.0.attention.k_proj.kernel", 2)[1] // (2 * half),
        "mlp_dim": shape("blocks.0.ffn.up.kernel", 2)[1],
        "max_seq_len": length,
    }
    return base.full_config(MODEL_NAME, ours)


def _their_config(ours: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {
        "head_dim": ours["embed_dim"] // ours["num_heads"],
        "rope_theta": 10000.0,
        "rope_ntk_factor": 1.0,
        "norm_eps": 1e-6,
        "tie_embeddings": False,
        "attention_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
    }
    for name, value in fixed.items():
        if ours[name] != value:
            raise UserError(f"model.{name}: Koda computes with {value} alone, this model has {ours[name]}")
    if ours["mlp_dim"] % MLP_MULTIPLE:
        raise UserError(f"model.mlp_dim: Koda's are multiples of {MLP_MULTIPLE}, this model has {ours['mlp_dim']}")
    # Several ff_dim give the same width; theirs is four times the model's, where that is one of them.
    usual = 4 * ours["embed_dim"]
    theirs = {name: ours[field] for name, field in CONFIG_NAMES.items()}
    theirs["ff_dim"] = usual if mlp_dim(usual) == ours["mlp_dim"] else ours["mlp_dim"] * 3 // 2
    return {**theirs, "dropout_rate": 0.0}


def _hub_states(names: Sequence[str]) -> list[str]:
    """Returns the files of the Orbax state of the highest step."""
    steps = {int(match[1]) for match in (re.match(r"step_(\d+)\.orbax/", name) for name in names) if match}
    return [name for name in names if steps and re.match(rf"step_0*{max(steps)}\.orbax/", name)]


FORMAT = Format(
    name="koda",
    detect=detect,
    open=examine,
    aliases=("kodalite",),
    write=writer(save),
    model_name=MODEL_NAME,
    hub_files=(SAFETENSORS, HubFiles(70, _hub_states)),
    opened_by="Koda-v0.1",
)
