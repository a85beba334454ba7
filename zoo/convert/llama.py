"""Hugging Face directories of Llama-shaped models: config.json with safetensors, one file or several.

YoAbriel/KodaLite-1.3B is published so. Both spellings of config.json are read, that of transformers 4
(`rope_theta`, `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). What the Llama class does
not compute is refused by the name of the field that asks for it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.layouts import TRANSPOSED
from zoo.convert.tokenizer_files import tokenizer_json
from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

MODEL_NAME = "kodalite-1.3b"

# their config field -> ours
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

LAYER_LINEARS = {
    "self_attn.q_proj": "attn/q",
    "self_attn.k_proj": "attn/k",
    "self_attn.v_proj": "attn/v",
    "self_attn.o_proj": "attn/o",
    "mlp.gate_proj": "mlp/gate",
    "mlp.up_proj": "mlp/up",
    "mlp.down_proj": "mlp/down",
}
LAYER_NORMS = {"input_layernorm": "attn_norm/scale", "post_attention_layernorm": "mlp_norm/scale"}
# our switch -> the modules whose biases it is about
BIASES = {
    "attention_bias": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out_bias": ("self_attn.o_proj",),
    "mlp_bias": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}

# Fields that change what a Llama computes, and the values at which they do not.
NEUTRAL = {
    "hidden_act": ("silu", "swish"),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "pretraining_tp": (None, 1),
    "quantization_config": (None,),
    "logits_scaling": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
}
MODEL_TYPES = ("llama", "mistral")


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a Hugging Face directory; `examine` refuses those that are no Llama."""
    path = Path(path)
    return path.is_dir() and "model_type" in files.peek_json(path / "config.json") and files.has_safetensors(path)


def examine(path: str | os.PathLike, *, theirs: Mapping[str, Any] | None = None) -> Published:
    """What lies at `path`; no array is read. UserError, naming the field, for a model that is no Llama.

    theirs: what to take config.json to say, where its reader knows better.
    """
    path = Path(path)
    about = files.safe_join(path, "config.json")
    theirs = files.read_json(about) if theirs is None else theirs
    refuse_other_models(theirs, about)
    file, tensors = files.open_sharded(path)
    config = _config(theirs, about, tensors)
    base.check_layers(config, tensors, file)
    ignored = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if config["tie_embeddings"] and "lm_head.weight" in tensors:
        ignored.add("lm_head.weight")  # some programs write the table twice
    return Published(
        kind=f"Hugging Face {theirs['model_type']} directory (safetensors)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config),
        tokenizer_path=files.existing(path, "tokenizer.json") or files.existing(path, "tokenizer.model"),
        ignored=frozenset(ignored),
    )


def save(
    directory: str | os.PathLike,
    *,
    config: Any,
    params: Any,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json (as transformers 4 and 5 both read it) and model.safetensors; returns the latter's path.

    The parameters keep their dtype. extra_config: further fields of config.json, such as token ids. `step` has
    no place in the format. UserError for a model that transformers' Llama does not compute.
    """
    ours = config.to_dict()
    tensors = with_all_biases(to_original(params, ours), ours)
    theirs = their_config(ours, next(iter(tensors.values())).dtype.name) | dict(extra_config or {})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files.save_safetensors(directory / files.SINGLE, tensors, {"format": "pt"})
    atomic_write(directory / "config.json", json.dumps(theirs, indent=2) + "\n")
    if tokenizer is not None:
        atomic_write(directory / "tokenizer.json", tokenizer_json(tokenizer))
    return directory / files.SINGLE


def rules(config: Mapping[str, Any]) -> Rules:
    """Where each parameter of a Llama of this config stands."""
    found = {"embed/embedding": Rule("model.embed_tokens.weight"), "final_norm/scale": Rule("model.norm.weight")}
    with_bias = {module for switch, modules in BIASES.items() if config[switch] for module in modules}
    for i in range(config["num_layers"]):
        for theirs, ours in LAYER_NORMS.items():
            found[f"layers/{i}/{ours}"] = Rule(f"model.layers.{i}.{theirs}.weight")
        for theirs, ours in LAYER_LINEARS.items():
            found[f"layers/{i}/{ours}/kernel"] = Rule(f"model.layers.{i}.{theirs}.weight", TRANSPOSED)
            if theirs in with_bias:
                found[f"layers/{i}/{ours}/bias"] = Rule(f"model.layers.{i}.{theirs}.bias")
    if not config["tie_embeddings"]:
        found["lm_head/kernel"] = Rule("lm_head.weight", TRANSPOSED)
    return found


def to_original(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters or gradients by transformers' names ("model.layers.0.self_attn.q_proj.weight") and layouts."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[Any, Any]:
    """Our nested parameters or gradients from transformers'."""
    return base.from_original(rules(config), tensors)


def with_all_biases(tensors: dict[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """With zeros for biases that transformers has where any of q, k, v, o has one."""
    if config["attention_bias"] == config["attention_out_bias"]:
        return tensors
    found = dict(tensors)
    for name, weight in tensors.items():
        if ".self_attn." in name and name.endswith(".weight"):
            found.setdefault(f"{name.removesuffix('weight')}bias", np.zeros(weight.shape[0], weight.dtype))
    return found


def their_config(ours: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json for our config. UserError for a model that transformers' Llama does not compute."""
    if ours["rope_dtype"] != "float32":
        raise UserError(
            "model.rope_dtype: transformers computes rotary tables in float32 alone; load with rope_dtype='float32' "
            "to export what that computes"
        )
    theta = ours["rope_theta"]
    if ours["rope_ntk_factor"] != 1:
        from zoo.layers.rotary import ntk_theta

        theta = ntk_theta(theta, ours["rope_ntk_factor"], ours["head_dim"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: ours[field] for name, field in CONFIG_NAMES.items()},
        "num_key_value_heads": ours["num_kv_heads"],
        "head_dim": ours["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": ours["max_seq_len"],
        "rope_theta": theta,
        "rms_norm_eps": ours["norm_eps"],
        "attention_bias": ours["attention_bias"] or ours["attention_out_bias"],
        "mlp_bias": ours["mlp_bias"],
        "tie_word_embeddings": ours["tie_embeddings"],
        "torch_dtype": dtype,
    }


def refuse_other_models(theirs: Mapping[str, Any], file: Path) -> None:
    """Raise UserError, naming the field, unless config.json describes a Llama."""
    kind = theirs.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{file}: model_type is {kind!r}; of Hugging Face models zoo reads {', '.join(MODEL_TYPES)}")
    for name, neutral in NEUTRAL.items():
        value = theirs.get(name, neutral[0])
        if value not in neutral:
            raise UserError(f"{file}: {name} is {json.dumps(value)[:80]}; zoo's Llama has no such thing")
    layers = theirs.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise UserError(f"{file}: layer_types is {json.dumps(layers)[:80]}; zoo's Llama has full attention alone")


def _config(theirs: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    missing = sorted(set(CONFIG_NAMES) - set(theirs))
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}")
    numbers = {name: theirs[name] for name in CONFIG_NAMES}
    numbers["num_key_value_heads"] = theirs.get("num_key_value_heads") or theirs["num_attention_heads"]
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {name} is {value!r}, not a whole number")
    heads, width = numbers["num_attention_heads"], numbers["hidden_size"]
    ours = {field: numbers[name] for name, field in CONFIG_NAMES.items()}
    ours |= {
        "num_kv_heads": numbers["num_key_value_heads"],
        "head_dim": theirs.get("head_dim") or width // heads,
        "rope_theta": _rope_theta(theirs, file),
        "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "max_seq_len": theirs.get("max_position_embeddings", 2048),
        "tie_embeddings": bool(theirs.get("tie_word_embeddings", False)),
    }
    for switch, modules in BIASES.items():
        # What either says: a bias that the config promises and the file lacks is then reported as missing.
        said = theirs.get("mlp_bias" if switch == "mlp_bias" else "attention_bias")
        ours[switch] = f"model.layers.0.{modules[0]}.bias" in tensors or bool(said)
    return base.full_config(MODEL_NAME, ours)


def _rope_theta(theirs: Mapping[str, Any], file: Path) -> float:
    """The base of the angles; rope_scaling is the older name of rope_parameters. UserError for scaled angles."""
    theta = theirs.get("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = theirs.get(name)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise UserError(f"{file}: {name} has rope_type {kind!r}; zoo's Llama has no such thing")
        if rope.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{file}: {name} has partial_rotary_factor; zoo's Llama turns whole heads")
        theta = rope.get("rope_theta", theta)
    return theta
