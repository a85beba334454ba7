"""The native formats of Koda-v0.1 (Apache-2.0), the program behind YoAbriel/KodaLite-1.3B.

Flax safetensors keyed by the path of each variable, `['blocks'][0]['attention']['q_proj']['kernel'].value`,
and Orbax `step_NNNNNN.orbax`, the whole NNX state with random states and rotary tables. Rotary pairs are
neighbours in a head there and halves of it in zoo, so q and k are permuted. The published Hugging Face directory
is read by `zoo.convert.hf`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import SAFETENSORS, Exported, Format, HubFiles
from zoo.convert.layouts import interleaved
from zoo.convert.tokenizer_files import tokenizer_json
from zoo.errors import UserError
from zoo.util import atomic_write

MODEL_NAME = "kodalite-1.3b"
MLP_MULTIPLE = 64

# Koda's config field -> zoo's
CONFIG_NAMES = {
    "maxlen": "max_seq_len",
    "vocab_size": "vocab_size",
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "num_blocks": "num_layers",
}
IGNORED_CONFIG = ("dropout_rate",)  # never active in its training

# Koda's variable -> zoo's
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
    """Returns whether `path` is a directory with either, or the Orbax checkpoint itself."""
    path = Path(path)
    return _is_flax(path) or _orbax(path) is not None


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`, of both the safetensors; no array is read. Raises UserError where it does not fit."""
    path = Path(path)
    if _is_flax(path):
        file, tensors = files.open_sharded(path)
        tensors = {_dotted(name): tensor for name, tensor in tensors.items()}
        config_file = files.safe_join(path, "config.json")
        config = _read_config(files.read_json(config_file), config_file)
        return _published("KodaLite, Flax safetensors", file, config, tensors, path)
    checkpoint = _orbax(path)
    if checkpoint is None:
        raise UserError(f"{path}: holds neither Flax safetensors of KodaLite nor step_NNNNNN.orbax")
    from zoo.convert import orbax_tree

    tensors = orbax_tree.open_tree(checkpoint)
    config_file = files.existing(checkpoint.parent, "config.json")
    if config_file is None:
        config = _config_of_tables(checkpoint, tensors)
    else:
        config = _read_config(files.read_json(config_file), config_file)
    step = re.fullmatch(r"step_(\d+)\.orbax", checkpoint.name)
    return _published(
        "KodaLite, Orbax state", checkpoint, config, tensors, checkpoint.parent, int(step[1]) if step else None
    )


def write(model: Exported, directory: Path) -> None:
    """Writes Flax safetensors, config.json and, where the model has one, tokenizer.json. Parameters keep their dtype.

    The format has no place for the step. Raises UserError for a Llama that Koda does not compute.
    """
    config = model.config.to_dict()
    source_config = _source_config(config)
    tensors = {_keyed(name): array for name, array in base.to_original(rules(config), model.params).items()}
    files.save_safetensors(directory / files.SINGLE, tensors)
    files.write_json(directory / "config.json", source_config)
    if model.tokenizer is not None:
        atomic_write(directory / "tokenizer.json", tokenizer_json(model.tokenizer))


def rules(config: Mapping[str, Any]) -> Rules:
    """Returns where each parameter stands, by names such as "blocks.0.attention.q_proj.kernel"."""
    layouts = dict.fromkeys(("attn/q/kernel", "attn/k/kernel"), interleaved(config["head_dim"]))
    return base.layered_rules(TOP_NAMES, LAYER_NAMES, "blocks.{}.", config["num_layers"], layouts)


def mlp_dim(ff_dim: int) -> int:
    """Returns the width of Koda's SwiGLU: two thirds of ff_dim, rounded up to a multiple of 64."""
    return -(-int(2 * ff_dim / 3) // MLP_MULTIPLE) * MLP_MULTIPLE


def _published(kind, file, config, tensors, directory, step=None) -> Published:
    base.check_layers(config, tensors, file)
    return Published(
        kind=kind,
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules={path: Rule(_stored(rule.name, tensors), rule.layout) for path, rule in rules(config).items()},
        tokenizer_path=files.existing(directory, "tokenizer.json"),
        step=step,
        ignored=frozenset(name for name in tensors if _TABLES.search(name) or _RANDOM.search(name)),
    )


def _stored(name: str, tensors: dict[str, Tensor]) -> str:
    """Returns the tensor's name in the file: Orbax of an nnx.State has a level `value` below each variable."""
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
    steps = [step for step in path.iterdir() if re.fullmatch(r"step_\d+\.orbax", step.name) and _is_state(step)]
    return max(steps, key=lambda step: int(step.name[5:-6]), default=None)


def _is_state(path: Path) -> bool:
    """Returns whether it is an Orbax tree with Koda's names; the file that lists them is JSON."""
    try:
        text = (path / "_METADATA").read_text(encoding="utf-8") if (path / "_METADATA").is_file() else ""
    except (OSError, ValueError):
        return False
    return "'token_emb'" in text and "'norm_final'" in text


def _dotted(name: str) -> str:
    """Returns "['blocks'][0]['norm1']['scale'].value" as "blocks.0.norm1.scale", and other names as they are."""
    if not name.startswith("["):
        return name
    return ".".join(part.strip("'") for part in re.findall(r"\[([^\[\]]+)\]", name))


def _keyed(name: str) -> str:
    """Returns the name that `_dotted` was given."""
    return "".join(f"[{part}]" if part.isdigit() else f"['{part}']" for part in name.split(".")) + ".value"


def _read_config(source_config: dict[str, Any], file: Path) -> dict[str, Any]:
    sizes = (*CONFIG_NAMES, "ff_dim")
    base.check_fields(source_config, file, sizes, known=(*sizes, *IGNORED_CONFIG), program="Koda")
    base.check_sizes({name: source_config[name] for name in sizes}, file)
    width, heads = source_config["embed_dim"], source_config["num_heads"]
    if width % heads:
        raise UserError(f"{file}: embed_dim {width} is no multiple of num_heads {heads}")
    config = {field: source_config[name] for name, field in CONFIG_NAMES.items()}
    config |= {"head_dim": width // heads, "mlp_dim": mlp_dim(source_config["ff_dim"])}
    return base.full_config(MODEL_NAME, config)


def _config_of_tables(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the config that an Orbax state tells by its shapes; its rotary tables are [maxlen, head_dim / 2]."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = tensors.get(_stored(name, tensors))
        if tensor is None or len(tensor.shape) != rank:
            raise UserError(f"{path}: no config.json lies beside it, and it has no {name} to tell its sizes from")
        return tensor.shape

    (vocab, width), (length, half) = shape("token_emb.embedding", 2), shape("blocks.0.attention.rope_cos", 2)
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    config = {
        "vocab_size": vocab,
        "num_layers": len(layers),
        "embed_dim": width,
        "head_dim": 2 * half,
        "num_heads": width // (2 * half),
        "num_kv_heads": shape("blocks.0.attention.k_proj.kernel", 2)[1] // (2 * half),
        "mlp_dim": shape("blocks.0.ffn.up.kernel", 2)[1],
        "max_seq_len": length,
    }
    return base.full_config(MODEL_NAME, config)


def _source_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config by Koda's names. Raises UserError for a Llama that it does not compute."""
    fixed = {
        "head_dim": config["embed_dim"] // config["num_heads"],
        "rope_theta": 10000.0,
        "rope_ntk_factor": 1.0,
        "norm_eps": 1e-6,
        "tie_embeddings": False,
        "attention_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
    }
    base.check_fixed(config, fixed, "Koda")
    width = config["mlp_dim"]
    if width % MLP_MULTIPLE:
        raise UserError(f"model.mlp_dim: Koda's are multiples of {MLP_MULTIPLE}, this model has {width}")
    # Several ff_dim give the same width; Koda's is four times the model's, where that is one of them.
    usual = 4 * config["embed_dim"]
    ff_dim = usual if mlp_dim(usual) == width else width * 3 // 2
    return {**{name: config[field] for name, field in CONFIG_NAMES.items()}, "ff_dim": ff_dim, "dropout_rate": 0.0}


def _hub_states(names: Sequence[str]) -> list[str]:
    """Returns the files of the Orbax state of the highest step."""
    steps = {int(match[1]) for match in (re.match(r"step_(\d+)\.orbax/", name) for name in names) if match}
    return [name for name in names if steps and re.match(rf"step_0*{max(steps)}\.orbax/", name)]


FORMAT = Format(
    name="koda",
    detect=detect,
    open=open_published,
    aliases=("kodalite",),
    write=write,
    model_name=MODEL_NAME,
    hub_files=(SAFETENSORS, HubFiles(70, _hub_states)),
    opened_by="Koda-v0.1",
)
