"""How a model's blocks are run (one after the other, or by a scan) and what is saved for their backward pass.

Models call `run_layers`; the code that compiles a training step chooses how, with `executing`. Parameters are per layer
in any case: a scan stacks the arrays that it is given (in a training step, the copies in the compute dtype).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.layers.kv_cache import KVCache
from zoo.layers.sharding import param_shardings

REFUSAL = "train.scan_layers: this model's blocks differ from each other and cannot be scanned; set it to false"

# A Python int, or a traced scalar under a scan.
LayerNumber = int | Int[Array, ""]
# One block: (block, x, its layer's number, cache) -> (x, cache).
Apply = Callable[[Any, Any, LayerNumber, KVCache | None], tuple[Any, KVCache | None]]


@dataclass(frozen=True)
class Execution:
    """How blocks are run.

    Attributes:
        scan_layers: whether one block is compiled and looped over (`jax.lax.scan`) instead of all in a row. Deep models
            then compile in a fraction of the time; their blocks must be alike.
        remat: what is saved for a block's backward pass. none: all that it needs; dots: the results of products with
            weights, the rest is computed again; full: the block's input alone (Chen et al., arXiv:1604.06174).
    """

    scan_layers: bool = False
    remat: Literal["none", "dots", "full"] = "none"


UNROLLED = Execution()


@dataclass
class _Ambient:
    execution: Execution = UNROLLED
    reached: bool = False


_ambient: ContextVar[_Ambient | None] = ContextVar("zoo_execution", default=None)


@contextmanager
def executing(execution: Execution) -> Iterator[None]:
    """Makes models that are traced inside of it run their blocks as `execution` says.

    Raises UserError at the end if `execution` asks for something and no model called `run_layers`.
    """
    ambient = _Ambient(execution)
    token = _ambient.set(ambient)
    try:
        yield
    finally:
        _ambient.reset(token)
    if execution != UNROLLED and not ambient.reached:
        raise UserError(
            "train.scan_layers, train.remat: this model does not run its blocks through zoo.layers.stack.run_layers; "
            "leave both fields out"
        )


def run_layers(
    layers: Sequence[nnx.Module],
    x: Float[Array, "B T D"],
    cache: KVCache | None,
    apply: Apply,
    *,
    first: int = 0,
    alike: bool = True,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Returns x and the cache after all `layers`. Calls with a cache never scan.

    Args:
        apply: runs one block; what it closes over (positions, segment ids, a dropout key) is the same for all blocks.
        first: the number of layers[0] in the model.
        alike: whether blocks differ only in the values of their parameters, and `apply` only by what a traced layer
            number can express.

    Raises:
        UserError: a scan is asked for and the blocks are not alike.
    """
    ambient = _ambient.get() or _Ambient()
    ambient.reached = True
    execution = ambient.execution
    if cache is None and execution.scan_layers:
        if not alike:
            raise UserError(REFUSAL)
        return _scanned(layers, x, apply, first, execution), None
    for number, block in enumerate(layers, first):
        if cache is None and execution.remat != "none":
            # By default (prevent_cse) XLA cannot merge the second computation with the first.
            x = jax.checkpoint(_only_x(apply, block, number), policy=_POLICIES[execution.remat])(x)
        else:
            x, cache = apply(block, x, number, cache)
    return x, cache


_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def _only_x(apply, block, number):
    return lambda x: apply(block, x, number, None)[0]


def _scanned(layers, x, apply, first, execution):
    graphdefs, states = zip(*(nnx.split(block) for block in layers), strict=True)
    parameters = [nnx.to_pure_dict(state) for state in states]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part) for part in parameters]
    if any(one != graphdefs[0] for one in graphdefs) or any(one != shapes[0] for one in shapes):
        raise UserError(REFUSAL)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        # Each layer's part stays on the devices where the layer was.
        placed = jax.tree.map(lambda place: PartitionSpec(None, *place.spec), param_shardings(states[0], mesh))
        stacked = jax.lax.with_sharding_constraint(stacked, placed)

    def body(x, layer):
        number, part = layer
        return _only_x(apply, nnx.merge(graphdefs[0], part), number)(x), None

    if execution.remat != "none":
        # Inside a loop there is no first computation that the second could be merged with.
        body = jax.checkpoint(body, policy=_POLICIES[execution.remat], prevent_cse=False)
    return jax.lax.scan(body, x, (first + jnp.arange(len(layers), dtype=jnp.int32), stacked))[0]
