"""zoo: a Flax NNX model zoo. `zoo.load`, `zoo.create`, `zoo.list_models`, `zoo.describe`, `zoo.register`.

Nothing heavy is imported until it is used: `import zoo` alone loads no JAX.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

_LAZY = {
    "load": "zoo.language_model",
    "create": "zoo.language_model",
    "LanguageModel": "zoo.language_model",
    "Generation": "zoo.language_model",
    "list_models": "zoo.registry",
    "describe": "zoo.registry",
    "register": "zoo.registry",
    "ModelSpec": "zoo.registry",
    "UserError": "zoo.errors",
}
__all__ = [
    "Generation",
    "LanguageModel",
    "ModelSpec",
    "UserError",
    "create",
    "describe",
    "list_models",
    "load",
    "register",
]

if TYPE_CHECKING:
    from zoo.errors import UserError
    from zoo.language_model import Generation, LanguageModel, create, load
    from zoo.registry import ModelSpec, describe, list_models, register


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__():
    return [*globals(), *__all__]
