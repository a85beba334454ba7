"""The start of a run: its newest checkpoint, else what its recipe's `from:` names, else new parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.checkpoints.manager import Checkpoints
from zoo.convert import bwetaf
from zoo.convert.base import all_finite
from zoo.errors import UserError
from zoo.models import build
from zoo.train.parameters import Parameters
from zoo.train.program import Program
from zoo.train.trainer import TrainState
from zoo.weights import initialize
from zoo.weights.sources import RunWeights, Weights

Tree = Any


class RestoredRun(NamedTuple):
    """state: of the training. frozen: the parameters that are not trained, {} where all are. base: what goes into every
    checkpoint's meta under that name (see `zoo.weights.initialize.InitialState`); None where the checkpoint says all.
    """

    state: TrainState
    frozen: Tree
    base: dict[str, Any] | None


def restore_or_initialize(
    program: Program,
    checkpoints: Checkpoints,
    accept: Callable[[dict], None],
    say: Callable[[str], None],
    *,
    frozen: Tree | None = None,
) -> RestoredRun:
    """Where training goes on, or begins.

    Args:
        checkpoints: the run's own.
        accept: raises UserError for the meta of a checkpoint that the run cannot go on from.
        say: is told what is being done, in a line.
        frozen: the parameters that are not trained, where they are there already; they are not read again then.

    Raises:
        UserError: every checkpoint is damaged or of another model; what `from:` names is not there or does not fit;
            the run was begun on another base than is there now.
    """
    wanted = Parameters(program.graphdef, program.params, program.frozen)
    recipe, config, mesh = program.recipe, program.config, program.mesh
    found = checkpoints.restore(program.params, program.opt_state, accept=accept)
    if found is not None:
        say(f"going on from the checkpoint of step {found.step:,}")
        base = found.meta.get("base")
        state = TrainState.of(found)
        if not wanted.frozen or frozen is not None:
            return RestoredRun(state, frozen or {}, base)
        again = initialize.initialize(
            recipe, config, wanted, only_frozen=True, base=base, near=recipe.run_dir, mesh=mesh
        )
        return RestoredRun(state, build.unflatten(again.arrays), base)
    for line in initialize.check(recipe):
        say(line)
    begun = initialize.initialize(recipe, config, wanted, mesh=mesh)
    params, frozen = (
        build.unflatten({path: begun.arrays[path] for path in build.flatten(part)})
        for part in (wanted.trained, wanted.frozen)
    )
    opt_state = program.new_opt_state(params)
    if recipe.from_ is not None and recipe.from_.optimizer:
        opt_state = _moments(program, begun.source, opt_state)
        say(f"from: the optimizer's moments are those of {begun.source.path}")
    return RestoredRun(TrainState(params, opt_state), frozen, begun.base)


def _moments(program: Program, source: Weights, opt_state: Tree) -> Tree:
    """The optimizer's state as the source left it; the schedule of the recipe begins at its first step.

    Raises UserError where the source has none, or that of another optimizer or of other parameters.
    """
    if isinstance(source, RunWeights):
        found = source.checkpoints().restore(program.params, program.opt_state, step=source.step)
        return _at_first_step(found.opt_state)
    if source.published is None or not (source.published.file.parent / bwetaf.OPTIMIZER).is_file():
        raise UserError(f"from.optimizer: {source.path} holds no state of an optimizer that zoo reads; leave it out")
    return _with_adam(program, bwetaf.load_optimizer(source.published.file.parent, source.config.to_dict()), opt_state)


def _at_first_step(opt_state: Tree) -> Tree:
    """The same, with every schedule at its beginning."""

    def rewound(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if _is_schedule(node) else node

    return jax.tree.map(rewound, opt_state, is_leaf=_is_schedule)


def _with_adam(program: Program, adam: dict[str, Any], opt_state: Tree) -> Tree:
    """`opt_state` with the count and both moments of an Adam, each laid where the new one's lie."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(node)]
    if len(found) != 1 or jax.tree.structure(found[0].mu) != jax.tree.structure(adam["mu"]):
        raise UserError(
            "from.optimizer: BwETAF's are the moments of an AdamW of all parameters; set optimizer.name: adamw and "
            "leave lora and train.trainable out, or leave from.optimizer out"
        )

    def place(new: jax.Array, array: Any) -> jax.Array:
        array = np.asarray(array).astype(new.dtype)
        if array.shape != new.shape or not all_finite(array):
            raise UserError(
                "from.optimizer: a moment does not fit its parameter, or is not finite; leave from.optimizer out"
            )
        return jax.make_array_from_callback(new.shape, new.sharding, lambda index: array[index])

    def filled(node: Any) -> Any:
        if not _is_adam(node):
            return node
        mu, nu = (jax.tree.map(place, getattr(node, name), adam[name]) for name in ("mu", "nu"))
        return node._replace(count=place(node.count, adam["count"]), mu=mu, nu=nu)

    return jax.tree.map(filled, opt_state, is_leaf=_is_adam)


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
