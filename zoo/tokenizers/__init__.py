"""Tokenizers of every kind behind one interface, `zoo.tokenizers.base.Tokenizer`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer


def load(path: str | os.PathLike) -> "Tokenizer":
    """Reads a tokenizer from a file, or from a directory that holds one.

    It reads what `Tokenizer.save` writes, tokenizer.json (tokenizers), *.model (sentencepiece), *.tiktoken, GPT-2's
    vocab.bpe beside encoder.json, and BwETAF's yap.json.

    Raises UserError when there is no such file or it cannot be used.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if file is not None and file.name == "characters.json":
        from zoo.tokenizers.characters import CharacterTokenizer

        return CharacterTokenizer.from_file(file)
    if file is not None and (file.suffix == ".tiktoken" or file.name == "vocab.bpe"):
        from zoo.tokenizers.tiktoken_bpe import TiktokenTokenizer

        return TiktokenTokenizer.from_file(file)
    if file is not None and file.suffix == ".model":
        from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer.from_file(file)
    from zoo.tokenizers.hf import HFTokenizer

    return HFTokenizer.from_file(path if file is None else file)


def named(name: str) -> "Tokenizer":
    """Returns a published tokenizer: an encoding of tiktoken ("gpt2"), or a repository of the hub ("owner/name").

    Raises UserError, which says where to put its file, when it cannot be fetched.
    """
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        from zoo.tokenizers import token_files
        from zoo.tokenizers.hub import fetch

        return load(fetch(name, ("tokenizer.json", "tokenizer.model"), beside=token_files.NAMES))
    from zoo.tokenizers.tiktoken_bpe import TiktokenTokenizer

    return TiktokenTokenizer.named(name)


def _find(directory: Path) -> Path | None:
    """Returns the tokenizer's file in a directory, None if it has none; UserError if it has several."""
    for name in ("characters.json", "tokenizer.json", "tokenizer.tiktoken", "tokenizer.model", "vocab.bpe", "yap.json"):
        if (directory / name).is_file():
            return directory / name
    found = [*sorted(directory.glob("*.model")), *sorted(directory.glob("*.tiktoken"))]
    if len(found) > 1:
        raise UserError(f"{directory}: holds several tokenizers ({', '.join(f.name for f in found)}); name the file")
    return found[0] if found else None
