"""Schedule-free AdamW (Defazio et al., arXiv:2405.15682), that of `optax.contrib`."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from zoo.errors import UserError
from zoo.recipe.fields import Fraction, PositiveFloat
from zoo.recipe.optimizers.base import Optimizer, Schedule, Transformation

Tree = Any


class ScheduleFree(Optimizer):
    """AdamW without a first moment and without a decay of the learning rate: an average takes the place of both.

    Gradients are taken at y = b1 x + (1 - b1) z, where z is moved by the updates and x is the average of the z,
    weighted by the squares of the learning rates. y is trained, x is evaluated and loaded.

    Attributes:
        schedule_free_b1: the share of the average in the parameters at which gradients are taken.
        b2: how much of the second moment stays at each step.
        eps: is added to the root of the second moment.
    """

    fixed: ClassVar[tuple[str, ...]] = ("schedule_free_b1",)
    averages: ClassVar[str | None] = "z"

    schedule_free_b1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8

    @model_validator(mode="after")
    def _schedule_is_constant(self) -> Self:
        if self.name == "schedule_free":
            if self.schedule != "constant":
                raise ValueError(
                    f"optimizer.schedule {self.schedule} does not go with optimizer.name schedule_free, whose average "
                    "takes its place; set optimizer.schedule: constant (a warm-up may be)"
                )
            if self.ema_decay is not None:
                raise ValueError("optimizer.ema_decay: schedule_free averages the weights itself; leave it out")
        return self

    def build(self, *last: Transformation) -> Transformation:
        """Returns the transformation of gradients into updates of z."""
        import optax

        rms = optax.scale_by_rms(decay=self.b2, eps=self.eps, eps_in_sqrt=False, bias_correction=True)
        return optax.chain(rms, *last)

    def wrap(self, tx: Transformation, learning_rate: Schedule) -> Transformation:
        """Returns the transformation into updates of y; its `init` raises UserError unless parameters are float32.

        The average is taken anew from y and z at each step, which bfloat16 would round away.
        """
        import jax
        import jax.numpy as jnp
        import optax

        free = optax.contrib.schedule_free(tx, learning_rate, b1=self.schedule_free_b1)

        def init(params: Tree) -> Tree:
            if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(params)):
                raise UserError(
                    "optimizer.name: schedule_free needs parameters in float32; set train.param_dtype: float32"
                )
            return free.init(params)

        return optax.GradientTransformation(init, free.update)

    def averaged(self, params: Tree, state: Tree) -> Tree:
        """Returns x, given y and z."""
        import jax

        b1 = self.schedule_free_b1
        return jax.tree.map(lambda y, z: (y - (1 - b1) * z) / b1, params, state)
