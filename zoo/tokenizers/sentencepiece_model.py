"""`tokenizer.model` files, read by sentencepiece (https://github.com/google/sentencepiece)."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, sha256_hex

FILE_NAME = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model given as the bytes of its file, which `save` writes unchanged.

    Its control symbols (`<s>`, `</s>`) are the special tokens; the library never reads them out of a text.
    """

    def __init__(self, content: bytes, *, origin: str = FILE_NAME):
        """Raises UserError if `content`, the model file, cannot be used; `origin` is its name in the error."""
        try:
            self._backend = sentencepiece.SentencePieceProcessor(model_proto=content)
            size = self._backend.get_piece_size()
        except Exception as error:  # RuntimeError with the library's own text
            raise UserError(f"{origin}: not a sentencepiece model ({error})") from None
        if not size:
            raise UserError(f"{origin}: not a sentencepiece model (it holds no pieces)")
        self._content = content
        control = (i for i in range(size) if self._backend.is_control(i))
        self.special_tokens = {self._backend.id_to_piece(i): i for i in control}
        self._special_ids = frozenset(self.special_tokens.values())
        self.bos_id, self.eos_id, self.pad_id = (
            None if i < 0 else i for i in (self._backend.bos_id(), self._backend.eos_id(), self._backend.pad_id())
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a model file. Raises UserError if it is missing or damaged."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a sentencepiece model ({error.strerror})") from None
        return cls(content, origin=str(path))

    @property
    def vocab_size(self) -> int:
        return self._backend.get_piece_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        return sha256_hex(self._content)

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else -1
        rows = self._backend.encode(list(texts), out_type=int, num_threads=threads) if texts else []
        start = [self.bos_id] if add_special and self.bos_id is not None else []
        return [start + row for row in rows] if start else rows

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        if skip_special:
            return self._backend.decode([i for i in ids if i not in self._special_ids])
        parts = []
        for special, group in itertools.groupby(ids, key=self._special_ids.__contains__):
            run = list(group)
            parts.append("".join(map(self._backend.id_to_piece, run)) if special else self._backend.decode(run))
        return "".join(parts)

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / FILE_NAME, self._content)

    def __reduce__(self):
        return type(self), (self._content,)

    def __repr__(self):
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"
