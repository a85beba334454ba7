"""The tokenizer of a recipe: loaded, or trained on the recipe's texts."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from zoo import tokenizers
from zoo.data import documents
from zoo.data.budget import heldout_budget, heldout_source, run_tokens, source_budgets
from zoo.data.documents import Item
from zoo.data.prepare import Say, no_document
from zoo.data.readers import Fault
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.recipe.data import DataSection, SourceSection, TokenizerSection
from zoo.tokenizers import bpe
from zoo.tokenizers.base import Tokenizer, check_fits
from zoo.tokenizers.characters import CharacterTokenizer

_TRAINING_CHARACTERS = 200_000_000  # the most that a tokenizer learns from
_CHARACTERS_A_TOKEN = 6  # more than in any language here, for an upper bound on the characters of a token budget


def resolve_tokenizer(recipe: Recipe, tokenizer: Tokenizer | None, *, say: Say) -> tuple[Recipe, Tokenizer]:
    """Returns the recipe with what it leaves open decided, and its tokenizer.

    Args:
        recipe: of texts or conversations.
        tokenizer: that of a resumed run; None to load or train the one that the recipe names.
        say: shows a line of progress.

    Raises:
        UserError: the tokenizer cannot be loaded or trained, or is larger than the model's vocabulary.
    """
    recipe = recipe.with_resolved(max_tokens=run_tokens(recipe))
    tokenizer = tokenizer or load_tokenizer(recipe.tokenizer) or make_tokenizer(recipe, say=say)
    recipe = recipe.with_resolved(vocab_size=tokenizer.vocab_size)
    check_fits(tokenizer, recipe.model.make_config().vocab_size)
    return recipe, tokenizer


def load_tokenizer(section: TokenizerSection) -> Tokenizer | None:
    """Returns the tokenizer that a recipe gives by path or by name; None where it is to be trained."""
    if section.path is not None:
        return tokenizers.load(section.path)
    return None if section.name is None else tokenizers.named(section.name)


def make_tokenizer(recipe: Recipe, *, say: Say) -> Tokenizer:
    """Trains the tokenizer of a recipe on its sources (for an alphabet, on the held-out ones too).

    Raises UserError for sources without texts (shards, chat data), and for stories without an end.
    """
    section, data = recipe.tokenizer, recipe.with_resolved(max_tokens=run_tokens(recipe)).data
    if section.kind == "characters":
        say("reading the alphabet")
        heldout = heldout_source(data)
        texts = _training_texts(data, recipe.eval.num_pairs, whole=True)
        if heldout is not None:
            budget = heldout_budget(data, recipe.eval.num_pairs)
            limited = heldout.model_copy(update={"num_documents": budget.documents})
            texts = itertools.chain(texts, _some(limited, data, budget.tokens, "data.validation"))
        return CharacterTokenizer.train(texts)
    say(f"training a tokenizer of {section.vocab_size:,} entries")
    return bpe.train(
        _training_texts(data, recipe.eval.num_pairs, whole=False),
        section.vocab_size,
        eos_token=section.eos_token,
        special_tokens=section.special_tokens,
        strip_accents=section.strip_accents,
    )


def _training_texts(data: DataSection, heldout_rows: int, *, whole: bool) -> Iterator[str]:
    """Yields the texts that a tokenizer learns from: of each source its share, all that is used where `whole`."""
    budgets = source_budgets(data, heldout_rows)
    for number, (source, budget) in enumerate(zip(data.document_sources, budgets, strict=True)):
        name = "data" if data.sources is None else f"data.sources.{number}"
        limit = None if budget.tokens is None else budget.tokens * (1 if whole else _CHARACTERS_A_TOKEN)
        if not whole:
            limit = min(limit or _TRAINING_CHARACTERS, _TRAINING_CHARACTERS // len(budgets))
        yield from _some(source, data, limit, name)


def _some(source: SourceSection, data: DataSection, characters: int | None, name: str) -> Iterator[str]:
    """Yields the usable texts of a source until there are so many characters, or its `num_documents`."""
    if source.source == "shards":
        raise UserError(f"{name}: shards hold tokens, no texts to train a tokenizer on; set tokenizer.path")
    if data.kind == "chat":
        raise UserError("tokenizer: chat data need the tokenizer of the model they tune; set tokenizer.path or .name")
    if characters is None and source.num_documents is None and source.built_in:
        raise UserError(f"{name}: the built-in stories never end; set data.num_documents")
    items = documents.read(source, data.kind, seed=data.seed)
    skipped, reasons, seen = Counter(), {}, 0
    texts = itertools.islice(_usable(items, skipped, reasons), source.num_documents)
    for text in texts:
        yield text
        seen += len(text)
        if characters is not None and seen >= characters:
            return
    if not seen:
        raise UserError(f"{name}: {no_document(source, skipped, reasons)}")


def _usable(items: Iterable[Item], skipped: Counter[str], reasons: dict[str, None]) -> Iterator[str]:
    """Yields the texts among items; counts the others, and keeps the first reason why one cannot be used."""
    for item in items:
        if isinstance(item, Fault):
            skipped["bad"] += 1
            if not reasons:
                reasons[item.reason] = None
        elif item.strip():
            yield item
        else:
            skipped["empty"] += 1
