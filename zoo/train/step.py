"""One training step as a jitted function over plain dicts, which costs the host a fraction of what nnx.jit does.

The step knows no model by name. It merges the parameters into the graph definition inside the compiled function, and
calls `hidden` and `head` of the model.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.layers import cpu
from zoo.layers.lora import dropout_key
from zoo.layers.stack import UNROLLED, Execution, executing
from zoo.models.build import cast_floats
from zoo.train.losses import cross_entropy
from zoo.train.mesh import BATCH_AXES, split_rows
from zoo.train.optimizers import to_float32

Tree = Any


class TrainStep:
    """`step(params, opt_state, batch, step) -> (params, opt_state, metrics)`, compiled on first use of each shape.

    params and opt_state are donated: use those returned, not those passed in. Their shardings never change. `batch` is
    a dict of int tokens and targets and float loss_mask, each [B, T], placed on the mesh by `put_batch` (segment_ids
    and positions are passed to the model where present); `step` counts from 0 and, with the seed, determines dropout.

    metrics are float32 scalars on the device: loss (nats a target over the global batch), grad_norm (before clipping),
    lr (of this update, by the optimizer's own count of updates), num_targets (sum of the loss mask); and with
    `skip_nonfinite` skipped, 1 where loss or grad_norm were not finite and nothing was changed, else 0.
    """

    def __init__(self, function: Callable, mesh: Mesh, shardings: tuple[Tree, Tree], frozen: Tree):
        replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH_AXES))
        self.mesh = mesh
        self._frozen = frozen
        placed = jax.tree.map(lambda leaf: leaf.sharding, frozen)
        self._compiled = jax.jit(
            function,
            donate_argnums=(0, 1),
            in_shardings=(*shardings, placed, rows, replicated),
            out_shardings=(*shardings, replicated),
        )

    def __call__(self, params: Tree, opt_state: Tree, batch: Mapping[str, jax.Array], step) -> tuple[Tree, Tree, dict]:
        # A Python int would be weakly typed, and an array would carry a mesh: both would compile again. NumPy's int32
        # is what `lower` sees, so that what was compiled ahead of time is what runs.
        with jax.set_mesh(self.mesh):
            return self._compiled(params, opt_state, self._frozen, dict(batch), np.int32(step))

    def holding(self, frozen: Tree) -> "TrainStep":
        """Returns the same compiled function with these frozen parameters."""
        other = copy.copy(self)
        other._frozen = frozen
        return other

    def lower(self, params: Tree, opt_state: Tree, batch: Mapping[str, Any], step) -> jax.stages.Lowered:
        """Traces and lowers the step for arrays or ShapeDtypeStructs, to compile it ahead of time."""
        with jax.set_mesh(self.mesh):
            return self._compiled.lower(params, opt_state, self._frozen, dict(batch), step)


def make_train_step(
    graphdef: nnx.GraphDef,
    frozen: Tree,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mesh: Mesh,
    shardings: tuple[Tree, Tree],
    compute_dtype: Any = jnp.float32,
    seed: int = 0,
    microbatches: int = 1,
    skip_nonfinite: bool = False,
    execution: Execution = UNROLLED,
) -> TrainStep:
    """Returns the step of one model and optimizer.

    Args:
        graphdef: the model's definition.
        frozen: the parameters that are not trained, arrays on the mesh (or ShapeDtypeStructs with shardings, if the
            step is only lowered); {} where all are trained. Merged with `params` they are the model's.
        tx: the optimizer; its updates are added to the parameters.
        schedule: learning rate by step, for the metrics (tx holds its own).
        mesh: from `make_mesh`.
        shardings: of (params, opt_state), the same for inputs and outputs: see `opt_state_shardings`.
        compute_dtype: parameters are cast to it once a step (on some CPUs to another, see `activation_dtype`);
            gradients and updates have the parameters' own dtype.
        seed: `train.seed`; the model's key of step i is fold_in(key(seed), i), and with several microbatches that of
            microbatch m of the step is fold_in(fold_in(key(seed), i), m).
        microbatches: how many parts of the batch go through the model one after the other. Loss and gradient are
            those of the whole batch (without dropout), summed in float32; activations take the memory of one part.
            The rows must be a multiple of microbatches times the (data, fsdp) shards: see `zoo.train.mesh.split_rows`.
        skip_nonfinite: whether an update whose loss or gradient norm is not finite leaves parameters and optimizer
            state as they are.
        execution: how the model's blocks are run, and what of them is saved for the backward pass.
    """

    def loss_fn(params, frozen, batch, key, count=None):
        model = nnx.merge(graphdef, cast_floats(merged(params, frozen), activation_dtype(compute_dtype)))
        with executing(execution), dropout_key(key):
            hidden, _ = model.hidden(
                batch["tokens"], positions=batch.get("positions"), segment_ids=batch.get("segment_ids"), key=key
            )
        nll, counted = cross_entropy(hidden, *model.head(), batch["targets"], batch["loss_mask"])
        count = counted if count is None else count
        return nll / jnp.maximum(count, 1), count

    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)

    def like_params(gradients):
        # On one device there is nothing to constrain, and the constraint alone would change the last bits.
        return gradients if mesh.size == 1 else jax.lax.with_sharding_constraint(gradients, shardings[0])

    def in_parts(params, frozen, batch, key):
        # Of the whole batch: divided by it, the parts' losses and gradients add up to those of the batch.
        count = jnp.sum(batch["loss_mask"], dtype=jnp.float32)

        def add(sums, part):
            number, rows = part
            (loss, _), gradients = loss_and_gradients(params, frozen, rows, jax.random.fold_in(key, number), count)
            sums = jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, (loss, gradients))
            return (sums[0], like_params(sums[1])), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        start = (jnp.float32(0), like_params(zeros))
        parts = (jnp.arange(microbatches), {name: split_rows(x, microbatches, mesh) for name, x in batch.items()})
        (loss, gradients), _ = jax.lax.scan(add, start, parts)
        return (loss, count), jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)

    def train_step(params, opt_state, frozen, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        (loss, count), gradients = (loss_and_gradients if microbatches == 1 else in_parts)(params, frozen, batch, key)
        gradients = like_params(gradients)
        grad_norm = optax.tree.norm(to_float32(gradients))
        updates, new_state = tx.update(gradients, opt_state, params)
        new_params = optax.apply_updates(params, updates)
        metrics = {"loss": loss, "grad_norm": grad_norm, "num_targets": count}
        if skip_nonfinite:
            good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            new_params, new_state = jax.tree.map(
                lambda new, old: jnp.where(good, new, old), (new_params, new_state), (params, opt_state)
            )
            metrics["skipped"] = 1 - good.astype(jnp.float32)
        metrics["lr"] = jnp.asarray(schedule(updates_done(opt_state, step)), jnp.float32)
        return new_params, new_state, metrics

    return TrainStep(computing_in(compute_dtype, train_step), mesh, shardings, frozen)


def make_eval_step(
    graphdef: nnx.GraphDef,
    frozen: Tree,
    *,
    mesh: Mesh,
    compute_dtype: Any = jnp.float32,
    execution: Execution = UNROLLED,
) -> Callable[[Tree, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """Returns `evaluate(params, batch) -> (nll, count)`: sums of nats and mask, without dropout or donation."""

    def evaluate(params, frozen, batch):
        model = nnx.merge(graphdef, cast_floats(merged(params, frozen), activation_dtype(compute_dtype)))
        with executing(execution):
            hidden, _ = model.hidden(
                batch["tokens"], positions=batch.get("positions"), segment_ids=batch.get("segment_ids")
            )
        return cross_entropy(hidden, *model.head(), batch["targets"], batch["loss_mask"])

    compiled = jax.jit(computing_in(compute_dtype, evaluate))

    def on_mesh(params, batch):
        with jax.set_mesh(mesh):
            return compiled(params, frozen, dict(batch))

    return on_mesh


def merged(params: Tree, frozen: Tree) -> Tree:
    """Returns the nested dict with the leaves of both; no path may be in both."""
    if not frozen:
        return params
    both = {key: merged(params[key], frozen[key]) for key in params.keys() & frozen.keys()}
    return {**params, **frozen, **both}


def compute_dtype_for(name: str, mesh: Mesh) -> Any:
    """Returns the dtype that `train.compute_dtype` names: auto is float32 on a CPU, bfloat16 on accelerators.

    A new run on a CPU that multiplies bfloat16 by units of its own has replaced auto: see `zoo.run.setup`.
    """
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def activation_dtype(compute_dtype: Any) -> Any:
    """Returns the dtype of parameters and activations inside of a program that computes in `compute_dtype`.

    It is another one where the CPU that is compiled for multiplies bfloat16 by units of its own: there the operands of
    products alone are bfloat16 (see `zoo.layers.cpu`), since XLA on CPU takes longer for everything else in bfloat16.
    """
    if compute_dtype == jnp.bfloat16 and cpu.multiplies_bfloat16():
        return jnp.dtype(jnp.float32)
    return compute_dtype


def computing_in(compute_dtype: Any, program: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the program with products in `compute_dtype`, where `activation_dtype` makes it another one."""
    return cpu.bfloat16_products(program) if compute_dtype == jnp.bfloat16 else program


def opt_state_shardings(
    tx: optax.GradientTransformation, abstract_params: Tree, param_shardings: Tree, mesh: Mesh
) -> Tree:
    """Returns a sharding for every leaf of `tx.init(params)`.

    A leaf whose path ends with the path of a parameter of the same shape, as moments do, has the parameter's sharding;
    everything else (counters, factored statistics) is replicated.
    """
    known = {
        _path(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(abstract_params), jax.tree.leaves(param_shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, P())

    def choose(path, leaf):
        names = _path(path)
        for start in range(len(names)):  # the longest suffix first
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree.map_with_path(choose, jax.eval_shape(tx.init, abstract_params))


def updates_done(opt_state: Tree, step: Any) -> Any:
    """Returns how many updates the optimizer's schedule has counted; `step` where it has no schedule.

    Skipped steps are not updates: after the first one the schedule's count stays behind the step's number, whatever
    the policy is by now. The moments' own count may be ahead, where they come from another run.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_schedule)
    return next((node.count for node in nodes if is_schedule(node)), step)


def init_opt_state(tx: optax.GradientTransformation, params: Tree, shardings: Tree) -> Tree:
    """Returns `tx.init(params)`, created on its devices with `shardings` from `opt_state_shardings`."""
    return jax.jit(tx.init, out_shardings=shardings)(params)


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
