"""Tokenizers of one id a character: the sorted distinct characters of a text."""

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, is_utf8, parse_json, sha256_hex

FILE_NAME, FORMAT = "characters.json", 1


class CharacterTokenizer(Tokenizer):
    """A tokenizer whose ids are places in its sorted alphabet; it has no special tokens."""

    special_tokens: dict[str, int]

    def __init__(self, alphabet: Iterable[str]):
        """`alphabet`: the characters, in any order, repeated or not. Raises UserError if there are none."""
        self._characters = sorted(set(alphabet))
        if not self._characters:
            raise UserError("tokenizer: a text of no characters has no alphabet")
        self._codes = np.array([ord(character) for character in self._characters], np.uint32)
        self.special_tokens = {}
        self.bos_id = self.eos_id = self.pad_id = None

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """Returns a tokenizer with the characters of `texts` and the line feed, which separates documents."""
        alphabet = {"\n"}
        for text in texts:
            alphabet.update(text)
        return cls(alphabet)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "CharacterTokenizer":
        """Reads the file that `save` wrote. Raises UserError for anything else."""
        path = Path(path)
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            version, characters = content["format"], content["characters"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as an alphabet ({error!r})") from None
        if version != FORMAT:
            raise UserError(f"{path}: format {version!r}; this version reads {FORMAT}: install the zoo that wrote it")
        if not isinstance(characters, str) or not is_utf8(characters):
            raise UserError(f"{path}: its characters are no text in UTF-8; get the file again")
        return cls(characters)

    @property
    def vocab_size(self) -> int:
        return len(self._characters)

    @functools.cached_property
    def fingerprint(self) -> str:
        return sha256_hex(f"characters\n{''.join(self._characters)}".encode())

    @property
    def separator_ids(self) -> list[int]:
        return self.encode("\n\n") if "\n" in self._characters else []

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Returns the token ids of each text. Raises UserError for a character that is not in the alphabet."""
        return [self._ids(text).tolist() for text in texts]

    def _ids(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if unknown.size:
            raise UserError(
                f"the character {text[unknown[0]]!r} is not in the tokenizer's alphabet of {self.vocab_size}; "
                f"leave it out of the text"
            )
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        return "".join(self._characters[i] for i in ids)

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "characters": "".join(self._characters)}
        atomic_write(directory / FILE_NAME, json.dumps(content, ensure_ascii=False) + "\n")

    def __reduce__(self):
        return type(self), (self._characters,)

    def __repr__(self):
        return f"CharacterTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"
