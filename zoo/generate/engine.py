"""Prefill and decode: prompts in, tokens out, for any model of the zoo.

All prompts of a batch are prefilled in one call, right-padded. Then the whole decode loop (model, sampling,
stopping) is one compiled program over a static cache; it is left early only when every row has stopped, or
after as many steps as a stream wants at a time. Sizes are rounded up to buckets, so that another prompt
length rarely compiles anew.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from zoo.errors import UserError
from zoo.generate.sampling import Sampling, SamplingShape, sample

MAX_STOP_IDS = 8  # stop ids are padded to this many, so that their number does not recompile


def bucket(length: int) -> int:
    """`length` rounded up to one of 16, 20, 24, 28, 32, 40, ...: four a doubling, 25% more at most."""
    step = max(4, 1 << max(0, (length - 1).bit_length() - 3))
    return max(16, -(-length // step) * step)


class Decoding:
    """One batch of prompts on its way: made by `start`, moved on by `advance`.

    Attributes:
        tokens: the new tokens of every row so far, without the one that stopped it.
        logprobs: their natural log probabilities, as `sample` gives them.
        finished: a row's reason, "stop" (a stop id came) or "length" (no more allowed), None while it runs.
    """

    def __init__(self, graphdef, params, state, inputs, shape: SamplingShape, num_rows: int):
        self._graphdef, self._params, self._state, self._inputs, self._shape = (
            graphdef,
            params,
            state,
            inputs,
            shape,
        )
        self._num_rows = num_rows
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.logprobs: list[list[float]] = [[] for _ in range(num_rows)]
        self.finished: list[str | None] = [None] * num_rows
        self._collect()

    @property
    def running(self) -> bool:
        """Whether any row is not finished."""
        return not all(self.finished)

    def advance(self, steps: int | None = None) -> None:
        """Decode at most `steps` tokens a row (None: to the end); nothing happens when all are finished."""
        if not self.running:
            return
        room = self._state["out"].shape[1]
        until = room if steps is None else min(room, int(self._step) + steps)
        self._state = _decode(
            self._params,
            self._state,
            self._inputs,
            jnp.int32(until),
            graphdef=self._graphdef,
            shape=self._shape,
        )
        self._collect()

    def stop(self, row: int, *, keep: int) -> None:
        """End a row from outside (a stop string was seen), keeping its first `keep` new tokens."""
        self._state["done"] = self._state["done"].at[row].set(True)
        self.finished[row] = "stop"
        del self.tokens[row][keep:], self.logprobs[row][keep:]

    def _collect(self) -> None:
        names = ("step", "out", "logprobs", "count", "stopped", "done")
        step, out, logprobs, count, stopped, done = jax.device_get([self._state[name] for name in names])
        self._step = step
        for row in range(self._num_rows):
            if self.finished[row] is None:
                seen = len(self.tokens[row])
                self.tokens[row] += out[row, seen : count[row]].tolist()
                self.logprobs[row] += logprobs[row, seen : count[row]].tolist()
                if done[row]:
                    self.finished[row] = "stop" if stopped[row] else "length"


def start(
    module: nnx.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: Sequence[int] = (),
    num_ids: int | None = None,
    max_len: int | None = None,
    longest_prompt: int = 0,
) -> Decoding:
    """Prefill `prompts` and draw the first new token of each.

    Args:
        module: a model that keeps the contract (`hidden`, `unembed`, `init_cache`); its parameters' dtype is
            the cache's.
        prompts: token ids a row, at least one each.
        seeds: a row's own seed: equal prompts and seeds give equal rows, whatever the other rows are.
        stop_ids: tokens that end a row, at most MAX_STOP_IDS.
        num_ids: ids from here on are never drawn (rows of the table that the tokenizer does not use).
        max_len: prompt and new tokens together stay within it (the model's max_seq_len); None: no bound.
        longest_prompt: sizes are chosen for a prompt at least that long: batches with equal values share
            their compiled programs.

    Raises:
        UserError: no prompt, an empty one, one that leaves no room for a new token, or an id out of range.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(module, prompts, lengths, max_new_tokens, stop_ids, max_len)
    rows = 1 << (len(prompts) - 1).bit_length()
    longest = max(longest_prompt, *lengths)
    width = bucket(longest)
    cache_len = max(width, bucket(longest + max_new_tokens))
    tokens = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : lengths[row]] = prompt
    limits = [max_new_tokens if max_len is None else min(max_new_tokens, max_len - n) for n in lengths]
    spare = rows - len(prompts)  # rows that only fill the batch up: one pad token, finished from the start
    stops = [*stop_ids, *[-1] * (MAX_STOP_IDS - len(stop_ids))]
    inputs = {
        "limits": jnp.asarray(limits + [0] * spare, jnp.int32),
        "stop_ids": jnp.asarray(stops, jnp.int32),
        "seeds": jnp.asarray(np.asarray([*seeds, *[0] * spare], np.int64) & 0xFFFFFFFF, jnp.uint32),
        "num_ids": jnp.int32(np.iinfo(np.int32).max if num_ids is None else num_ids),
        "temperature": jnp.float32(sampling.temperature),
        "top_p": jnp.float32(sampling.top_p),
    }
    graphdef, params = nnx.split(module)
    state = _prefill(
        params,
        jnp.asarray(tokens),
        jnp.asarray(lengths + [1] * spare, jnp.int32),
        inputs,
        graphdef=graphdef,
        shape=sampling.shape,
        cache_len=cache_len,
        room=bucket(max_new_tokens),
    )
    return Decoding(graphdef, params, state, inputs, sampling.shape, len(prompts))


def _check(module, prompts, lengths, max_new_tokens, stop_ids, max_len) -> None:
    if not prompts:
        raise UserError("no prompt; give at least one")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if len(stop_ids) > MAX_STOP_IDS:
        raise UserError(f"{len(stop_ids)} stop ids; at most {MAX_STOP_IDS} are possible")
    vocab = module.config.vocab_size
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {row + 1} is empty; a model needs at least one token to go on from")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= vocab:
            raise UserError(f"prompt {row + 1} holds the id {low if low < 0 else high}; ids go from 0 to {vocab - 1}")
        if max_len is not None and lengths[row] >= max_len:
            raise UserError(f"prompt {row + 1} has {lengths[row]} tokens; the model takes {max_len}, new ones included")


@functools.partial(jax.jit, static_argnames=("graphdef", "shape", "cache_len", "room"))
def _prefill(params, tokens: Array, lengths: Array, inputs: dict, *, graphdef, shape, cache_len: int, room: int):
    """The state after the prompts [B, T] and the first new token of each row."""
    model = nnx.merge(graphdef, params)
    rows, width = tokens.shape
    cache = model.init_cache(rows, cache_len, model.dtype)
    valid = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    hidden, cache = model.hidden(tokens, segment_ids=valid, cache=cache)
    state = {
        "cache": cache,
        "keys": jax.vmap(jax.random.key)(inputs["seeds"]),
        "step": jnp.int32(0),
        "token": jnp.zeros(rows, jnp.int32),
        "out": jnp.zeros((rows, room), jnp.int32),
        "logprobs": jnp.zeros((rows, room), jnp.float32),
        "count": jnp.zeros(rows, jnp.int32),
        "stopped": jnp.zeros(rows, bool),
        "done": inputs["limits"] == 0,
    }
    return _emit(model, state, hidden[jnp.arange(rows), lengths - 1], inputs, shape)


@functools.partial(jax.jit, static_argnames=("graphdef", "shape"), donate_argnames=("state",))
def _decode(params, state: dict, inputs: dict, until: Array, *, graphdef, shape: SamplingShape) -> dict:
    """Step until `until` tokens have been drawn or every row is done."""
    model = nnx.merge(graphdef, params)

    def running(state):
        return (state["step"] < until) & ~jnp.all(state["done"])

    def step(state):
        # A finished row's token is a pad: it is not written and its output is not read.
        valid = (~state["done"]).astype(jnp.int32)[:, None]
        hidden, cache = model.hidden(state["token"][:, None], segment_ids=valid, cache=state["cache"])
        return _emit(model, {**state, "cache": cache}, hidden[:, 0], inputs, shape)

    return jax.lax.while_loop(running, step, state)


def _emit(model, state: dict, hidden: Array, inputs: dict, shape: SamplingShape) -> dict:
    """Draw each row's next token from its last hidden state [B, D] and book it."""
    logits = model.unembed(hidden)
    logits = jnp.where(jnp.arange(logits.shape[-1]) < inputs["num_ids"], logits, -jnp.inf)
    step = state["step"]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state["keys"], step)
    token, logprob = sample(logits, keys, shape, inputs["temperature"], inputs["top_p"])
    stops = jnp.any(token[:, None] == inputs["stop_ids"], axis=-1)
    kept = ~state["done"] & ~stops
    count = state["count"] + kept
    return {
        **state,
        "step": step + 1,
        "token": jnp.where(kept, token, 0),
        "out": state["out"].at[:, step].set(jnp.where(kept, token, 0)),
        "logprobs": state["logprobs"].at[:, step].set(jnp.where(kept, logprob, 0)),
        "count": count,
        "stopped": state["stopped"] | (~state["done"] & stops),
        "done": state["done"] | stops | (count >= inputs["limits"]),
    }
