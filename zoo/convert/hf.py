"""Hugging Face directories: config, weights, tokenizer, chat template, generation settings.

Llama-shaped models become LlamaForCausalLM; gelu-d12's directory brings PyTorch code along and is read by
`zoo.convert.nanochat`.
"""

from pathlib import Path

from zoo.convert import llama, llama_shaped, nanochat_hf
from zoo.convert.format import SAFETENSORS, Exported, Format
from zoo.convert.llama_shaped import LlamaShaped
from zoo.convert.tokenizer_files import save_text_files
from zoo.models.config import ModelConfig
from zoo.models.nanochat import NanochatConfig


def write(model: Exported, directory: Path) -> None:
    """Writes the directory that transformers opens. Raises UserError for what its classes do not compute."""
    if isinstance(model.config, NanochatConfig):
        nanochat_hf.write(model, directory)
    else:
        save_llama(directory, llama_shaped.as_llama(model))


def save_llama(directory: Path, model: LlamaShaped) -> None:
    """Writes the directory of a LlamaForCausalLM. Raises UserError for what transformers' Llama does not compute."""
    llama.save(directory, config=model.config, params=model.params, extra_config=model.token_ids())
    stop = {"stop_strings": list(model.stop_strings)} if model.stop_strings else {}
    save_text_files(
        directory,
        model.tokenizer,
        model.config.max_seq_len,
        sampling=model.sampling,
        generation={**model.token_ids(), **stop},
        chat_template=model.chat_template,
        only_token=model.only_token,
    )


def _refusal(config: ModelConfig) -> str | None:
    return None if isinstance(config, NanochatConfig) else llama_shaped.refusal("hf", config)


def _usage(config: ModelConfig) -> str:
    remote = ", trust_remote_code=True" if isinstance(config, NanochatConfig) else ""
    return f'from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained("."{remote})'


FORMAT = Format(
    name="hf",
    detect=llama.detect,
    open=llama.examine,
    aliases=("llama",),
    write=write,
    accepts=_refusal,
    community=True,
    hub_files=(SAFETENSORS,),
    opened_by="`transformers.AutoModelForCausalLM.from_pretrained`",
    library="transformers",
    usage=_usage,
)
