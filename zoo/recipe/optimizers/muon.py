"""Muon (Jordan et al., github.com/KellerJordan/Muon, and Liu et al., arXiv:2502.16982)."""

import math
from typing import Any

from zoo.errors import UserError
from zoo.recipe.fields import Fraction, PositiveFloat, PositiveInt
from zoo.recipe.optimizers.adamw import AdamW
from zoo.recipe.optimizers.base import Transformation

Tree = Any


class Muon(AdamW):
    """Muon for the matrices of the layers, and AdamW with b1, b2 and eps for everything else.

    Attributes:
        muon_momentum: how much of the momentum stays at each step.
        muon_iterations: of Newton and Schulz.
        muon_rms: the root mean square of an update's entries at a learning rate of 1; null takes Jordan's scale, by the
            ratio of a matrix's sides.
    """

    muon_momentum: Fraction = 0.95
    muon_iterations: PositiveInt = 5
    muon_rms: PositiveFloat | None = None

    def build(self, *last: Transformation) -> Transformation:
        """Returns the Muon transformation of gradients into updates.

        The momentum, with Nesterov's look-ahead, is made nearly orthogonal by `muon_iterations` Newton-Schulz steps and
        scaled by sqrt(max(1, fan_out / fan_in)); or, with `muon_rms`, by muon_rms * sqrt(max(fan_in, fan_out)), so that
        the root mean square of its entries is about muon_rms (AdamW's is about 0.2).

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

        muon = optax.chain(
            scale_by_muon(ns_steps=self.muon_iterations, beta=self.muon_momentum, weight_dimension_numbers=as_matrices),
            optax.stateless(lambda updates, params: jax.tree.map(scale, updates)),
            *last,
        )
        return optax.partition({"muon": muon, "adam": AdamW.build(self, *last)}, _muon_or_adam)


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
