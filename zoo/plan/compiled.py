"""Memory and collectives of a training step as its compiler has laid it out."""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from zoo.plan import collectives as col
from zoo.plan.collectives import Collective
from zoo.train import losses
from zoo.train.memory import state_bytes
from zoo.train.mesh import num_row_shards
from zoo.train.program import Program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Needs:
    """What one device needs for a step, in bytes.

    Attributes:
      parameters: all, trained and frozen, as the mesh shares them out. Exact.
      optimizer: its state. Exact.
      batch: tokens, targets and masks. Exact.
      gradients: part of `other`, exact where they all stand at one time (they are in the parameters' dtype).
      other: activations, gradients, work space and the program itself.
      total: all of it at the fullest moment.
      collectives: of a step, None where the compiled program cannot be read.
      notes: how far the numbers are to be trusted.
      refused: whether the compiler itself found that the step does not fit.
      compile_seconds: 0 where nothing was compiled.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    other: int
    total: int
    collectives: list[Collective] | None
    notes: tuple[str, ...] = ()
    refused: bool = False
    compile_seconds: float = 0.0


def device_bytes(tree: Any) -> int:
    """Of the leaves (ShapeDtypeStructs with shardings) that one device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state(program: Program) -> dict[str, int]:
    """parameters, optimizer, batch and gradients of one device: see `Needs`."""
    kept = state_bytes(program)
    return {
        "parameters": kept["params"],
        "optimizer": kept["optimizer"],
        "batch": device_bytes(program.batch()),
        "gradients": kept["gradients"],
    }


def compile_step(program: Program) -> Needs:
    """Compile the program's training step for its mesh, ahead of time, and read off what it needs.

    A step that the compiler refuses because it does not fit has a total nonetheless, which it names.
    """
    sizes = state(program)
    held = sizes["parameters"] + sizes["optimizer"] + sizes["batch"]
    begun = time.perf_counter()
    lowered = program.step().lower(
        program.params, program.opt_state, program.batch(), jax.ShapeDtypeStruct((), jnp.int32)
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        total = _needed(str(error))
        if total is None:
            raise
        took = time.perf_counter() - begun
        return Needs(
            **sizes,
            other=max(total - held, 0),
            total=total,
            collectives=None,
            notes=("of a step that its compiler refuses there is no text: collectives are estimated from the layout",),
            refused=True,
            compile_seconds=took,
        )
    took = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    # What goes in and comes out in the same place counts once.
    total = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.generated_code_size_in_bytes
    found, notes = _collectives(compiled, program)
    return Needs(**sizes, other=max(total - held, 0), total=total, collectives=found, notes=notes, compile_seconds=took)


def _collectives(compiled: Any, program: Program) -> tuple[list[Collective] | None, tuple[str, ...]]:
    if program.mesh.size == 1:
        return [], ()
    try:
        text = compiled.as_text()
    except Exception:  # some programs of some TPUs cannot be turned into text
        return None, ("the compiled program cannot be read as text here: collectives are estimated from the layout",)
    return col.in_hlo(text, dict(program.mesh.shape), loss_chunks(program)), ()


def loss_chunks(program: Program) -> int:
    """How often the loop of the loss runs at most: the one loop whose length is not known when compiling."""
    on_cpu = program.mesh.devices.flat[0].platform == "cpu"
    chunk = losses.CPU_CHUNK if on_cpu else losses.ACCELERATOR_CHUNK
    positions = program.microbatch.rows * program.recipe.data.seq_len // num_row_shards(program.mesh)
    return max(1, math.ceil(positions / chunk))


def _needed(message: str) -> int | None:
    """The bytes that the TPU compiler says a step which does not fit would take."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    match = re.search(r"required[^(]*\(([0-9.]+)([KMGT]?)", message) or re.search(r"Used ([0-9.]+)([KMGT]?)", message)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])
