"""The formats of nanochat in JAX (flaxchat, MIT; hub: mlnomad/gelu-d12-chinchilla-261M and -pytorch).

Four of them: the Hugging Face directory (config.json and model.safetensors, PyTorch's names and layouts), the Orbax
composite `<run>/<step>/{model,optimizer,metadata}` with `<run>/config.json` (Flax's names), a `.pt` file of config and
state_dict, and nanochat's own checkpoints (`zoo.convert.nanochat_own`).
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files, nanochat_hf, nanochat_names, nanochat_own
from zoo.convert.base import Published, Tensor
from zoo.convert.format import SAFETENSORS, Exported, Format, HubFiles, matching
from zoo.errors import UserError
from zoo.models import build
from zoo.util import first_line


def detect(path: str | os.PathLike) -> bool:
    """Returns whether `path` is one of the four: a directory, a run or step of Orbax, a file of torch.save or two."""
    path = Path(path)
    return (
        nanochat_own.find(path) is not None
        or nanochat_hf.detect(path)
        or _orbax_step(path) is not None
        or _is_torch(path)
    )


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`; no array is read. Raises UserError where it does not fit."""
    path = Path(path)
    if nanochat_hf.detect(path):
        return nanochat_hf.open_published(path)
    own = nanochat_own.find(path)
    if own is not None:
        return nanochat_own.open_published(own, _bare_tensors(own))
    step = _orbax_step(path)
    return _open_torch(path) if step is None else _open_orbax(step)


def write(model: Exported, directory: Path) -> None:
    """Writes the Orbax composite: `config.json` and `<step>/{model,metadata}`. The parameters keep their dtype.

    The format has no place for a tokenizer. Raises UserError for a model that flaxchat does not compute, and where
    that step is already there.
    """
    from zoo.convert import orbax_tree

    config, step = model.config, model.step or 0
    source_config = {**nanochat_names.source_config(config.to_dict()), "use_scan": False}
    for name in ("rope_base", "pad_vocab_size_to", "mlp"):  # hard-coded in the program that reads these
        source_config.pop(name)
    if config.rope_theta != 100000.0 or config.vocab_pad_multiple != 64:
        raise UserError("model.rope_theta, model.vocab_pad_multiple: the Orbax format knows 100000 and 64 alone")
    if config.activation != "gelu_tanh":
        raise UserError("model.activation: the Orbax format does not say it, and is read as gelu_tanh")
    if (directory / str(step)).exists():
        raise UserError(f"{directory / str(step)} is already there; choose another directory")
    arrays = base.to_original(nanochat_names.rules(config, flax=True), model.params)
    tree = build.unflatten({name.replace(".", "/"): array for name, array in arrays.items()})
    orbax_tree.save_composite(directory, step, tree, {"step": step, "model_config": source_config})
    files.write_json(directory / "config.json", {"model": source_config})


def _orbax_step(path: Path) -> Path | None:
    """Returns the directory of a step: `path` itself, or the highest one in it or in the runs it holds."""
    if not path.is_dir():
        return None
    if (path / "model" / "_METADATA").is_file():
        return path
    steps = (file.parents[1] for depth in ("*", "*/*") for file in path.glob(f"{depth}/model/_METADATA"))
    return max((step for step in steps if step.name.isdecimal()), key=lambda step: int(step.name), default=None)


def _is_torch(path: Path) -> bool:
    """Returns whether it is a zip that torch.save wrote."""
    return path.is_file() and any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in files.zip_names(path))


def _open_orbax(step: Path) -> Published:
    from zoo.convert import orbax_tree

    config_file, unstated = files.safe_join(step.parent, "config.json"), {}
    if config_file.is_file():
        source_config = files.read_json(config_file).get("model")
    else:
        config_file = files.safe_join(step, "metadata/metadata")
        source_config = files.read_json(config_file).get("model_config") if config_file.is_file() else None
        if isinstance(source_config, dict) and "mlp" not in source_config:
            # As flaxchat's own trainer writes it, whose MLP is ReLU squared on its main branch and GELU on another.
            names = " or ".join(f"activation={name!r}" for name in nanochat_names.ACTIVATIONS.values())
            unstated = {"activation": f"give {names}, as in zoo.load(path, activation=...)"}
    if not isinstance(source_config, dict):
        raise UserError(f"{step.parent / 'config.json'}: is missing, or has no section 'model'; fetch it as well")
    tensors = orbax_tree.open_tree(step / "model")
    config = nanochat_names.read_config(source_config, config_file, tensors)
    base.check_layers(config, tensors, step / "model")
    return Published(
        kind="gelu-d12, Orbax composite",
        file=step / "model",
        model_name=nanochat_names.MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=nanochat_names.rules(config, flax=True),
        step=int(step.name) if step.name.isdecimal() else None,
        ignored=frozenset(name for name in tensors if name in nanochat_names.TABLES),
        unstated=unstated,
    )


def _load_torch(file: Path) -> Any:
    """Returns what torch reads in a file: tensors, numbers, text and containers alone."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: was written by PyTorch, which reads it; pip install 'zoo-nnx[torch]'") from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, ... for what it refuses or cannot read
        raise UserError(f"{file}: refused by torch.load(weights_only=True): {first_line(error)}") from None


def _bare_tensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file that holds nothing else; of a compiled model's names the prefix is dropped."""
    content = _load_torch(file)
    import torch

    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{file}: holds something else than tensors by name")
    return {name.removeprefix("_orig_mod."): _from_torch(value) for name, value in content.items()}


def _open_torch(file: Path) -> Published:
    content = _load_torch(file)
    import torch

    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{file}: holds no 'config' of plain values beside its weights")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), None)
    if state is None or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no 'state_dict' of tensors")
    tensors = {name.removeprefix(nanochat_names.HF_PREFIX): _from_torch(value) for name, value in state.items()}
    config = nanochat_names.read_config(content["config"], file, tensors)
    base.check_layers(config, tensors, file)
    return Published(
        kind="gelu-d12, PyTorch file (config and state_dict)",
        file=file,
        model_name=nanochat_names.MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=nanochat_names.rules(config),
        step=content.get("step") if isinstance(content.get("step"), int) else None,
        ignored=frozenset(name for name in tensors if name in nanochat_names.TABLES),
    )


def _from_torch(tensor: Any) -> Tensor:
    import torch

    bfloat16 = tensor.dtype == torch.bfloat16
    dtypes = {torch.float32: "float32", torch.float16: "float16", torch.float64: "float64"}
    dtype = np.dtype("bfloat16" if bfloat16 else dtypes.get(tensor.dtype, "V1"))

    def read() -> np.ndarray:
        value = tensor.contiguous()
        return value.view(torch.uint16).numpy().view(dtype) if bfloat16 else value.numpy()

    return Tensor(tuple(tensor.shape), dtype, read)


def _hub_steps(listed: Sequence[str]) -> list[str]:
    """Returns the files of the newest Orbax step, without the optimizer's."""
    steps: dict[tuple[int, str], list[str]] = {}
    for name in listed:
        match = re.match(r"((?:[^/]+/)?)(\d+)/(model|metadata)/", name)
        if match:
            steps.setdefault((int(match[2]), match[1]), []).append(name)
    if not steps:
        return []
    step, folder = newest = max(steps)
    return [*steps[newest], *matching(listed, f"{folder}{step}/_CHECKPOINT_METADATA", f"{folder}config.json")]


def _hub_torch(listed: Sequence[str]) -> list[str]:
    """Returns the one PyTorch file of a repository, [] where there are none or several."""
    files_of_torch = matching(listed, "*.pt")
    return files_of_torch if len(files_of_torch) == 1 else []


FORMAT = Format(
    name="nanochat",
    detect=detect,
    open=open_published,
    write=write,
    model_name=nanochat_names.MODEL_NAME,
    hub_files=(SAFETENSORS, HubFiles(60, _hub_steps), HubFiles(80, _hub_torch)),
    opened_by="flaxchat",
)
