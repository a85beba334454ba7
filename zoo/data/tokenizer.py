"""How much text a recipe needs, and the tokenizer for it."""

import itertools
from collections.abc import Iterator

from zoo import tokenizers
from zoo.data import documents
from zoo.data.prepare import Say, Want
from zoo.data.readers import Fault
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.recipe.data import DataSection, SourceSection, TokenizerSection
from zoo.tokenizers import bpe
from zoo.tokenizers.base import Tokenizer, check_fits
from zoo.tokenizers.characters import CharacterTokenizer

_TRAINING_CHARACTERS = 200_000_000  # that a tokenizer learns from, at most
_CHARACTERS_A_TOKEN = 6  # more than any language here needs: what a token budget may need in characters


def resolve_tokenizer(recipe: Recipe, tokenizer: Tokenizer | None, *, say: Say) -> tuple[Recipe, Tokenizer]:
    """The recipe with what it leaves open decided, and its tokenizer: the one given, or the one that it asks for.

    Raises UserError when the tokenizer cannot be had or made, or is larger than the model's vocabulary.
    """
    recipe = recipe.settled(max_tokens=token_budget(recipe))
    tokenizer = tokenizer or load_tokenizer(recipe.tokenizer) or make_tokenizer(recipe, say=say)
    recipe = recipe.settled(vocab_size=tokenizer.vocab_size)
    check_fits(tokenizer, recipe.model.make_config().vocab_size)
    return recipe, tokenizer


def load_tokenizer(section: TokenizerSection) -> Tokenizer | None:
    """Returns the tokenizer that a recipe gives by path or by name; None where it is to be trained."""
    if section.path is not None:
        return tokenizers.load(section.path)
    return None if section.name is None else tokenizers.named(section.name)


def token_budget(recipe: Recipe) -> int:
    """The tokens that the run's steps look at."""
    return recipe.train.steps * recipe.data.batch_size * recipe.data.seq_len


def wants(data: DataSection, heldout_rows: int) -> list[Want]:
    """How much of each source the run needs: its share of data.max_tokens, and what is held out of the first."""
    sources = data.document_sources
    weights = [source.weight for source in sources]
    found = []
    for number, source in enumerate(sources):
        tokens = data.max_tokens
        if tokens is not None:
            share = 1.0 if weights[0] is None else source.weight / sum(weights)
            tokens = int(tokens * share / (source.epochs or 1.0)) + 2 * data.seq_len + 2
            if number == 0 and data.validation is None and not source.built_in:
                tokens += heldout_rows * (data.seq_len + 1)
        found.append(Want(tokens, source.num_documents))
    return found


def validation_source(data: DataSection) -> SourceSection | None:
    """The source of held-out rows, where it is another than the first of training."""
    if data.validation is not None:
        return data.validation
    first = data.document_sources[0]
    if first.built_in and first.split == "train":
        return first.model_copy(update={"split": "heldout", "num_documents": None, "weight": None, "epochs": None})
    return None


def heldout_want(data: DataSection, rows: int) -> Want:
    """How much of the source of held-out rows so many of them need."""
    documents = [None if data.validation is None else data.validation.num_documents]
    if data.packing == "document":
        documents.append(rows)
    fewest = min((number for number in documents if number is not None), default=None)
    return Want(None if data.packing == "document" else rows * (data.seq_len + 1) + 1, fewest)


def make_tokenizer(recipe: Recipe, *, say: Say) -> Tokenizer:
    """Train the tokenizer of a recipe on its sources (the held-out ones too, for an alphabet).

    Raises UserError for sources without texts (shards, chat data), and for stories without an end.
    """
    section, data = recipe.tokenizer, recipe.settled(max_tokens=token_budget(recipe)).data
    if section.kind == "characters":
        say("reading the alphabet")
        heldout = validation_source(data)
        texts = _training_texts(data, recipe.eval.num_pairs, whole=True)
        if heldout is not None:
            want = heldout_want(data, recipe.eval.num_pairs)
            limited = heldout.model_copy(update={"num_documents": want.documents})
            texts = itertools.chain(texts, _some(limited, data, want.tokens, "data.validation"))
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
    """The texts that a tokenizer learns from: of each source its share, all that is used where `whole`."""
    pairs = list(zip(data.document_sources, wants(data, heldout_rows), strict=True))
    for number, (source, want) in enumerate(pairs):
        name = "data" if data.sources is None else f"data.sources.{number}"
        limit = None if want.tokens is None else want.tokens * (1 if whole else _CHARACTERS_A_TOKEN)
        if not whole:
            limit = min(limit or _TRAINING_CHARACTERS, _TRAINING_CHARACTERS // len(pairs))
        yield from _some(source, data, limit, name)


def _some(source: SourceSection, data: DataSection, characters: int | None, name: str) -> Iterator[str]:
    """The usable texts of a source until there are so many characters, or its `num_documents`."""
    if source.source == "shards":
        raise UserError(f"{name}: shards hold tokens, no texts to train a tokenizer on; set tokenizer.path")
    if data.kind == "chat":
        raise UserError("tokenizer: chat data need the tokenizer of the model they tune; set tokenizer.path or .name")
    if characters is None and source.num_documents is None and source.built_in:
        raise UserError(f"{name}: the built-in stories never end; set data.num_documents")
    items = documents.read(source, data.kind, seed=data.seed)
    texts = (item for item in items if not isinstance(item, Fault) and item.strip())
    seen = 0
    for text in itertools.islice(texts, source.num_documents):
        yield text
        seen += len(text)
        if characters is not None and seen >= characters:
            return
