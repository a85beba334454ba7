"""The memory of a training step: what is kept, exactly; the rest as its compiler counts it; and what would fit.

All sizes are bytes of one device. On CPUs the devices share the host's memory.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.hardware.topologies import GIB, chip_of
from zoo.train import mesh as meshes
from zoo.train.losses import ACCELERATOR_CHUNK, CPU_CHUNK

if TYPE_CHECKING:
    from zoo.train.program import Program
    from zoo.train.step import TrainStep

# An estimate below this share of a device's memory needs no compiler to confirm it: estimates were 0.9 to 1.9 times
# what compilers for CPU and TPU said.
OBVIOUS = 0.4
# What a layout chosen by estimate alone leaves free.
FILLED = 0.8


@dataclass(frozen=True)
class Memory:
    """What a compiled step takes of a device.

    Attributes:
        arguments: parameters, optimizer state and batch.
        temporaries: all that lives within a step: gradients, activations, what collectives gather.
        output: what comes out; nearly all of it takes the place of the arguments.
        total: at the step's peak. Where the compiler has refused the step as too large it is what it said the step
            takes (infinite where it did not say), and the other numbers are 0.
    """

    arguments: int
    temporaries: int
    output: int
    total: float


@dataclass(frozen=True)
class Microbatch:
    """How many rows of the global batch go through the model at a time.

    `memory` and `step`: of the step that was compiled to find out, where one was.
    """

    rows: int
    memory: Memory | None = None
    step: "TrainStep | None" = field(default=None, compare=False, repr=False)


def state_bytes(program: "Program") -> dict[str, int]:
    """{params, optimizer, gradients}: what every step of `program` keeps on a device, from shapes and shardings.

    params: trained and frozen. gradients: of the trained ones, in their dtype; they exist within a step alone.
    """
    trained = _shard_bytes(program.params)
    return {
        "params": trained + _shard_bytes(program.frozen),
        "optimizer": _shard_bytes(program.opt_state),
        "gradients": trained,
    }


def _shard_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compiled_memory(program: "Program", batch_size: int | None = None) -> Memory:
    """The memory of the real step of `program`, by compiling it for its mesh's devices.

    Args:
        program: on devices that are there, or on those of a topology that is compiled for ahead of time.
        batch_size: in place of `data.batch_size`.
    """
    if batch_size is not None:
        program = changed(program, data={"batch_size": batch_size})
    lowered = program.step().lower(
        program.params, program.opt_state, program.batch(), jax.ShapeDtypeStruct((), jnp.int32)
    )
    try:
        analysis = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Memory(0, 0, 0, _said_to_take(str(error)))
    arguments, output = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    temporaries = analysis.temp_size_in_bytes
    return Memory(arguments, temporaries, output, arguments + temporaries + output - analysis.alias_size_in_bytes)


def _said_to_take(message: str) -> float:
    """The size in what a compiler says of a step that is too large; infinite where there is none."""
    found = re.search(r"required[^(]*\(([\d.]+)([KMGT]?)", message) or re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.inf


def changed(program: "Program", *, on: jax.sharding.Mesh | None = None, **sections: dict[str, Any]) -> "Program":
    """`program` on another mesh, or with other fields in sections of its recipe, as in `train={"microbatch": 8}`."""
    recipe = program.recipe
    update = {name: getattr(recipe, name).model_copy(update=fields) for name, fields in sections.items()}
    return dataclasses.replace(program, recipe=recipe.model_copy(update=update), mesh=on or program.mesh)


def device_memory(device: jax.Device) -> int | None:
    """The memory that programs may use on `device`; None where nobody knows.

    For a CPU device its share of the host's; for kinds that are not here to be asked, that of the table in
    `zoo.hardware.topologies`.
    """
    if device.platform == "cpu":
        host = host_memory()
        same = [other for other in device.client.devices() if other.process_index == device.process_index]
        return None if host is None else host // max(len(same), 1)
    try:
        stats = device.memory_stats()
    except (jax.errors.JaxRuntimeError, NotImplementedError, AttributeError):  # a device of a topology
        stats = None
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"]
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.memory


def common_memory(devices: Sequence[jax.Device]) -> int | None:
    """`device_memory` of a mesh's devices: where several processes have their own, that of the least.

    All processes must call it, and all get the same: what they decide by it is compiled into one program.
    """
    if jax.process_count() == 1:
        return device_memory(devices[0])
    from jax.experimental import multihost_utils

    own = device_memory(jax.local_devices()[0]) or 0
    least = int(np.min(multihost_utils.process_allgather(np.int32(own >> 20))))  # in MiB: int32 is what JAX sends
    return least << 20 or None


def host_memory() -> int | None:
    """RAM of the host, or what its control group leaves this process."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


def estimate(program: "Program", rows: int | None = None) -> int | None:
    """About what a step takes, in milliseconds and without a compiler; None for a model whose sizes have other names.

    Args:
        program: the program.
        rows: of the global batch, in one microbatch; None: as the recipe says, for auto one row a shard.

    Raises:
        UserError: the mesh does not divide the model's axes.
    """
    config, recipe, shape = program.config, program.recipe, program.mesh.shape
    sizes = [getattr(config, name, None) for name in ("embed_dim", "mlp_dim", "num_layers", "num_heads", "head_dim")]
    if None in sizes:
        return None
    embed, mlp, layers, heads, head_dim = sizes
    shards, tensor = meshes.num_row_shards(program.mesh), shape["tensor"]
    if rows is None:
        rows = recipe.train.microbatch or recipe.data.batch_size
        rows = shards if rows == "auto" else rows
    tokens = math.ceil(rows / shards) * recipe.data.seq_len
    item = jnp.dtype(program.compute_dtype).itemsize
    state = state_bytes(program)
    total = sum(state.values())
    if rows < recipe.data.batch_size:  # sums of the microbatches' gradients
        total += state["gradients"] * 4 // program.param_dtype.itemsize
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((program.params, program.frozen))) * item
    if item != program.param_dtype.itemsize:  # the copy that is computed with
        total += state["params"] * item // program.param_dtype.itemsize
    total += 2 * whole // layers // tensor if shape["fsdp"] > 1 else 0  # layers gathered
    # What the backward pass of one block finds saved, in numbers a token; scores only where they are materialised. On
    # CPUs XLA has little use of `remat`: what was to be computed again is computed early.
    on_cpu = program.mesh.devices.flat[0].platform == "cpu"
    inner = heads * head_dim
    block = 8 * embed + (6 * inner + 5 * mlp) / tensor + (heads / tensor * recipe.data.seq_len / 2 if on_cpu else 0)
    products = 3 * embed + (3 * inner + 2 * mlp) / tensor
    kept = {"none": block, "dots": products, "full": embed}["none" if on_cpu else recipe.train.remat]
    total += tokens * item * (layers * kept + block)
    chunk = CPU_CHUNK if on_cpu else ACCELERATOR_CHUNK
    vocab = config.vocab_size / (tensor if config.vocab_size % tensor == 0 else 1)
    total += 3 * 4 * min(chunk, tokens) * vocab
    return int(total)


def fit_microbatch(program: "Program") -> Microbatch:
    """The microbatch of `train.microbatch`; for auto the largest that divides the batch and fits into memory.

    The estimate says where to begin; the compiler decides, unless there is plainly room. Where nothing fits it is the
    smallest, which `check` will refuse.
    """
    recipe, wanted = program.recipe, program.recipe.train.microbatch
    sizes = microbatch_sizes(program)
    if wanted != "auto":
        # Of a batch of another size, which a search may ask for, the nearest that divides it.
        rows = [size for size in sizes if wanted is None or size <= wanted]
        return Microbatch(rows[0] if rows else recipe.data.batch_size)
    limit = common_memory(list(program.mesh.devices.flat))
    guesses = [estimate(program, rows) or 0 for rows in sizes]
    if limit is None or 0 < guesses[0] <= OBVIOUS * limit:
        return Microbatch(sizes[0])
    found: dict[int, Memory] = {}
    tried: dict[int, Program] = {}

    def fits(i: int) -> bool:
        tried[i] = changed(program, train={"microbatch": sizes[i]})
        found[i] = compiled_memory(tried[i])
        return found[i].total <= limit

    def promising(i: int) -> bool:
        """Whether the next larger one would fit if the estimate of what grows with the rows were off as it is here."""
        kept = estimate(program, 0) or 0
        growth = (guesses[i - 1] - kept) / (guesses[i] - kept) if guesses[i] > kept else 1
        return kept + (found[i].total - kept) * growth <= limit

    best = next((i for i, guess in enumerate(guesses) if guess <= FILLED * limit), len(sizes) - 1)
    if fits(best):
        while best > 0 and promising(best) and fits(best - 1):
            best -= 1
    else:
        while best < len(sizes) - 1:
            best += 1
            if fits(best):
                break
    return Microbatch(sizes[best], found[best], tried[best].step())


def microbatch_sizes(program: "Program") -> list[int]:
    """The microbatches that the batch and the mesh allow, in rows, the largest first."""
    batch, shards = program.recipe.data.batch_size, meshes.num_row_shards(program.mesh)
    return [rows for rows in range(batch, 0, -1) if batch % rows == 0 and rows % shards == 0] or [batch]


def check(program: "Program", say: Callable[[str], None]) -> None:
    """Raise UserError where the step does not fit into the devices' memory, naming two changes with which it would.

    To be called before the first array is made. Where an estimate leaves much room nothing is compiled. Evaluation is
    covered: it goes through a microbatch's rows at a time, without the gradients and all that is kept for them.
    """
    device = program.mesh.devices.flat[0]
    limit = common_memory(list(program.mesh.devices.flat))
    batch, microbatch = program.recipe.data.batch_size, program.microbatch
    if program.recipe.train.microbatch == "auto":
        say(f"Microbatch: {microbatch.rows} of {batch} rows (auto: the largest that fits into a device's memory)")
    if limit is None:
        return
    memory = microbatch.memory
    if memory is None:
        guess = estimate(program, microbatch.rows)
        if guess is not None and guess <= OBVIOUS * limit:
            return
        say("counting the memory of a step, by compiling it")
        memory = compiled_memory(program)
    if memory.total <= limit:
        say(f"Memory: a step takes {gib(memory.total)} of {gib(limit)} on a device")
        return
    state = state_bytes(program)
    kept = state["params"] + state["optimizer"]
    remedies = "; or ".join(changes_that_fit(program, limit, memory)) or more_devices(program, limit)
    raise UserError(
        f"train: a step takes {gib(memory.total)} on each {device.device_kind}, which has {gib(limit)} (parameters and "
        f"optimizer alone {gib(kept)}); would fit: {remedies}"
    )


def changes_that_fit(
    program: "Program",
    limit: float,
    memory: Memory,
    wanted: int = 2,
    measure: Callable[["Program"], float] | None = None,
) -> list[str]:
    """Up to `wanted` changes of the recipe, as overrides, each of which makes the step fit into `limit`.

    Each has been tried. In this order: a smaller microbatch, more fsdp, less saved for the backward pass, narrower
    moments, and then several of them.

    Args:
        program: does not fit.
        limit: bytes of a device.
        memory: of its step, from `compiled_memory`.
        wanted: how many to look for.
        measure: what a step takes; None compiles it.
    """
    taken = measure or (lambda other: compiled_memory(other).total)
    found: list[str] = []
    for choices in _changes(program, limit, memory):
        fitting = (text for text, other in choices if taken(other) <= limit)
        found += [text for text in [next(fitting, None)] if text is not None]
        if len(found) == wanted:
            break
    return found


def _changes(program: "Program", limit: float, memory: Memory) -> Iterator[list[tuple[str, "Program"]]]:
    """Changes worth compiling, a kind at a time: the mildest that the estimate lets pass, and the strongest."""
    now = estimate(program, program.microbatch.rows)
    off = memory.total / now if now and memory.total < math.inf else 1.0

    def promising(other: "Program") -> bool:
        guess = estimate(other, other.microbatch.rows)
        return guess is None or guess * off <= limit

    def microbatches(base: "Program") -> Iterator[tuple[str, "Program"]]:
        for rows in microbatch_sizes(base):
            if rows < program.microbatch.rows:
                yield f"train.microbatch={rows}", changed(base, train={"microbatch": rows})

    def layouts(base: "Program") -> Iterator[tuple[str, "Program"]]:
        shape = base.mesh.shape
        for fsdp in range(2 * shape["fsdp"], base.mesh.size + 1, shape["fsdp"]):
            if shape["data"] * shape["fsdp"] % fsdp == 0:
                sizes = {"data": shape["data"] * shape["fsdp"] // fsdp, "fsdp": fsdp, "tensor": shape["tensor"]}
                section = type(base.recipe.mesh)(**sizes)
                try:
                    mesh = meshes.make_mesh(section, list(base.mesh.devices.flat))
                    other = changed(base, on=mesh, mesh=sizes)
                    other.params  # noqa: B018 - raises where the axes do not divide
                except UserError:
                    continue
                written = base.recipe.mesh
                if written.auto:
                    text = f"mesh='{{{', '.join(f'{axis}: {size}' for axis, size in sizes.items())}}}'"
                else:
                    text = f"mesh.fsdp={fsdp}" + (f" mesh.data={sizes['data']}" if written.data != -1 else "")
                yield text, other

    def remats(base: "Program") -> Iterator[tuple[str, "Program"]]:
        savings = ["none", "dots", "full"]
        for saving in savings[savings.index(base.recipe.train.remat) + 1 :]:
            yield f"train.remat={saving}", changed(base, train={"remat": saving})

    def moments(base: "Program") -> Iterator[tuple[str, "Program"]]:
        if base.recipe.optimizer.moments_dtype != "bfloat16":
            yield "optimizer.moments_dtype=bfloat16", changed(base, optimizer={"moments_dtype": "bfloat16"})

    kinds = (microbatches, layouts, remats, moments)
    for kind in kinds:
        fitting = [choice for choice in kind(program) if promising(choice[1])]
        yield fitting[:1] + fitting[1:][-1:]
    together, texts = program, []
    for kind in kinds:
        if choices := list(kind(together)):
            text, together = choices[-1]
            texts.append(text)
            if len(texts) > 1 and promising(together):
                yield [(" ".join(texts), together)]


def more_devices(program: "Program", limit: float) -> str:
    """What to say where no change of the recipe helps: over how many devices its state would have to be spread."""
    per_device = sum(state_bytes(program).values()) / (FILLED * limit)
    fsdp = program.mesh.shape["fsdp"] * 2 ** math.ceil(math.log2(max(per_device, 1)) + 1)
    return f"mesh.fsdp={fsdp} on that many devices; or a smaller model"


def gib(size: float) -> str:
    """A size for people."""
    return f"{size / GIB:.2f} GiB" if size < math.inf else "more than there is"
