"""AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

from typing import Annotated, Any

from pydantic import Field

from zoo.recipe.fields import Fraction, PositiveFloat
from zoo.recipe.optimizers.base import Optimizer, Transformation
from zoo.recipe.patterns import check_all_match, first_match

Tree = Any


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        b1, b2: how much of the first and of the second moment stays at each step.
        eps: is added to the root of the second moment.
        betas: from a pattern, as in train.trainable ("layers/*/mlp/*"), to [b1, b2] of the parameters that it matches;
            the first matching pattern counts.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    betas: dict[str, Annotated[list[Fraction], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)

    def build(self, *last: Transformation) -> Transformation:
        """Returns the AdamW transformation of gradients into updates.

        Its `init` raises UserError for a pattern of `betas` that matches none of the parameters Adam moves.
        """
        import optax

        adam = self._adam_in_groups() if self.betas else optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.chain(adam, *last)

    def _adam_in_groups(self) -> Transformation:
        """Returns Adam with the betas of each parameter; its state is that of `optax.scale_by_adam`."""
        import jax
        import jax.numpy as jnp
        import optax

        from zoo.tree import path_name

        def init(params: Tree) -> optax.ScaleByAdamState:
            paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
            check_all_match("optimizer.betas", self.betas, paths)
            zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
            return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), *zeros)

        def update(updates: Tree, state: optax.ScaleByAdamState, params: Tree | None = None) -> tuple[Tree, Tree]:
            betas = jax.tree.map_with_path(
                lambda path, _: tuple(first_match(self.betas, path_name(path), (self.b1, self.b2))), updates
            )
            count = optax.safe_increment(state.count)
            mu = jax.tree.map(lambda g, m, b: b[0] * m + (1 - b[0]) * g, updates, state.mu, betas)
            nu = jax.tree.map(lambda g, v, b: b[1] * v + (1 - b[1]) * jnp.square(g), updates, state.nu, betas)

            def direction(m: jax.Array, v: jax.Array, b: tuple[float, float]) -> jax.Array:
                return m / (1 - b[0] ** count) / (jnp.sqrt(v / (1 - b[1] ** count)) + self.eps)

            return jax.tree.map(direction, mu, nu, betas), optax.ScaleByAdamState(count, mu, nu)

        return optax.GradientTransformation(init, update)
