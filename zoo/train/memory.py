"""The memory of a training step on one device, in bytes: its state exactly, the rest estimated or as compiled."""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from zoo.layers import cpu
from zoo.recipe import Recipe
from zoo.train.losses import ACCELERATOR_CHUNK, CPU_BFLOAT16_CHUNK, CPU_CHUNK
from zoo.train.mesh import num_row_shards
from zoo.train.step import activation_dtype, compute_dtype_for

# A step whose estimate is below this share of a device's memory fits without asking a compiler: estimates were 0.9 to
# 1.9 times what the compilers for CPU and TPU counted.
SURELY_FITS = 0.4
# The share of a device's memory that a layout chosen by estimate alone may fill.
FILLED = 0.8


@dataclass(frozen=True)
class StateBytes:
    """The bytes of a training state on one device, from shapes and shardings.

    Attributes:
        params: all parameters, trained and frozen.
        optimizer: the optimizer's state.
        gradients: those of the trained parameters, in their dtype; they exist within a step alone.
    """

    params: int
    optimizer: int
    gradients: int

    def scratch(self, recipe: Recipe, compute_dtype: Any, rows: int) -> int:
        """Returns the bytes of the copies that a step makes of parameters and gradients, with microbatches of `rows`.

        They are the parameters in the compute dtype, where that is another one, and the microbatches' gradients summed
        in float32.
        """
        stored = jnp.dtype(recipe.train.param_dtype)
        total = 0 if stored == compute_dtype else self.params * jnp.dtype(compute_dtype).itemsize // stored.itemsize
        return total + (self.gradients * 4 // stored.itemsize if rows < recipe.data.batch_size else 0)


def device_bytes(tree: Any) -> int:
    """Returns the bytes of `tree` that one device holds; its leaves are arrays or ShapeDtypeStructs with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loss_chunk(mesh: Mesh) -> int:
    """Returns how many positions of one device have logits at one time in the loss of a step on `mesh`."""
    if mesh.devices.flat[0].platform != "cpu":
        return ACCELERATOR_CHUNK
    with jax.set_mesh(mesh):
        return CPU_BFLOAT16_CHUNK if cpu.multiplies_bfloat16() else CPU_CHUNK


def compile_step(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, float]:
    """Compiles a step for the devices it was lowered for, attached or not; returns it and the bytes it takes on one.

    The bytes are those of the step's peak: arguments (parameters, optimizer state and batch), temporaries (gradients,
    activations, what collectives gather), the results that do not take an argument's place, and the code. Where the
    compiler refuses the step as too large, the program is None and the bytes are `required_bytes` of its message.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, required_bytes(str(error))
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + results + memory.generated_code_size_in_bytes
    return compiled, total


def required_bytes(message: str) -> float:
    """Returns the size that a compiler's RESOURCE_EXHAUSTED message names for the step; infinity where it names none.

    XLA writes "... required for HLO temporaries (23.30G) exceeds ..." or "Used 38.26G of 31.24G hbm".
    """
    size = re.search(r"required[^(]*\(([\d.]+)([KMGT]?)", message) or re.search(r"Used ([\d.]+)([KMGT]?)", message)
    return float(size[1]) * 1024 ** " KMGT".index(size[2] or " ") if size else math.inf


def estimate(
    recipe: Recipe, config: Any, mesh: Mesh, state: StateBytes, num_parameters: int, rows: int | None = None
) -> int | None:
    """Estimates the bytes that a step takes on one device, in milliseconds and without a compiler.

    Args:
        recipe: of the run.
        config: the model's config.
        mesh: the devices.
        state: what the step keeps on a device.
        num_parameters: of the whole model.
        rows: of the global batch, in one microbatch. None takes the recipe's, and for `auto` one row a shard.

    Returns:
        The bytes, or None for a model whose config names its sizes otherwise.
    """
    shape = mesh.shape
    sizes = [getattr(config, name, None) for name in ("embed_dim", "mlp_dim", "num_layers", "num_heads", "head_dim")]
    if None in sizes:
        return None
    embed, mlp, layers, heads, head_dim = sizes
    shards, tensor = num_row_shards(mesh), shape["tensor"]
    if rows is None:
        rows = recipe.train.microbatch or recipe.data.batch_size
        rows = shards if rows == "auto" else rows
    tokens = math.ceil(rows / shards) * recipe.data.seq_len
    with jax.set_mesh(mesh):
        dtype = activation_dtype(compute_dtype_for(recipe.train.compute_dtype, mesh))
    total = state.params + state.optimizer + state.gradients + state.scratch(recipe, dtype, rows)
    total += 2 * num_parameters * dtype.itemsize // layers // tensor if shape["fsdp"] > 1 else 0  # layers gathered
    # What the backward pass of one block finds saved, in numbers a token; scores only where they are materialised. On
    # CPUs XLA has little use of `remat`: what was to be computed again is computed early.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    inner = heads * head_dim
    block = 8 * embed + (6 * inner + 5 * mlp) / tensor + (heads / tensor * recipe.data.seq_len / 2 if on_cpu else 0)
    products = 3 * embed + (3 * inner + 2 * mlp) / tensor
    saved = {"none": block, "dots": products, "full": embed}["none" if on_cpu else recipe.train.remat]
    total += tokens * dtype.itemsize * (layers * saved + block)
    vocab = config.vocab_size / (tensor if config.vocab_size % tensor == 0 else 1)
    total += 3 * 4 * min(loss_chunk(mesh), tokens) * vocab
    return int(total)
