"""The device mesh of a run, and how the rows of batches are laid on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError
from zoo.layers.sharding import BATCH_AXES

AXES = (*BATCH_AXES, "tensor")


def make_mesh(config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes data, fsdp and tensor, all of type Auto.

    Args:
        config: a recipe's `mesh` section with sizes, see `axis_sizes`; `zoo.plan.layout.make_mesh_for` chooses the
            sizes of `mesh: auto`.
        devices: the devices to use; None: all there are.

    Raises:
        UserError: the product of the sizes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(config, num_devices: int) -> tuple[int, ...]:
    """Returns the sizes of data, fsdp and tensor, where a size of -1 in `config` is what the others leave.

    Raises:
        UserError: the product of the sizes is not the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and num_devices % fixed == 0:
        sizes[open_axes[0]] = num_devices // fixed
    elif fixed != num_devices:
        remedy = "" if open_axes else "set one axis to -1 or "
        raise UserError(
            f"mesh: {shown} cannot be laid over {num_devices} device(s); "
            f"{remedy}choose sizes whose product {'divides' if open_axes else 'is'} {num_devices}"
        )
    return tuple(sizes.values())


def check_batch_size(batch_size: int, mesh: Mesh, microbatch: int | str | None = None) -> None:
    """Raises UserError where the rows cannot be divided evenly over the (data, fsdp) axes.

    Args:
        batch_size: `data.batch_size`.
        mesh: from `make_mesh`.
        microbatch: `train.microbatch`.
    """
    shards = num_row_shards(mesh)
    for field, rows in (("data.batch_size", batch_size), ("train.microbatch", microbatch)):
        if isinstance(rows, int) and rows % shards:
            raise UserError(
                f"{field}: {rows} rows cannot be shared out over mesh data {mesh.shape['data']} x fsdp "
                f"{mesh.shape['fsdp']}; take a multiple of {shards}"
            )


def num_row_shards(mesh: Mesh) -> int:
    """Returns the number of parts in which the rows of a batch lie on the mesh."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Returns (index, count): which of how many equal shares of a batch's rows a process loads for the mesh.

    A share is the rows that one process's devices hold, wherever they are in the global array. Processes whose devices
    hold the same rows, along a tensor axis that crosses them, have the same share.

    Args:
        mesh: from `make_mesh`.
        process: its index; None: this one.

    Raises:
        UserError: two processes hold rows that partly overlap, or different numbers of them.
    """
    held: dict[int, set[int]] = {}  # process: shards of the rows
    for (data, fsdp, _), device in np.ndenumerate(mesh.devices):
        held.setdefault(device.process_index, set()).add(data * mesh.shape["fsdp"] + fsdp)
    shares = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) > num_row_shards(mesh):
        shown = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise UserError(
            f"mesh: {shown} gives the {len(held)} processes rows of the batch that partly overlap; choose a tensor "
            f"size that divides a process's {mesh.devices.size // len(held)} devices, or is a multiple of them"
        )
    own = held[jax.process_index() if process is None else process]
    return shares.index(tuple(sorted(own))), len(shares)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a batch as global arrays [B, T], sharded over (data, fsdp).

    Args:
        batch: arrays [rows, T] of this process's rows, see `batch_share`.
        mesh: from `make_mesh`.
    """
    rows = NamedSharding(mesh, P(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def own_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """Returns this process's rows for `put_batch` of a whole batch, arrays [B, T], that every process has made."""
    index, count = batch_share(mesh)
    return {name: np.split(array, count)[index] for name, array in batch.items()}


def split_rows(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """Splits an array [B, ...], sharded over (data, fsdp), into [parts, B / parts, ...], sharded on its second axis.

    Every device splits the rows it holds, so no data move: part i has the i-th rows of each shard. B must be a multiple
    of parts times the number of shards.
    """
    shards, rest = num_row_shards(mesh), x.shape[1:]
    x = x.reshape(shards, parts, -1, *rest).swapaxes(0, 1)
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
    x = x.reshape(parts, -1, *rest)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
