"""Texts and conversations as batches: prepared sources, packed into rows, mixed into one order.

Row r of step s is example `s * batch_size + r` of that order, on any number of processes; the example's number alone
decides what it is. So training goes on anywhere from `examples_seen`.
"""

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
from zoo.data.order import Order
from zoo.data.packing import ENDLESS, make_layout
from zoo.data.prepare import Say, Want, prepare
from zoo.data.rows import PackedSource, Row, Rows
from zoo.data.shards import Shards
from zoo.data.tokenizer import heldout_want, token_budget, validation_source, wants
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
        heldout: the source of the held-out rows, None where there are none; heldout_rows: how many are wanted.
        order: which row of which source is which example. rows: how rows become arrays.
        about: what else the `fingerprint` is made of.
    """

    sources: tuple[PackedSource, ...]
    heldout: PackedSource | None
    heldout_rows: int
    order: Order
    rows: Rows
    tokenizer: Tokenizer
    about: dict[str, Any]

    @classmethod
    def load(cls, recipe: Recipe, tokenizer: Tokenizer, config: Any, *, say: Say) -> "TextData":
        """Prepare what is missing of the recipe's sources, verify the shards and pack them.

        Args:
            recipe: where it leaves data.max_tokens open, its steps decide.
            config: the model's; its `restart_positions`, where it has that field, decides the positions.
            say: is told in a line what is being done.

        Raises UserError when a source cannot be read or a shard is damaged.
        """
        data, wanted_rows = recipe.settled(max_tokens=token_budget(recipe)).data, recipe.eval.num_pairs
        rows = Rows(
            seq_len=data.seq_len,
            document_mask=data.document_mask,
            restart_positions=getattr(config, "restart_positions", True),
            pad_id=_pad_id(tokenizer),
            trim_to=data.trim_to,
        )
        found = _open_all(data, tokenizer, wanted_rows, say)
        heldout, taken = _heldout(data, tokenizer, found, wanted_rows, say)
        sources = []
        for number, (name, source, shards, last) in enumerate(found):
            layout = make_layout(
                data.packing,
                shards,
                taken if number == 0 else 0,
                last,
                data.seq_len,
                split=data.document_mask,
                seed=(data.seed << 16) + number,
            )
            weight = source.weight or (len(layout) * (source.epochs or 1.0))
            sources.append(PackedSource(name, shards, taken if number == 0 else 0, last, layout, weight))
        order = Order(
            [len(source.layout) for source in sources],
            [source.weight for source in sources],
            data.seed,
            data.shuffle and data.packing != "windows",
        )
        about = {"packing": data.packing, "rows": dataclasses.asdict(rows), "shuffle": data.shuffle, "seed": data.seed}
        return cls(tuple(sources), heldout, wanted_rows, order, rows, tokenizer, about)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of all that decides what training sees in which order."""
        about = {
            **self.about,
            "tokenizer": self.tokenizer.fingerprint,
            "sources": [
                [source.shards.fingerprint(source.last), source.first, source.last, source.weight]
                for source in self.sources
            ],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def epochs(self, examples: int) -> float | None:
        """How many times so many examples go through the source that is seen most; None for random windows."""
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
        return f"{' + '.join(parts)}; {self.about['packing']}{mask}"

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

        return batches.endless(
            lookup,
            self.rows,
            batch_size,
            start_example=start_example,
            process_index=process_index,
            process_count=process_count,
        )

    def examples(self, examples: np.ndarray) -> list[tuple[PackedSource, int]]:
        """The rows that these examples of the order are (int64 [N]): (source, row of its layout) each."""
        which, rows = self.order.lookup(examples)
        return [(self.sources[s], row) for s, row in zip(which.tolist(), rows.tolist(), strict=True)]

    def heldout_batches(self, batch_size: int) -> Iterator[Batch]:
        """The held-out rows in order, once; the last batch is filled up to B rows with rows that bear no loss."""
        number = 0 if self.heldout is None else min(self.heldout_rows, len(self.heldout.layout))
        return batches.once([(self.heldout, row) for row in range(number)], self.rows, batch_size)

    def directories(self) -> list[tuple[str, Path]]:
        """Where the shards of each source are."""
        found = [(source.name, source.shards.directory) for source in self.sources]
        return (
            found
            if self.heldout is None
            else [*found, (f"{self.heldout.name} (held out)", self.heldout.shards.directory)]
        )

    def first_tokens(self, number: int) -> list[int]:
        """The beginning of the first held-out document (else of the first of all), to go on from."""
        source = self.heldout or self.sources[0]
        return source.shards.document(source.first)[:number].tolist()


# -------------------------------------------------------------------------------------------------- loading


def _pad_id(tokenizer: Tokenizer) -> int:
    return next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)


def _open_all(
    data: DataSection, tokenizer: Tokenizer, heldout_rows: int, say: Say
) -> list[tuple[str, SourceSection, Shards, int]]:
    """(name, source, its shards, documents of them that are used) of each training source."""
    found = []
    for number, (source, want) in enumerate(zip(data.document_sources, wants(data, heldout_rows), strict=True)):
        field = "data" if data.sources is None else f"data.sources.{number}"
        shards = _open(source, data, tokenizer, want, say, field)
        found.append((source.path or source.source, source, shards, want.documents_of(shards)))
    return found


def _open(source, data: DataSection, tokenizer: Tokenizer, want: Want, say: Say, name: str) -> Shards:
    shards = Shards(prepare(source, data, tokenizer, want, say=say, name=name))
    shards.verify(shards.shards_of(want.documents_of(shards)))
    return shards


def _heldout(
    data: DataSection, tokenizer: Tokenizer, found: list, rows: int, say: Say
) -> tuple[PackedSource | None, int]:
    """The held-out rows, and how many documents of the first training source they take."""
    if not rows:
        return None, 0
    packing = "concat" if data.packing == "windows" else data.packing
    source, want = validation_source(data), heldout_want(data, rows)
    if source is not None:
        shards = _open(source, data, tokenizer, want, say, "data.validation")
        first, last, name = 0, want.documents_of(shards), source.path or source.source
    else:
        name, _, shards, number = found[0]
        first, last = 0, min(want.documents_of(shards), max(1, int(number * _LARGEST_HELDOUT)))
        if last >= number:
            raise UserError(
                f"eval.num_pairs: {rows} rows are to be held out of {number:,} documents, too few for that; set "
                f"data.validation, or eval.num_pairs: 0"
            )
    layout = make_layout(packing, shards, first, last, data.seq_len, split=data.document_mask, seed=data.seed)
    return PackedSource(name, shards, first, last, layout, 1.0), last if source is None else 0
