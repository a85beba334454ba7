"""`mesh: auto`: a layout of the devices from the model's size, the optimizer and the devices' memory.

Rows of the batch alone are laid out (data) while everything fits so; then parameters, gradients and moments are laid
out as well (fsdp), over as few devices as it takes; heads and features (tensor) where fsdp cannot do it or the batch
has fewer rows than there are devices.
"""

from collections.abc import Callable, Iterator, Sequence

import jax

from zoo.errors import UserError
from zoo.hardware.memory import common_memory
from zoo.recipe import Recipe
from zoo.recipe.training import MeshSection
from zoo.train.memory import FILLED
from zoo.train.mesh import batch_share, check_batch_size, make_mesh
from zoo.train.program import Program
from zoo.util import human_gib


def make_mesh_for(
    recipe: Recipe, devices: Sequence[jax.Device] | None = None, *, say: Callable[[str], None] | None = None
) -> jax.sharding.Mesh:
    """Returns the mesh of a recipe's run.

    Args:
        recipe: its `mesh` section gives the sizes, or leaves them open (`auto`).
        devices: the devices to lay out; None takes all there are.
        say: shows the user which layout was chosen and why, where the recipe leaves it open.

    Raises:
        UserError: sizes and devices, batch or the model's axes do not go together.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not recipe.mesh.auto:
        mesh = make_mesh(recipe.mesh, devices)
        check_batch_size(recipe.data.batch_size, mesh, recipe.train.microbatch)
        batch_share(mesh, devices[0].process_index)
        return mesh
    mesh, reason = choose(recipe, devices, common_memory(devices))
    if say is not None:
        say(reason)
    return mesh


def choose(recipe: Recipe, devices: Sequence[jax.Device], limit: int | None) -> tuple[jax.sharding.Mesh, str]:
    """Returns the first layout whose estimate fits into `limit` bytes of a device, else the smallest, and why it.

    Raises:
        UserError: no layout divides the batch and the model's axes.
    """
    tried: list[tuple[int, jax.sharding.Mesh]] = []
    refused: UserError | None = None
    for section in _layouts(len(devices)):
        try:
            mesh = make_mesh(section, devices)
            check_batch_size(recipe.data.batch_size, mesh, recipe.train.microbatch)
            batch_share(mesh, devices[0].process_index)
            program = Program(recipe.model_copy(update={"mesh": section}), mesh)
            program.params  # noqa: B018 - raises where the axes do not divide
            need = program.estimated_memory() or 0
        except UserError as error:
            refused = refused or error
            continue
        tried.append((need, mesh))
        if limit is None or need <= FILLED * limit:
            return mesh, _reason(tried, limit, recipe)
    if not tried:
        raise UserError(f"mesh: auto finds no layout of {len(devices)} devices: {refused}")
    return min(tried, key=lambda pair: pair[0])[1], _reason(tried, limit, recipe)


def _layouts(count: int) -> Iterator[MeshSection]:
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    for tensor in divisors:
        for fsdp in divisors:
            if count // tensor % fsdp == 0:
                yield MeshSection(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _reason(tried: list[tuple[int, jax.sharding.Mesh]], limit: int | None, recipe: Recipe) -> str:
    need, mesh = tried[-1]
    if limit is not None and need > FILLED * limit:
        need, mesh = min(tried, key=lambda pair: pair[0])
        why = f"no layout seems to fit; this one takes least, about {human_gib(need)} of {human_gib(limit)} a device"
    elif limit is None:
        why = "the devices' memory is not known"
    elif len(tried) == 1:
        why = f"a step takes about {human_gib(need)} of {human_gib(limit)} a device"
    else:
        first = tried[0]
        why = (
            f"a step takes about {human_gib(need)} of {human_gib(limit)} a device; {_sizes(first[1])} would take "
            f"{human_gib(first[0])}"
        )
    if mesh.shape["tensor"] > 1 and tried[0][1].shape["tensor"] > 1:
        why += f"; {recipe.data.batch_size} rows, or the model's axes, do not divide by {mesh.size}"
    return f"Mesh: {_sizes(mesh)} (auto: {why})"


def _sizes(mesh: jax.sharding.Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
