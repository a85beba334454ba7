"""The base of the optimizers."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from zoo.recipe.fields import Section

Transformation: TypeAlias = "optax.GradientTransformation"  # noqa: F821
Schedule: TypeAlias = Callable[[Any], Any]
Tree: TypeAlias = Any


class Optimizer(Section):
    """An optimizer: its own fields of a recipe's `optimizer` section, and what it makes of a gradient.

    The recipe's section inherits from every optimizer and so has the fields of all. Two optimizers may share a field if
    its default is the same in both. A recipe that sets a field of another optimizer than its own is refused. Validators
    of an optimizer see the defaults where a recipe has another one.

    Modules of optimizers load JAX only when one is built, since reading a recipe loads none.

    Attributes:
        fixed: its fields that a run keeps, since the optimizer's state or its meaning depends on them.
        averages: the field of the optimizer's state, a tree like the parameters, that `averaged` needs; None where the
            parameters themselves are evaluated.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    averages: ClassVar[str | None] = None

    def build(self, *last: Transformation) -> Transformation:
        """Returns the transformation of gradients into updates.

        The gradients are clipped already, and in float32. Fields of its state called `mu` and `nu` are stored in
        `optimizer.moments_dtype`.

        Args:
            last: the transformations that follow the optimizer's own ones in a chain: the first adds the decay of the
                weights, the second multiplies by the negative learning rate.
        """
        raise NotImplementedError

    def wrap(self, tx: Transformation, learning_rate: Schedule) -> Transformation:
        """Returns the whole of the update, with the rates of each parameter in it, as the optimizer wants it.

        Args:
            tx: what `build` returns, behind which the updates are scaled by `optimizer.lr_scales`.
            learning_rate: by the number of the update.
        """
        return tx

    def averaged(self, params: Tree, state: Tree) -> Tree:
        """Returns the parameters that are evaluated, given those that are trained.

        Args:
            params: the trained parameters.
            state: the field `averages` of the optimizer's state.
        """
        return params


def cautious(decay: Transformation) -> Transformation:
    """Returns weight decay where it goes the way of the update, and none where the update makes an entry larger.

    The condition is update * weight >= 0 for the direction that is subtracted (Chen et al., arXiv:2510.12402).

    Args:
        decay: adds the decay of the weights to an update; it has no state.
    """
    import jax
    import jax.numpy as jnp
    import optax

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        pulls, state = decay.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        decayed = jax.tree.map(lambda u, pull, p: u + jnp.where(u * p >= 0, pull, 0), updates, pulls, params)
        return decayed, state

    return optax.GradientTransformation(decay.init, update)
