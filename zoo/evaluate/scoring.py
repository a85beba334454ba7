"""Log probabilities of tokens in many rows at once: what choices, perplexities and rolling likelihoods are made of.

Rows of like length share a batch, widths are rounded up to buckets and the head is applied to the scored positions
alone, a chunk at a time: few programs are compiled, and logits never exist as [B, T, V]. Rows that differ in their
last token only (answers of one token) are one row for the model.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

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
    """A row of a batch: each of its last tokens is scored given all tokens before it.

    Attributes:
        tokens: token ids.
        scored: how many of the last tokens are scored; less than all of them.
    """

    tokens: tuple[int, ...]
    scored: int

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], longest: int) -> "Row":
        """Returns the row that scores `continuation`; beyond `longest` tokens it loses those at its beginning."""
        tokens = tuple([*context, *continuation][-longest:])
        return cls(tokens, min(len(continuation), max(len(tokens) - 1, 0)))


@dataclasses.dataclass(frozen=True)
class Scored:
    """The score of a row.

    Attributes:
        logprob: the sum of the natural log probabilities of its scored tokens.
        greedy: whether each scored token is the likeliest one at its place.
    """

    logprob: float
    greedy: bool


class Scorer:
    """A module ready to score rows, `batch_size` at a time."""

    def __init__(self, module: nnx.Module, *, batch_size: int = 32, cache: ResultCache | None = None):
        """Splits the module, which stays as it is.

        Args:
            module: a causal model of the zoo.
            batch_size: rows computed at a time; rounded up to a multiple of the devices that the module lies on.
            cache: results that it holds are not computed again; new ones are added after every batch.

        Raises:
            UserError: a batch_size below 1.
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
        """Returns the score of each row, in their order; a row of which nothing is scored has log probability 0.

        Args:
            rows: of any lengths.
            on_progress: called with the number of rows done and of all rows, at the start and after each batch.

        Raises:
            UserError: a row with more tokens than the model takes, or with an id outside its vocabulary.
        """
        for row in rows:
            self._check(row)
        results = [self._known(row) for row in rows]
        # Rows with equal inputs are computed once.
        by_inputs: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(rows):
            if results[number] is None:
                by_inputs.setdefault(row.tokens[:-1], []).append(number)
        # The longest come first: what does not fit in memory fails at once.
        order = sorted(by_inputs, key=lambda inputs: (-len(inputs), inputs))
        done = sum(result is not None for result in results)
        if on_progress:
            on_progress(done, len(rows))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            numbers = [by_inputs[inputs] for inputs in batch]
            scored = self._batch(batch, [[rows[number] for number in group] for group in numbers], len(order))
            for number, result in zip(itertools.chain(*numbers), itertools.chain(*scored), strict=True):
                results[number] = result
                self._store(rows[number], result)
                done += 1
            if self._cache is not None:
                self._cache.commit()
            if on_progress:
                on_progress(done, len(rows))
        return results

    def _known(self, row: Row) -> Scored | None:
        """Returns the score of a row that needs no computation, None for the others."""
        if not row.scored:
            return Scored(0.0, True)
        stored = None if self._cache is None else self._cache.get("score", [row.tokens, row.scored])
        return None if stored is None else Scored(*stored)

    def _store(self, row: Row, result: Scored) -> None:
        if self._cache is not None:
            self._cache.put("score", [row.tokens, row.scored], [result.logprob, result.greedy])

    def _check(self, row: Row) -> None:
        inputs = len(row.tokens) - 1
        if not 0 <= row.scored <= max(inputs, 0):
            raise ValueError(f"{row.scored} of {len(row.tokens)} tokens cannot be scored")
        if row.scored and inputs > self._limit:
            raise UserError(f"a row of {inputs} tokens is to be scored; the model takes {self._limit}")
        if row.scored and not (min(row.tokens) >= 0 and max(row.tokens) < self._vocab_size):
            raise UserError(f"a token to be scored is outside the model's vocabulary of {self._vocab_size}")

    def _batch(self, batch: list[tuple[int, ...]], groups: list[list[Row]], num_rows: int) -> list[list[Scored]]:
        """Returns the scores of the rows in `groups`, which share the inputs in `batch`."""
        longest = max(map(len, batch))
        width = min(_width(longest), max(longest, self._limit))
        # A run's batches all have one size, so that the last one compiles nothing new.
        size = self._batch_size if self._mesh else min(self._batch_size, 1 << (num_rows - 1).bit_length())
        entries: dict[tuple[int, int], int] = {}  # (place in the flattened batch, target) -> number
        wanted = [
            [[entries.setdefault(key, len(entries)) for key in _keys(row, at * width)] for row in group]
            for at, group in enumerate(groups)
        ]
        chunk = min(_chunk(), 1 << (size * width - 1).bit_length())
        room = chunk * -(-size * width // chunk)
        while room < len(entries):  # many answers of one token to the same question
            room *= 2
        places, targets = np.zeros((2, room), np.int32)
        places[: len(entries)], targets[: len(entries)] = zip(*entries, strict=True)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            logprobs, best = _logprobs(
                self._params,
                _padded(batch, size, width),
                places,
                targets,
                np.int32(-(-len(entries) // chunk)),
                structure=self._structure,
                chunk=chunk,
            )
        logprobs, best = np.asarray(logprobs, np.float64), np.asarray(best)
        return [[Scored(float(logprobs[at].sum()), bool(best[at].all())) for at in group] for group in wanted]


def _keys(row: Row, offset: int) -> Iterator[tuple[int, int]]:
    """Yields the place, counted from the row's `offset`, and the target of each scored token."""
    inputs = len(row.tokens) - 1
    for at in range(inputs - row.scored, inputs):
        yield offset + at, row.tokens[at + 1]


def _padded(rows: Sequence[Sequence[int]], size: int, width: int) -> np.ndarray:
    """Returns int32 [size, width]: the rows, right-padded with zeros, and rows of zeros."""
    tokens = np.zeros((size, width), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens


@functools.partial(jax.jit, static_argnames=("structure", "chunk"))
def _logprobs(
    params, tokens: Array, places: Array, targets: Array, chunks: Array, *, structure: Structure, chunk: int
) -> tuple[Array, Array]:
    """Returns the log probability of each target at its place, and whether it is the likeliest token there.

    Args:
        tokens: int32 [B, T], right-padded; the model is causal, so that nothing sees the padding.
        places: int32 [M], positions in the flattened batch; M is a multiple of `chunk`.
        targets: int32 [M].
        chunks: how many chunks of places and targets count.
    """
    model = nnx.merge(structure.graphdef, params)
    hidden, _ = model.hidden(tokens)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    head = model.head()

    def score_chunk(number, results):
        at = number * chunk
        wanted = jax.lax.dynamic_slice_in_dim(targets, at, chunk)
        logits = unembed(hidden[jax.lax.dynamic_slice_in_dim(places, at, chunk)], *head)
        logprobs = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        scores = (logprobs, jnp.argmax(logits, axis=-1) == wanted)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(all_, x, at, 0) for all_, x in zip(results, scores, strict=True)
        )

    return jax.lax.fori_loop(
        0, chunks, score_chunk, (jnp.zeros(places.shape, jnp.float32), jnp.zeros(places.shape, bool))
    )


def windows(tokens: Sequence[int], prefix: int, max_length: int) -> list[Row]:
    """Returns rows in which each of `tokens` is scored once, with `prefix` before the first of them.

    They are those of lm-eval's rolling log-likelihood: rows of `max_length` inputs, each of which begins with the last
    token of the row before; the last row reaches back to be full.
    """
    ids = [prefix, *tokens]
    rows = []
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        rows.append(Row(tuple(ids[max(0, end - max_length) : end + 1]), end - begin))
    return rows


def check_max_length(config: ModelConfig, max_length: int | None) -> int:
    """Returns how many input tokens a row may have: `max_length`, or the model's max_seq_len for None.

    Raises UserError for a length that the model does not take.
    """
    limit = config.generation_limit or config.max_seq_len
    if max_length is None:
        return config.max_seq_len
    if not 1 <= max_length <= limit:
        raise UserError(f"--max-length is {max_length}; for this model it lies between 1 and {limit}")
    return max_length


def _width(length: int) -> int:
    """Rounds `length` up to one of 16, 24, 32, 48, 64, 96, ...: tasks of all lengths compile a dozen programs."""
    power = 1 << max(4, (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def _chunk() -> int:
    return CPU_CHUNK if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK


def _mesh_of(params) -> jax.sharding.Mesh | None:
    """Returns the mesh that the parameters lie on if it has several devices, else None."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf.sharding, jax.sharding.NamedSharding) and leaf.sharding.mesh.size > 1:
            return leaf.sharding.mesh
    return None
