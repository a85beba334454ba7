"""`zoo list`."""

from zoo.cli.common import print_columns


def list_models() -> None:
    """List the models of the registry.

    \b
    Example:
      zoo list
    """
    from zoo import registry

    rows = [("name", "parameters", "context", "licence", "summary")]
    for name in registry.list_models():
        spec = registry.describe(name)
        stated = [spec.facts.get(label, registry.NOT_STATED) for label in ("parameters", "context")]
        rows.append((name, *stated, spec.licence, spec.summary))
    print_columns(rows)
