"""Whether a training step fits into the devices' memory, and which changes of the recipe make it fit."""

import math
from collections.abc import Callable, Iterator

from zoo.errors import UserError
from zoo.hardware.memory import common_memory
from zoo.train.memory import FILLED, SURELY_FITS
from zoo.train.mesh import make_mesh
from zoo.train.microbatch import microbatch_sizes
from zoo.train.program import Program
from zoo.util import human_gib

Change = tuple[str, Program]
"""Overrides of a recipe, "train.microbatch=8", and the program of the recipe with them."""


def check(program: Program, say: Callable[[str], None]) -> None:
    """Raises UserError where the step does not fit into the devices' memory, naming two changes with which it would.

    It is called before the first array is made, and compiles nothing where an estimate leaves much room. Evaluation is
    covered: it takes a microbatch's rows at a time, without the gradients and all that is saved for them.

    Args:
        program: what is to be trained.
        say: shows a line to the user.
    """
    device = program.mesh.devices.flat[0]
    limit = common_memory(list(program.mesh.devices.flat))
    batch, microbatch = program.recipe.data.batch_size, program.microbatch
    if program.recipe.train.microbatch == "auto":
        say(f"Microbatch: {microbatch.rows} of {batch} rows (auto: the largest that fits into a device's memory)")
    if limit is None:
        return
    step_bytes = microbatch.step_bytes
    if step_bytes is None:
        guess = program.estimated_memory(microbatch.rows)
        if guess is not None and guess <= SURELY_FITS * limit:
            return
        say("counting the memory of a step, by compiling it")
        step_bytes = program.compiled_memory()
    if step_bytes <= limit:
        say(f"Memory: a step takes {human_gib(step_bytes)} of {human_gib(limit)} on a device")
        return
    state = program.state_bytes
    remedies = "; or ".join(changes_that_fit(program, limit, step_bytes)) or more_devices(program, limit)
    raise UserError(
        f"train: a step takes {human_gib(step_bytes)} on each {device.device_kind}, which has {human_gib(limit)} "
        f"(parameters and optimizer alone {human_gib(state.params + state.optimizer)}); would fit: {remedies}"
    )


def changes_that_fit(
    program: Program,
    limit: float,
    total: float,
    *,
    number: int = 2,
    measure: Callable[[Program], float] = lambda program: program.compiled_memory(),
) -> list[str]:
    """Returns up to `number` changes of the recipe, as overrides, each of which makes the step fit into `limit`.

    Each has been tried. In this order: a smaller microbatch, more fsdp, less saved for the backward pass, moments in
    bfloat16, and then several of them together.

    Args:
        program: one whose step does not fit.
        limit: bytes of a device.
        total: bytes that its step takes, as `measure` counts them.
        number: how many to look for.
        measure: from a program to the bytes that its step takes.
    """
    changes: list[str] = []
    for choices in _promising_changes(program, limit, total):
        fitting = next((overrides for overrides, other in choices if measure(other) <= limit), None)
        if fitting is not None:
            changes.append(fitting)
        if len(changes) == number:
            break
    return changes


def more_devices(program: Program, limit: float) -> str:
    """Returns the advice where no change of the recipe helps: over how many devices to spread the state."""
    state = program.state_bytes
    devices = (state.params + state.optimizer + state.gradients) / (FILLED * limit)
    fsdp = program.mesh.shape["fsdp"] * 2 ** math.ceil(math.log2(max(devices, 1)) + 1)
    return f"mesh.fsdp={fsdp} on that many devices; or a smaller model"


def _promising_changes(program: Program, limit: float, total: float) -> Iterator[list[Change]]:
    """Yields changes worth compiling, by kind: the smallest that should fit by the estimate, and the largest."""
    estimate = program.estimated_memory(program.microbatch.rows)
    error = total / estimate if estimate and total < math.inf else 1.0

    def promising(other: Program) -> bool:
        guess = other.estimated_memory(other.microbatch.rows)
        return guess is None or guess * error <= limit

    def microbatches(base: Program) -> Iterator[Change]:
        for rows in microbatch_sizes(base.recipe.data.batch_size, base.mesh):
            if rows < program.microbatch.rows:
                yield f"train.microbatch={rows}", base.with_changes(train={"microbatch": rows})

    kinds = (microbatches, _more_fsdp, _less_saved, _narrower_moments)
    for kind in kinds:
        fitting = [change for change in kind(program) if promising(change[1])]
        yield fitting[:1] + fitting[1:][-1:]
    together, overrides = program, []
    for kind in kinds:
        if changes := list(kind(together)):
            override, together = changes[-1]
            overrides.append(override)
            if len(overrides) > 1 and promising(together):
                yield [(" ".join(overrides), together)]


def _more_fsdp(base: Program) -> Iterator[Change]:
    shape, written = base.mesh.shape, base.recipe.mesh
    for fsdp in range(2 * shape["fsdp"], base.mesh.size + 1, shape["fsdp"]):
        if shape["data"] * shape["fsdp"] % fsdp:
            continue
        sizes = {"data": shape["data"] * shape["fsdp"] // fsdp, "fsdp": fsdp, "tensor": shape["tensor"]}
        try:
            mesh = make_mesh(type(written)(**sizes), list(base.mesh.devices.flat))
            other = base.with_changes(mesh, mesh=sizes)
            other.params  # noqa: B018 - raises where the axes do not divide
        except UserError:
            continue
        if written.auto:
            yield f"mesh='{{{', '.join(f'{axis}: {size}' for axis, size in sizes.items())}}}'", other
        else:
            yield f"mesh.fsdp={fsdp}" + (f" mesh.data={sizes['data']}" if written.data != -1 else ""), other


def _less_saved(base: Program) -> Iterator[Change]:
    policies = ["none", "dots", "full"]
    for policy in policies[policies.index(base.recipe.train.remat) + 1 :]:
        yield f"train.remat={policy}", base.with_changes(train={"remat": policy})


def _narrower_moments(base: Program) -> Iterator[Change]:
    if base.recipe.optimizer.moments_dtype != "bfloat16":
        yield "optimizer.moments_dtype=bfloat16", base.with_changes(optimizer={"moments_dtype": "bfloat16"})
