"""Names of the originals of nanochat's parameters (in PyTorch and in Flax) and config fields, and zoo's for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.convert import base
from zoo.convert.base import Rule, Rules, Tensor
from zoo.convert.layouts import AS_IS, TRANSPOSED, Layout
from zoo.errors import UserError
from zoo.models.nanochat import NanochatConfig

MODEL_NAME = "gelu-d12"
HF_PREFIX = "model."  # before every name in the Hugging Face directory
ACTIVATIONS = {"gelu": "gelu_tanh", "relu2": "relu_squared"}  # their field `mlp` -> zoo's `activation`
TABLES = ("rope_cos", "rope_sin")  # stored beside the weights; zoo computes them

# the originals' config field -> zoo's; the Orbax config has those that are required, the Hugging Face one all
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

# the originals' module or parameter -> zoo's, without ".weight" (PyTorch), ".kernel" and ".embedding" (Flax)
LAYER_LINEARS = {
    "attn.c_q": "attn/q",
    "attn.c_k": "attn/k",
    "attn.c_v": "attn/v",
    "attn.c_proj": "attn/o",
    "mlp.c_fc": "mlp/up",
    "mlp.c_proj": "mlp/down",
}
SCALARS = {"smear_lambda": "smear/scale", "backout_lambda": "backout/scale"}

# What makes it this architecture; the originals know no other values.
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


def rules(config: NanochatConfig | Mapping[str, Any], *, flax: bool = False) -> Rules:
    """Returns where each parameter stands: "blocks.0.attn.c_q.weight" as in PyTorch, or with `flax` "...kernel"."""
    config = NanochatConfig.from_dict(dict(config)) if isinstance(config, Mapping) else config
    linear = ("kernel", AS_IS) if flax else ("weight", TRANSPOSED)
    embedding = ("embedding", AS_IS) if flax else ("weight", AS_IS)
    table: dict[str, Rule] = {}

    def add(path: str, name: str, kind: tuple[str, Layout]) -> None:
        table[path] = Rule(f"{name}.{kind[0]}", kind[1])

    add("embed/embedding", "wte", embedding)
    if config.smear:
        add("smear/gate/kernel", "smear_gate", linear)
    for name, path in SCALARS.items():
        if getattr(config, path.split("/")[0]):
            table[path] = Rule(name, index=0)
    for i in range(config.num_layers):
        if config.residual_scalars:
            table[f"layers/{i}/blend/residual_scale"] = Rule("resid_lambdas", index=i)
        if config.x0_blend:
            table[f"layers/{i}/blend/x0_scale"] = Rule("x0_lambdas", index=i)
        for name, path in LAYER_LINEARS.items():
            add(f"layers/{i}/{path}/kernel", f"blocks.{i}.{name}", linear)
        if config.has_value_embedding(i):
            add(f"layers/{i}/attn/value_gate/kernel", f"blocks.{i}.attn.ve_gate", linear)
            add(f"layers/{i}/value_embed/embedding", f"value_embeds.{i}", embedding)
    if not config.tie_embeddings:
        add("lm_head/kernel", "lm_head", linear)
    return table


def source_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config by the originals' names. Raises UserError for a model that they do not compute."""
    derived = {"head_dim": config["embed_dim"] // config["num_heads"], "mlp_dim": 4 * config["embed_dim"]}
    base.check_fixed(config, {**FIXED, **derived}, "flaxchat")
    if not config["window_pattern"]:
        raise UserError("model.window_pattern: the format has no place for a model without windows")
    fields = {name: config[field] for name, field in (REQUIRED | OPTIONAL).items()}
    fields["mlp"] = {activation: name for name, activation in ACTIVATIONS.items()}[config["activation"]]
    return fields


def read_config(source_config: dict[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns zoo's config for an original's. Raises UserError, which names `file`, where it does not make sense."""
    base.check_fields(source_config, file, REQUIRED)
    names = (REQUIRED | OPTIONAL).items()
    config = {field: source_config[name] for name, field in names if name in source_config}
    width, heads = source_config["n_embd"], source_config["n_head"]
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"{file}: n_embd {width!r} is no multiple of n_head {heads!r}")
    activation = source_config.get("mlp", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"{file}: mlp is {activation!r}; zoo knows {', '.join(ACTIVATIONS)}")
    # The Orbax config need not say it, and the tensors do.
    config.setdefault("tie_embeddings", not any("lm_head" in name for name in tensors))
    if isinstance(config.get("window_pattern"), str):
        config["window_pattern"] = config["window_pattern"].upper()
    config |= {"head_dim": width // heads, "mlp_dim": 4 * width, "activation": ACTIVATIONS[activation]}
    return base.full_config(MODEL_NAME, config)
