"""`zoo inspect PATH`."""

import sys
from typing import Annotated

import typer

from zoo.cli.common import print_columns


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a directory, a run, or a name.")],
) -> None:
    """Show what weights are without loading them: kind, step, config, every tensor, and what does not fit.

    Needs no accelerator and reads no arrays. Exit code 1 if `zoo.load` would refuse them.

    \b
    Examples:
      zoo inspect runs/cronica_5m
      zoo inspect downloads/KodaLite-1.3B
    """
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes are all that is computed here
    from zoo.errors import UserError
    from zoo.language_model.model import check_belongs
    from zoo.weights import resolve

    try:
        weights = resolve.find(path)
        tensors, problems = weights.tensors(), weights.problems()
        text = weights.tokenizer()
        if text is not None:
            check_belongs(text, weights.config)
    except UserError as error:
        print(f"zoo inspect: would not load: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{weights.path}: {weights.kind}")
    tokenizer = weights.tokenizer_path or "none lies with the weights"
    step = "not stated" if weights.step is None else str(weights.step)
    print_columns([("  model", weights.spec.name), ("  step", step), ("  tokenizer", str(tokenizer))])
    print("config")
    print_columns([(f"  {name}", str(value)) for name, value in weights.config.to_dict().items()])
    print("tensors")
    ignored = weights.published.ignored if weights.published else frozenset()
    rows = [("  name", "shape", "dtype", "bytes")]
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        note = "  (not a parameter)" if tensor.name in ignored else ""
        rows.append((f"  {tensor.name}", shape, tensor.dtype.name, f"{tensor.bytes:,}{note}"))
    print_columns(rows)
    number = sum(tensor.elements for tensor in tensors if tensor.name not in ignored)
    print(f"{len(tensors)} tensors, {number:,} parameters, {sum(tensor.bytes for tensor in tensors):,} bytes")
    if problems:
        print(f"would not load as {weights.spec.name}:", file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"would load as {weights.spec.name}")
