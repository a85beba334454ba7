"""What a run sets up on its devices: flags, the mesh, a check that the program fits, and compiling in step."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo import registry
from zoo.distributed import runtime
from zoo.errors import UserError
from zoo.hardware import cpu
from zoo.layers.cpu import multiplies_bfloat16
from zoo.models import build
from zoo.plan import fit
from zoo.plan.layout import make_mesh_for
from zoo.recipe import Recipe
from zoo.train.logging.boards import check_boards
from zoo.train.program import Program
from zoo.train.step import TrainStep
from zoo.train.trainer import StepFn


def set_flags(recipe: Recipe) -> None:
    """Sets what JAX reads when it first looks for devices; a process that has done so already keeps its settings."""
    flag, flags = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "")
    if recipe.train.deterministic and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    if not runtime.active():
        cpu.compute_in_calling_thread()


def make_mesh(recipe: Recipe, say: Callable[[str], None]) -> jax.sharding.Mesh:
    """Returns the run's mesh over all devices.

    Raises:
        UserError: model, batch and devices do not fit together; this process does not know of the others; or a
            package for logging is missing.
    """
    if jax.process_count() > 1 and not runtime.active():
        raise UserError(
            f"this is one of {jax.process_count()} processes, but it was not told of the others; start zoo-train with "
            f"--coordinator, --num-processes and --process-id on each host"
        )
    check_boards(recipe)
    mesh = make_mesh_for(recipe, say=say)
    # Raises where the mesh does not divide the model's axes, before a tokenizer is trained.
    build.abstract_params(registry.describe(recipe.model.name).model_class(), recipe.model.make_config(), mesh=mesh)
    return mesh


def choose_compute_dtype(
    recipe: Recipe, mesh: jax.sharding.Mesh, say: Callable[[str], None], *, resume: bool
) -> Recipe:
    """Returns the recipe with `train.compute_dtype: auto` replaced by bfloat16 where this CPU is faster in it.

    The run's recipe.yaml then holds bfloat16, and the run keeps it on every machine. A run that was begun with another
    dtype keeps that: `resume` leaves auto as it is.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return recipe
    with jax.set_mesh(mesh):
        native = multiplies_bfloat16()
    if recipe.train.compute_dtype == "auto" and native and not resume:
        say(
            "computes in bfloat16, with float32 sums: this CPU multiplies it by units of its own (AMX), several times "
            "as fast as float32; train.compute_dtype=float32 turns that off"
        )
        return recipe.with_resolved(compute_dtype="bfloat16")
    if recipe.train.compute_dtype == "bfloat16" and not native:
        say(
            "computes in bfloat16, as the recipe or the run's beginning says; here, without AMX or on several devices, "
            "train.compute_dtype=float32 would be faster"
        )
    return recipe


def check_program(program: Program, say: Callable[[str], None]) -> None:
    """Raises UserError where the optimizer does not fit the parameters, or a step does not fit into memory."""
    program.opt_state  # noqa: B018 - raises for patterns that match nothing
    fit.check(program, say)


def compile_together(step: TrainStep) -> StepFn:
    """Returns the step, of which all processes begin the first call of each shape at the same time.

    Compilation takes longer on one process than on another, and collectives give up on one that comes late (gloo after
    30 s).
    """
    if not runtime.active():
        return step
    compiled: set[tuple[int, ...]] = set()

    def together(params: Any, opt_state: Any, batch: Any, number: int) -> tuple[Any, Any, dict[str, jax.Array]]:
        shape = batch["tokens"].shape
        if shape not in compiled:
            step.lower(params, opt_state, batch, jnp.int32(number)).compile()
            runtime.barrier(f"compiled {shape}")
            compiled.add(shape)
        return step(params, opt_state, batch, number)

    return together
