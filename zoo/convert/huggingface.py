"""Hugging Face directories that other programs run: config, weights, tokenizer, chat template, generation settings.

Llama-shaped models (crónica among them, once its rotary pairs are reordered) become LlamaForCausalLM. gelu-d12 has
no class in transformers, so its directory brings PyTorch code along.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import files, llama, nanochat
from zoo.convert.layouts import interleaved
from zoo.convert.tokenizer_files import tokenizer_config, tokenizer_json
from zoo.models import build
from zoo.models.cronica import CronicaConfig
from zoo.models.llama import LlamaConfig
from zoo.models.nanochat import NanochatConfig
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

# As KodaLite's release renders a conversation: the assistant's tag comes with the user's turn.
KODALITE_CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>\n{{ message['content'] }}\n<|assistant|>\n"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}<|endoftext|>"
    "{% endif %}{% endfor %}"
)
KODALITE_EOS, KODALITE_STOP = "<|endoftext|>", "<|end|>"

# What the authors' cards sample with.
SAMPLING = {
    "cronica": {"temperature": 0.85, "top_k": 50, "top_p": 0.9, "max_new_tokens": 300},
    "kodalite": {"temperature": 0.7, "top_k": 40, "max_new_tokens": 150},
    "gelu": {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 50},
}
GELU_FILES = ("configuration_gelu_gpt.py", "modeling_gelu_gpt.py")


@dataclass(frozen=True)
class LlamaShaped:
    """A model in the Llama class's own terms, with what programs around it want to know.

    family: "cronica", "kodalite" or "llama" (anything else). chat_template: Jinja, None where there is none.
    stop_ids, stop_strings: what ends a text, besides the tokenizer's EOS.
    """

    config: LlamaConfig
    params: Any
    tokenizer: Tokenizer | None
    family: str
    chat_template: str | None
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]

    def token_ids(self) -> dict[str, Any]:
        """The fields bos_token_id, eos_token_id and pad_token_id of config.json and generation_config.json."""
        if self.tokenizer is None:
            return {}
        eos = [i for i in (self.tokenizer.eos_id, *self.stop_ids) if i is not None]
        # KodaLite's one special token plays all three parts in its release.
        alone = self.tokenizer.eos_id if self.family == "kodalite" else None
        found = {
            "bos_token_id": alone if self.tokenizer.bos_id is None else self.tokenizer.bos_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": alone if self.tokenizer.pad_id is None else self.tokenizer.pad_id,
        }
        return {name: value for name, value in found.items() if value is not None}


def llama_shaped(config: Any, params: Any, tokenizer: Tokenizer | None) -> LlamaShaped | None:
    """The model as a Llama, None if it is none."""
    if isinstance(config, CronicaConfig):
        closing = None if tokenizer is None else tokenizer.special_tokens.get("</cronica>")
        stop_ids = () if closing is None else (closing,)
        return LlamaShaped(*_cronica_as_llama(config, params), tokenizer, "cronica", None, stop_ids, ())
    if not isinstance(config, LlamaConfig):
        return None
    if tokenizer is not None and list(tokenizer.special_tokens) == [KODALITE_EOS]:
        return LlamaShaped(config, params, tokenizer, "kodalite", KODALITE_CHAT, (), (KODALITE_STOP,))
    return LlamaShaped(config, params, tokenizer, "llama", None, (), ())


def save_llama(directory: Path, model: LlamaShaped) -> None:
    """Write the directory of a LlamaForCausalLM. UserError for what transformers' Llama does not compute."""
    llama.save(directory, config=model.config, params=model.params, extra_config=model.token_ids())
    generation = {**model.token_ids(), **({"stop_strings": list(model.stop_strings)} if model.stop_strings else {})}
    sampling = SAMPLING.get(model.family)
    save_text_files(directory, model.tokenizer, model.config.max_seq_len, model.chat_template, sampling, generation)


def save_gelu(directory: Path, config: NanochatConfig, params: Any, tokenizer: Tokenizer | None) -> None:
    """Write the directory of a gelu-d12 with the PyTorch code that runs it (trust_remote_code).

    The tensors, rotary tables included, are those that the published directory has. UserError for a model that
    this code does not compute.
    """
    theirs = nanochat.their_config(config.to_dict())
    tensors = nanochat.to_original(params, config)
    dtype = next(iter(tensors.values())).dtype.name
    tensors |= dict(zip(nanochat.TABLES, _rotary_tables(config), strict=True))
    files.save_safetensors(
        directory / files.SINGLE,
        {nanochat.HF_PREFIX + name: array for name, array in tensors.items()},
        {"format": "pt"},
    )
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
    for name in GELU_FILES:
        atomic_write(directory / name, resources.files("zoo.convert.gelu_gpt").joinpath(name).read_bytes())
    save_text_files(directory, tokenizer, config.max_seq_len, None, SAMPLING["gelu"], ids)


def save_text_files(
    directory: Path,
    tokenizer: Tokenizer | None,
    max_len: int,
    chat_template: str | None,
    sampling: Mapping[str, Any] | None,
    generation: Mapping[str, Any],
) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    `max_len`: tokens that a row may have. UserError for a tokenizer that has no form as tokenizer.json.
    """
    if tokenizer is not None:
        atomic_write(directory / "tokenizer.json", tokenizer_json(tokenizer))
        settings = tokenizer_config(tokenizer, max_len, chat_template)
        if chat_template == KODALITE_CHAT:
            settings = {"bos_token": KODALITE_EOS, "pad_token": KODALITE_EOS, **settings}
        atomic_write(directory / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    content = {**generation, **({"do_sample": True, **sampling} if sampling else {})}
    atomic_write(directory / "generation_config.json", json.dumps(content, indent=2) + "\n")


def _cronica_as_llama(config: CronicaConfig, params: Any) -> tuple[LlamaConfig, Any]:
    ours = config.to_dict()
    fields = {name: ours[name] for name in LlamaConfig().to_dict() if name in ours}
    fields |= {"num_kv_heads": config.num_heads, "tie_embeddings": True}
    flat = build.flatten(params)
    reorder = interleaved(config.head_dim).to_ours
    for i in range(config.num_layers):
        for name in ("q", "k"):
            path = f"layers/{i}/attn/{name}/kernel"
            flat[path] = reorder(np.asarray(flat[path]))
    return LlamaConfig.from_dict(fields), build.unflatten(flat)


def _rotary_tables(config: NanochatConfig) -> tuple[np.ndarray, np.ndarray]:
    powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    angles = np.arange(10 * config.max_seq_len, dtype=np.float32)[:, None] / np.float32(config.rope_theta) ** powers
    return np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
