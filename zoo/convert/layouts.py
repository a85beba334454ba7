"""How the same numbers lie in two places: transposed, permuted, with axes of length one.

A layout only moves elements, so it carries gradients as well as parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """`to_ours` and `to_theirs` undo each other; `shape` gives their shape for ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


def _same(x):
    return x


AS_IS = Layout(_same, _same, _same)

TRANSPOSED = Layout(np.transpose, np.transpose, lambda shape: shape[::-1])
"""(in, out) here, (out, in) there, as PyTorch's Linear keeps it."""

PADDED_BIAS = Layout(
    lambda theirs: theirs.reshape(-1), lambda ours: ours.reshape(1, 1, -1), lambda shape: (1, 1, *shape)
)
"""[F] here, [1, 1, F] there."""


def _halves(head_dim: int) -> np.ndarray:
    """Where split-half order finds each feature of interleaved order: 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def _permute_heads(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The features of the last axis reordered within each head."""
    return x.reshape(*x.shape[:-1], -1, order.size)[..., order].reshape(x.shape)


@cache
def interleaved(head_dim: int) -> Layout:
    """A q or k kernel [in, heads * head_dim], or its bias: rotary pairs are halves of a head here, neighbours there."""
    there = _halves(head_dim)
    here = np.argsort(there)
    return Layout(lambda x: _permute_heads(x, there), lambda x: _permute_heads(x, here), _same)


@cache
def head_last(num_heads: int) -> Layout:
    """[in, heads * head_dim] here, column n * H + h; [in, head_dim, heads] there."""
    return Layout(
        lambda x: x.transpose(0, 2, 1).reshape(x.shape[0], -1),
        lambda x: x.reshape(x.shape[0], num_heads, -1).transpose(0, 2, 1),
        lambda shape: (shape[0], shape[1] // num_heads, num_heads),
    )
