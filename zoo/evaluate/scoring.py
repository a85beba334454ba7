"""Log probabilities of tokens in many rows at once: what choices, perplexities and rolling likelihoods are made of.

Rows of like length share a batch, widths are rounded up to buckets and the head is applied to the scored positions
alone, a chunk at a time: few programs are compiled, and logits never exist as [B, T, V]. Rows that differ in their
last token only (answers of one token) are one row for the model.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from zoo.errors import UserError
from zoo.evaluate.cache import ResultCache
from zoo.generate.programs import Structure
from zoo.layers.embedding import unembed
from zoo.models.config import ModelConfig

# Positions whose logits exist at one time.
CPU_CHUNK, ACCELERATOR_CHUNK = 512, 4096


@dataclasses.dataclass(frozen=True)
class Row:
    """Token ids, and how many of the last ones are scored, each given all before it; never the first."""

    tokens: tuple[int, ...]
    scored: int


@dataclasses.dataclass(frozen=True)
class Scored:
    """Of the scored tokens of a row: the sum of their natural log probabilities, and whether each is the likeliest."""

    logprob: float
    greedy: bool


class Scorer:
    """A module ready to score rows, `batch_size` at a time."""

    def __init__(self, module: nnx.Module, *, batch_size: int = 32, cache: ResultCache | None = None):
        """`cache`: results found there are not computed again, new ones are added after every batch.

        Raises UserError for a batch_size below 1.
        """
        if batch_size < 1:
            raise UserError(f"--batch-size is {batch_size}; it must be at least 1")
        graphdef, self._params = nnx.split(module)
        self._structure, self._cache = Structure(graphdef), cache
        self._mesh = _mesh_of(self._params)
        devices = 1 if self._mesh is None else self._mesh.size
        self._batch_size = -(-batch_size // devices) * devices
        self._limit = module.config.generation_limit or module.config.max_seq_len
        self._vocab_size = module.config.vocab_size

    def score(self, rows: Sequence[Row], *, on_progress: Callable[[int, int], None] | None = None) -> list[Scored]:
        """The score of each row, in their order; a row of which nothing is scored has log probability 0.

        on_progress: called with rows done and their number, at the start and after each batch.

        Raises UserError for a row that holds more tokens than the model takes, or an id it does not know.
        """
        for row in rows:
            self._check(row)
        found: list[Scored | None] = [None if row.scored else Scored(0.0, True) for row in rows]
        if self._cache is not None:
            for number, row in enumerate(rows):
                kept = None if found[number] else self._cache.get("score", [row.tokens, row.scored])
                found[number] = found[number] or (kept and Scored(*kept))
        # Rows with equal inputs are computed once.
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(rows):
            if found[number] is None:
                alike.setdefault(row.tokens[:-1], []).append(number)
        # The longest first: what does not fit in memory is known at once.
        order = sorted(alike, key=lambda inputs: (-len(inputs), inputs))
        done = sum(one is not None for one in found)
        if on_progress:
            on_progress(done, len(rows))
        for at in range(0, len(order), self._batch_size):
            batch = order[at : at + self._batch_size]
            members = [alike[inputs] for inputs in batch]
            scored = self._batch(batch, [[rows[number] for number in some] for some in members], len(order))
            for some, results in zip(members, scored, strict=True):
                for number, result in zip(some, results, strict=True):
                    found[number] = result
                    if self._cache is not None:
                        row = rows[number]
                        self._cache.put("score", [row.tokens, row.scored], [result.logprob, result.greedy])
                    done += 1
            if self._cache is not None:
                self._cache.commit()
            if on_progress:
                on_progress(done, len(rows))
        return found

    def _check(self, row: Row) -> None:
        inputs = len(row.tokens) - 1
        if not 0 <= row.scored <= max(inputs, 0):
            raise ValueError(f"{row.scored} of {len(row.tokens)} tokens cannot be scored")
        if row.scored and inputs > self._limit:
            raise UserError(f"a row of {inputs} tokens is to be scored; the model takes {self._limit}")
        if row.scored and not (min(row.tokens) >= 0 and max(row.tokens) < self._vocab_size):
            raise UserError(f"a token to be scored is outside the model's vocabulary of {self._vocab_size}")

    def _batch(self, batch: list[tuple[int, ...]], members: list[list[Row]], num_rows: int) -> list[list[Scored]]:
        """Scores of the rows that share each of the inputs in `batch`."""
        longest = max(map(len, batch))
        width = min(_width(longest), max(longest, self._limit))
        # A run's batches all have one size, so that the last one compiles nothing new.
        size = self._batch_size if self._mesh else min(self._batch_size, 1 << (num_rows - 1).bit_length())
        tokens = np.zeros((size, width), np.int32)
        entries: dict[tuple[int, int], int] = {}  # (place in the flattened batch, target) -> number
        for number, inputs in enumerate(batch):
            tokens[number, : len(inputs)] = inputs
        for number, some in enumerate(members):
            for row in some:
                for at in range(len(row.tokens) - 1 - row.scored, len(row.tokens) - 1):
                    entries.setdefault((number * width + at, row.tokens[at + 1]), len(entries))
        chunk = min(_chunk(), 1 << (size * width - 1).bit_length())
        room = chunk * -(-size * width // chunk)
        while room < len(entries):  # many answers of one token to the same question
            room *= 2
        places, targets = np.zeros(room, np.int32), np.zeros(room, np.int32)
        places[: len(entries)] = [place for place, _ in entries]
        targets[: len(entries)] = [target for _, target in entries]
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            logprobs, best = _logprobs(
                self._params,
                tokens,
                places,
                targets,
                np.int32(-(-len(entries) // chunk)),
                structure=self._structure,
                chunk=chunk,
            )
        logprobs, best = np.asarray(logprobs, np.float64), np.asarray(best)
        results = []
        for number, some in enumerate(members):
            results.append([])
            for row in some:
                first = len(row.tokens) - 1 - row.scored
                mine = [entries[number * width + first + i, row.tokens[first + i + 1]] for i in range(row.scored)]
                results[-1].append(Scored(float(logprobs[mine].sum()), bool(best[mine].all())))
        return results


@functools.partial(jax.jit, static_argnames=("structure", "chunk"))
def _logprobs(
    params, tokens: Array, places: Array, targets: Array, chunks: Array, *, structure: Structure, chunk: int
) -> tuple[Array, Array]:
    """Log probability of each target at its place in the flattened batch, and whether it is the likeliest token.

    Args:
        tokens: int32 [B, T], right-padded; the model is causal, so that nothing sees the padding.
        places, targets: int32 [M], M a multiple of `chunk`; `chunks`: how many chunks of them count.
    """
    model = nnx.merge(structure.graphdef, params)
    hidden, _ = model.hidden(tokens)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    head = model.head()

    def some(number, results):
        at = number * chunk
        wanted = jax.lax.dynamic_slice_in_dim(targets, at, chunk)
        logits = unembed(hidden[jax.lax.dynamic_slice_in_dim(places, at, chunk)], *head)
        logprobs = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        found = (logprobs, jnp.argmax(logits, axis=-1) == wanted)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(all_, x, at, 0) for all_, x in zip(results, found, strict=True)
        )

    return jax.lax.fori_loop(0, chunks, some, (jnp.zeros(places.shape, jnp.float32), jnp.zeros(places.shape, bool)))


def windows(tokens: Sequence[int], prefix: int, max_length: int) -> list[Row]:
    """Rows in which each of `tokens` is scored once, with `prefix` before the first of them.

    As lm-eval's rolling log-likelihood: rows of `max_length` inputs that begin with the last token of the row before;
    the last row reaches back to be full.
    """
    ids = [prefix, *tokens]
    rows = []
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        rows.append(Row(tuple(ids[max(0, end - max_length) : end + 1]), end - begin))
    return rows


def check_max_length(config: ModelConfig, max_length: int | None) -> int:
    """Tokens a row may have: `max_length`, or the model's max_seq_len; UserError if it does not take so many."""
    limit = config.generation_limit or config.max_seq_len
    if max_length is None:
        return config.max_seq_len
    if not 1 <= max_length <= limit:
        raise UserError(f"--max-length is {max_length}; for this model it lies between 1 and {limit}")
    return max_length


def _width(length: int) -> int:
    """`length` rounded up to one of 16, 24, 32, 48, 64, 96, ...: tasks of all lengths compile a dozen programs."""
    power = 1 << max(4, (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def _chunk() -> int:
    return CPU_CHUNK if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK


def _mesh_of(params) -> jax.sharding.Mesh | None:
    """The mesh that the parameters lie on, if it has several devices."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf.sharding, jax.sharding.NamedSharding) and leaf.sharding.mesh.size > 1:
            return leaf.sharding.mesh
    return None
