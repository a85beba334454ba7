"""The device mesh of a run, and batches laid on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor (all Auto) over `devices` (None: all there are).

    Args:
        config: the recipe's `mesh` section, see `axis_sizes`.
        devices: the devices to use.

    Raises:
        UserError: the sizes do not make up the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(config, num_devices: int) -> tuple[int, ...]:
    """The sizes of data, fsdp and tensor; the one that is -1 in `config` takes the devices the others leave."""
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


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError where `data.batch_size` rows cannot be shared out evenly over the (data, fsdp) axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise UserError(
            f"data.batch_size: {batch_size} rows cannot be shared out over mesh data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}; take a multiple of {shards}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch ([rows, T] each), as parts of global arrays [B, T] laid over (data, fsdp)."""
    rows = NamedSharding(mesh, P(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}
