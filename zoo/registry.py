"""Model names and what stands behind them. Importing this module, and listing names, loads no JAX.

A new model is one entry in `BUILT_IN`. Other packages add theirs through an entry point in the group
"zoo.models", whose name is the model's name and whose object is a `ModelSpec`:

    [project.entry-points."zoo.models"]
    my-model = "my_package.spec:SPEC"
"""

import importlib
import logging
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zoo.errors import UserError
from zoo.util import nearest

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "zoo.models"
NOT_STATED = "not stated"
PLENTY = 20.0  # tokens seen for each parameter, beside which a model's own number is shown

# What `ModelSpec.published` always lists, stated or not.
USUAL_FACTS = ("parameters", "context", "trained", "hardware", "final loss", "validation loss")


@dataclass(frozen=True)
class ModelSpec:
    """A registered model. Classes are "module:Name" strings, imported when they are first asked for.

    config: the fields in which the model differs from its config class's defaults. All behind it is what the
    authors publish, and what they do not is NOT_STATED: source is where the weights are (or the program, where
    there are none), tokens_seen the tokens of the whole training, tokens_per_param the same for each parameter,
    facts label -> text (USUAL_FACTS name the usual ones; "parameters" is the exact number; "files": of the source).
    """

    name: str
    summary: str
    cls: str
    config_cls: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = NOT_STATED
    source: str = NOT_STATED
    licence: str = NOT_STATED
    dataset: str = NOT_STATED
    tokens_seen: str = NOT_STATED
    tokens_per_param: float | None = None
    facts: dict[str, str] = field(default_factory=dict)

    def model_class(self) -> type:
        """The `nnx.Module` class. UserError where it cannot be imported."""
        return _import(self.cls, self.name)

    def config_class(self) -> type:
        """The frozen config dataclass. UserError where it cannot be imported."""
        return _import(self.config_cls, self.name)

    def make_config(self, **overrides: Any) -> Any:
        """The model's config; `overrides` are config fields. UserError for an unknown or impossible one."""
        return self.config_class().from_dict({**self.config, **overrides})

    @cached_property
    def num_params(self) -> int:
        """The exact number of parameters, from shapes alone: nothing is allocated."""
        from zoo.models.build import count_params

        return count_params(self.model_class(), self.make_config())

    @property
    def tokens_per_param_text(self) -> str:
        """ "1.29 (6.5% of 20)": the tokens seen for each parameter, and that over 20.

        Twenty is about the best for a budget of operations (Hoffmann et al., arXiv:2203.15556).
        """
        if self.tokens_per_param is None:
            return NOT_STATED
        share = 100 * self.tokens_per_param / PLENTY
        return f"{self.tokens_per_param:.3g} ({share:.{0 if share >= 10 else 1}f}% of {PLENTY:.0f})"

    def published(self) -> dict[str, str]:
        """All that is published of the model, label -> text, in reading order; NOT_STATED where nothing is."""
        known = {label: self.facts.get(label, NOT_STATED) for label in USUAL_FACTS}
        return {
            "parameters": known.pop("parameters"),
            "source": self.source,
            "licence": self.licence,
            "dataset": self.dataset,
            "tokenizer": self.tokenizer,
            "tokens seen": self.tokens_seen,
            "tokens a parameter": self.tokens_per_param_text,
            **known,
            **{label: text for label, text in self.facts.items() if label not in USUAL_FACTS},
        }


_REGISTERED: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> None:
    """Make a model known to this process: `zoo.create(spec.name)` and recipes find it from now on.

    For notebooks and scripts, where classes are named "__main__:MyModel"; the same name may be registered again. A
    package makes its models known to every process by an entry point of the group `zoo.models` instead.

    Raises:
        UserError: a built-in model has this name.
    """
    if spec.name in BUILT_IN:
        raise UserError(f"register: {spec.name!r} is the name of a built-in model; choose another")
    _REGISTERED[spec.name] = spec


def list_models() -> list[str]:
    """All names, built-in, registered and of other packages, sorted."""
    return sorted({**BUILT_IN, **_outside(), **_REGISTERED})


def describe(name: str) -> ModelSpec:
    """What stands behind `name`. UserError, with the nearest known name, when there is no such model.

    UserError, too, where another package has it and cannot be loaded.
    """
    known = _REGISTERED | BUILT_IN
    if name in known:
        return known[name]
    outside = _outside()
    if name in outside:
        return _load_outside(outside[name])
    near = nearest(name, list_models())
    hint = f"did you mean {near!r}? " if near else ""
    raise UserError(f"unknown model {name!r}; {hint}Known: {', '.join(list_models())}")


def _outside() -> dict[str, EntryPoint]:
    found = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in BUILT_IN:
            logger.warning("entry point %s = %s ignored: the name is built in", point.name, point.value)
        else:
            found[point.name] = point
    return found


def _load_outside(point: EntryPoint) -> ModelSpec:
    try:
        spec = point.load()
    except Exception as error:  # another package's code: whatever it raises, say whose it is
        raise UserError(f"model {point.name!r}: its package's {point.value} cannot be loaded: {error}") from error
    if not isinstance(spec, ModelSpec):
        raise UserError(f"model {point.name!r}: {point.value} is a {type(spec).__name__}, not a zoo.ModelSpec")
    return spec


def _import(target: str, name: str) -> type:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model {name!r}: {target!r} cannot be imported: {error}") from error


CRONICA_5M = ModelSpec(
    name="cronica-5m",
    summary="Spanish football match reports in 8 regional styles, from a block of statistics",
    cls="zoo.models.cronica:Cronica",
    config_cls="zoo.models.cronica:CronicaConfig",
    tokenizer="byte-level BPE, 8,000 entries, 16 of them special tokens (tokenizer.json)",
    source="https://huggingface.co/DanielRegaladoCardoso/cronica-jax-5m",
    licence="Apache-2.0",
    dataset="cronicas-d2t (Apache-2.0): 5,000 pairs, 1,074,312 words, 8 styles",
    tokens_seen="about 1.4M in the texts, 2,000 steps x 8 x 768 positions over them",
    tokens_per_param=0.28,
    facts={
        "parameters": "5,261,568",
        "context": "768 tokens",
        "trained": "2,000 steps x 8 x 768 tokens, AdamW, peak 3e-4, warm-up 100, weight decay 0.1, clip 1.0",
        "hardware": "Apple M4 CPU, about 28 minutes, 6,940 tokens/s",
        "final loss": "2.80 (perplexity 16.4)",
        "published generation, held out, n=12": "home 16.7%, away 25.0%, scorers 0 of 39, score 0%",
        "published style": "apasionado 100%, literario 100%, comentario_tecnico 50%",
        "files": "tokenizer.json, ckpt_002000.pkl",
        "limits": "hallucinated context, coverage of leagues, style overlap",
    },
)

BWETAF_97M = ModelSpec(
    name="bwetaf-97m",
    summary="BwETAFv3: rotary positions over the full width and at the embedding, no final norm",
    cls="zoo.models.bwetaf:Bwetaf",
    config_cls="zoo.models.bwetaf:BwetafConfig",
    tokenizer="its own BPE, 16,384 entries, special tokens <|UK|> and <|EOS|> (tokenizer/yap.json)",
    source="https://huggingface.co/WICKED4950/BwETAFv3-97M",
    dataset="FineWeb for training and validation, TinyStories for training alone",
    tokens_seen="3,390,046,208 (6,466 steps x 256 x 2,048)",
    tokens_per_param=34.73,
    facts={
        "parameters": "97,609,728",
        "context": "2,048 tokens",
        "trained": "bfloat16, 6e-4 to a peak of 1.5e-3 over the first 2%, cosine to 1.8e-4, weight decay 0.1, "
        "b1 0.95, b2 0.98, eps 1.5e-8, moments in bfloat16, dropout 0.05",
        "hardware": "TPU v3-8, 4.82 hours, about 195k tokens/s",
        "validation loss": "3.02",
        "rope dtype": "bfloat16 (rope_dtype; with float32 tables the weights compute another function)",
        "licence of its package": "MIT (classifier)",
        "use": "research and experimentation",
        "files": "good_stuff.pkl, understanding_good_stuff.json, make_stuff_better.pkl, stats.json, "
        "tokenizer/yap.json, tokenizer/understanding_yap.json",
    },
)

GELU_D12 = ModelSpec(
    name="gelu-d12",
    summary="nanochat's stack with GELU: value embeddings, smear, backout, x0 blend, windows",
    cls="zoo.models.nanochat:Nanochat",
    config_cls="zoo.models.nanochat:NanochatConfig",
    tokenizer="that of Mistral-7B-v0.1, 32,000 entries (the table has 32,768 rows)",
    source="https://huggingface.co/mlnomad/gelu-d12-chinchilla-261M-pytorch",
    licence="Apache-2.0",
    dataset="allenai/c4, English",
    tokens_seen="5.22B (19,920 steps x 256 x 1,024)",
    tokens_per_param=20.0,
    facts={
        "parameters": "261,096,338",
        "context": "1,024 tokens",
        "trained": "19,920 steps x 256 x 1,024 tokens, AdamW, peak 0.01, warm-up and cosine; "
        "betas, eps, weight decay and length of the warm-up not stated",
        "hardware": "TPU v6e-8, 2.03 hours, 703k to 717k tokens/s",
        "final loss": "3.0745 (smoothed 3.1106)",
        "final loss, three seeds": "mean 3.0955 +- 0.028 (smoothed 3.1155 +- 0.008: 3.1106, 3.1097, 3.1261)",
        "wikitext-103 test": "loss 3.840, perplexity 46.52, about 330K tokens",
        "LAMBADA": "18.4% (perplexity 42.0)",
        "HellaSwag": "31.4%",
        "ARC-Easy": "34.5%",
        "parity": "Flax to torch 1.3e-5, cached to full under 3e-5",
        "card's sampling": "50 new tokens, temperature 0.8, top-p 0.9",
        "files": "config.json, generation_config.json, model.safetensors (1.04 GB, float32), torch_gpt.py, "
        "configuration_gelu_gpt.py, modeling_gelu_gpt.py",
        "files, Orbax with optimizer": "https://huggingface.co/mlnomad/gelu-d12-chinchilla-261M",
    },
)

NANOCHAT_D12 = ModelSpec(
    name="nanochat-d12",
    summary="the stack of gelu-d12 with ReLU^2 and a head of its own",
    cls="zoo.models.nanochat:Nanochat",
    config_cls="zoo.models.nanochat:NanochatConfig",
    config={"activation": "relu_squared", "tie_embeddings": False},
    facts={
        "parameters": "286,262,162",
        "program": "flaxchat (MIT)",
        "final loss": "not stated for this size; the stack with ReLU^2 by parameters: 9M 7.28, 28M 5.79, "
        "61M 4.24, 109M 3.95, 261M 3.42, 503M 3.39",
    },
)

KODALITE_1B = ModelSpec(
    name="kodalite-1.3b",
    summary="a Llama of 24 layers, base model with a merged chat adapter; English, severely undertrained",
    cls="zoo.models.llama:Llama",
    config_cls="zoo.models.llama:LlamaConfig",
    tokenizer="GPT-2 BPE, 50,257 entries; <|end|> is five of them",
    source="https://huggingface.co/YoAbriel/KodaLite-1.3B",
    licence="Apache-2.0",
    dataset="SlimPajama-6B, streamed; SFT on Dolly-15K and OASST1 (LoRA of rank 16, alpha 32, merged)",
    tokens_seen="1.64B (100,000 steps x 16 x 1,024)",
    tokens_per_param=1.291,
    facts={
        "parameters": "1,269,209,088",
        "context": "1,024 tokens",
        "trained": "bfloat16, AdamW, 3e-4 over 5,000 steps, cosine to 3e-5 at step 100,000, weight decay 0.1, clip 1.0",
        "hardware": "2x L40S, about 25 hours",
        "rope dtype": "float32 in the released files (rope_dtype); pretraining ran with bfloat16 tables",
        "HellaSwag": "25.65",
        "ARC-Easy": "32.79",
        "ARC-Challenge": "21.50",
        "WinoGrande": "49.57",
        "PIQA": "58.92",
        "BoolQ": "44.34",
        "OpenBookQA": "25.00",
        "LAMBADA": "18.22 (perplexity 93.78)",
        "average of the seven choice tasks": "36.8 (zero-shot, by its own protocol)",
        "card's sampling": "150 new tokens, temperature 0.7, top-k 40, stop string <|end|>",
        "limits": "English only, severely undertrained, may repeat, not for production",
        "also as": "KodaLite-1.3B-mlx, -mlx-8bit, -GGUF of the same owner",
    },
)

TINY_LM = ModelSpec(
    name="tiny-lm",
    summary="a minimal transformer over characters, for teaching: LayerNorm, learned positions, ReLU",
    cls="zoo.models.tiny:TinyLM",
    config_cls="zoo.models.tiny:TinyConfig",
    tokenizer="characters: the sorted distinct ones of the training and validation text",
    source="https://github.com/cmaddis/tlm (program alone; no weights are published)",
    licence="GPL-3.0",
    dataset="a subset of TinyStories",
    facts={
        "parameters": "214,244",
        "parameters by size of the alphabet A": "201,344 + 129 A; registered with A = 100",
        "context": "32 characters",
        "trained": "5,000 steps x 16 x 32 characters, Adam at 1e-3, constant, no decay, clipping or dropout",
        "what a run shows": "a sample of 2,000 characters",
        "files": "no weights published",
    },
)

_ALL = (CRONICA_5M, BWETAF_97M, GELU_D12, NANOCHAT_D12, KODALITE_1B, TINY_LM)
BUILT_IN: dict[str, ModelSpec] = {spec.name: spec for spec in _ALL}
