"""Choosing the next token: temperature, then top-k, then top-p (Holtzman et al. 2020), or the likeliest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from zoo.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy): filters mean nothing.
        top_k: only the k likeliest tokens are kept; 0 keeps all. Of equal ones the lower ids are kept.
        top_p: of those, the likeliest whose probabilities add up to p are kept, the one that crosses p
            included; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature is {self.temperature}; give a number of at least 0 (0 is greedy)")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; give a whole number of at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a number above 0 and at most 1 (1 keeps all tokens)")

    @property
    def shape(self) -> "SamplingShape":
        """The part that a compiled program depends on; temperature and p are its inputs."""
        if self.temperature == 0:
            return SamplingShape(greedy=True, top_k=0, nucleus=False)
        return SamplingShape(greedy=False, top_k=self.top_k, nucleus=self.top_p < 1)


@dataclasses.dataclass(frozen=True)
class SamplingShape:
    """Which filters are on, see `Sampling.shape`."""

    greedy: bool
    top_k: int
    nucleus: bool


def sample(logits: Array, keys: Array, shape: SamplingShape, temperature: Array, top_p: Array) -> tuple[Array, Array]:
    """Draw one token a row.

    Args:
        logits: float32 [B, V].
        keys: a JAX key a row, [B]; a row's draw depends on its own key and logits alone.
        shape: which filters are on.
        temperature, top_p: float32 scalars.
    Returns:
        tokens int32 [B] and the natural log of each one's probability float32 [B], under the softmax of
        `logits` themselves: before temperature and filters.
    """
    if shape.greedy:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        tokens = _draw(logits / temperature, keys, shape, top_p)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _draw(logits: Array, keys: Array, shape: SamplingShape, top_p: Array) -> Array:
    vocab = logits.shape[-1]
    if 0 < shape.top_k < vocab:
        candidates, ids = jax.lax.top_k(logits, shape.top_k)
    elif shape.nucleus:
        ids = jnp.argsort(logits, axis=-1, descending=True)
        candidates = jnp.take_along_axis(logits, ids, axis=-1)
    else:
        candidates, ids = logits, None
    if shape.nucleus:
        probabilities = jax.nn.softmax(candidates, axis=-1)
        before = jnp.pad(jnp.cumsum(probabilities, axis=-1)[:, :-1], ((0, 0), (1, 0)))
        candidates = jnp.where(before > top_p, -jnp.inf, candidates)
    # Gumbel-max: the argmax of logits with Gumbel noise is a draw from their softmax.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, candidates.shape[-1:], jnp.float32))(keys)
    choice = jnp.argmax(candidates + noise, axis=-1).astype(jnp.int32)
    if ids is None:
        return choice
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
