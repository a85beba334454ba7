"""zoo's own portable directory: `zoo.json`, `model.safetensors` and `tokenizer/`, as `lm.save` writes it.

zoo.json is {"format": version, "model": registry name, "config": {...}, "tokenizer": "tokenizer" or null}; the
tensors are named by the parameters' paths, "layers/0/attn/q/kernel".
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry
from zoo.convert import base, files
from zoo.convert.base import Published, Rule
from zoo.convert.format import Exported, Format, HubFiles, matching
from zoo.errors import UserError
from zoo.models import build

VERSION = 1
CONFIG_FILE, TOKENIZER_DIR = "zoo.json", "tokenizer"


def detect(path: str | os.PathLike) -> bool:
    """Returns whether `path` is a directory with a zoo.json."""
    return (Path(path) / CONFIG_FILE).is_file()


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`; no array is read. Raises UserError for another version or a config that is none."""
    directory = Path(path)
    file = files.safe_join(directory, CONFIG_FILE)
    content = files.read_json(file)
    missing = [name for name in ("format", "model", "config") if name not in content]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}; it does not describe a portable model")
    version, name, values = content["format"], content["model"], content["config"]
    if version != VERSION:
        raise UserError(f"{file}: format {version!r}; this version reads {VERSION}: install the zoo that wrote it")
    if not isinstance(name, str):
        raise UserError(f"{file}: its model is {json.dumps(name)[:80]}, not a name")
    if not isinstance(values, dict):
        raise UserError(f"{file}: its config is no object with fields")
    config = base.full_config(name, values)
    weights = files.existing(directory, files.SINGLE)
    if weights is None:
        raise UserError(f"{directory / files.SINGLE}: is missing; a portable model has its weights there")
    tensors = files.open_safetensors(weights)
    if name in registry.BUILT_IN:  # others may keep all layers in one tensor
        base.check_layers(config, tensors, weights)
    tokenizer = content.get("tokenizer")
    eos_ids = base.eos_ids_of(file, content)
    published = Published(
        kind="zoo's portable directory",
        file=weights,
        model_name=name,
        config=config,
        tensors=tensors,
        rules={},
        tokenizer_path=files.safe_join(directory, str(tokenizer)) if tokenizer else None,
        eos_ids=eos_ids,
    )
    return replace(published, rules={path: Rule(path) for path in published.shapes})


def save(
    directory: str | os.PathLike,
    *,
    name: str,
    config: Any,
    params: Any,
    tokenizer: Any = None,
    foreign: bool = False,
    eos_ids: Sequence[int] = (),
) -> None:
    """Writes the directory. The parameters keep their dtype.

    Args:
        directory: is created; may hold an older portable model.
        name: the registered model's.
        config, params: of that model's class.
        tokenizer: a `zoo.tokenizers.base.Tokenizer` or None.
        foreign: whether it is a Llama that is neither the registry's nor zoo's; zoo.json then says so.
        eos_ids: see `Published.eos_ids`; zoo.json then has them as "eos_token_id".

    Raises:
        UserError: there is something else in the directory.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose a directory")
    if directory.exists() and not (directory / CONFIG_FILE).is_file() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no {CONFIG_FILE}; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    files.save_safetensors(
        directory / files.SINGLE, {path: np.asarray(leaf) for path, leaf in build.flatten(params).items()}
    )
    if tokenizer is not None:
        tokenizer.save(directory / TOKENIZER_DIR)
    content = {
        "format": VERSION,
        "model": registry.describe(name).name,
        "config": config.to_dict(),
        "tokenizer": None if tokenizer is None else TOKENIZER_DIR,
        **({"foreign": True} if foreign else {}),
        **({"eos_token_id": list(eos_ids)} if eos_ids else {}),
    }
    files.write_json(directory / CONFIG_FILE, content)


def _write(model: Exported, directory: Path) -> None:
    save(
        directory,
        name=model.spec.name,
        config=model.config,
        params=model.params,
        tokenizer=model.tokenizer,
        foreign=model.is_community_model,
        eos_ids=model.eos_ids,
    )


def _hub_files(names: Sequence[str]) -> list[str]:
    return matching(names, CONFIG_FILE, files.SINGLE, f"{TOKENIZER_DIR}/*") if CONFIG_FILE in names else []


FORMAT = Format(
    name="portable",
    detect=detect,
    open=open_published,
    write=_write,
    official=False,
    hub_files=(HubFiles(0, _hub_files),),
    tokenizer_file=f"{TOKENIZER_DIR}/tokenizer.json",
    opened_by="`zoo.load`",
    library="zoo",
)
