"""Logical axes of arrays and the axes of the mesh `data, fsdp, tensor` over which they are split.

The metadata of a parameter has `axes` (a logical name for each axis) and optionally `units` (how many neighbours along
each axis stay together on one device). `param_shardings` maps them to a mesh, both for creating parameters and for
restoring them; `constrain` pins activations.
"""

import logging
import math

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from zoo.errors import UserError

logger = logging.getLogger(__name__)

# The mesh axes that the rows of a batch lie on.
BATCH_AXES = ("data", "fsdp")
# "embed" is the embed axis of parameters, "features" that of activations.
RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "length": (),
    "features": (),
    "norm": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "positions": (),
    # Tables of value embeddings are most of a model that has them: every device keeps its part of them.
    "value_vocab": (),
    "value_features": ("fsdp", "tensor"),
    "gate_features": (),
    "lora_rank": (),
    "scalar": (),
}
# The published model fixes the sizes of these axes, so they are replicated on a mesh that does not divide them.
REPLICATED_WHEN_INDIVISIBLE = ("vocab", "kv_heads")


def _mesh_axes(axis: str, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    if axis not in RULES:
        raise UserError(f"logical axis {axis!r} has no sharding rule; known: {', '.join(RULES)}")
    return tuple(name for name in RULES[axis] if name in mesh.shape)


def partition_spec(
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    *,
    units: tuple[int, ...] | None = None,
    name: str = "parameter",
) -> PartitionSpec:
    """Returns the partition over `mesh` of an array with these logical `axes` and this `shape`.

    A vocabulary or kv_heads axis that the mesh does not divide is replicated, which is logged.

    Args:
        units: how many neighbours along each axis stay on one device (head_dim for an axis of heads): the mesh must
            divide shape[i] / units[i].
        name: what errors and the log call the array.

    Raises:
        UserError: any other axis that the mesh does not divide, or an axis without a rule.
    """
    entries = []
    for axis, size, unit in zip(axes, shape, units or (1,) * len(shape), strict=True):
        chosen = _mesh_axes(axis, mesh)
        ways = math.prod(mesh.shape[a] for a in chosen)
        count = size // unit
        if count % ways:
            if axis not in REPLICATED_WHEN_INDIVISIBLE:
                raise UserError(
                    f"{name}: axis {axis!r} has {count} parts, which mesh axis {'x'.join(chosen)} of size "
                    f"{ways} does not divide; choose a mesh size that divides {count}"
                )
            logger.info("%s: axis %r (%d) is replicated: %d devices do not divide it", name, axis, count, ways)
            chosen = ()
        entries.append(chosen if len(chosen) > 1 else chosen[0] if chosen else None)
    return PartitionSpec(*entries)


def param_shardings(state: nnx.State, mesh: Mesh | AbstractMesh) -> dict:
    """Returns the sharding of every parameter of `state` (abstract or not) on `mesh`, as the same nested dict.

    Raises UserError as `partition_spec` does.
    """
    shardings = nnx.to_pure_dict(state)
    for path, param in nnx.to_flat_state(state):
        metadata = param.get_metadata()
        name = "/".join(map(str, path))
        spec = partition_spec(metadata["axes"], param.shape, mesh, units=metadata.get("units"), name=name)
        node = shardings
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = NamedSharding(mesh, spec)
    return shardings


def constrain(x: Shaped[Array, "..."], axes: tuple[str, ...]) -> Shaped[Array, "..."]:
    """Returns `x` pinned to the sharding of its logical `axes` on the ambient mesh (`jax.set_mesh`), if there is one.

    An axis that the mesh does not divide (twelve prompts on eight devices, say) is left unsharded.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    entries = []
    for axis, size in zip(axes, x.shape, strict=True):
        chosen = _mesh_axes(axis, mesh)
        fits = size % math.prod(mesh.shape[a] for a in chosen) == 0
        entries.append(chosen if fits and chosen else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
