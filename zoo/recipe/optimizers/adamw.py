"""AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

from zoo.recipe.fields import Fraction, PositiveFloat
from zoo.recipe.optimizers.base import Optimizer, Transformation


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        b1, b2: how much of the first and of the second moment stays at each step.
        eps: is added to the root of the second moment.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8

    def build(self, *last: Transformation) -> Transformation:
        """Returns the AdamW transformation of gradients into updates."""
        import optax

        return optax.chain(optax.scale_by_adam(self.b1, self.b2, self.eps), *last)
