"""Hugging Face directories of Llama-shaped models: config.json with safetensors, one file or several.

YoAbriel/KodaLite-1.3B is published so. Both spellings of config.json are read, that of transformers 4
(`rope_theta`, `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). What the Llama class does
not compute is refused by the name of the field that asks for it.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.layouts import TRANSPOSED
from zoo.errors import UserError
from zoo.layers.rotary import ntk_theta
from zoo.models.llama import LlamaConfig

MODEL_NAME = "kodalite-1.3b"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# transformers' config field -> zoo's
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# transformers' module -> zoo's
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
# zoo's config field -> the modules whose biases it switches on
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
MISTRAL_WINDOW, MISTRAL_CONTEXT = 4096, 4096 * 32  # what transformers takes where a mistral's config does not say


def detect(path: str | os.PathLike) -> bool:
    """Returns whether `path` is a Hugging Face directory; `open_published` refuses those that are no Llama."""
    path = Path(path)
    return path.is_dir() and "model_type" in files.peek_json(path / "config.json") and files.has_safetensors(path)


def open_published(
    path: str | os.PathLike,
    *,
    source_config: Mapping[str, Any] | None = None,
    decoded: Callable[[Path, dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Published:
    """Opens what lies at `path`. No array is read, but for a head that may be the embedding written twice.

    Args:
        source_config: stands in for the content of config.json.
        decoded: returns the tensors as the numbers they stand for, given the file that errors name.

    Raises:
        UserError: a model that is no Llama; the message names the field.
    """
    path = Path(path)
    config_file = files.safe_join(path, "config.json")
    source_config = files.read_json(config_file) if source_config is None else source_config
    refuse_other_models(source_config, config_file)
    file, tensors = files.open_sharded(path)
    if decoded is not None:
        tensors = decoded(file, tensors)
    config = _read_config(source_config, config_file, tensors)
    base.check_layers(config, tensors, file)
    ignored = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    table = rules(config)
    if config["tie_embeddings"] and HEAD in tensors:
        if EMBEDDING not in tensors:  # the one table, under its other name
            table = {**table, "embed/embedding": Rule(HEAD)}
        elif base.same_numbers(tensors[EMBEDDING], tensors[HEAD], file):
            ignored.add(HEAD)  # some programs write the table twice
        else:  # a head of its own: transformers takes it, too, whatever the config says
            config = {**config, "tie_embeddings": False}
            table = rules(config)
    return Published(
        kind=f"Hugging Face {source_config['model_type']} directory (safetensors)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=table,
        tokenizer_path=files.existing(path, "tokenizer.json") or files.existing(path, "tokenizer.model"),
        ignored=frozenset(ignored),
        eos_ids=eos_ids(path, source_config),
    )


def eos_ids(directory: Path, source_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids at which transformers ends a text: by generation_config.json, else by config.json."""
    file = files.existing(directory, "generation_config.json")
    generation = {} if file is None else files.read_json(file)
    return base.eos_ids_of(file or directory / "config.json", generation, source_config)


def save(directory: Path, config: LlamaConfig, params: Any, *, extra_config: Mapping[str, Any] | None = None) -> None:
    """Writes config.json (as transformers 4 and 5 both read it) and model.safetensors. Parameters keep their dtype.

    `extra_config` has further fields of config.json, such as token ids. Raises UserError for a model that
    transformers' Llama does not compute.
    """
    fields = config.to_dict()
    tensors = _with_all_biases(base.to_original(rules(fields), params), fields)
    source_config = _source_config(fields, next(iter(tensors.values())).dtype.name) | dict(extra_config or {})
    files.save_safetensors(directory / files.SINGLE, tensors, {"format": "pt"})
    files.write_json(directory / "config.json", source_config)


def rules(config: Mapping[str, Any]) -> Rules:
    """Returns where each parameter of a Llama stands, such as "model.layers.0.self_attn.q_proj.weight"."""
    table = {"embed/embedding": Rule(EMBEDDING), "final_norm/scale": Rule("model.norm.weight")}
    with_bias = {module for switch, modules in BIASES.items() if config[switch] for module in modules}
    for i in range(config["num_layers"]):
        for name, path in LAYER_NORMS.items():
            table[f"layers/{i}/{path}"] = Rule(f"model.layers.{i}.{name}.weight")
        for name, path in LAYER_LINEARS.items():
            table[f"layers/{i}/{path}/kernel"] = Rule(f"model.layers.{i}.{name}.weight", TRANSPOSED)
            if name in with_bias:
                table[f"layers/{i}/{path}/bias"] = Rule(f"model.layers.{i}.{name}.bias")
    if not config["tie_embeddings"]:
        table["lm_head/kernel"] = Rule(HEAD, TRANSPOSED)
    return table


def _with_all_biases(tensors: dict[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors with zeros for biases that transformers has where any of q, k, v, o has one."""
    if config["attention_bias"] == config["attention_out_bias"]:
        return tensors
    complete = dict(tensors)
    for name, weight in tensors.items():
        if ".self_attn." in name and name.endswith(".weight"):
            complete.setdefault(f"{name.removesuffix('weight')}bias", np.zeros(weight.shape[0], weight.dtype))
    return complete


def _source_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the content of config.json. Raises UserError for a model that transformers' Llama does not compute."""
    if config["rope_dtype"] != "float32":
        raise UserError(
            "model.rope_dtype: transformers computes rotary tables in float32 alone; load with rope_dtype='float32' "
            "to export what that computes"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: config[field] for name, field in CONFIG_NAMES.items()},
        "num_key_value_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": config["max_seq_len"],
        "rope_theta": ntk_theta(config["rope_theta"], config["rope_ntk_factor"], config["head_dim"]),
        "rms_norm_eps": config["norm_eps"],
        "attention_bias": config["attention_bias"] or config["attention_out_bias"],
        "mlp_bias": config["mlp_bias"],
        "tie_word_embeddings": config["tie_embeddings"],
        "torch_dtype": dtype,
    }


def refuse_other_models(source_config: Mapping[str, Any], file: Path) -> None:
    """Raises UserError, naming the field, unless config.json describes a Llama."""
    kind = source_config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{file}: model_type is {kind!r}; of Hugging Face models zoo reads {', '.join(MODEL_TYPES)}")
    for name, neutral in NEUTRAL.items():
        value = source_config.get(name, neutral[0])
        if value not in neutral:
            raise UserError(f"{file}: {name} is {json.dumps(value)[:80]}; zoo's Llama has no such thing")
    if kind == "mistral" and "sliding_window" not in source_config:
        longest = source_config.get("max_position_embeddings", MISTRAL_CONTEXT)
        if not isinstance(longest, int) or longest > MISTRAL_WINDOW:
            raise UserError(
                f"{file}: sliding_window is missing, which transformers takes for {MISTRAL_WINDOW} in a mistral; zoo's "
                f'Llama has no windows. Write "sliding_window": null if the model has none'
            )
    layers = source_config.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise UserError(f"{file}: layer_types is {json.dumps(layers)[:80]}; zoo's Llama has full attention alone")


def _read_config(source_config: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    base.check_fields(source_config, file, CONFIG_NAMES)
    sizes = {name: source_config[name] for name in CONFIG_NAMES}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    sizes["num_key_value_heads"] = source_config.get("num_key_value_heads") or heads
    base.check_sizes(sizes, file)
    config = {field: sizes[name] for name, field in CONFIG_NAMES.items()}
    config |= {
        "num_kv_heads": sizes["num_key_value_heads"],
        "head_dim": source_config.get("head_dim") or width // heads,
        "rope_theta": _rope_theta(source_config, file),
        "norm_eps": source_config.get("rms_norm_eps", 1e-6),
        "max_seq_len": source_config.get("max_position_embeddings", 2048),
        "tie_embeddings": bool(source_config.get("tie_word_embeddings", False)),
    }
    for switch, modules in BIASES.items():
        # A bias that the config promises and the file lacks is then reported as missing.
        promised = source_config.get("mlp_bias" if switch == "mlp_bias" else "attention_bias")
        config[switch] = f"model.layers.0.{modules[0]}.bias" in tensors or bool(promised)
    return base.full_config(MODEL_NAME, config)


def _rope_theta(source_config: Mapping[str, Any], file: Path) -> float:
    """Returns the base of the rotary angles. Raises UserError for scaled angles.

    rope_scaling is the older name of rope_parameters.
    """
    theta = source_config.get("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = source_config.get(name)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise UserError(f"{file}: {name} has rope_type {kind!r}; zoo's Llama has no such thing")
        if rope.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{file}: {name} has partial_rotary_factor; zoo's Llama turns whole heads")
        theta = rope.get("rope_theta", theta)
    return theta
