"""Models out: directories and files that other programs open. See docs/checkpoints.md.

Everything is written beside the target first and renamed when it is whole, so that a refusal or a full disk leaves
nothing behind.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from jax.typing import DTypeLike

from zoo import convert, files
from zoo.convert import base
from zoo.convert.base import storage_dtype
from zoo.convert.format import Exported
from zoo.errors import UserError
from zoo.models import build
from zoo.weights import model_card

__all__ = ["Exported", "export"]


def export(
    model: Exported,
    directory: str | os.PathLike,
    format: str,
    *,
    dtype: DTypeLike | None = None,
    quantization: str | None = None,
    bits: int | None = None,
) -> Path:
    """Writes `model` into `directory`, which is created and must hold nothing yet; returns it.

    Args:
        format: a name or alias of `zoo.convert.FORMATS`.
        dtype: of the tensors written; None leaves them as they are. gguf and mlx have types of their own.
        quantization: of gguf: F16 (the default), Q8_0 or Q4_K_M.
        bits: of mlx: 8 or 4; None is float16.

    Raises:
        UserError: an unknown format, one that cannot express this model (with the reason), a directory that is
            not empty, an option that the format does not have. Nothing has been written then.
    """
    chosen = convert.find_format(format)
    if chosen.write is None:
        raise UserError(f"zoo writes no whole model in the format {chosen.name}")
    given = {name: value for name, value in (("quantization", quantization), ("bits", bits)) if value is not None}
    for option in given:
        if option not in chosen.options:
            owners = " and ".join(known.name for known in convert.FORMATS.values() if option in known.options)
            raise UserError(f"{option} is an option of the format {owners}, not of {chosen.name}")
    if dtype is not None:
        if chosen.own_dtypes:
            raise UserError(f"dtype is no option of the format {chosen.name}, which has types of its own")
        flat = base.cast(build.flatten(model.params), storage_dtype(dtype))
        model = replace(model, params=build.unflatten(flat))
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{directory} is there already and not empty; choose another directory")
    reason = chosen.refusal(model.config)
    if reason is not None:
        raise UserError(f"{model.spec.name} {reason}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    files.remove(staging)
    staging.mkdir()
    try:
        chosen.write(model, staging, **given)
        model_card.write(staging, model, chosen.name)
        if target.exists():
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Path(directory)
