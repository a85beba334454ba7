"""`zoo list`."""

from typing import TYPE_CHECKING

from zoo.cli.common import print_columns

if TYPE_CHECKING:
    from zoo import registry


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
        parameters = spec.facts.get("parameters") or _count(spec)
        rows.append((name, parameters, spec.tokens_per_param_text, spec.licence, spec.summary))
    print_columns(rows)


def _count(spec: "registry.ModelSpec") -> str:
    """Returns the number of parameters, counted, of a model whose spec does not state it."""
    from zoo.models.summary import summarize  # imports JAX

    return f"{summarize(spec.model_class(), spec.make_config()).parameters:,}"
