"""How nanochat's originals name fields and parameters: PyTorch's modules, Flax's modules, and the config of both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base
from zoo.convert.base import Rule, Rules, Tensor
from zoo.convert.layouts import AS_IS, TRANSPOSED
from zoo.errors import UserError
from zoo.models.nanochat import NanochatConfig

MODEL_NAME = "gelu-d12"
HF_PREFIX = "model."  # before every name in the Hugging Face directory
ACTIVATIONS = {"gelu": "gelu_tanh", "relu2": "relu_squared"}  # their `mlp` -> ours
TABLES = ("rope_cos", "rope_sin")  # stored beside the weights, and computed here

# their config field -> ours; the Orbax config has those that are required, the Hugging Face one all
REQUIRED = {
    "sequence_len": "max_seq_len",
    "vocab_size": "vocab_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_kv_head": "num_kv_heads",
    "n_embd": "embed_dim",
}
OPTIONAL = {
    "window_pattern": "window_pattern",
    "tie_embeddings": "tie_embeddings",
    "rope_base": "rope_theta",
    "pad_vocab_size_to": "vocab_pad_multiple",
}

# their module or parameter -> ours, without ".weight" (PyTorch), ".kernel" and ".embedding" (Flax)
LAYER_LINEARS = {
    "attn.c_q": "attn/q",
    "attn.c_k": "attn/k",
    "attn.c_v": "attn/v",
    "attn.c_proj": "attn/o",
    "mlp.c_fc": "mlp/up",
    "mlp.c_proj": "mlp/down",
}
LAYER_SCALARS = {"resid_lambdas": "blend/residual_scale", "x0_lambdas": "blend/x0_scale"}
SCALARS = {"smear_lambda": "smear/scale", "backout_lambda": "backout/scale"}

# What makes it this architecture; their programs know no other values.
FIXED = {
    "norm_eps": 1e-6,
    "qk_norm": True,
    "qk_norm_scale": 1.2,
    "value_embeddings": True,
    "smear": True,
    "backout": True,
    "x0_blend": True,
    "residual_scalars": True,
    "logit_softcap": 15.0,
    "final_norm": True,
}


def rules(config: Any, *, flax: bool = False) -> Rules:
    """Where each parameter stands: by the names of the PyTorch modules, or with `flax` of the Flax ones."""
    config = _as_config(config)
    linear = ("kernel", AS_IS) if flax else ("weight", TRANSPOSED)
    table = ("embedding", AS_IS) if flax else ("weight", AS_IS)
    found: dict[str, Rule] = {}

    def add(ours: str, theirs: str, kind: tuple) -> None:
        found[ours] = Rule(f"{theirs}.{kind[0]}", kind[1])

    add("embed/embedding", "wte", table)
    if config.smear:
        add("smear/gate/kernel", "smear_gate", linear)
    for theirs, ours in SCALARS.items():
        if getattr(config, ours.split("/")[0]):
            found[ours] = Rule(theirs, index=0)
    for i in range(config.num_layers):
        if config.residual_scalars:
            found[f"layers/{i}/blend/residual_scale"] = Rule("resid_lambdas", index=i)
        if config.x0_blend:
            found[f"layers/{i}/blend/x0_scale"] = Rule("x0_lambdas", index=i)
        for theirs, ours in LAYER_LINEARS.items():
            add(f"layers/{i}/{ours}/kernel", f"blocks.{i}.{theirs}", linear)
        if config.has_value_embedding(i):
            add(f"layers/{i}/attn/value_gate/kernel", f"blocks.{i}.attn.ve_gate", linear)
            add(f"layers/{i}/value_embed/embedding", f"value_embeds.{i}", table)
    if not config.tie_embeddings:
        add("lm_head/kernel", "lm_head", linear)
    return found


def to_original(params: Any, config: Any) -> dict[str, np.ndarray]:
    """Parameters or gradients by PyTorch's names ("blocks.0.attn.c_q.weight") and layouts."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Any) -> dict[Any, Any]:
    """Our nested parameters or gradients from those by PyTorch's names, with or without `model.` before them."""
    tensors = {name.removeprefix(HF_PREFIX): array for name, array in tensors.items()}
    return base.from_original(rules(config), tensors)


def to_flax(params: Any, config: Any) -> dict[str, np.ndarray]:
    """Parameters or gradients by Flax's names ("blocks.0.attn.c_q.kernel") and layouts."""
    return base.to_original(rules(config, flax=True), params)


def their_config(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Our config by their field names. UserError for a model that they do not compute."""
    fixed = {**FIXED, "head_dim": ours["embed_dim"] // ours["num_heads"], "mlp_dim": 4 * ours["embed_dim"]}
    for name, value in fixed.items():
        if ours[name] != value:
            raise UserError(f"model.{name}: the format is of models with {value}, this one has {ours[name]}")
    if not ours["window_pattern"]:
        raise UserError("model.window_pattern: the format has no place for a model without windows")
    theirs = {name: ours[field] for name, field in (REQUIRED | OPTIONAL).items()}
    theirs["mlp"] = {ours: name for name, ours in ACTIVATIONS.items()}[ours["activation"]]
    return theirs


def read_config(theirs: dict[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    missing = sorted(set(REQUIRED) - set(theirs))
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}")
    ours = {field: theirs[name] for name, field in (REQUIRED | OPTIONAL).items() if name in theirs}
    width, heads = theirs["n_embd"], theirs["n_head"]
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"{file}: n_embd {width!r} is no multiple of n_head {heads!r}")
    activation = theirs.get("mlp", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"{file}: mlp is {activation!r}; zoo knows {', '.join(ACTIVATIONS)}")
    # The Orbax config need not say it, and the tensors do.
    ours.setdefault("tie_embeddings", not any("lm_head" in name for name in tensors))
    if isinstance(ours.get("window_pattern"), str):
        ours["window_pattern"] = ours["window_pattern"].upper()
    ours |= {"head_dim": width // heads, "mlp_dim": 4 * width, "activation": ACTIVATIONS[activation]}
    return base.full_config(MODEL_NAME, ours)


def _as_config(config: Any) -> NanochatConfig:
    return NanochatConfig.from_dict(dict(config)) if isinstance(config, Mapping) else config
