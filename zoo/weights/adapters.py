"""A model's adapters on their own, in PEFT's format, with the name of the weights that they are for."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from zoo.convert import peft
from zoo.errors import UserError
from zoo.layers import lora
from zoo.models.config import ModelConfig
from zoo.weights import resolve
from zoo.weights.sources import Weights

REMEDY = "and adapters alone cannot say it; take another format (hf, gguf, mlx), which has them merged"


def export(
    directory: str | os.PathLike,
    module: nnx.Module,
    config: ModelConfig,
    origin: Weights | None,
    *,
    merged: bool = False,
    **options: Any,
) -> Path:
    """Writes the adapters of `module` into `directory`, which is created; returns it.

    Args:
        origin: what the model was loaded from; None for random weights.
        merged: whether adapters of `origin` were added to the model's weights since.
        options: those of other formats; all must be None.

    Raises:
        UserError: the model has no adapters, or such as PEFT's format cannot hold; base and adapters together are not
            this model. Nothing has been written then.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"format peft takes no {' or '.join(given)}: adapters are float32, and have no card")
    adapters = lora.adapters(module)
    kinds = {(adapter.rank, adapter.alpha, adapter.dropout) for adapter in adapters.values()}
    if len(kinds) != 1:
        raise UserError("format peft: " + ("adapters of several ranks" if kinds else "this model has no adapters"))
    rank, alpha, dropout = kinds.pop()
    arrays = {
        f"{path}/lora/{factor}": np.asarray(getattr(adapter, factor)[...])
        for path, adapter in adapters.items()
        for factor in ("a", "b")
    }
    base = None if origin is None else _base(origin, config, merged)
    name, revision = (None, None) if base is None else (base.name, base.revision)
    adapter = peft.Adapter(arrays, rank, alpha, dropout, base=name, revision=revision)
    peft.save(directory, adapter, num_layers=config.num_layers)
    return Path(directory)


def _base(origin: Weights, config: ModelConfig, merged: bool) -> Weights | None:
    """Returns the weights that the adapters are for; None where no file holds them.

    Raises UserError where the two together are another model.
    """
    if merged:
        raise UserError(
            "format peft: the adapters are for weights that others were merged into; save that model, load it and "
            "adapt it then"
        )
    changed = origin.non_adapter_changes
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise UserError(f"format peft: {changed[0]}{more} are not the base's (train.trainable, from.partial), {REMEDY}")
    base = origin.base
    if base is None:
        return None
    # Opened again, as the files have it, without the config fields given to `zoo.load`. max_seq_len computes nothing.
    base_config = resolve.find(base.name, revision=base.revision).config.to_dict()
    for name, value in config.to_dict().items():
        if name != "max_seq_len" and value != base_config.get(name):
            raise UserError(
                f"format peft: model.{name} is {value} here, {base_config.get(name)} in the base {base.name}, {REMEDY}"
            )
    return base
