"""`tokenizer.json` files, read by the `tokenizers` library (https://github.com/huggingface/tokenizers)."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, sha256_hex

FILE_NAME = "tokenizer.json"

# A tokenizer.json does not say which of its special tokens plays which part; these are the usual spellings.
_SPELLINGS = {
    "bos": ("<bos>", "<s>", "<|bos|>", "<|begin_of_text|>"),
    "eos": ("<eos>", "</s>", "<|eos|>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "<|pad|>", "[PAD]"),
}


class HFTokenizer(Tokenizer):
    """A tokenizer given as the text of a `tokenizer.json`, kept and saved unchanged.

    Padding and truncation that the file may ask for are switched off: ids come as they are.
    """

    def __init__(self, content: str, *, origin: str = FILE_NAME):
        """`content` is the JSON text, `origin` its name in errors. Raises UserError if it cannot be used."""
        try:
            self._backend = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception for every fault in a file
            raise UserError(f"{origin}: not a {FILE_NAME} that can be used ({error})") from None
        self._content = content
        self._backend.no_padding()
        self._backend.no_truncation()
        # Special tokens that are spelt out inside a text are text.
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
        self.bos_id = self._find("bos")
        self.eos_id = self._find("eos")
        self.pad_id = self._find("pad")

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "HFTokenizer":
        """Read a `tokenizer.json`, or the one in the directory `path`. Raises UserError if there is none."""
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; give a {FILE_NAME} or its directory") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a {FILE_NAME} ({error})") from None
        return cls(content, origin=str(path))

    def _find(self, part: str) -> int | None:
        return next((self.special_tokens[s] for s in _SPELLINGS[part] if s in self.special_tokens), None)

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        return sha256_hex(json.dumps(json.loads(self._content), sort_keys=True).encode("utf-8"))

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        # The fast variant skips the character offsets, which nobody here reads.
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        start = [self.bos_id] if add_special and self.bos_id is not None else []
        return [start + encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            # The library would leave an unknown id out without a word.
            if not 0 <= i < self.vocab_size or self._backend.id_to_token(i) is None:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / FILE_NAME, self._content)

    def __reduce__(self):
        return type(self), (self._content,)

    def __repr__(self):
        return f"HFTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"
