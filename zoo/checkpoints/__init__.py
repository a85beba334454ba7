"""Checkpoints: `manager` (which are kept, which is good), `orbax_io`, `pytree` and `storage`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.checkpoints.manager import Checkpoints

__all__ = ["Checkpoints"]


def __getattr__(name: str):
    if name != "Checkpoints":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zoo.checkpoints.manager import Checkpoints  # this imports JAX; `zoo.checkpoints.storage` alone does not

    return Checkpoints
