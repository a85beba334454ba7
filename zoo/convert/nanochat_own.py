"""nanochat's own checkpoints (github.com/karpathy/nanochat): `model_NNNNNN.pt`, bare tensors, and `meta_NNNNNN.json`.

Parameters have the names of the Hugging Face directory but for a few beginnings. Its MLP is always ReLU squared. Older
checkpoints lack parts that newer ones have, which its loader patches: no window pattern is full attention, no scalars
are 1 and 0, which is a model without these parts.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from zoo.convert import base, files, nanochat_names
from zoo.convert.base import Published, Tensor
from zoo.errors import UserError

_WEIGHTS = re.compile(r"model_(\d{6,9})\.pt")
_SWITCHES = {"smear": "smear_gate.weight", "backout": "backout_lambda", "x0_blend": "x0_lambdas"}
_SWITCHES |= {"residual_scalars": "resid_lambdas"}


def find(path: Path) -> Path | None:
    """Returns the weights of such a checkpoint, the file itself or the newest in a directory; None where it is none."""
    candidates = [path] if path.is_file() else sorted(path.glob("model_*.pt")) if path.is_dir() else []
    numbered = {int(match[1]): file for file in candidates if (match := _WEIGHTS.fullmatch(file.name))}
    complete = [number for number, file in numbered.items() if _meta(file).is_file()]
    return numbered[max(complete)] if complete else None


def open_published(file: Path, tensors: Mapping[str, Tensor]) -> Published:
    """Returns the model in a file of weights whose tensors have been opened.

    Raises UserError for a meta file that does not describe it.
    """
    meta_file = _meta(file)
    meta = files.read_json(meta_file)
    source_config = meta.get("model_config")
    if not isinstance(source_config, dict):
        raise UserError(f"{meta_file}: has no section 'model_config', which says what the model is")
    fields = {"window_pattern": "L"} | source_config | {"mlp": "relu2", "tie_embeddings": False}
    config = nanochat_names.read_config(fields, meta_file, tensors)
    switches = {switch: name in tensors for switch, name in _SWITCHES.items()}
    switches["value_embeddings"] = any(name.startswith("value_embeds.") for name in tensors)
    config = base.full_config(nanochat_names.MODEL_NAME, config | switches)
    base.check_layers(config, tensors, file)
    rules = {path: replace(rule, name=_own_name(rule.name)) for path, rule in nanochat_names.rules(config).items()}
    step = meta.get("step")
    return Published(
        kind="nanochat's own checkpoint",
        file=file,
        model_name=nanochat_names.MODEL_NAME,
        config=config,
        tensors=dict(tensors),
        rules=rules,
        step=step if isinstance(step, int) else None,
    )


def _meta(file: Path) -> Path:
    return file.with_name(file.name.replace("model_", "meta_", 1).removesuffix(".pt") + ".json")


def _own_name(name: str) -> str:
    """Returns nanochat's name of a parameter, given that of the Hugging Face directory."""
    if name.startswith("blocks."):
        return "transformer.h." + name.removeprefix("blocks.")
    return f"transformer.{name}" if name.startswith("wte.") else name
