"""The plan of a recipe on a topology: memory, batch, collectives, time; and what would fit where it does not."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from zoo.hardware.topologies import Topology
from zoo.plan import collectives as col
from zoo.plan import layout
from zoo.plan.compiled import Needs, compile_step
from zoo.plan.estimate import collectives_of, estimate_step
from zoo.plan.fit import changes_that_fit, more_devices
from zoo.plan.search import Search, largest_batch
from zoo.plan.targets import devices, gpu_fraction, usable_memory
from zoo.recipe import Recipe
from zoo.train.memory import device_bytes
from zoo.train.microbatch import microbatch_sizes
from zoo.train.program import Program


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on the seconds of a step of full rows; None where the table of chips does not say.

    Attributes:
      compute: `Program.flops_per_token` at the devices' peak.
      memory: the state read and written once (frozen parameters read alone), and all else that stands in memory written
        and read once.
      network: see `zoo.plan.collectives.seconds`.
    """

    compute: float | None
    memory: float | None
    network: float | None

    def step(self, mfu: float = 1.0) -> float | None:
        """Returns the longest of the three, products at a share `mfu` of the peak; None where compute is not known."""
        if self.compute is None:
            return None
        return max(self.compute / mfu, self.memory or 0.0, self.network or 0.0)


@dataclass(frozen=True)
class Plan:
    """A recipe's training on a topology, from `make_plan`. Bytes are of one device, counts of one step.

    Attributes:
      how: "compiled" or "estimated".
      collectives_how: likewise; some TPUs' programs cannot be read as text, and then the collectives are estimated from
        the parameters' layout.
      limit: the bytes of a device that a training may use.
      changes: overrides of the recipe each of which makes it fit; empty where it does.
      mfu: the share of the peak that the prediction assumes.
      seconds, host_bytes: what planning itself took.
    """

    recipe: Recipe
    topology: Topology
    mesh: dict[str, int]
    how: str
    collectives_how: str
    compiler: str
    compute_dtype: str
    attention: list[str]
    num_parameters: int
    microbatch: int
    needs: Needs
    limit: int
    fits: bool
    search: Search | None
    changes: list[str]
    flops_per_token: float
    bounds: Bounds
    mfu: float
    notes: list[str]
    seconds: float
    host_bytes: int

    @property
    def tokens(self) -> int:
        """The positions of a step's batch."""
        return self.recipe.data.batch_size * self.recipe.data.seq_len

    @property
    def tokens_per_s(self) -> float | None:
        """The predicted rate, None where the chip's peak is not known."""
        step = self.bounds.step(self.mfu)
        return None if step is None else self.tokens / step

    @property
    def days(self) -> float | None:
        """The predicted time for all of the recipe's steps, None where the chip's peak is not known."""
        step = self.bounds.step(self.mfu)
        return None if step is None else step * self.recipe.train.steps / 86400

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a dictionary that JSON can hold."""
        recipe, needs, search = self.recipe, self.needs, self.search
        return {
            "recipe": recipe.name,
            "model": recipe.model.name,
            "parameters": self.num_parameters,
            "topology": self.topology.text,
            "devices": self.topology.num_devices,
            "mesh": self.mesh,
            "how": self.how,
            "collectives_how": self.collectives_how,
            "compiler": self.compiler,
            "compute_dtype": self.compute_dtype,
            "attention": self.attention,
            "batch_size": recipe.data.batch_size,
            "microbatch": self.microbatch,
            "seq_len": recipe.data.seq_len,
            "fits": self.fits,
            "memory": {
                "parameters": needs.parameters,
                "optimizer": needs.optimizer,
                "batch": needs.batch,
                "gradients": needs.gradients,
                "activations_and_temporaries": needs.other,
                "total": needs.total,
                "limit": self.limit,
            },
            "largest_batch": None if search is None else dataclasses.asdict(search),
            "changes_that_fit": self.changes,
            "collectives": [{**dataclasses.asdict(one), "axes": list(one.axes)} for one in needs.collectives or ()],
            "flops_per_token": self.flops_per_token,
            "lower_bound_s": {**dataclasses.asdict(self.bounds), "step": self.bounds.step()},
            "mfu_assumed": self.mfu,
            "tokens_per_step": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "steps": recipe.train.steps,
            "tokens": self.tokens * recipe.train.steps,
            "days": self.days,
            "notes": self.notes,
            "compile_seconds": needs.compile_seconds,
            "seconds": self.seconds,
            "host_bytes": self.host_bytes,
        }


def make_plan(
    recipe: Recipe,
    topology: Topology,
    *,
    trials: int = 4,
    mfu: float = 0.4,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plans the recipe's training on the topology. Nothing is trained, read or downloaded.

    Args:
      recipe: its files need not exist.
      topology: TPUs and CPUs are compiled for, GPUs estimated.
      trials: how many more steps to compile, or estimate, in search of the largest batch; 0 searches none.
      mfu: share of the peak that products are expected to reach, for the prediction alone.
      say: shows the user what is being done.

    Raises:
      UserError: recipe, mesh and topology do not go together; libtpu is missing.
    """
    begun = time.perf_counter()
    limit = usable_memory(topology)
    estimated = topology.chip.platform == "gpu"
    measure = estimate_step if estimated else compile_step
    program = _program(recipe, topology, limit, say)
    recipe = program.recipe

    def fitting(needs: Needs) -> bool:
        return not needs.refused and needs.total <= limit

    def measured(other: Program) -> Needs:
        mesh = ", ".join(f"{axis} {size}" for axis, size in other.mesh.shape.items() if size > 1) or "one device"
        say(f"{'estimating' if estimated else 'compiling'} a step of {other.microbatch.rows} rows at once ({mesh})")
        return measure(other)

    needs = measured(program)
    fits = fitting(needs)
    collectives_how = "estimated" if estimated or needs.collectives is None else "compiled"
    if needs.collectives is None:
        needs = dataclasses.replace(needs, collectives=collectives_of(program))
    search, changes = None, []
    if trials:
        search = largest_batch(program, needs, limit, trials=trials, measure=measured, fitting=fitting)
    if not fits:
        say("looking for changes that fit")
        changes = changes_that_fit(program, limit, needs.total, measure=lambda other: measured(other).total)
        changes = changes or [more_devices(program, limit)]
    flops = program.flops_per_token(recipe.data.seq_len)
    mesh = dict(program.mesh.shape)
    return Plan(
        recipe=recipe,
        topology=topology,
        mesh=mesh,
        how="estimated" if estimated else "compiled",
        collectives_how=collectives_how,
        compiler=_compiler(topology),
        compute_dtype=jnp.dtype(program.compute_dtype).name,
        attention=[] if estimated else [str(kernel) for kernel in program.attention_kernels],
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves((program.params, program.frozen))),
        microbatch=program.microbatch.rows,
        needs=needs,
        limit=limit,
        fits=fits,
        search=search,
        changes=changes,
        flops_per_token=flops,
        bounds=_bounds(program, topology, needs, flops),
        mfu=mfu,
        notes=[*needs.notes, *_notes(topology, recipe)],
        seconds=time.perf_counter() - begun,
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


def _program(recipe: Recipe, topology: Topology, limit: int, say: Callable[[str], None]) -> Program:
    """The recipe's program on the topology's devices, its mesh and its microbatch chosen where they are auto."""
    available = devices(topology)
    if topology.chip.platform == "gpu" and recipe.train.compute_dtype == "auto":
        # The devices that stand in for GPUs are a CPU's.
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"compute_dtype": "bfloat16"})})
    if recipe.mesh.auto:
        mesh, reason = layout.choose(recipe, available, limit)
        say(reason)
    else:
        mesh = layout.make_mesh_for(recipe, available)
    program = Program(recipe, mesh)
    if recipe.train.microbatch != "auto":
        return program
    if topology.chip.platform != "gpu":
        say("looking for the microbatch")
        return program.with_changes(train={"microbatch": program.microbatch.rows})
    for rows in microbatch_sizes(recipe.data.batch_size, mesh):
        tried = program.with_changes(train={"microbatch": rows})
        if estimate_step(tried).total <= limit:
            break
    return tried


def _bounds(program: Program, topology: Topology, needs: Needs, flops_per_token: float) -> Bounds:
    chip, data = topology.chip, program.recipe.data
    peak = chip.flops(jnp.dtype(program.compute_dtype).name)
    tokens = data.batch_size * data.seq_len
    moved = 2 * (needs.parameters + needs.optimizer + needs.other) + needs.batch - device_bytes(program.frozen)
    return Bounds(
        compute=None if peak is None else flops_per_token * tokens / (topology.num_devices * peak),
        memory=None if chip.bandwidth is None else moved / chip.bandwidth,
        network=col.seconds(needs.collectives or [], dict(program.mesh.shape), topology),
    )


def _compiler(topology: Topology) -> str:
    if topology.chip.platform == "gpu":
        return "none"
    try:
        return f"libtpu {version('libtpu')}" if topology.chip.platform == "tpu" else f"jaxlib {version('jaxlib')}"
    except PackageNotFoundError:  # a libtpu that came with the machine
        return "libtpu"


def _notes(topology: Topology, recipe: Recipe) -> list[str]:
    notes = []
    if topology.chip.platform == "gpu":
        notes.append(
            f"of a GPU's memory JAX takes {gpu_fraction():.0%}; XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 would give more"
        )
    if topology.chip.platform == "cpu":
        notes.append("CPU devices share this machine's memory; no peak is stated for it, so no time is predicted")
    if recipe.data.trim_to:
        notes.append("data.trim_to shortens rows: real steps are shorter than the one planned")
    if recipe.train.remat != "none":
        notes.append("what train.remat computes again is not in the FLOPs: the bound on compute is too kind")
    return notes
