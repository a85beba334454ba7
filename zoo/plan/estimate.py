"""An estimate of a step's memory and collectives without a compiler, for hardware whose compiler is not here.

State is exact. Activations are what a backward pass reads: the operands and results of every product with a weight,
found by walking the traced forward pass (rematerialised blocks save their inputs, or their products' results, alone; of
attention nothing of the size of its scores is saved, as by fused kernels). Collectives follow from the parameters'
shardings. A compiler does better in places and worse in others. Tracing takes seconds: where many programs are compared
only to find those worth compiling, `zoo.train.memory.estimate` is the rougher and quicker one.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from zoo.layers.sharding import BATCH_AXES
from zoo.layers.stack import executing
from zoo.models.build import flatten
from zoo.plan.collectives import Collective, totals
from zoo.plan.compiled import Needs, exact_needs
from zoo.train import losses
from zoo.train.mesh import num_row_shards
from zoo.train.program import Program
from zoo.train.step import cast_floats, merged

NOTE = "estimated, not compiled: no compiler for it is at hand; parameters and optimizer are exact"

# What leaves an array as it is, as far as its bytes go.
_SAME = {"reshape", "transpose", "sharding_constraint", "copy", "squeeze", "optimization_barrier", "name"}


def estimate_step(program: Program) -> Needs:
    """Returns what one device needs for a step of the program, estimated from its traced forward pass."""
    sizes, rows = exact_needs(program), program.microbatch.rows
    saved, width = _activations(program, rows)
    other = sizes["gradients"] + program.state_bytes.scratch(program.recipe, program.compute_dtype, rows)
    other += saved + _loss_bytes(program, rows, width) + 2 * _largest_gathered(program)
    total = sizes["parameters"] + sizes["optimizer"] + sizes["batch"] + other
    return Needs(**sizes, other=other, total=total, collectives=collectives_of(program), notes=(NOTE,))


def _activations(program: Program, rows: int) -> tuple[int, int]:
    """Returns the bytes that one device saves of a forward pass over `rows` rows, and the hidden states' width."""
    tokens = jax.ShapeDtypeStruct((rows, program.recipe.data.seq_len), jnp.int32)
    extra = {"positions": tokens, "segment_ids": tokens} if program.recipe.data.document_mask else {}

    def forward(params, frozen, inputs):
        model = nnx.merge(program.graphdef, cast_floats(merged(params, frozen), program.compute_dtype))
        with executing(program.execution):
            return model.hidden(inputs["tokens"], **{name: inputs[name] for name in extra})[0]

    parameters = (program.params, program.frozen)
    with jax.set_mesh(program.mesh):
        traced = jax.make_jaxpr(forward)(*parameters, {"tokens": tokens, **extra})
    width = traced.out_avals[0].shape[-1]
    num_parameters = len(jax.tree.leaves(parameters))
    is_data = [number >= num_parameters for number in range(len(traced.jaxpr.invars))]
    walk = _Walk(num_row_shards(program.mesh), program.mesh.shape["tensor"], width)
    activations = walk.follow(traced.jaxpr, is_data)[0]
    return int(sum(activations.saved.values()) + activations.peak), width


@dataclass
class _Activations:
    """The activations of a part of the forward pass, in bytes.

    Attributes:
      saved: what is saved for the backward pass, by the array's name.
      results: those of `saved` that are the result of a product with a weight.
      peak: what exists for a moment only, when that is most.
    """

    saved: dict[int, float] = field(default_factory=dict)
    results: dict[int, float] = field(default_factory=dict)
    peak: float = 0.0

    def add(self, other: "_Activations", times: int = 1) -> None:
        self.peak = max(self.peak, other.peak)
        for mine, others in ((self.saved, other.saved), (self.results, other.results)):
            for key, size in others.items():
                mine[key] = max(mine.get(key, 0.0), size * times)


@dataclass
class _Walk:
    """Follows the data, that is all that depends on the batch, through a traced forward pass."""

    shards: int
    tensor: int
    width: int
    number: int = 0

    def follow(
        self, jaxpr: Jaxpr, is_data: list[bool], names: list[int] | None = None
    ) -> tuple[_Activations, list[bool], Any]:
        """Returns the activations, which outputs are data and the outputs' names; `names` are those of the inputs.

        One name is one array, whatever its shape.
        """
        names = names or [self._new() for _ in jaxpr.invars]
        known = dict(zip(jaxpr.invars, zip(is_data, names, strict=True), strict=True))
        activations = _Activations()

        def lookup(var) -> tuple[bool, int]:
            return (False, -1) if isinstance(var, Literal) else known.get(var, (False, -1))

        for eqn in jaxpr.eqns:
            inputs = [lookup(var) for var in eqn.invars]
            flags = [flag for flag, _ in inputs]
            outputs = [(any(flags), self._new()) for _ in eqn.outvars]
            kind = eqn.primitive.name
            inner = _inner(eqn)
            if kind == "dot_general" and sum(flags[:2]) == 1:
                operand = flags.index(True)
                activations.saved[inputs[operand][1]] = self._bytes(eqn.invars[operand].aval)
                activations.saved[outputs[0][1]] = activations.results[outputs[0][1]] = self._bytes(eqn.outvars[0].aval)
            elif kind in _SAME or (kind == "convert_element_type" and _same_dtype(eqn)):
                outputs = [inputs[0]] * len(eqn.outvars)
            elif kind == "scan":
                part, out_flags, _ = self.follow(inner, flags)
                activations.add(part, eqn.params["length"])
                outputs = [(flag, name) for flag, (_, name) in zip(out_flags, outputs, strict=True)]
            elif kind in ("checkpoint", "remat", "remat2"):
                part, out_flags, _ = self.follow(inner, flags)
                policy = eqn.params.get("policy")
                again = sum(part.saved.values()) + part.peak
                entering = {
                    name: self._bytes(var.aval)
                    for var, (flag, name) in zip(eqn.invars, inputs, strict=True)
                    if flag and jnp.issubdtype(var.aval.dtype, jnp.floating)
                }
                stays = entering | (part.results if policy is not None else {})
                again -= sum(part.results.values()) if policy is not None else 0.0
                activations.add(_Activations(stays, peak=again))
                outputs = [(flag, name) for flag, (_, name) in zip(out_flags, outputs, strict=True)]
            elif inner is not None and len(inner.invars) == len(eqn.invars):
                part, out_flags, out_names = self.follow(inner, flags, [name for _, name in inputs])
                activations.add(part)
                outputs = list(zip(out_flags, out_names, strict=True))
            known.update(zip(eqn.outvars, outputs, strict=True))
        ends = [lookup(var) for var in jaxpr.outvars]
        return activations, [flag for flag, _ in ends], [name for _, name in ends]

    def _new(self) -> int:
        self.number += 1
        return self.number

    def _bytes(self, aval: Any) -> float:
        """The array's bytes on one device. Its rows are sharded, and over the tensor axis its columns too, unless it
        is as wide as the hidden states.
        """
        size = math.prod(aval.shape) * aval.dtype.itemsize / self.shards
        return size / self.tensor if aval.shape[-1] != self.width else size


def _inner(eqn: Any) -> Jaxpr | None:
    """The first jaxpr among an equation's parameters."""
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, Jaxpr):
            return value
    return None


def _same_dtype(eqn: Any) -> bool:
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _loss_bytes(program: Program, rows: int, width: int) -> int:
    """The bytes of the loss: a chunk's logits, their exponentials and gradient, and the gradients held to the end."""
    shape = program.mesh.shape
    params = (program.params, program.frozen)
    kernel = jax.eval_shape(
        lambda params, frozen: nnx.merge(program.graphdef, merged(params, frozen)).head()[0], *params
    )
    vocab = math.ceil(kernel.shape[1] / shape["tensor"])
    positions = rows * program.recipe.data.seq_len // num_row_shards(program.mesh)
    chunk = min(losses.ACCELERATOR_CHUNK, positions)
    itemsize = jnp.dtype(program.compute_dtype).itemsize
    return chunk * vocab * (4 + 4 + itemsize) + positions * width * itemsize + kernel.shape[0] * vocab * 4


def _largest_gathered(program: Program) -> int:
    """The bytes of the largest parameter that fsdp gathers to compute with, in the compute dtype."""
    itemsize = jnp.dtype(program.compute_dtype).itemsize
    fsdp = program.mesh.shape["fsdp"]
    leaves = jax.tree.leaves((program.params, program.frozen))
    sizes = [math.prod(leaf.shape) * itemsize for leaf in leaves if "fsdp" in _axes(leaf)]
    return max(sizes, default=0) if fsdp > 1 else 0


def _axes(leaf: Any) -> tuple[str, ...]:
    """The mesh axes that an array is sharded over."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in leaf.sharding.spec)
    return tuple(axis for entry in entries for axis in entry if axis is not None)


def collectives_of(program: Program) -> list[Collective]:
    """Returns the collectives that follow from the parameters' layout.

    They are what fsdp gathers and scatters, and the sums over the data and the tensor axis.
    """
    shape, rows = program.mesh.shape, program.microbatch.rows
    microbatches = program.recipe.data.batch_size // rows
    itemsize = jnp.dtype(program.compute_dtype).itemsize
    positions = rows * program.recipe.data.seq_len // num_row_shards(program.mesh)
    trained = flatten(program.params)
    collectives, summed = [], set()
    for path, leaf in {**flatten(program.frozen), **trained}.items():
        axes = _axes(leaf)
        parts = math.prod(shape[axis] for axis in axes if axis != "fsdp")
        payload = math.prod(leaf.shape) * itemsize / parts
        if "fsdp" in axes:
            # Forward and backward.
            collectives.append(("all-gather", ("fsdp",), 2 * microbatches, payload, shape["fsdp"]))
        if path in trained and "fsdp" in axes:
            collectives.append(("reduce-scatter", ("fsdp",), microbatches, payload, shape["fsdp"]))
            collectives.append(("all-reduce", ("data",), microbatches, payload / shape["fsdp"], shape["data"]))
        elif path in trained:
            both = tuple(axis for axis in BATCH_AXES if shape[axis] > 1)
            collectives.append(("all-reduce", both, microbatches, payload, shape["data"] * shape["fsdp"]))
        if "tensor" in axes and len(leaf.shape) == 2:
            # Its products are sums of parts: forward over the sharded side, backward of the other.
            side = next(i for i, entry in enumerate(leaf.sharding.spec) if entry is not None and "tensor" in entry)
            block = (path.rsplit("/", 2)[0], side)  # q, k and v share one sum
            if block not in summed:
                summed.add(block)
                sent = positions * leaf.shape[1 - side] * itemsize
                collectives.append(("all-reduce", ("tensor",), microbatches, sent, shape["tensor"]))
    return totals(collectives)
