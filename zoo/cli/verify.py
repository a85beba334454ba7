"""`zoo verify NAME`."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `zoo list` with published weights.")],
    wikitext: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For gelu-d12: wikitext-103-raw-v1's test split (text, .jsonl or .parquet)."),
    ] = None,
) -> None:
    """Check downloaded weights against what their authors publish: size, and for gelu-d12 what it writes.

    Exit code 1 if anything differs.

    \b
    Example:
      zoo verify gelu-d12 --wikitext wiki.test.raw
    """
    from zoo.cli.convert import print_checks
    from zoo.evaluate import verification

    print_checks(verification.published(name, wikitext=wikitext))
