"""How much of each source of a recipe is needed."""

from dataclasses import dataclass

import numpy as np

from zoo.data.shards import Manifest, Shards
from zoo.recipe import Recipe
from zoo.recipe.data import DataSection, SourceSection


@dataclass(frozen=True)
class TokenBudget:
    """How much of a source is needed; all of it where both are None.

    Attributes:
        tokens: as many documents as hold that many tokens.
        documents: at most so many documents.
    """

    tokens: int | None = None
    documents: int | None = None

    def reached(self, tokens: int, documents: int) -> bool:
        """Returns whether this number of tokens, or of documents, is enough."""
        return (self.tokens is not None and tokens >= self.tokens) or (
            self.documents is not None and documents >= self.documents
        )

    def met(self, manifest: Manifest) -> bool:
        """Returns whether shards hold that much, or all that the source has."""
        return manifest.exhausted or self.reached(manifest.tokens, manifest.documents)

    def documents_of(self, shards: Shards) -> int:
        """Returns how many of the shards' first documents the budget takes."""
        number = shards.manifest.documents
        if self.tokens is not None:
            number = min(number, int(np.searchsorted(shards.offsets, self.tokens)))
        return number if self.documents is None else min(number, self.documents)


def run_tokens(recipe: Recipe) -> int:
    """Returns the number of tokens that the run's steps look at."""
    return recipe.train.steps * recipe.data.batch_size * recipe.data.seq_len


def source_budgets(data: DataSection, heldout_rows: int) -> list[TokenBudget]:
    """Returns what the run needs of each source: its share of data.max_tokens, and what is held out of the first."""
    sources = data.document_sources
    weights = [source.weight for source in sources]
    budgets = []
    for number, source in enumerate(sources):
        tokens = data.max_tokens
        if tokens is not None:
            share = 1.0 if weights[0] is None else source.weight / sum(weights)
            tokens = int(tokens * share / (source.epochs or 1.0)) + 2 * data.seq_len + 2
            if number == 0 and data.validation is None and not source.built_in:
                tokens += heldout_rows * (data.seq_len + 1)
        budgets.append(TokenBudget(tokens, source.num_documents))
    return budgets


def heldout_source(data: DataSection) -> SourceSection | None:
    """Returns the source of the held-out rows; None where they are the first rows of the first training source."""
    if data.validation is not None:
        return data.validation
    first = data.document_sources[0]
    if first.built_in and first.split == "train":
        return first.model_copy(update={"split": "heldout", "num_documents": None, "weight": None, "epochs": None})
    return None


def heldout_budget(data: DataSection, rows: int) -> TokenBudget:
    """Returns how much of the source of held-out rows so many of them need."""
    documents = [None if data.validation is None else data.validation.num_documents]
    if data.packing == "document":
        documents.append(rows)
    fewest = min((number for number in documents if number is not None), default=None)
    return TokenBudget(None if data.packing == "document" else rows * (data.seq_len + 1) + 1, fewest)
