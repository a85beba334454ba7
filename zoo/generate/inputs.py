"""Token ids, prompts and seeds as callers give them: checked, and as the types that zoo computes with."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zoo.errors import UserError

Prompt = str | Sequence[int]


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Returns whether `prompts` is one prompt, text or token ids, and no list of them.

    Raises UserError for what is neither.
    """
    if isinstance(prompts, np.ndarray | jax.Array) and prompts.ndim:
        return prompts.ndim == 1
    if not isinstance(prompts, str | Sequence):
        raise UserError(f"a prompt is text or a list of token ids, and this is {prompts!r:.80}")
    if isinstance(prompts, str) or len(prompts) == 0:
        return isinstance(prompts, str)
    return not isinstance(prompts[0], str) and np.ndim(prompts[0]) == 0


def as_token_ids(tokens: Any, ranks: tuple[int, ...], vocab_size: int | None = None) -> np.ndarray:
    """Returns token ids as an array, int32 if `vocab_size` is given.

    Args:
        tokens: whole numbers in a row, or in rows of one length.
        ranks: how many axes the array may have.
        vocab_size: ids must be below it; None leaves that unchecked.

    Raises:
        UserError: anything else.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:  # rows of several lengths
        ids = np.asarray(None)
    if ids.ndim not in ranks:
        raise UserError(f"token ids of shape {ids.shape}; give a row of them" + (", or equal rows" * (2 in ranks)))
    if ids.size == 0:
        return ids.astype(np.int32)
    if ids.dtype.kind not in "iu":
        raise UserError(f"token ids are whole numbers; these are {ids.dtype.name}")
    low, high = int(ids.min()), int(ids.max())
    if vocab_size is not None and (low < 0 or high >= vocab_size):
        raise UserError(f"the token id {low if low < 0 else high} is none; ids go from 0 to {vocab_size - 1}")
    return ids.astype(np.int32) if vocab_size is not None else ids


def as_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """Returns the seed of each of `rows` prompts; raises UserError unless there is one for all, or one each."""
    seeds = [as_seed(seed)] * rows if np.ndim(seed) == 0 else [as_seed(one) for one in seed]
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} prompts; give one seed, or one for each prompt")
    return seeds


def as_seed(seed: Any) -> int:
    """Returns `seed` as an int; raises UserError unless it is a whole number."""
    try:
        return operator.index(seed)
    except TypeError:
        raise UserError(f"seed is {seed!r}; give a whole number") from None
