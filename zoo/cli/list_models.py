"""`zoo list`."""

from zoo.cli.common import print_columns


def list_models() -> None:
    """List the models of the registry, with what is published of them.

    Tokens a parameter are those of the whole training, beside the 20 that count as plenty.

    \b
    Example:
      zoo list
    """
    from zoo import registry

    rows = [("name", "parameters", "tokens a parameter", "licence", "summary")]
    for name in registry.list_models():
        spec = registry.describe(name)
        parameters = spec.facts.get("parameters", registry.NOT_STATED)
        rows.append((name, parameters, spec.tokens_per_param_text, spec.licence, spec.summary))
    print_columns(rows)
