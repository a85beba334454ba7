"""`zoo describe NAME`."""

import dataclasses
from typing import Annotated

import typer

from zoo.cli.common import print_columns


def describe(name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `zoo list`.")]) -> None:
    """Show what is known of a model: its config, its exact size, what its authors publish.

    \b
    Example:
      zoo describe cronica-5m
    """
    from zoo import registry

    spec = registry.describe(name)
    config = dataclasses.asdict(spec.make_config())
    print(f"{spec.name}: {spec.summary}\n")
    published = {
        "tokenizer": spec.tokenizer,
        "source": spec.source,
        "licence": spec.licence,
        "dataset": spec.dataset,
        **spec.facts,
    }
    published.pop("parameters", None)  # counted below, exactly
    print_columns([("parameters", f"{spec.num_params:,} (counted from the shapes)"), *published.items()])
    print("\nconfig")
    print_columns([(f"  {field}", str(value)) for field, value in config.items()])
