"""The two compiled programs of generation: `prefill` reads a batch's prompts, `decode` is the loop of new tokens.

The static part of a batch is a `Plan`. All else are arrays, so that other settings do not compile anew.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zoo.generate.sampling import SamplingShape, sample
from zoo.layers.kv_cache import KVCache
from zoo.layers.sharding import constrain


@dataclass(frozen=True)
class Plan:
    """The static part of a batch.

    Attributes:
        shape: which parts of sampling are on.
        cache_len: the most tokens of a row in the cache.
        room: the most new tokens of a row.
        chunk: how many tokens of a row are prefilled at a time; the prompts' width is a multiple of it.
        window: None decodes with a cache; otherwise each new token is computed from the row's last `window` tokens
            anew, at positions from 0.
    """

    shape: SamplingShape
    cache_len: int
    room: int
    chunk: int
    window: int | None = None


class Structure:
    """A model's graphdef with its hash computed once: `jax.jit` asks for it at every call, a millisecond each time."""

    def __init__(self, graphdef: nnx.GraphDef):
        self.graphdef, self._hash = graphdef, hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.graphdef == other.graphdef)


@functools.partial(jax.jit, static_argnames=("structure", "plan"))
def prefill(params, tokens: Array, lengths: Array, inputs: dict[str, Any], *, structure: Structure, plan: Plan):
    """Returns the state after the prompts and the first new token of each row.

    Args:
        tokens, lengths: the prompts int32 [B, T], right-padded, and the number of each row's tokens int32 [B].
        inputs: limits [B] (of new tokens), stop_ids [MAX_STOP_IDS], seeds [B], num_ids, numbers (of
            `Sampling.numbers`) and, with a repetition penalty, seen [B, V].
    """
    model = nnx.merge(structure.graphdef, params)
    rows = tokens.shape[0]
    read = _read_prompt if plan.window is None else _read_window
    memory, hidden = read(model, tokens, lengths, plan)
    state = {
        "memory": memory,
        "keys": jax.vmap(jax.random.key)(inputs["seeds"]),
        "step": jnp.int32(0),
        "token": jnp.zeros(rows, jnp.int32),
        "out": jnp.zeros((rows, plan.room), jnp.int32),
        "logprobs": jnp.zeros((rows, plan.room), jnp.float32),
        "count": jnp.zeros(rows, jnp.int32),
        "stopped": jnp.zeros(rows, bool),
        "done": inputs["limits"] == 0,
        **({"seen": inputs["seen"]} if plan.shape.penalised else {}),
    }
    return _emit(model, state, hidden, inputs, plan.shape)


@functools.partial(jax.jit, static_argnames=("structure", "plan"), donate_argnames=("state",))
def decode(params, state: dict[str, Any], inputs: dict[str, Any], until: Array, *, structure: Structure, plan: Plan):
    """Returns the state once `until` new tokens a row have been drawn or every row has ended."""
    model = nnx.merge(structure.graphdef, params)
    read = _read_token if plan.window is None else _read_token_anew

    def running(state):
        return (state["step"] < until) & ~jnp.all(state["done"])

    def step(state):
        # The token of a row that has ended is padding: it is not written and its output is not read.
        memory, hidden = read(model, state["memory"], state["token"], ~state["done"])
        return _emit(model, {**state, "memory": memory}, hidden, inputs, plan.shape)

    return jax.lax.while_loop(running, step, state)


def _read_prompt(model, tokens: Array, lengths: Array, plan: Plan) -> tuple[KVCache, Array]:
    """The cache after the prompts, and the hidden state [B, D] of each row's last token."""
    rows, width = tokens.shape
    cache = _shard(model.init_cache(rows, plan.cache_len, model.dtype))
    valid = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    size = plan.chunk
    if width == size:
        hidden, cache = model.hidden(tokens, segment_ids=valid, cache=cache)
        return cache, hidden[jnp.arange(rows), lengths - 1]

    def read(carry, piece):
        cache, last = carry
        tokens, valid, begin = piece
        hidden, cache = model.hidden(tokens, segment_ids=valid, cache=cache)
        at = lengths - 1 - begin
        here = (at >= 0) & (at < size)
        last = jnp.where(here[:, None], hidden[jnp.arange(rows), jnp.clip(at, 0, size - 1)], last)
        return (cache, last), None

    pieces = [x.reshape(rows, width // size, size).swapaxes(0, 1) for x in (tokens, valid)]
    hidden, _ = jax.eval_shape(lambda c, t: model.hidden(t, cache=c), cache, pieces[0][0])
    first = jnp.zeros((rows, hidden.shape[-1]), hidden.dtype)
    (cache, last), _ = jax.lax.scan(read, (cache, first), (*pieces, jnp.arange(0, width, size)))
    return cache, last


def _shard(cache):
    """Splits the cache's rows and heads over the ambient mesh, as activations are."""
    if not isinstance(cache, KVCache):
        return cache
    axes = ("batch", "kv_heads", "length", "features")
    k, v = (tuple(constrain(buffer, axes) for buffer in buffers) for buffers in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _read_token(model, cache: KVCache, token: Array, valid: Array) -> tuple[KVCache, Array]:
    """The cache and the hidden state [B, D] after one more token of each row that is `valid`."""
    hidden, cache = model.hidden(token[:, None], segment_ids=valid.astype(jnp.int32)[:, None], cache=cache)
    return cache, hidden[:, 0]


def _read_window(model, tokens: Array, lengths: Array, plan: Plan) -> tuple[dict[str, Array], Array]:
    """`_read_prompt` without a cache: the memory is the tokens. No token sees the padding after it."""
    hidden, _ = model.hidden(tokens)
    return {"tokens": tokens, "lengths": lengths}, hidden[jnp.arange(tokens.shape[0]), lengths - 1]


def _read_token_anew(model, memory: dict[str, Array], token: Array, valid: Array) -> tuple[dict[str, Array], Array]:
    """`_read_token` without a cache: a full window drops its first token, and the others move one place down."""
    tokens, lengths = memory["tokens"], memory["lengths"]
    rows, window = tokens.shape
    full = valid & (lengths == window)
    tokens = jnp.where(full[:, None], jnp.roll(tokens, -1, axis=1), tokens)
    lengths = jnp.minimum(lengths + valid, window)
    slots = jnp.where(valid, lengths - 1, window)
    tokens = tokens.at[jnp.arange(rows), slots].set(token, mode="drop")
    hidden, _ = model.hidden(tokens)
    return {"tokens": tokens, "lengths": lengths}, hidden[jnp.arange(rows), lengths - 1]


def _emit(model, state: dict[str, Any], hidden: Array, inputs: dict[str, Any], shape: SamplingShape) -> dict[str, Any]:
    """Draws each row's next token from its last hidden state [B, D] and writes it into the state."""
    logits = model.unembed(hidden)
    logits = jnp.where(jnp.arange(logits.shape[-1]) < inputs["num_ids"], logits, -jnp.inf)
    step = state["step"]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state["keys"], step)
    token, logprob = sample(logits, keys, shape, inputs["numbers"], state.get("seen"))
    token = jnp.minimum(token, inputs["num_ids"] - 1)  # NaN in the logits may give any id
    stops = jnp.any(token[:, None] == inputs["stop_ids"], axis=-1)
    is_new = ~state["done"] & ~stops
    count = state["count"] + is_new
    after = {
        **state,
        "step": step + 1,
        "token": jnp.where(is_new, token, 0),
        "out": state["out"].at[:, step].set(jnp.where(is_new, token, 0)),
        "logprobs": state["logprobs"].at[:, step].set(jnp.where(is_new, logprob, 0)),
        "count": count,
        "stopped": state["stopped"] | (~state["done"] & stops),
        "done": state["done"] | stops | (count >= inputs["limits"]),
    }
    if shape.penalised:
        after["seen"] = state["seen"].at[jnp.arange(token.shape[0]), token].set(True)
    return after
