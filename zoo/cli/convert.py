"""`zoo convert SRC DST --to FORMAT`."""

from pathlib import Path
from typing import Annotated

import typer

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A run, a directory, a file or a name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A directory that is not there yet.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="hf, gguf, mlx, cronica, bwetaf, nanochat, koda or tiny.")],
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

    from zoo import loading
    from zoo.language_model import load

    found = loading.find(source)
    stored = Counter(tensor.dtype.name for tensor in found.tensors()).most_common(1)[0][0]
    lm = load(source)
    own_types = to in ("gguf", "mlx")
    wanted = None if own_types else DTYPES.get(dtype, dtype) or stored
    if own_types and dtype is not None:
        wanted = dtype  # refused below, with the reason
    lm.export(target, to, name=name, dtype=wanted, quantization=quantization, bits=bits)
    print(f"{target}: written as {to}")
    if verify:
        _verify(lm, target, to, exact=wanted == "float32" or (wanted is not None and wanted == stored))


def _verify(lm, target: Path, to: str, *, exact: bool) -> None:
    from zoo import verification

    for tensor, digest in verification.hashes(target):
        print(f"  {digest[:16]}  {tensor}")
    print_checks(verification.written(lm, target, to, bound=verification.bound_for(lm, exact=exact)))


def print_checks(checks) -> None:
    """Print each as it comes; exit with 1 at the end if one is not well."""
    well = True
    for check in checks:
        print(f"{'ok ' if check.ok else 'BAD'}  {check.what}: {check.found}", flush=True)
        well = well and check.ok
    if not well:
        raise typer.Exit(1)
