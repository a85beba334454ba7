"""The device mesh of a run, and batches laid on it."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor (all Auto) over `devices`.

    Args:
        config: the recipe's `mesh` section: one size an axis, of which one may be -1: it takes the devices that remain.
        devices: the devices to use; None means all of them.

    Raises:
        UserError: the sizes do not make up the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if open_axes:
        if len(devices) % fixed:
            raise UserError(
                f"mesh: {shown}: {len(devices)} device(s) cannot be shared out, {fixed} does not divide them; "
                f"choose sizes whose product divides {len(devices)}"
            )
        sizes[open_axes[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise UserError(
            f"mesh: {shown} makes {fixed} device(s), but there are {len(devices)}; "
            f"set one axis to -1 or choose sizes whose product is {len(devices)}"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


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
