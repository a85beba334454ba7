"""Texts and conversations as batches: prepared sources, packed into rows, mixed into one order."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import batches
from zoo.data.batches import Batch
from zoo.data.budget import TokenBudget, heldout_budget, heldout_source, run_tokens, source_budgets
from zoo.data.order import Order
from zoo.data.packing import ENDLESS, Layout, layout_of, with_targets
from zoo.data.prepare import Say, prepare
from zoo.data.rows import PackedSource, Row, Rows
from zoo.data.shards import Shards
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.recipe.data import DataSection, SourceSection
from zoo.tokenizers.base import Tokenizer

_BLOCK = 4096  # examples whose rows are looked up at once
_LARGEST_HELDOUT = 0.1  # of the documents, where a source has no split for it


@dataclass(frozen=True)
class TextData:
    """The training rows of a recipe, and its held-out ones. Make one with `load`.

    Attributes:
        sources: of the training rows.
        heldout: the source of the held-out rows; None where there are none.
        heldout_rows: at most so many held-out rows.
        order: tells which row of which source is which example.
        rows: makes arrays of rows.
        tokenizer: of the tokens.
        facts: what else the `fingerprint` is made of.
    """

    sources: tuple[PackedSource, ...]
    heldout: PackedSource | None
    heldout_rows: int
    order: Order
    rows: Rows
    tokenizer: Tokenizer
    facts: dict[str, Any]

    @classmethod
    def load(cls, recipe: Recipe, tokenizer: Tokenizer, config: Any, *, say: Say) -> "TextData":
        """Prepares what is missing of the recipe's sources, verifies the shards and packs them.

        Args:
            recipe: where it leaves data.max_tokens open, its steps decide.
            tokenizer: of the recipe.
            config: the model's; its `restart_positions`, where it has that field, decides the positions.
            say: shows a line of progress.

        Raises:
            UserError: a source cannot be read or a shard is damaged.
        """
        data, heldout_rows = recipe.with_resolved(max_tokens=run_tokens(recipe)).data, recipe.eval.num_pairs
        rows = Rows(
            seq_len=data.seq_len,
            document_mask=data.document_mask,
            restart_positions=getattr(config, "restart_positions", True),
            pad_id=_pad_id(tokenizer),
            trim_to=data.trim_to,
        )
        parts = _open_all(data, tokenizer, heldout_rows, say)
        heldout, parts = _heldout(data, tokenizer, parts, heldout_rows, say)
        sources = []
        for number, part in enumerate(parts):
            layout = _layout(part, data.packing, data, (data.seed << 16) + number)
            if not len(layout):
                raise UserError(
                    f"{part.field}: {part.tokens:,} tokens make no row of {data.seq_len}"
                    + (", since the first ones are held out (eval.num_pairs)" if part.first else "")
                    + "; give more data or lower data.seq_len"
                )
            layout = _with_targets(layout, part.shards, data.seq_len, part.name, say)
            weight = part.source.weight or (len(layout) * (part.source.epochs or 1.0))
            sources.append(PackedSource(part.name, part.shards, part.first, part.last, layout, weight))
        order = Order(
            [len(source.layout) for source in sources],
            [source.weight for source in sources],
            data.seed,
            data.shuffle and data.packing != "windows",
        )
        facts = {"packing": data.packing, "rows": dataclasses.asdict(rows), "shuffle": data.shuffle, "seed": data.seed}
        return cls(tuple(sources), heldout, heldout_rows, order, rows, tokenizer, facts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 (64 hexadecimal digits) of all that decides what training sees in which order."""
        content = {
            **self.facts,
            "tokenizer": self.tokenizer.fingerprint,
            "sources": [
                [source.shards.fingerprint(source.last), source.first, source.last, source.weight]
                for source in self.sources
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def epochs(self, examples: int) -> float | None:
        """Returns how often so many examples go through the source that is seen most; None for random windows."""
        if any(rows >= ENDLESS for rows in self.order.rows):
            return None
        total = sum(self.order.weights)
        shares = zip(self.order.rows, self.order.weights, strict=True)
        return max(examples * weight / total / rows for rows, weight in shares)

    def __str__(self) -> str:
        total = sum(self.order.weights)
        parts = []
        for source in self.sources:
            share = f"{source.weight / total:.1%} " if len(self.sources) > 1 else ""
            rows = "windows" if len(source.layout) >= ENDLESS else f"{len(source.layout):,} rows"
            parts.append(
                f"{share}{source.name} ({source.tokens:,} tokens, {source.last - source.first:,} documents, {rows})"
            )
        mask = ", documents masked" if self.rows.document_mask else ""
        return f"{' + '.join(parts)}; {self.facts['packing']}{mask}"

    def batches(
        self, batch_size: int, *, start_example: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Returns batches without end from example `start_example` on, see `zoo.data.batches.endless`."""
        block = functools.lru_cache(maxsize=4)(
            lambda number: self.examples(np.arange(number * _BLOCK, (number + 1) * _BLOCK))
        )

        def lookup(first: int, count: int) -> list[Row]:
            numbers = range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)
            rows = list(itertools.chain.from_iterable(map(block, numbers)))
            skip = first - numbers[0] * _BLOCK
            return rows[skip : skip + count]

        return batches.endless(lookup, self.rows, batch_size, start_example, (process_index, process_count))

    def examples(self, examples: np.ndarray) -> list[tuple[PackedSource, int]]:
        """Returns the rows of examples of the order, int64 [N]: (source, row of its layout) each."""
        which, rows = self.order.lookup(examples)
        return [(self.sources[s], row) for s, row in zip(which.tolist(), rows.tolist(), strict=True)]

    def heldout_batches(self, batch_size: int) -> Iterator[Batch]:
        """Returns the held-out rows in order, once; the last batch is filled up with rows that bear no loss."""
        number = 0 if self.heldout is None else min(self.heldout_rows, len(self.heldout.layout))
        return batches.once([(self.heldout, row) for row in range(number)], self.rows, batch_size)

    def directories(self) -> list[tuple[str, Path]]:
        """Returns the name of each source and the directory of its shards."""
        directories = [(source.name, source.shards.directory) for source in self.sources]
        if self.heldout is not None:
            directories.append((f"{self.heldout.name} (held out)", self.heldout.shards.directory))
        return directories

    def first_tokens(self, number: int) -> list[int]:
        """Returns the first tokens of the first held-out document (without any, of the first training document)."""
        source = self.heldout or self.sources[0]
        return source.shards.document(source.first)[:number].tolist()


# -------------------------------------------------------------------------------------------------- loading


def _pad_id(tokenizer: Tokenizer) -> int:
    return next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)


@dataclass(frozen=True)
class _Part:
    """The documents `first` to `last` (exclusive) of a source's shards; `field` is the source's in the recipe."""

    field: str
    source: SourceSection
    shards: Shards
    first: int
    last: int

    @property
    def name(self) -> str:
        return self.source.path or self.source.source

    @property
    def tokens(self) -> int:
        return int(self.shards.offsets[self.last] - self.shards.offsets[self.first])


def _open_all(data: DataSection, tokenizer: Tokenizer, heldout_rows: int, say: Say) -> list[_Part]:
    """Returns what is used of each training source."""
    opened = []
    budgets = source_budgets(data, heldout_rows)
    for number, (source, budget) in enumerate(zip(data.document_sources, budgets, strict=True)):
        field = "data" if data.sources is None else f"data.sources.{number}"
        shards = _open(source, data, tokenizer, budget, say, field)
        opened.append(_Part(field, source, shards, 0, budget.documents_of(shards)))
    return opened


def _open(source, data: DataSection, tokenizer: Tokenizer, budget: TokenBudget, say: Say, name: str) -> Shards:
    shards = Shards(prepare(source, data, tokenizer, budget, say=say, name=name))
    shards.verify(shards.shards_of(budget.documents_of(shards)))
    return shards


def _layout(part: _Part, packing: str, data: DataSection, seed: int) -> Layout:
    documents = (part.shards, part.first, part.last)
    return layout_of(packing, *documents, data.seq_len, split=data.document_mask, seed=seed)


def _heldout(
    data: DataSection, tokenizer: Tokenizer, training: list[_Part], rows: int, say: Say
) -> tuple[PackedSource | None, list[_Part]]:
    """Returns the source of the held-out rows, and what is left of the training sources."""
    if not rows:
        return None, training
    packing = "concat" if data.packing == "windows" else data.packing
    source, budget = heldout_source(data), heldout_budget(data, rows)
    if source is not None:
        shards = _open(source, data, tokenizer, budget, say, "data.validation")
        part = _Part("data.validation", source, shards, 0, budget.documents_of(shards))
    else:
        part, rest = _split(training[0], data, budget, rows)
        training = [rest, *training[1:]]
    layout = _layout(part, packing, data, data.seed)
    if not len(layout):
        if source is None:
            raise _too_little(part, part.tokens, data, rows)
        raise UserError(
            f"{part.field}: the {part.tokens:,} tokens of {part.name} make no row of data.seq_len {data.seq_len}; give "
            f"more held-out data, lower data.seq_len, or set eval.num_pairs: 0"
        )
    layout = _with_targets(layout, part.shards, data.seq_len, f"{part.name} (held out)", say)
    return PackedSource(part.name, part.shards, part.first, part.last, layout, 1.0), training


def _split(part: _Part, data: DataSection, budget: TokenBudget, rows: int) -> tuple[_Part, _Part]:
    """Returns the part of a training source that is held out, its beginning, and the rest.

    At most a tenth of the documents is held out, but at least one. A text that is the only one is cut in two.
    """
    if part.last > 1:
        last = min(budget.documents_of(part.shards), max(1, int(part.last * _LARGEST_HELDOUT)))
        return dataclasses.replace(part, last=last), dataclasses.replace(part, first=last)
    if data.kind == "chat":
        raise UserError(
            f"eval.num_pairs: {rows} rows are to be held out of {part.name}, but it has one conversation alone; set "
            f"data.validation, or eval.num_pairs: 0"
        )
    # Packings that begin every row with a document make one row of it.
    wanted = budget.tokens if data.packing in ("concat", "windows") else data.seq_len + 1
    place = min(wanted, int(part.tokens * _LARGEST_HELDOUT))
    if place < 2:  # one token has no target
        raise _too_little(part, place, data, rows)
    cut = part.shards.cut(place)
    return dataclasses.replace(part, shards=cut), dataclasses.replace(part, shards=cut, first=1, last=2)


def _too_little(part: _Part, tokens: int, data: DataSection, rows: int) -> UserError:
    return UserError(
        f"eval.num_pairs: {rows} rows are to be held out of {part.name}, but the tenth of its documents that is held "
        f"out has {tokens:,} tokens, which make no row of data.seq_len {data.seq_len}; give more data, lower "
        f"data.seq_len, set data.validation, or eval.num_pairs: 0"
    )


def _with_targets(layout: Layout, shards: Shards, seq_len: int, name: str, say: Say) -> Layout:
    """Returns the rows in which some token bears loss, and says how many are left out.

    Raises:
        UserError: there are none.
    """
    chosen = with_targets(layout, shards, seq_len)
    left_out = len(layout) - len(chosen)
    if not len(chosen):
        raise UserError(
            f"{name}: in none of its {len(layout):,} rows of data.seq_len {seq_len} does a token bear loss: prompts "
            f"fill them; raise data.seq_len"
        )
    if left_out:
        say(
            f"{name}: {left_out:,} of {len(layout):,} rows are left out: no token in their {seq_len} bears loss "
            f"(data.seq_len)"
        )
    return chosen
