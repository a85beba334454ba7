"""Muon (Jordan et al., github.com/KellerJordan/Muon, and Liu et al., arXiv:2502.16982), and what nanochat makes of it.

The polynomials of `muon_coefficients: polar_express` are those of Amsel et al., arXiv:2505.16932, `muon_normalize` is
NorMuon's (Li et al., arXiv:2510.05491) as karpathy/nanochat has it in nanochat/optim.py, `muon_step_fused`.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from zoo.errors import UserError
from zoo.recipe.fields import Fraction, PositiveFloat, PositiveInt
from zoo.recipe.optimizers.adamw import AdamW
from zoo.recipe.optimizers.base import Transformation, cautious

Tree = Any
Polynomial = tuple[float, float, float]

NEWTON_SCHULZ: Polynomial = (3.4445, -4.7750, 2.0315)
# One for each iteration, made for five of them; a sixth and later ones repeat the last, as the paper has it.
POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_EXPRESS_MARGIN = 1.01  # no singular value may round to more than 1, where the first polynomial turns away
TINY = 1e-7  # keeps the quotients of zeros zero


class MuonMoments(NamedTuple):
    """The state of Muon with Polar Express or NorMuon.

    Attributes:
        mu: the momentum.
        nu: with `muon_normalize`, the mean square of the orthogonal updates along the shorter side of each matrix,
            [1, fan_out] or [fan_in, 1]; else ().
    """

    mu: Tree
    nu: Tree


class Muon(AdamW):
    """Muon for the matrices of the layers, and AdamW with b1, b2 and eps for everything else.

    Attributes:
        muon_momentum: how much of the momentum stays at each step.
        muon_iterations: of Newton and Schulz, or of Polar Express.
        muon_rms: the root mean square of an update's entries at a learning rate of 1; null takes Jordan's scale, by the
            ratio of a matrix's sides.
        muon_coefficients: the polynomial of an iteration: Jordan's, the same in each, or those of Polar Express.
        muon_normalize: whether each neuron's part of an update is divided by its own running size (NorMuon).
        muon_b2: how much of that running mean square stays at each step.
        muon_cautious_decay: whether the matrices' weights decay only where the update goes the same way.
    """

    fixed: ClassVar[tuple[str, ...]] = ("muon_coefficients", "muon_normalize")

    muon_momentum: Fraction = 0.95
    muon_iterations: PositiveInt = 5
    muon_rms: PositiveFloat | None = None
    muon_coefficients: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    muon_normalize: bool = False
    muon_b2: Fraction = 0.95
    muon_cautious_decay: bool = False

    @model_validator(mode="after")
    def _b2_is_of_the_normalization(self) -> Self:
        if not self.muon_normalize and self.changed(["muon_b2"]):
            raise ValueError("optimizer.muon_b2 is for optimizer.muon_normalize: true; leave it out")
        return self

    def build(self, *last: Transformation) -> Transformation:
        """Returns the Muon transformation of gradients into updates.

        The momentum, with Nesterov's look-ahead, is made nearly orthogonal by `muon_iterations` steps, normalized if
        the recipe says so, and scaled by sqrt(max(1, fan_out / fan_in)); or, with `muon_rms`, by muon_rms *
        sqrt(max(fan_in, fan_out)), so that the root mean square of its entries is about muon_rms (AdamW's is about
        0.2). With Jordan's polynomial alone the momentum is optax's, whose bias is corrected.

        Its `init` raises UserError for a model without matrices in its layers.
        """
        import jax
        import optax
        from optax.contrib import MuonDimensionNumbers, scale_by_muon

        def scale(update: jax.Array) -> jax.Array:
            fan_in, fan_out = update.shape
            if self.muon_rms is not None:
                return self.muon_rms * math.sqrt(max(fan_in, fan_out)) * update
            return math.sqrt(max(1.0, fan_out / fan_in)) * update

        def as_matrices(updates: Tree) -> Tree:
            return jax.tree.map(lambda _: MuonDimensionNumbers(), updates)

        if self.muon_normalize or self.muon_coefficients == "polar_express":
            orthogonal = self._normalized_momentum()
        else:
            orthogonal = scale_by_muon(
                ns_steps=self.muon_iterations, beta=self.muon_momentum, weight_dimension_numbers=as_matrices
            )
        decay, *rest = last
        muon = optax.chain(
            orthogonal,
            optax.stateless(lambda updates, params: jax.tree.map(scale, updates)),
            cautious(decay) if self.muon_cautious_decay else decay,
            *rest,
        )
        return optax.partition({"muon": muon, "adam": AdamW.build(self, *last)}, _muon_or_adam)

    def _normalized_momentum(self) -> Transformation:
        """Returns momentum, orthogonalization and NorMuon's normalization of matrices [fan_in, fan_out]."""
        import jax
        import jax.numpy as jnp
        import optax

        def mean_square(matrix: jax.Array) -> jax.Array:
            fan_in, fan_out = matrix.shape
            return jnp.mean(jnp.square(matrix), axis=0 if fan_out >= fan_in else 1, keepdims=True)

        def init(params: Tree) -> MuonMoments:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return MuonMoments(zeros, jax.tree.map(mean_square, zeros) if self.muon_normalize else ())

        def update(updates: Tree, state: MuonMoments, params: Tree | None = None) -> tuple[Tree, MuonMoments]:
            keep = self.muon_momentum
            mu = jax.tree.map(lambda g, m: keep * m + (1 - keep) * g, updates, state.mu)
            ahead = jax.tree.map(lambda g, m: keep * m + (1 - keep) * g, updates, mu)
            updates, nu = jax.tree.map(self._orthogonalized, ahead), ()
            if self.muon_normalize:
                keep = self.muon_b2
                nu = jax.tree.map(lambda o, v: keep * v + (1 - keep) * mean_square(o), updates, state.nu)
                updates = jax.tree.map(_normalized, updates, nu)
            return updates, MuonMoments(mu, nu)

        return optax.GradientTransformation(init, update)

    def _orthogonalized(self, matrix: Any) -> Any:
        """Returns the nearly orthogonal matrix with the singular vectors of `matrix`, [fan_in, fan_out]."""
        import jax.numpy as jnp

        count, norm = self.muon_iterations, jnp.linalg.norm(matrix)
        if self.muon_coefficients == "polar_express":
            polynomials = [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(count)]
            x = matrix / (POLAR_EXPRESS_MARGIN * norm + TINY)
        else:
            polynomials, x = [NEWTON_SCHULZ] * count, matrix / (norm + TINY)
        is_tall = matrix.shape[0] > matrix.shape[1]
        for a, b, c in polynomials:
            gram = x.T @ x if is_tall else x @ x.T  # of the shorter side
            factor = b * gram + c * (gram @ gram)
            x = a * x + (x @ factor if is_tall else factor @ x)
        return x


def _normalized(update: Any, mean_square: Any) -> Any:
    """Returns an update divided by the root of its running mean square, with the Frobenius norm that it had."""
    import jax
    import jax.numpy as jnp

    divided = update * jax.lax.rsqrt(jnp.maximum(mean_square, 1e-10))
    return divided * (jnp.linalg.norm(update) / jnp.maximum(jnp.linalg.norm(divided), 1e-10))


def _muon_or_adam(params: Tree) -> Tree:
    """Labels matrices in the list of layers "muon", and embeddings, head, norms, biases and scalars "adam"."""
    import jax

    def label(path: tuple, leaf: Any) -> str:
        in_a_layer = any(isinstance(getattr(key, "key", None), int) for key in path)
        is_embedding = jax.tree_util.keystr(path[-1:], simple=True) == "embedding"
        return "muon" if in_a_layer and leaf.ndim == 2 and not is_embedding else "adam"

    labels = jax.tree.map_with_path(label, params)
    if "muon" not in jax.tree.leaves(labels):
        raise UserError(
            "optimizer.name: muon moves the matrices of a model's layers and none of them is trained here; take adamw"
        )
    return labels
