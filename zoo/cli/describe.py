"""`zoo describe NAME`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import print_columns

if TYPE_CHECKING:
    from zoo.models.summary import Summary
    from zoo.registry import ModelSpec


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `zoo list`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Config fields that replace the registered ones."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show what is known of a model: what its authors publish, its architecture, its exact size and cost.

    Sizes are computed from shapes alone: nothing is downloaded or allocated. FLOPs are those of one token in
    rows as long as the context, attention counted for the keys a token really sees.

    \b
    Examples:
      zoo describe gelu-d12
      zoo describe gelu-d12 num_layers=4 window_pattern=L
      zoo describe kodalite-1.3b --json
    """
    from zoo import registry

    spec = registry.describe(name)
    given = _parse(overrides or ())

    from zoo.models.summary import summarize  # JAX comes in here, after the name is known to be good

    config = spec.make_config(**given)
    summary = summarize(spec.model_class(), config)
    if as_json:
        print(json.dumps(_as_dict(spec, config, given, summary), indent=2, ensure_ascii=False))
        return
    print(f"{spec.name}: {spec.summary}")
    print("\npublished" + (f" (of {spec.name} as registered, not of this variant)" if given else ""))
    _print_pairs(spec.published())
    if config.switches():
        print("\narchitecture")
        _print_pairs(config.switches())
    print("\nconfig")
    fields = config.to_dict()
    _print_pairs({field: f"{value} (given here)" if field in given else value for field, value in fields.items()})
    print()
    _print_components(summary)
    print()
    _print_cost(summary)


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    import yaml

    from zoo.errors import UserError

    given = {}
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals or not field:
            raise UserError(f"{override!r} is no override; write FIELD=VALUE, for example num_layers=4")
        try:
            given[field] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise UserError(f"{field}: cannot read the value {text!r}; write a number, true, false or a word") from None
    return given


def _as_dict(spec: "ModelSpec", config: Any, given: dict[str, Any], summary: "Summary") -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "overrides": given,
        "published": spec.published(),
        "switches": config.switches(),
        "config": config.to_dict(),
        **summary.to_dict(),
    }


def _print_pairs(pairs: dict[str, Any]) -> None:
    print_columns([(f"  {label}", str(value)) for label, value in pairs.items()])


def _print_components(summary: "Summary") -> None:
    rows = [("component", "shape", "layers", "parameters", "share", "MFLOP a token")]
    for part in summary.components:
        share = f"{part.parameters / summary.parameters:.1%}" if part.tensors else ""
        count = f"{part.parameters:,}" if part.tensors else ""
        rows.append((part.name, "", "", count, share, f"{part.flops / 1e6:,.3f}" if part.flops else ""))
        for tensors in part.tensors:
            shape = " x ".join(map(str, tensors.shape)) or "scalar"
            layers = str(tensors.count) if "*" in tensors.path else ""
            rows.append((f"  {tensors.path}", shape, layers, f"{tensors.parameters:,}", "", ""))
    rows.append(("total", "", "", f"{summary.parameters:,}", "100.0%", f"{summary.flops_forward / 1e6:,.3f}"))
    _print_table(rows, left=2)


def _print_cost(summary: "Summary") -> None:
    forward, training = summary.flops_forward, summary.flops_training
    print(f"FLOPs a token in rows of {summary.seq_len:,}: {forward:,.0f} forward, {training:,.0f} in training\n")
    caches = summary.cache.values()
    if not caches:
        print("KV cache: the model has none")
        return
    rows = [("KV cache of one row, bytes", *summary.cache)]
    rows.append(("a token", *(f"{size.first_token:,}" for size in caches)))
    if any(size.last_token != size.first_token for size in caches):
        rows.append(("a token once the windows are full", *(f"{size.last_token:,}" for size in caches)))
    rows.append((f"the full context of {summary.seq_len:,}", *(f"{size.full:,}" for size in caches)))
    _print_table(rows, left=1)


def _print_table(rows: Sequence[Sequence[str]], *, left: int) -> None:
    """Prints aligned columns: the first `left` of them to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        print("  ".join(f"{cell:{'<' if i < left else '>'}{width}}" for i, (cell, width) in cells).rstrip())
