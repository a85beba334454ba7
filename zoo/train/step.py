"""One training step as a jitted function over plain dicts (host work per call is a fraction of nnx.jit's).

The step knows no model: it needs `hidden` and `head` of the model contract, whose parameters it merges into the graph
definition inside the compiled function.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.train.losses import cross_entropy
from zoo.train.mesh import BATCH_AXES

Tree = Any


class TrainStep:
    """`step(params, opt_state, batch, step) -> (params, opt_state, metrics)`, compiled on first use of each shape.

    params and opt_state are donated: keep what comes back, not what went in. Their shardings never change. `batch` is
    a dict of int tokens and targets and float loss_mask, each [B, T], laid on the mesh by `put_batch` (segment_ids and
    positions are handed to the model where present); `step` counts from 0 and, with the seed, decides dropout.

    metrics are float32 scalars on the device: loss (nats a target over the global batch), grad_norm (before clipping),
    lr (of this very update), num_targets (sum of the loss mask).
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
        # A Python int would be a weakly typed argument of its own; int32 is one compiled program for all steps.
        with jax.set_mesh(self.mesh):
            return self._compiled(params, opt_state, self._frozen, dict(batch), jnp.int32(step))

    def lower(self, params: Tree, opt_state: Tree, batch: Mapping[str, Any], step) -> jax.stages.Lowered:
        """Trace and lower for arrays or ShapeDtypeStructs, to compile ahead of time."""
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
) -> TrainStep:
    """Build the step of one model and optimizer.

    Args:
        graphdef: the model's definition.
        frozen: the parameters that are not trained, arrays (or ShapeDtypeStructs with shardings, to lower alone) that
            lie on the mesh; {} where all are. With `params` they make up the model, see `merged`.
        tx: the optimizer; its updates are added to the parameters.
        schedule: learning rate by step, for the metrics (tx holds its own).
        mesh: from `make_mesh`.
        shardings: of (params, opt_state), pinned on the way out: see `opt_state_shardings`.
        compute_dtype: parameters are cast to it once a step; gradients and updates are in the parameters' own dtype.
        seed: `train.seed`; the model's key of step i is fold_in(key(seed), i).
    """

    def loss_fn(params, frozen, batch, key):
        model = nnx.merge(graphdef, cast_floats(merged(params, frozen), compute_dtype))
        hidden, _ = model.hidden(
            batch["tokens"], positions=batch.get("positions"), segment_ids=batch.get("segment_ids"), key=key
        )
        nll, count = cross_entropy(hidden, *model.head(), batch["targets"], batch["loss_mask"])
        return nll / jnp.maximum(count, 1), count

    def train_step(params, opt_state, frozen, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        (loss, count), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, key)
        updates, opt_state = tx.update(gradients, opt_state, params)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "lr": jnp.asarray(schedule(step), jnp.float32),
            "num_targets": count,
        }
        return optax.apply_updates(params, updates), opt_state, metrics

    return TrainStep(train_step, mesh, shardings, frozen)


def make_eval_step(
    graphdef: nnx.GraphDef, frozen: Tree, *, mesh: Mesh, compute_dtype: Any = jnp.float32
) -> Callable[[Tree, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """`evaluate(params, batch) -> (nll, count)`: the summed loss and mask of a batch, without dropout or donation."""

    @jax.jit
    def evaluate(params, frozen, batch):
        model = nnx.merge(graphdef, cast_floats(merged(params, frozen), compute_dtype))
        hidden, _ = model.hidden(
            batch["tokens"], positions=batch.get("positions"), segment_ids=batch.get("segment_ids")
        )
        return cross_entropy(hidden, *model.head(), batch["targets"], batch["loss_mask"])

    def on_mesh(params, batch):
        with jax.set_mesh(mesh):
            return evaluate(params, frozen, dict(batch))

    return on_mesh


def merged(params: Tree, frozen: Tree) -> Tree:
    """The one nested dict whose leaves are those of both; no path is in both."""
    if not frozen:
        return params
    both = {key: merged(params[key], frozen[key]) for key in params.keys() & frozen.keys()}
    return {**params, **frozen, **both}


def cast_floats(tree: Tree, dtype: Any) -> Tree:
    """`tree` with its floating arrays in `dtype`.

    Scalars stay as they are: those of the residual stream act in float32, where bfloat16 would cost them three digits.
    """

    def cast(x):
        return x.astype(dtype) if x.ndim and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def compute_dtype_for(name: str, mesh: Mesh) -> Any:
    """The dtype `train.compute_dtype` stands for: auto is float32 on a CPU, bfloat16 on accelerators."""
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def opt_state_shardings(
    tx: optax.GradientTransformation, abstract_params: Tree, param_shardings: Tree, mesh: Mesh
) -> Tree:
    """A sharding for every leaf of `tx.init(params)`.

    A leaf takes the sharding of the parameter whose path ends its own path and whose shape it has (moments do);
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


def init_opt_state(tx: optax.GradientTransformation, params: Tree, shardings: Tree) -> Tree:
    """`tx.init(params)` made in place on its devices, with `shardings` from `opt_state_shardings`."""
    return jax.jit(tx.init, out_shardings=shardings)(params)


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
