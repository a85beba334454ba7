"""Checkpoints: `manager` saves and restores, `directory` knows which stay, `orbax_io` writes and reads one of them,
`pytree` has checksums and host snapshots, `storage` directories that are local or remote.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.checkpoints.manager import Checkpoints

__all__ = ["Checkpoints"]


def __getattr__(name: str):
    if name != "Checkpoints":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zoo.checkpoints.manager import Checkpoints  # imports JAX, which `zoo.checkpoints.storage` does without

    return Checkpoints
