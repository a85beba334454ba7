"""From documents to batches. The built-in corpora are importable from here: `from zoo.data import cronicas`."""

from typing import Any

from zoo import registry


def __getattr__(name: str) -> Any:
    if name in registry.CORPORA:
        return registry.corpus(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
