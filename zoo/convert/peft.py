"""Adapters in the directory format of PEFT (github.com/huggingface/peft), for models of the Llama class.

adapter_config.json and adapter_model.safetensors with "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
[rank, in] and lora_B [out, rank]: ours, transposed. zoo's Llama keeps q and k as transformers does (rotary pairs are
halves of a head), so nothing is permuted.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files
from zoo.convert.format import Format, HubFiles
from zoo.convert.llama import LAYER_LINEARS
from zoo.errors import UserError
from zoo.util import atomic_write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model.model."
_NAME = re.compile(re.escape(PREFIX) + r"layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])(?:\.default)?\.weight")

# Fields that change what an adapter computes, or the base, and the values at which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    # The others (pissa, olora, corda, loftq, lora_ga) take out of the base's weights what the adapters begin with.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "use_dora": (False,),
    "use_rslora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}


@dataclass(frozen=True)
class Adapter:
    """Adapters read from, or to be written into, such a directory.

    arrays: {"layers/0/attn/q/lora/a": [in, rank], ".../lora/b": [rank, out]}, by our paths. base: the model they are
    for, a path or a name, with its revision on the hub; None where nothing says. directory: where they were read.
    """

    arrays: Mapping[str, np.ndarray]
    rank: int
    alpha: float
    dropout: float = 0.0
    base: str | None = None
    revision: str | None = None
    directory: Path | None = None

    @property
    def targets(self) -> list[str]:
        """The paths of the adapted projections, in order: "layers/0/attn/q", ..."""
        return list(dict.fromkeys(path.rpartition("/lora/")[0] for path in self.arrays))

    def check(self, model_cls: type, config: Any) -> None:
        """Raise UserError unless they fit a model of that class and config."""
        shapes = _shapes(model_cls, config)
        for path, array in self.arrays.items():
            target, _, factor = path.rpartition("/lora/")
            if target not in shapes:
                raise UserError(f"{self.directory / WEIGHTS}: the base has no {target}, which is adapted there")
            wide = shapes[target][0 if factor == "a" else 1]
            wanted = (wide, self.rank) if factor == "a" else (self.rank, wide)
            if array.shape != wanted:
                raise UserError(
                    f"{self.directory / WEIGHTS}: {_their_name(path)} has shape {array.shape[::-1]}, the base and "
                    f"rank {self.rank} want {wanted[::-1]}"
                )


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a directory with adapters and no whole model."""
    path = Path(path)
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "config.json").is_file()


def load(path: str | os.PathLike) -> Adapter:
    """The adapters in a directory, float32.

    Raises UserError, naming the field or tensor, for a method other than plain LoRA, for adapters of anything but a
    Llama's projections, and for files that are damaged or do not agree.
    """
    directory = Path(path)
    about = files.safe_join(directory, CONFIG)
    content = files.read_json(about)
    rank, alpha = _plain(content, about)
    weights = files.existing(directory, WEIGHTS)
    if weights is None:
        raise UserError(f"{directory / WEIGHTS}: is missing; PEFT keeps the adapters there")
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in files.open_safetensors(weights).items():
        path_here = _our_path(name)
        if path_here is None:
            raise UserError(f"{weights}: {name} is no adapter of a Llama's projections, the ones zoo reads")
        if tensor.dtype.name not in base.FLOATS or len(tensor.shape) != 2:
            raise UserError(f"{weights}: {name} is no matrix of floating-point numbers")
        array = np.array(tensor.read(), np.float32).T
        if not base.all_finite(array):
            raise UserError(f"{weights}: {name} holds NaN or infinity; the adapters are damaged")
        arrays[path_here] = array
    for name in arrays:
        other = name[:-1] + ("b" if name.endswith("a") else "a")
        if other not in arrays:
            raise UserError(f"{weights}: {_their_name(other)} is missing")
    if not arrays:
        raise UserError(f"{weights}: holds no adapters")
    return Adapter(
        arrays=dict(sorted(arrays.items(), key=_order)),
        rank=rank,
        alpha=alpha,
        dropout=float(content.get("lora_dropout") or 0.0),
        base=content.get("base_model_name_or_path") or None,
        revision=content.get("revision") or None,
        directory=directory,
    )


def save(directory: str | os.PathLike, adapter: Adapter, *, num_layers: int) -> Path:
    """Write both files, as PeftModel.from_pretrained reads them; returns the path of the weights.

    `num_layers` is the model's.

    Raises UserError for adapters of a model that is no Llama, and for a directory that holds something else.
    """
    tensors = {_their_name(path): np.asarray(x, np.float32).T for path, x in adapter.arrays.items()}
    directory = Path(directory)
    if directory.exists() and not detect(directory) and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no {CONFIG}; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": _their_targets(adapter, num_layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    files.save_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})
    atomic_write(directory / CONFIG, json.dumps(content, indent=2) + "\n")
    return directory / WEIGHTS


def _plain(content: Mapping[str, Any], about: Path) -> tuple[int, float]:
    """Rank and alpha. UserError, naming the field, unless the config describes plain LoRA."""
    kind = content.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{about}: peft_type is {kind!r}; zoo reads LORA")
    for name, neutral in NEUTRAL.items():
        value = content.get(name, neutral[0])
        if value not in neutral:
            raise UserError(
                f"{about}: {name} is {json.dumps(value)[:80]}, and zoo reads plain LoRA on the base as it is; merge "
                f"them in PEFT (merge_and_unload, save_pretrained) and load the whole model"
            )
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise UserError(f"{about}: r is {rank!r}, not a whole number of at least 1")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise UserError(f"{about}: lora_alpha is {alpha!r}, not a number above 0")
    dropout = content.get("lora_dropout") or 0.0
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{about}: lora_dropout is {dropout!r}, not a number from 0 to 1")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(content.get(name), str | None):
            raise UserError(f"{about}: {name} is {str(content[name])[:80]!r}, not a name")
    return rank, float(alpha)


def _our_path(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in LAYER_LINEARS:
        return None
    return f"layers/{int(match[1])}/{LAYER_LINEARS[match[2]]}/lora/{match[3].lower()}"


def _their_name(path: str) -> str:
    """PEFT's name of an adapter's matrix. UserError where the model is no Llama."""
    target, _, factor = path.rpartition("/lora/")
    return f"{PREFIX}{_their_module(target)}.lora_{factor.upper()}.weight"


def _their_module(target: str) -> str:
    _, number, *rest = target.split("/")
    theirs = {ours: name for name, ours in LAYER_LINEARS.items()}.get("/".join(rest))
    if not target.startswith("layers/") or theirs is None:
        raise UserError(f"{target}: PEFT's format is written of Llamas alone, and they have no such projection")
    return f"layers.{number}.{theirs}"


def _their_targets(adapter: Adapter, num_layers: int) -> list[str]:
    """`target_modules`: names of modules where every layer has them adapted, else whole paths."""
    modules = [_their_module(target) for target in adapter.targets]
    names: dict[str, int] = {}
    for module in modules:
        name = module.rpartition(".")[2]
        names[name] = names.get(name, 0) + 1
    everywhere = set(names.values()) == {num_layers}
    return sorted(names) if everywhere else [f"model.{module}" for module in modules]


def _shapes(model_cls: type, config: Any) -> dict[str, tuple[int, ...]]:
    from zoo.models import build

    _, abstract = build.abstract_params(model_cls, config)
    flat = build.flatten(abstract)
    return {path.removesuffix("/kernel"): leaf.shape for path, leaf in flat.items() if path.endswith("/kernel")}


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    _, number, rest = item[0].split("/", 2)
    return int(number), rest


def _hub_files(names: Sequence[str]) -> list[str]:
    return sorted({CONFIG, WEIGHTS}) if {CONFIG, WEIGHTS} <= set(names) else []


FORMAT = Format(
    name="peft",
    detect=detect,
    open=load,
    own_dtypes=True,
    adapters=True,
    official=False,
    community=True,
    hub_files=(HubFiles(50, _hub_files),),
    opened_by="`peft.PeftModel.from_pretrained`",
)
