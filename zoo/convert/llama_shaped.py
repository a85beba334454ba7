"""Models that programs run as Llamas, with the tokens, template and settings that go with them.

The Llama class is one; crónica becomes one once its rotary pairs are reordered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo import registry
from zoo.convert import chat_templates
from zoo.convert.chat_templates import OutsideTemplate
from zoo.convert.format import Exported
from zoo.convert.layouts import interleaved
from zoo.convert.tokenizer_files import spelling
from zoo.models import build
from zoo.models.bwetaf import BwetafConfig
from zoo.models.config import ModelConfig
from zoo.models.cronica import CronicaConfig
from zoo.models.llama import LlamaConfig
from zoo.models.nanochat import NanochatConfig
from zoo.models.tiny import TinyConfig
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.chat import find

KODALITE_EOS = "<|endoftext|>"
EOS = "eos_token_id"

# Why models of a class are no Llamas.
REASONS: dict[type[ModelConfig], str] = {
    BwetafConfig: "no program but BwETAF turns the embedding and whole queries and keys at once; its format is bwetaf",
    TinyConfig: "no other program has its learned positions, biases and characters together; its format is tiny",
    NanochatConfig: "it cannot express smear, value embeddings, backout and the blend with x0; take hf, which brings "
    "PyTorch code along, or nanochat",
}


@dataclass(frozen=True)
class LlamaShaped:
    """A model in the Llama class's own terms, with what programs around it want to know.

    Attributes:
        name: names the files.
        spec: the registered model whose published settings are written along; None for anybody's Llama.
        stop_ids: tokens that end a text; the tokenizer's EOS may be missing.
        template: of conversations; None where there is none.
        only_token: the one special token where it plays all parts, as in KodaLite's release; None elsewhere.
    """

    name: str
    config: LlamaConfig
    params: Any
    tokenizer: Tokenizer | None
    spec: registry.ModelSpec | None
    stop_ids: tuple[int, ...] = ()
    template: OutsideTemplate | None = None
    only_token: str | None = None

    @property
    def sampling(self) -> Mapping[str, Any] | None:
        """The published settings of generation; None where nothing is published."""
        return None if self.spec is None else self.spec.sampling

    @property
    def chat_template(self) -> str | None:
        """The template of conversations in Jinja; None where there is none."""
        return None if self.template is None else self.template.jinja

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a text."""
        of_template = () if self.template is None else (find(self.template.name).end.strip(),)
        return tuple((self.sampling or {}).get("stop", of_template))

    def token_ids(self) -> dict[str, Any]:
        """Returns the fields bos_token_id, eos_token_id and pad_token_id of config.json and generation_config.json."""
        if self.tokenizer is None:
            return {}
        own = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        eos = [i for i in dict.fromkeys(self.stop_ids + own) if i < self.config.vocab_size]
        alone = self.tokenizer.eos_id if self.only_token else None
        ids = {
            "bos_token_id": alone if self.tokenizer.bos_id is None else self.tokenizer.bos_id,
            EOS: eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": alone if self.tokenizer.pad_id is None else self.tokenizer.pad_id,
        }
        rows = self.config.vocab_size  # a token beyond them, added for padding alone, is none of the model's
        return {name: value for name, value in ids.items() if value is not None and (name == EOS or value < rows)}


def refusal(name: str, config: ModelConfig) -> str | None:
    """Returns why a model of this config cannot be written as a Llama in the format `name`; None where it can."""
    if isinstance(config, CronicaConfig | LlamaConfig):
        return None
    return f"has no place in the format {name}: {REASONS.get(type(config), 'it is of models that are Llamas')}"


def as_llama(model: Exported) -> LlamaShaped:
    """Returns the model as a Llama; `refusal` tells whether it is one."""
    tokenizer = model.tokenizer
    if isinstance(model.config, CronicaConfig):
        closing = None if tokenizer is None else tokenizer.special_tokens.get("</cronica>")
        config, params = _cronica_as_llama(model.config, model.params)
        spec, stop_ids = registry.describe("cronica-5m"), () if closing is None else (tokenizer.eos_id, closing)
        return LlamaShaped(model.name, config, params, tokenizer, spec, stop_ids)
    # KodaLite's settings are not those of a Llama of anybody else, whatever its tokenizer.
    own_tokens = None if tokenizer is None or model.is_community_model else list(tokenizer.special_tokens)
    only_token = KODALITE_EOS if own_tokens == [KODALITE_EOS] else None
    spec = model.spec if only_token and (not model.of_run or model.config == model.spec.make_config()) else None
    template = None
    if model.of_run and model.chat_template is not None and tokenizer is not None:
        template = chat_templates.of_run(model.chat_template, spelling(tokenizer, "eos"))
    elif spec is not None and not model.of_run:
        template = chat_templates.of_release(spec.chat_template)
    return LlamaShaped(
        model.name, model.config, model.params, tokenizer, spec, model.eos_ids, template=template, only_token=only_token
    )


def _cronica_as_llama(config: CronicaConfig, params: Any) -> tuple[LlamaConfig, Any]:
    given = config.to_dict()
    fields = {name: given[name] for name in LlamaConfig().to_dict() if name in given}
    fields |= {"num_kv_heads": config.num_heads, "tie_embeddings": True}
    flat = build.flatten(params)
    reorder = interleaved(config.head_dim).from_file
    for i in range(config.num_layers):
        for name in ("q", "k"):
            path = f"layers/{i}/attn/{name}/kernel"
            flat[path] = reorder(np.asarray(flat[path]))
    return LlamaConfig.from_dict(fields), build.unflatten(flat)
