"""`zoo diff NAME NAME`."""

import shutil
import textwrap
from typing import Annotated

import typer


def diff(
    left: Annotated[str, typer.Argument(metavar="NAME", help="A name from `zoo list`.")],
    right: Annotated[str, typer.Argument(metavar="OTHER", help="Another one.")],
) -> None:
    """Show where two architectures differ: by named part, by config field, by size and cost.

    \b
    Examples:
      zoo diff gelu-d12 kodalite-1.3b
      zoo diff gelu-d12 nanochat-d12
    """
    from zoo import registry
    from zoo.models import differences
    from zoo.models.summary import summarize

    specs = [registry.describe(name) for name in (left, right)]
    configs = [spec.make_config() for spec in specs]
    summaries = [summarize(spec.model_class(), config) for spec, config in zip(specs, configs, strict=True)]
    sections = {
        "architecture": differences.differing_switches(*configs),
        "config": differences.differing_fields(*configs),
        "size and cost": differences.differing_costs(*summaries),
    }
    differing = {title: rows for title, rows in sections.items() if rows}
    for title, rows in differing.items():
        print(title)
        _print_side_by_side([("", left, right), *((row.name, row.left, row.right) for row in rows)])
        print()
    if not differing:
        print(f"{left} and {right}: the same architecture")


def _print_side_by_side(rows: list[tuple[str, str, str]]) -> None:
    """Prints three columns, of which the last two are wrapped to share the width of the terminal."""
    name_width = max(len(name) for name, _, _ in rows)
    room = (shutil.get_terminal_size((120, 24)).columns - name_width - 6) // 2
    width = min(max(room, 20), max(len(left) for _, left, _ in rows))
    for name, *texts in rows:
        cells = [textwrap.wrap(text, size) or [""] for text, size in zip(texts, (width, max(room, 20)), strict=True)]
        for i in range(max(map(len, cells))):
            here = [cell[i] if i < len(cell) else "" for cell in cells]
            print(f"  {name if i == 0 else '':{name_width}}  {here[0]:{width}}  {here[1]}".rstrip())
