"""`zoo merge RUN --out DIR`."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run that trained adapters, or adapters of PEFT.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A directory that is not there yet.")],
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32. Default: as the run keeps its weights.")
    ] = None,
) -> None:
    """Add a model's adapters to its weights and write a portable directory, which every command reads.

    \b
    Examples:
      zoo merge runs/kodalite_1b_sft --out out/kodalite-sft
      zoo merge runs/kodalite_1b_sft@500 --out out/kodalite-sft --dtype bf16
    """
    from zoo.convert.base import storage_dtype
    from zoo.errors import UserError
    from zoo.language_model import load
    from zoo.weights import resolve, sources

    wanted = None if dtype is None else storage_dtype(dtype, "--dtype")
    found = resolve.find(source)
    if found.lora is None:
        raise UserError(f"{source}: has no adapters to merge; `zoo convert` writes it in other formats")
    if out.exists():
        raise UserError(f"{out} is there already; choose another directory")
    kept = found.recipe.train.param_dtype if isinstance(found, sources.RunWeights) else "float32"
    load(source).save(out, dtype=wanted or kept)  # merged in float32, rounded once
    print(f"{out}: written, adapters of rank {found.lora.rank} merged")
