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
    """How a parameter of zoo lies in a file's tensor.

    Attributes:
        from_file, to_file: carry an array over, and undo each other.
        shape: returns the shape in the file for the parameter's shape.
    """

    from_file: Callable[[np.ndarray], np.ndarray]
    to_file: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


def _same(x):
    return x


AS_IS = Layout(_same, _same, _same)

TRANSPOSED = Layout(np.transpose, np.transpose, lambda shape: shape[::-1])
"""[in, out] in zoo, [out, in] in the file, as PyTorch's Linear keeps it."""

PADDED_BIAS = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1), lambda shape: (1, 1, *shape))
"""[F] in zoo, [1, 1, F] in the file."""


def _halves(head_dim: int) -> np.ndarray:
    """Where split-half order finds each feature of interleaved order: 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def _permute_heads(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns `x` with the features of its last axis reordered within each head."""
    return x.reshape(*x.shape[:-1], -1, order.size)[..., order].reshape(x.shape)


@cache
def interleaved(head_dim: int) -> Layout:
    """Returns the layout of a q or k kernel [in, heads * head_dim], or its bias, in a file with interleaved pairs.

    A rotary pair is two halves of a head in zoo and two neighbours in the file.
    """
    to_halves = _halves(head_dim)
    to_neighbours = np.argsort(to_halves)
    return Layout(lambda x: _permute_heads(x, to_halves), lambda x: _permute_heads(x, to_neighbours), _same)


@cache
def head_last(num_heads: int) -> Layout:
    """Returns the layout of [in, heads * head_dim], column n * H + h, that is [in, head_dim, heads] in the file."""
    return Layout(
        lambda x: x.transpose(0, 2, 1).reshape(x.shape[0], -1),
        lambda x: x.reshape(x.shape[0], num_heads, -1).transpose(0, 2, 1),
        lambda shape: (shape[0], shape[1] // num_heads, num_heads),
    )
