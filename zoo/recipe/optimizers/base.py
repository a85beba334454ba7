"""The base of the optimizers."""

from typing import TypeAlias

from zoo.recipe.fields import Section

Transformation: TypeAlias = "optax.GradientTransformation"  # noqa: F821


class Optimizer(Section):
    """An optimizer: its own fields of a recipe's `optimizer` section, and what it makes of a gradient.

    The recipe's section inherits from every optimizer and so has the fields of all. Two optimizers may share a field if
    its default is the same in both. A recipe that sets a field of another optimizer than its own is refused. Validators
    of an optimizer see the defaults where a recipe has another one.

    Modules of optimizers load JAX only when one is built, since reading a recipe loads none.
    """

    def build(self, *last: Transformation) -> Transformation:
        """Returns the transformation of gradients into updates.

        The gradients are clipped already, and in float32. Fields of its state called `mu` and `nu` are stored in
        `optimizer.moments_dtype`.

        Args:
            last: the transformations that follow the optimizer's own ones in a chain: the first adds the decay of the
                weights, the second multiplies by the negative learning rate.
        """
        raise NotImplementedError
