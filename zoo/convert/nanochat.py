"""The formats of nanochat in JAX (flaxchat, MIT; hub: mlnomad/gelu-d12-chinchilla-261M and -pytorch).

Three of them: the Hugging Face directory (config.json and model.safetensors, PyTorch's names and layouts),
the Orbax composite `<run>/<step>/{model,optimizer,metadata}` with `<run>/config.json` (Flax's names), and a
`.pt` file of config and state_dict.
"""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Loaded, Published, Rule, Rules, Tensor
from zoo.convert.layouts import AS_IS, TRANSPOSED
from zoo.errors import UserError
from zoo.models import build
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write

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


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is one of the three: a directory, a run or step of Orbax, or a file of torch.save."""
    path = Path(path)
    return _is_hf(path) or _orbax_step(path) is not None or _is_torch(path)


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path`; no array is read. UserError if it is not what `detect` says or does not fit."""
    path = Path(path)
    if _is_hf(path):
        return _examine_hf(path)
    step = _orbax_step(path)
    if step is not None:
        return _examine_orbax(step)
    return _examine_torch(path)


def load(path: str | os.PathLike) -> Loaded:
    """`examine`, with all parameters read."""
    return examine(path).load()


def save(
    directory: str | os.PathLike,
    *,
    config: Any,
    params: Any,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write the Orbax composite: `config.json` and `<step>/{model,metadata}`; returns the step's directory.

    The parameters keep their dtype; the format has no place for a tokenizer. UserError for a model that
    flaxchat does not compute, and where that step is already there.
    """
    from zoo.convert import orbax_tree

    theirs = {"model": {**their_config(config.to_dict()), "use_scan": False}}
    for name in ("rope_base", "pad_vocab_size_to", "mlp"):  # hard-coded in the program that reads these
        theirs["model"].pop(name)
    if config.rope_theta != 100000.0 or config.vocab_pad_multiple != 64:
        raise UserError("model.rope_theta, model.vocab_pad_multiple: the Orbax format knows 100000 and 64 alone")
    if config.activation != "gelu_tanh":
        raise UserError("model.activation: the Orbax format does not say it, and is read as gelu_tanh")
    directory, step = Path(directory), 0 if step is None else step
    if (directory / str(step)).exists():
        raise UserError(f"{directory / str(step)} is already there; choose another directory")
    tree = build.unflatten({name.replace(".", "/"): array for name, array in to_flax(params, config).items()})
    directory.mkdir(parents=True, exist_ok=True)
    orbax_tree.save_composite(directory, step, tree, {"step": step, "model_config": theirs["model"]})
    atomic_write(directory / "config.json", json.dumps(theirs, indent=2) + "\n")
    return directory / str(step)


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


def _as_config(config: Any) -> Any:
    from zoo.models.nanochat import NanochatConfig

    return NanochatConfig.from_dict(dict(config)) if isinstance(config, Mapping) else config


def _is_hf(path: Path) -> bool:
    if not path.is_dir():
        return False
    config = files.peek_json(path / "config.json")
    known = config.get("model_type") == "gelu_gpt" or {"n_embd", "sequence_len"} <= config.keys()
    return known and files.has_safetensors(path)


def _orbax_step(path: Path) -> Path | None:
    """The directory of a step: `path` itself, or the highest one in it or in the runs it holds."""
    if not path.is_dir():
        return None
    if (path / "model" / "_METADATA").is_file():
        return path
    found = (file.parents[1] for depth in ("*", "*/*") for file in path.glob(f"{depth}/model/_METADATA"))
    return max((step for step in found if step.name.isdecimal()), key=lambda step: int(step.name), default=None)


def _is_torch(path: Path) -> bool:
    """Whether it is a zip that torch.save wrote."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _examine_hf(path: Path) -> Published:
    file, tensors = files.open_sharded(path)
    config = _config(files.read_json(files.safe_join(path, "config.json")), path / "config.json", tensors)
    base.check_layers(config, tensors, file)
    return Published(
        kind="gelu-d12, Hugging Face directory (safetensors)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules={ours: Rule(HF_PREFIX + rule.theirs, rule.layout, rule.index) for ours, rule in rules(config).items()},
        tokenizer_path=files.existing(path, "tokenizer.json") or files.existing(path, "tokenizer.model"),
        ignored=frozenset(name for name in tensors if name.removeprefix(HF_PREFIX) in TABLES),
    )


def _examine_orbax(step: Path) -> Published:
    from zoo.convert import orbax_tree

    about = files.safe_join(step.parent, "config.json")
    if about.is_file():
        theirs = files.read_json(about).get("model")
    else:
        about = files.safe_join(step, "metadata/metadata")
        theirs = files.read_json(about).get("model_config") if about.is_file() else None
    if not isinstance(theirs, dict):
        raise UserError(f"{step.parent / 'config.json'}: is missing, or has no section 'model'; fetch it as well")
    tensors = orbax_tree.open_tree(step / "model")
    config = _config(theirs, about, tensors)
    base.check_layers(config, tensors, step / "model")
    return Published(
        kind="gelu-d12, Orbax composite",
        file=step / "model",
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config, flax=True),
        step=int(step.name) if step.name.isdecimal() else None,
        ignored=frozenset(name for name in tensors if name in TABLES),
    )


def _examine_torch(file: Path) -> Published:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: was written by PyTorch, which reads it; pip install 'zoo-nnx[torch]'") from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, ... for what it refuses or cannot read
        lines = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{file}: refused by torch.load(weights_only=True): {lines}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{file}: holds no 'config' of plain values beside its weights")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), None)
    if state is None or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no 'state_dict' of tensors")
    tensors = {name.removeprefix(HF_PREFIX): _from_torch(value) for name, value in state.items()}
    config = _config(content["config"], file, tensors)
    base.check_layers(config, tensors, file)
    return Published(
        kind="gelu-d12, PyTorch file (config and state_dict)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config),
        step=content.get("step") if isinstance(content.get("step"), int) else None,
        ignored=frozenset(name for name in tensors if name in TABLES),
    )


def _from_torch(tensor: Any) -> Tensor:
    import torch

    bfloat16 = tensor.dtype == torch.bfloat16
    names = {torch.float32: "float32", torch.float16: "float16", torch.float64: "float64"}
    dtype = np.dtype("bfloat16" if bfloat16 else names.get(tensor.dtype, "V1"))

    def read() -> np.ndarray:
        value = tensor.contiguous()
        return value.view(torch.uint16).numpy().view(dtype) if bfloat16 else value.numpy()

    return Tensor(tuple(tensor.shape), dtype, read)


def _config(theirs: dict[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
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
