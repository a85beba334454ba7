"""Prefill and decode: prompts in, tokens out, for any model of the zoo.

All prompts of a batch are prefilled in one call, right-padded. Then the whole decode loop (model, sampling, stopping)
is one compiled program over a static cache. It returns when every row has stopped, or earlier, after as many steps as a
stream asks for. Sizes are rounded up to buckets, so that another prompt length rarely compiles anew.
"""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.errors import UserError
from zoo.generate.programs import Plan, Structure, decode, prefill
from zoo.generate.sampling import Sampling

PREFILL_CHUNK = 512  # the most tokens of a row that are prefilled at a time: scores are [chunk, cache]
MAX_STOP_IDS = 8  # stop ids are padded to this many, so that their number does not recompile


def bucket(length: int) -> int:
    """Returns `length` rounded up to one of 16, 20, 24, 28, 32, 40, ...: four sizes a doubling, at most 25% more."""
    step = max(4, 1 << max(0, (length - 1).bit_length() - 3))
    return max(16, -(-length // step) * step)


def chunks_of(width: int) -> tuple[int, int]:
    """Returns the number of chunks for a prompt of `width` and their length (a multiple of 16 if there are several)."""
    number = -(-width // PREFILL_CHUNK)
    return number, width if number == 1 else -(-width // (16 * number)) * 16


class Decoding:
    """One batch of prompts while it is decoded: made by `start`, continued by `advance`.

    Attributes:
        tokens: the new tokens of every row so far, without the one that stopped it.
        logprobs: their natural log probabilities, as `sample` returns them.
        finished: why a row ended, "stop" (at a stop id) or "length" (no more allowed); None while it runs.
    """

    def __init__(self, structure: Structure, params, state, inputs, plan: Plan, num_rows: int):
        self._structure, self._params, self._state, self._inputs, self._plan = structure, params, state, inputs, plan
        self._num_rows = num_rows
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.logprobs: list[list[float]] = [[] for _ in range(num_rows)]
        self.finished: list[str | None] = [None] * num_rows
        self._collect()

    @property
    def running(self) -> bool:
        """Whether any row has not ended."""
        return not all(self.finished)

    def advance(self, steps: int | None = None) -> None:
        """Decodes at most `steps` more tokens a row (None: to the end); does nothing when all rows have ended."""
        if not self.running:
            return
        until = self._plan.room if steps is None else min(self._plan.room, int(self._step) + steps)
        with _mesh_of(self._params):
            self._state = decode(
                self._params, self._state, self._inputs, jnp.int32(until), structure=self._structure, plan=self._plan
            )
        self._collect()

    def stop(self, row: int, *, keep: int) -> None:
        """Ends a row from outside, at a stop string, with its first `keep` new tokens."""
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
    window: int | None = None,
    longest_prompt: int = 0,
) -> Decoding:
    """Prefills `prompts` and draws the first new token of each.

    Args:
        module: a model (see `zoo.models.decoder.Decoder`); the cache has its dtype.
        prompts: the token ids of each row, at least one each.
        seeds: a seed for each row; equal prompts and seeds give equal rows, whatever the other rows are.
        stop_ids: tokens that end a row, at most MAX_STOP_IDS.
        num_ids: ids from this one on are never drawn (rows of the table that the tokenizer does not use).
        max_len: the most tokens of a row, prompt and new ones together; None means no limit.
        window: if given, each token is computed from the `window` tokens before it alone, at positions from 0 and
            without a cache, for models that have no positions beyond. None computes it from all of them, with a cache.
        longest_prompt: sizes are chosen for a prompt at least that long, so that batches with equal values share their
            compiled programs.

    Raises:
        UserError: no prompt, an empty one, one that leaves no room for a new token, or an id out of range.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(module, prompts, max_new_tokens, stop_ids, max_len)
    rows = 1 << (len(prompts) - 1).bit_length()
    spare = rows - len(prompts)  # rows that only fill the batch: one pad token, ended from the start
    read = prompts if window is None else [prompt[-window:] for prompt in prompts]
    longest = max(longest_prompt, *lengths)
    most = max_new_tokens if max_len is None else min(max_new_tokens, max_len - 1)
    total = longest + most if max_len is None else min(longest + most, max_len)
    if window is None:
        number, size = chunks_of(bucket(longest))
        width = number * size
        plan = Plan(sampling.shape, cache_len=max(width, bucket(total)), room=bucket(most), chunk=size)
    else:
        width = window
        plan = Plan(sampling.shape, cache_len=window, room=bucket(most), chunk=window, window=window)
    tokens = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(read):
        tokens[row, : len(prompt)] = prompt
    limits = [max_new_tokens if max_len is None else min(max_new_tokens, max_len - n) for n in lengths]
    stops = [*stop_ids, *[-1] * (MAX_STOP_IDS - len(stop_ids))]
    vocab = module.config.vocab_size
    inputs = {
        "limits": jnp.asarray(limits + [0] * spare, jnp.int32),
        "stop_ids": jnp.asarray(stops, jnp.int32),
        "seeds": jnp.asarray(np.asarray([int(seed) & 0xFFFFFFFF for seed in [*seeds, *[0] * spare]], np.uint32)),
        "num_ids": jnp.int32(vocab if num_ids is None else num_ids),
        "numbers": sampling.numbers(vocab),
    }
    if sampling.shape.penalised:
        seen = np.zeros((rows, vocab), bool)
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
        inputs["seen"] = jnp.asarray(seen)
    graphdef, state = nnx.split(module)
    structure, params = Structure(graphdef), nnx.to_pure_dict(state)  # a call flattens plain dicts faster than a State
    held = [len(prompt) for prompt in read] + [1] * spare
    with _mesh_of(params):
        state = prefill(
            params, jnp.asarray(tokens), jnp.asarray(held, jnp.int32), inputs, structure=structure, plan=plan
        )
    return Decoding(structure, params, state, inputs, plan, len(prompts))


def _mesh_of(params) -> contextlib.AbstractContextManager:
    """Returns a context in which the parameters' mesh is the ambient one, if they lie on several devices."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf.sharding, jax.sharding.NamedSharding) and leaf.sharding.mesh.size > 1:
            return jax.set_mesh(leaf.sharding.mesh)
    return contextlib.nullcontext()


def _check(module, prompts, max_new_tokens, stop_ids, max_len) -> None:
    if not prompts:
        raise UserError("no prompt; give at least one")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if len(stop_ids) > MAX_STOP_IDS:
        raise UserError(f"{len(stop_ids)} stop ids with the tokenizer's EOS; at most {MAX_STOP_IDS} are possible")
    vocab = module.config.vocab_size
    for stop in stop_ids:
        if not 0 <= stop < vocab:
            raise UserError(f"stop names the id {stop}; ids go from 0 to {vocab - 1}")
    check_prompts(prompts, vocab, max_len)


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, max_len: int | None) -> None:
    """Raises UserError, with the prompt's number, for one that is empty or too long or has an id out of range."""
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {row + 1} is empty; a model needs at least one token to go on from")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise UserError(f"prompt {row + 1} holds the id {wrong}; ids go from 0 to {vocab_size - 1}")
        if max_len is not None and len(prompt) >= max_len:
            raise UserError(
                f"prompt {row + 1} has {len(prompt)} tokens; the model takes {max_len}, new ones included: shorten it"
            )
