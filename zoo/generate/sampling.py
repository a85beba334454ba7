"""The choice of the next token: bias and penalty, then temperature and filters, then a draw or the likeliest token.

The order is fixed; transformers' `generate` and the original programs of all models of the zoo have the same:

    logit bias, repetition penalty, temperature, top-k, top-p, min-p, draw
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.errors import UserError

FEW = 1024  # the most candidates for which noise is drawn, see `_pick_by_noise`
LOWEST_TEMPERATURE = 1e-30  # logits divided by less may overflow float32
BLOCK = 256  # tokens whose probabilities are summed together, see `_pick_by_share`


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy): the filters then have no effect,
            bias and penalty still have.
        top_k: only the k likeliest tokens are kept; 0 keeps all. Of equally likely ones the lower ids are kept.
        top_p: of those, the likeliest whose probabilities add up to p are kept, the one that crosses p included
            (Holtzman et al., arXiv:1904.09751); 1 keeps all. Equally likely ones are kept together.
        min_p: of those, the ones at least min_p times as likely as the likeliest are kept (Nguyen et al.,
            arXiv:2407.01082); 0 keeps all.
        repetition_penalty: positive logits of tokens that stand in the prompt or have been drawn are divided
            by it, negative ones multiplied (Keskar et al., arXiv:1909.05858); 1 changes nothing.
        logit_bias: token id -> what is added to its logit; -inf forbids the token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), int | float | np.number):
                raise UserError(f"{name} is {getattr(self, name)!r}; give a number")
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias is {self.logit_bias!r:.80}; give a dict of token ids and numbers")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature is {self.temperature}; give a number of at least 0 (0 is greedy)")
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            lowest = f"at least {LOWEST_TEMPERATURE}, or 0, which is greedy"
            raise UserError(f"temperature is {self.temperature}; give {lowest}")
        if not isinstance(self.top_k, int | np.integer) or self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; give a whole number of at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a number above 0 and at most 1 (1 keeps all tokens)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; give a number from 0 to 1 (0 keeps all tokens)")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; give a number above 0 (1 changes nothing)"
            )
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias > float(np.finfo(np.float32).max):
                raise UserError(f"logit_bias of token {token} is {bias}; give a number, or -inf to forbid the token")

    @property
    def shape(self) -> "SamplingShape":
        """The part that a compiled program depends on; the numbers themselves are its inputs."""
        drawn = self.temperature > 0
        return SamplingShape(
            greedy=not drawn,
            top_k=self.top_k if drawn else 0,
            nucleus=drawn and self.top_p < 1,
            floor=drawn and self.min_p > 0,
            penalised=self.repetition_penalty != 1,
            biased=bool(self.logit_bias),
        )

    def numbers(self, vocab_size: int) -> dict[str, Array]:
        """Returns the arrays that `sample` reads besides the shape.

        Raises UserError for a bias of an id outside the vocabulary.
        """
        numbers = {
            "temperature": jnp.float32(self.temperature),
            "top_p": jnp.float32(self.top_p),
            "min_p": jnp.float32(self.min_p),
            "repetition_penalty": jnp.float32(self.repetition_penalty),
        }
        if self.logit_bias:
            bias = np.zeros(vocab_size, np.float32)
            for token, value in self.logit_bias.items():
                if not 0 <= token < vocab_size:
                    raise UserError(f"logit_bias names the id {token}; ids go from 0 to {vocab_size - 1}")
                bias[token] = value
            numbers["bias"] = jnp.asarray(bias)
        return numbers


@dataclasses.dataclass(frozen=True)
class SamplingShape:
    """Which parts of a `Sampling` are on: top-k, top-p (nucleus), min-p (floor), penalty, biases."""

    greedy: bool
    top_k: int
    nucleus: bool
    floor: bool
    penalised: bool
    biased: bool


def sample(
    logits: Array, keys: Array, shape: SamplingShape, numbers: dict[str, Array], seen: Array | None = None
) -> tuple[Array, Array]:
    """Draws one token a row.

    Args:
        logits: float32 [B, V].
        keys: a random key for each row [B]; a row's draw depends on its own key and logits alone.
        shape, numbers: those of a `Sampling`.
        seen: bool [B, V], the tokens that the repetition penalty applies to; needed where there is one.

    Returns:
        Tokens int32 [B] and the natural log of each one's probability float32 [B], under the softmax of the `logits`
        as given: before bias, penalty, temperature and filters.
    """
    adjusted = logits
    if shape.biased:
        adjusted = adjusted + numbers["bias"]
    if shape.penalised:
        penalty = numbers["repetition_penalty"]
        adjusted = jnp.where(seen, jnp.where(adjusted > 0, adjusted / penalty, adjusted * penalty), adjusted)
    if shape.greedy:
        tokens = _first_greatest(adjusted)
    else:
        tokens = _draw(adjusted / numbers["temperature"], keys, shape, numbers)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _first_greatest(x: Array) -> Array:
    """argmax over the last axis, without NaN. On CPU `jnp.argmax`, which looks for NaN, takes 5 times as long."""
    size = x.shape[-1]
    places = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), jnp.arange(size, dtype=jnp.int32), size - 1)
    return jnp.min(places, axis=-1)


def _draw(logits: Array, keys: Array, shape: SamplingShape, numbers: dict[str, Array]) -> Array:
    if 0 < shape.top_k < logits.shape[-1]:
        candidates, ids = jax.lax.top_k(logits, shape.top_k)
    else:
        candidates, ids = logits, None
    if shape.nucleus:
        candidates = jnp.where(_in_nucleus(candidates, numbers["top_p"]), candidates, -jnp.inf)
    if shape.floor:
        lowest = jnp.max(candidates, axis=-1, keepdims=True) + jnp.log(numbers["min_p"])
        candidates = jnp.where(candidates < lowest, -jnp.inf, candidates)
    pick = _pick_by_noise if candidates.shape[-1] <= FEW else _pick_by_share
    choice = pick(candidates, keys)
    if ids is None:
        return choice
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _pick_by_noise(logits: Array, keys: Array) -> Array:
    """A draw by Gumbel-max: the argmax of logits plus Gumbel noise is a draw from their softmax."""
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(keys)
    return _first_greatest(logits + noise)


def _pick_by_share(logits: Array, keys: Array) -> Array:
    """A draw by one random number a row, looked up among the sums of blocks of tokens, then inside a block.

    For whole vocabularies: on a CPU, noise for 50,000 tokens takes longer than a small model.
    """
    rows, vocab = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(rows, -1, BLOCK)
    sums = jnp.sum(weights, axis=-1)
    share = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys) * jnp.sum(sums, axis=-1)
    block, share = _first_beyond(sums, share)
    token, _ = _first_beyond(weights[jnp.arange(rows), block], share)
    return block * BLOCK + token


def _first_beyond(weights: Array, share: Array) -> tuple[Array, Array]:
    """Per row, the first place [B] where the running sum of `weights` [B, n] exceeds `share`, and the rest of `share`.

    It is never a place of weight zero: where rounding leaves none, it is the last one of some weight.
    """
    running = jnp.cumsum(weights, axis=-1)
    beyond = (running > share[:, None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    place = jnp.where(jnp.any(beyond, axis=-1), jnp.argmax(beyond, axis=-1), last).astype(jnp.int32)
    rows = jnp.arange(weights.shape[0])
    return place, share - (running[rows, place] - weights[rows, place])


def _in_nucleus(logits: Array, top_p: Array) -> Array:
    """Which tokens [B, V] have at most `top_p` of the probability in tokens likelier than themselves.

    The lowest such probability is searched bit by bit: floats from 0 to 1 are in the order of their bits, so that 30
    halvings find it exactly. Sorting a whole vocabulary takes several times as long.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        above = jnp.sum(jnp.where(probabilities > threshold, probabilities, 0), axis=-1, keepdims=True)
        enough = above <= top_p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros((*logits.shape[:-1], 1), jnp.int32)
    one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    _, found = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, one)))
    return probabilities >= jax.lax.bitcast_convert_type(found, jnp.float32)
