"""The Hugging Face directory of gelu-d12: config.json and model.safetensors, by PyTorch's names and layouts.

transformers has no class for it, so the directory brings PyTorch code along (`zoo/convert/gelu_gpt/`).
"""

import json
from importlib import resources
from pathlib import Path

import numpy as np

from zoo import registry
from zoo.convert import base, files, nanochat_names
from zoo.convert.base import Published, Rule
from zoo.convert.format import Exported
from zoo.convert.tokenizer_files import save_text_files
from zoo.models.nanochat import NanochatConfig
from zoo.util import atomic_write

PREFIX = nanochat_names.HF_PREFIX
CODE = ("configuration_gelu_gpt.py", "modeling_gelu_gpt.py")


def detect(path: Path) -> bool:
    """Returns whether `path` is such a directory."""
    if not path.is_dir():
        return False
    config = files.peek_json(path / "config.json")
    known = config.get("model_type") == "gelu_gpt" or {"n_embd", "sequence_len"} <= config.keys()
    return known and files.has_safetensors(path)


def examine(path: Path) -> Published:
    """Returns what lies at `path`; no array is read. Raises UserError where the files do not fit."""
    file, tensors = files.open_sharded(path)
    config_file = files.safe_join(path, "config.json")
    config = nanochat_names.read_config(files.read_json(config_file), config_file, tensors)
    base.check_layers(config, tensors, file)
    rules = nanochat_names.rules(config)
    return Published(
        kind="gelu-d12, Hugging Face directory (safetensors)",
        file=file,
        model_name=nanochat_names.MODEL_NAME,
        config=config,
        tensors=tensors,
        rules={ours: Rule(PREFIX + rule.theirs, rule.layout, rule.index) for ours, rule in rules.items()},
        tokenizer_path=files.existing(path, "tokenizer.json") or files.existing(path, "tokenizer.model"),
        ignored=frozenset(name for name in tensors if name.removeprefix(PREFIX) in nanochat_names.TABLES),
    )


def write(model: Exported, directory: Path) -> None:
    """Writes the directory with the PyTorch code that runs it (trust_remote_code).

    The tensors, rotary tables included, are those that the published directory has. Raises UserError for a model that
    this code does not compute.
    """
    theirs = nanochat_names.their_config(model.config.to_dict())
    tensors = nanochat_names.to_original(model.params, model.config)
    dtype = next(iter(tensors.values())).dtype.name
    tensors |= dict(zip(nanochat_names.TABLES, _rotary_tables(model.config), strict=True))
    prefixed = {PREFIX + name: array for name, array in tensors.items()}
    files.save_safetensors(directory / files.SINGLE, prefixed, {"format": "pt"})
    tokenizer = model.tokenizer
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids = {name: value for name, value in ids.items() if value is not None}
    content = {
        "architectures": ["GeluGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_gelu_gpt.GeluGPTConfig",
            "AutoModelForCausalLM": "modeling_gelu_gpt.GeluGPTForCausalLM",
        },
        "model_type": "gelu_gpt",
        "hidden_size": theirs["n_embd"],
        "num_attention_heads": theirs["n_head"],
        "num_key_value_heads": theirs["n_kv_head"],
        "num_hidden_layers": theirs["n_layer"],
        "max_position_embeddings": 10 * theirs["sequence_len"],
        "tie_word_embeddings": theirs["tie_embeddings"],
        "torch_dtype": dtype,
        **theirs,
        **ids,
    }
    atomic_write(directory / "config.json", json.dumps(content, indent=2) + "\n")
    for name in CODE:
        atomic_write(directory / name, resources.files("zoo.convert.gelu_gpt").joinpath(name).read_bytes())
    sampling = registry.describe(nanochat_names.MODEL_NAME).sampling
    save_text_files(directory, tokenizer, model.config.max_seq_len, sampling=sampling, generation=ids)


def _rotary_tables(config: NanochatConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin as the original stores them, float32 [1, 10 * max_seq_len, 1, head_dim / 2]."""
    powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    angles = np.arange(10 * config.max_seq_len, dtype=np.float32)[:, None] / np.float32(config.rope_theta) ** powers
    return np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
