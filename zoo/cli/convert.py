"""`zoo convert SRC DST --to FORMAT`."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.convert import FORMATS  # the names alone: no format's module is imported

NAMES = ", ".join(FORMATS).replace("peft", "peft (adapters alone)")


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A run, a directory, a file or a name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A directory that is not there yet.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help=f"One of {NAMES}.")],
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32. Default: as the source stores them.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Of gguf: F16 (default), Q8_0 or Q4_K_M.")] = None,
    bits: Annotated[int | None, typer.Option(help="Of mlx: 8 or 4. Default: float16.")] = None,
    name: Annotated[str | None, typer.Option(help="In the model card. Default: the registry's.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the result back and compare.")] = False,
) -> None:
    """Write a model in another program's format, with a model card.

    --verify prints how far logits differ and the SHA-256 of every tensor, and exits with 1 if they differ too much.

    \b
    Examples:
      zoo convert runs/cronica_5m out/cronica-hf --to hf --verify
      zoo convert YoAbriel/KodaLite-1.3B out/koda --to gguf --quantization Q8_0
    """
    from collections import Counter

    from zoo.convert import find_format
    from zoo.convert.base import DTYPES, storage_dtype
    from zoo.language_model import load
    from zoo.weights import resolve

    wanted = None if dtype is None else storage_dtype(dtype, "--dtype").name
    format = find_format(to)
    to = format.name
    found = resolve.find(source)
    stored = Counter(tensor.dtype.name for tensor in found.tensors()).most_common(1)[0][0]
    stored = stored if stored in DTYPES else "float32"
    lm = load(source)
    if wanted is None and not format.own_dtypes:
        wanted = stored
    lm.export(target, to, name=name, dtype=wanted, quantization=quantization, bits=bits)
    print(f"{target}: written as {to}")
    if verify:
        _verify(lm, target, to, "float32" if to == "peft" else wanted, stored)


def _verify(lm, target: Path, to: str, dtype: str | None, stored: str) -> None:
    from zoo.evaluate import verification

    for tensor, digest in verification.hashes(target):
        print(f"  {digest[:16]}  {tensor}")
    bound = verification.bound_for(lm, exact=dtype in ("float32", stored))
    print_checks(verification.written(lm, target, to, bound=bound, dtype=dtype))


def print_checks(checks) -> None:
    """Print each as it comes; exit with 1 at the end if one is not well."""
    well = True
    for check in checks:
        print(f"{'ok ' if check.ok else 'BAD'}  {check.what}: {check.found}", flush=True)
        well = well and check.ok
    if not well:
        raise typer.Exit(1)
