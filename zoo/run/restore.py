"""Where training starts: at the run's newest checkpoint, else from what its `from:` names, else from new parameters."""

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
from zoo.train.optimizers import WeightAverage
from zoo.train.parameters import Parameters
from zoo.train.program import Program
from zoo.train.state import TrainState
from zoo.weights import initialize
from zoo.weights.sources import RunWeights, Weights

Tree = Any


class TrainingStart(NamedTuple):
    """The state that training starts from.

    Attributes:
        state: parameters, optimizer and counters.
        frozen: the parameters that are not trained; {} where all are.
        base: what every checkpoint's meta holds under that name (see `zoo.weights.initialize.InitialState`); None
            where the checkpoint holds all parameters.
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
) -> TrainingStart:
    """Restores the run's newest good checkpoint; initializes parameters and optimizer where there is none.

    Args:
        program: the run's program.
        checkpoints: the run's own.
        accept: raises UserError for the meta of a checkpoint that the run cannot go on from.
        say: shows a line of progress.
        frozen: the parameters that are not trained, where they have been loaded already; None loads them.

    Raises:
        UserError: every checkpoint is damaged or of another model; what `from:` names is missing or does not fit;
            the run was started on another base than is there now.
    """
    wanted = Parameters(program.graphdef, program.params, program.frozen)
    recipe, config, mesh = program.recipe, program.config, program.mesh
    restored = checkpoints.restore(program.params, program.opt_state, accept=accept)
    if restored is not None:
        say(f"going on from the checkpoint of step {restored.step:,}")
        base = restored.meta.get("base")
        state = TrainState.from_checkpoint(restored)
        if not wanted.frozen or frozen is not None:
            return TrainingStart(state, frozen or {}, base)
        initial = initialize.initialize(
            recipe, config, wanted, only_frozen=True, base=base, near=recipe.run_dir, mesh=mesh
        )
        return TrainingStart(state, build.unflatten(initial.arrays), base)
    for line in initialize.check(recipe):
        say(line)
    initial = initialize.initialize(recipe, config, wanted, mesh=mesh)
    params, frozen = (
        build.unflatten({path: initial.arrays[path] for path in build.flatten(part)})
        for part in (wanted.trained, wanted.frozen)
    )
    opt_state = program.new_opt_state(params)
    if recipe.from_ is not None and recipe.from_.optimizer:
        opt_state = _restore_moments(program, initial.source, opt_state)
        say(f"from: the optimizer's moments are those of {initial.source.path}")
    return TrainingStart(TrainState(params, opt_state), frozen, initial.base)


def _restore_moments(program: Program, source: Weights, opt_state: Tree) -> Tree:
    """Returns the optimizer's state as the source left it, with the schedule at its first step.

    Raises:
        UserError: the source has no such state, or that of another optimizer or of other parameters.
    """
    if isinstance(source, RunWeights):
        restored = source.checkpoints().restore(program.params, program.opt_state, step=source.step)
        return _at_first_step(restored.opt_state)
    if source.published is None or not (source.published.file.parent / bwetaf.OPTIMIZER).is_file():
        raise UserError(f"from.optimizer: {source.path} holds no state of an optimizer that zoo reads; leave it out")
    adam = bwetaf.load_optimizer(source.published.file.parent, source.config.to_dict())
    return _with_adam_moments(adam, opt_state)


def _at_first_step(opt_state: Tree) -> Tree:
    """Returns the state with every schedule, and the average of the weights, at its beginning."""

    def rewound(state: Tree, kind: type) -> Tree:
        def one(node: Any) -> Any:
            return node._replace(count=jnp.zeros_like(node.count)) if isinstance(node, kind) else node

        return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, kind))

    return rewound(rewound(opt_state, optax.ScaleByScheduleState), WeightAverage)


def _with_adam_moments(adam: dict[str, Any], opt_state: Tree) -> Tree:
    """Returns `opt_state` with count, mu and nu of `adam`, each placed as those that it replaces."""
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(node)]
    if len(states) != 1 or jax.tree.structure(states[0].mu) != jax.tree.structure(adam["mu"]):
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
