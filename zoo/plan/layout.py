"""`mesh: auto`: a layout of the devices from the model's size, the optimizer and the devices' memory.

Rows of the batch alone are laid out (data) while everything fits so; then parameters, gradients and moments are laid
out as well (fsdp), over as few devices as it takes; heads and features (tensor) where fsdp cannot do it or the batch
has fewer rows than there are devices.
"""

from collections.abc import Callable, Iterator, Sequence

import jax

from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.recipe.training import MeshSection
from zoo.train import memory
from zoo.train.mesh import batch_share, check_batch_size, make_mesh
from zoo.train.program import Program


def make_mesh_for(
    recipe: Recipe, devices: Sequence[jax.Device] | None = None, *, say: Callable[[str], None] | None = None
) -> jax.sharding.Mesh:
    """The mesh of a recipe's run over `devices` (None: all there are), `say`ing why where it was chosen.

    Raises:
        UserError: sizes and devices, batch or the model's axes do not go together.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not recipe.mesh.auto:
        mesh = make_mesh(recipe.mesh, devices)
        check_batch_size(recipe.data.batch_size, mesh, recipe.train.microbatch)
        batch_share(mesh, devices[0].process_index)
        return mesh
    mesh, reason = choose(recipe, devices, memory.common_memory(devices))
    if say is not None:
        say(reason)
    return mesh


def choose(recipe: Recipe, devices: Sequence[jax.Device], limit: int | None) -> tuple[jax.sharding.Mesh, str]:
    """The first layout whose estimate fits into `limit` bytes of a device, else the one that takes least; and why.

    Raises:
        UserError: no layout divides the batch and the model's axes.
    """
    found: list[tuple[int, jax.sharding.Mesh]] = []
    refused: UserError | None = None
    for section in _layouts(len(devices)):
        try:
            mesh = make_mesh(section, devices)
            check_batch_size(recipe.data.batch_size, mesh, recipe.train.microbatch)
            batch_share(mesh, devices[0].process_index)
            program = Program(recipe.model_copy(update={"mesh": section}), mesh)
            program.params  # noqa: B018 - raises where the axes do not divide
            need = memory.estimate(program) or 0
        except UserError as error:
            refused = refused or error
            continue
        found.append((need, mesh))
        if limit is None or need <= memory.FILLED * limit:
            return mesh, _reason(found, limit, recipe)
    if not found:
        raise UserError(f"mesh: auto finds no layout of {len(devices)} devices: {refused}")
    return min(found, key=lambda pair: pair[0])[1], _reason(found, limit, recipe)


def _layouts(count: int) -> Iterator[MeshSection]:
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    for tensor in divisors:
        for fsdp in divisors:
            if count // tensor % fsdp == 0:
                yield MeshSection(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _reason(found: list[tuple[int, jax.sharding.Mesh]], limit: int | None, recipe: Recipe) -> str:
    need, mesh = found[-1]
    if limit is not None and need > memory.FILLED * limit:
        need, mesh = min(found, key=lambda pair: pair[0])
        why = f"no layout seems to fit; this one takes least, about {memory.gib(need)} of {memory.gib(limit)} a device"
    elif limit is None:
        why = "the devices' memory is not known"
    elif len(found) == 1:
        why = f"a step takes about {memory.gib(need)} of {memory.gib(limit)} a device"
    else:
        before = found[0]
        why = (
            f"a step takes about {memory.gib(need)} of {memory.gib(limit)} a device; {_shown(before[1])} would take "
            f"{memory.gib(before[0])}"
        )
    if mesh.shape["tensor"] > 1 and found[0][1].shape["tensor"] > 1:
        why += f"; {recipe.data.batch_size} rows, or the model's axes, do not divide by {mesh.size}"
    return f"Mesh: {_shown(mesh)} (auto: {why})"


def _shown(mesh: jax.sharding.Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
