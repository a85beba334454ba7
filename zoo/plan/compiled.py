"""Memory and collectives of a training step as its compiler has laid it out."""

import math
import time
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError
from zoo.plan import collectives as col
from zoo.plan.collectives import Collective
from zoo.train import memory
from zoo.train.mesh import num_row_shards
from zoo.train.program import Program


@dataclass(frozen=True)
class Needs:
    """What one device needs for a step, in bytes.

    Attributes:
      parameters: all, trained and frozen, as the mesh shares them out. Exact.
      optimizer: its state. Exact.
      batch: tokens, targets and masks. Exact.
      gradients: part of `other`, exact where they all stand at one time (they are in the parameters' dtype).
      other: activations, gradients, work space and the program itself.
      total: all of it at the step's peak.
      collectives: those of a step, None where the compiled program cannot be read.
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


def exact_needs(program: Program) -> dict[str, int]:
    """Returns the fields parameters, optimizer, batch and gradients of `Needs`, which need no compiler."""
    state = program.state_bytes
    return {
        "parameters": state.params,
        "optimizer": state.optimizer,
        "batch": memory.device_bytes(program.batch()),
        "gradients": state.gradients,
    }


def compile_step(program: Program) -> Needs:
    """Compiles the program's training step for its mesh, ahead of time, and returns what it needs.

    A step that the compiler refuses because it does not fit has a total nonetheless: the size that the compiler names.

    Raises:
        UserError: the compiler refuses the step as too large and names no size.
    """
    sizes = exact_needs(program)
    held = sizes["parameters"] + sizes["optimizer"] + sizes["batch"]
    begun = time.perf_counter()
    compiled, total = memory.compile_step(program.lower())
    seconds = time.perf_counter() - begun
    if total == math.inf:
        raise UserError("the compiler refuses the step as too large and does not say how large; lower data.batch_size")
    if compiled is None:
        collectives = None
        notes = ("of a step that its compiler refuses there is no text: collectives are estimated from the layout",)
    else:
        collectives, notes = _collectives(compiled, program)
    return Needs(
        **sizes,
        other=max(int(total) - held, 0),
        total=int(total),
        collectives=collectives,
        notes=notes,
        refused=compiled is None,
        compile_seconds=seconds,
    )


def _collectives(compiled: Any, program: Program) -> tuple[list[Collective] | None, tuple[str, ...]]:
    if program.mesh.size == 1:
        return [], ()
    try:
        text = compiled.as_text()
    except Exception:  # some programs of some TPUs cannot be turned into text
        return None, ("the compiled program cannot be read as text here: collectives are estimated from the layout",)
    return col.in_hlo(text, dict(program.mesh.shape), loss_chunks(program)), ()


def loss_chunks(program: Program) -> int:
    """Returns how often the loop of the loss runs at most; it is the one loop whose length the compiler cannot know."""
    positions = program.microbatch.rows * program.recipe.data.seq_len // num_row_shards(program.mesh)
    return max(1, math.ceil(positions / memory.loss_chunk(program.mesh)))
