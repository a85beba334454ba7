"""`tokenizer.model` files, read by sentencepiece (github.com/google/sentencepiece), and the tokens added to them.

A vocabulary is often extended beside its file, by tokenizer_config.json or added_tokens.json: the markers of chats
with ids behind the model's own, or other names for its unused pieces.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece

from zoo.errors import UserError
from zoo.files import refuse_lfs_pointer
from zoo.tokenizers import sentencepiece_proto as proto
from zoo.tokenizers import token_files
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.sentencepiece_proto import Piece
from zoo.tokenizers.token_files import AddedToken, TokenFiles
from zoo.util import atomic_write, sha256_hex

FILE_NAME = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model given as the bytes of its file, which `save` writes unchanged, and what lies beside it.

    Its control symbols (`<s>`, `</s>`) and the special ones of the added tokens are the special tokens; they are never
    read out of a text. The other added tokens are.

    Attributes:
        model: the fields of the file.
        added: id -> token that is no piece of the model, or has another name than its piece.
    """

    def __init__(self, content: bytes, files: TokenFiles | None = None, *, origin: str = FILE_NAME):
        """Raises UserError if `content`, the model file, cannot be used; `origin` is its name in the error."""
        try:
            self._backend = sentencepiece.SentencePieceProcessor(model_proto=content)
            size = self._backend.get_piece_size()
            self.model = proto.Model(content)
        except Exception as error:  # RuntimeError with the library's own text
            refuse_lfs_pointer(Path(origin))
            raise UserError(f"{origin}: not a sentencepiece model ({error})") from None
        if not size:
            raise UserError(f"{origin}: not a sentencepiece model (it holds no pieces)")
        self._content, self._files = content, files or TokenFiles()
        pieces, listed = self.model.pieces, self._files.added or {}
        self.added = {i: token for i, token in listed.items() if i >= size or pieces[i].text != token.content}
        ids = {piece.text: i for i, piece in enumerate(pieces) if i not in self.added}
        ids |= {token.content: i for i, token in self.added.items()}
        special = _special(pieces, self._files, ids)
        spelling = {i: text for text, i in ids.items()}
        self.special_tokens = {spelling[i]: i for i in sorted(special)}
        self._special_ids = frozenset(special)
        own = (self._backend.bos_id(), self._backend.eos_id(), self._backend.pad_id())
        own = {part: i for part, i in zip(token_files.PARTS, own, strict=True) if i >= 0}
        parts = own | {part: ids[text] for part, text in (self._files.parts or {}).items() if text in ids}
        self.bos_id, self.eos_id, self.pad_id = map(parts.get, token_files.PARTS)
        # Pieces that a text is not to spell by the file's own rules: special ones, and those with another name.
        self._hidden = {i: proto.CONTROL for i in special | self.added.keys() if i < size and _spelt(pieces[i])}
        self._encoder = self._opened(dummy_prefix=True) if self._hidden else self._backend
        in_texts = {i: token for i, token in listed.items() if i not in special and (i >= size or _spelt(pieces[i]))}
        self._in_texts = _pattern(list(in_texts.values()))
        self._ids = {token.content: i for i, token in in_texts.items()}
        plain = not self.added and not self._hidden and not in_texts and parts == own
        self._as_file = plain and self._files.add_bos is not False

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "SentencePieceTokenizer":
        """Reads a model file and the files beside it. Raises UserError if it is missing or damaged."""
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a sentencepiece model ({error.strerror})") from None
        return cls(content, token_files.read(path.parent), origin=str(path))

    @property
    def vocab_size(self) -> int:
        return max([self._backend.get_piece_size() - 1, *self.added]) + 1

    @property
    def prefix_ids(self) -> list[int]:
        """BOS, unless the config beside the file says `"add_bos_token": false`."""
        return [] if self._files.add_bos is False else super().prefix_ids

    def with_prefix(self, ids: Sequence[int]) -> "SentencePieceTokenizer":
        if list(ids) == self.prefix_ids:
            return self
        return SentencePieceTokenizer(self._content, replace(self._files, add_bos=bool(ids)))

    @functools.cached_property
    def fingerprint(self) -> str:
        if self._as_file:
            return sha256_hex(self._content)
        return sha256_hex(self._content + json.dumps(token_files.as_config(self._files), sort_keys=True).encode())

    @property
    def settings(self) -> dict[str, Any]:
        """The content of a tokenizer_config.json that says for transformers what the files say here."""
        unknown = next((piece.text for piece in self.model.pieces if piece.type == proto.UNKNOWN), None)
        config = token_files.as_config(replace(self._files, legacy=bool(self._files.legacy)))
        return config | {"add_bos_token": bool(self.prefix_ids), **({"unk_token": unknown} if unknown else {})}

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        rows = _encode(self._encoder, texts) if self._in_texts is None else self._encode_pieces(texts)
        start = [self.bos_id] if add_special and self.bos_id is not None else []
        return [start + row for row in rows] if start else rows

    def _encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts in which added tokens are looked for first."""
        rows: list[list[int | tuple[bool, str]]] = []
        for text in texts:
            row: list[int | tuple[bool, str]] = []
            at = 0
            for match in self._in_texts.finditer(text):
                row += [(at == 0, text[at : match.start()]), self._ids[match[match.lastgroup]]]
                at = match.end()
            rows.append([*row, (at == 0, text[at:])])
        # All pieces in two calls, for speed; those within a text have no space before them.
        pieces = {part for row in rows for part in row if isinstance(part, tuple) and part[1]}
        ids: dict[tuple[bool, str], list[int]] = {}
        for first in (True, False):
            encoder = self._encoder if first or self._files.legacy else self._inner
            some = [part for part in pieces if part[0] == first]
            ids |= dict(zip(some, _encode(encoder, [text for _, text in some]), strict=True))
        return [[i for part in row for i in (ids.get(part, []) if isinstance(part, tuple) else [part])] for row in rows]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids, size = [int(i) for i in ids], self._backend.get_piece_size()
        for i in ids:
            if i not in self.added and not 0 <= i < size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        if skip_special:
            ids = [i for i in ids if i not in self._special_ids]
        parts: list[str] = []
        for spelt, group in itertools.groupby(ids, key=lambda i: i in self._special_ids or i in self.added):
            run = list(group)
            if spelt:
                parts += [self.added[i].content if i in self.added else self._backend.id_to_piece(i) for i in run]
            else:
                parts.append((self._inner if parts else self._backend).decode(run))
        return "".join(parts)

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / FILE_NAME, self._content)
        if not self._as_file:
            content = token_files.as_config(self._files)
            atomic_write(directory / token_files.CONFIG_NAME, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @functools.cached_property
    def _inner(self) -> sentencepiece.SentencePieceProcessor:
        """The model for what follows an added token or a special one: no space is put before it, or taken off."""
        return self._opened(dummy_prefix=False) if self.model.add_dummy_prefix else self._encoder

    def _opened(self, *, dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
        content = self.model.changed(self._hidden, dummy_prefix=dummy_prefix)
        return sentencepiece.SentencePieceProcessor(model_proto=content)

    def __reduce__(self):
        return type(self), (self._content, self._files)

    def __repr__(self):
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"


def _special(pieces: Sequence[Piece], files: TokenFiles, ids: Mapping[str, int]) -> set[int]:
    """Returns the ids that are special by the model file or by the files beside it."""
    special = {i for i, token in (files.added or {}).items() if token.special}
    special |= {ids[text] for text in files.special if text in ids}
    special |= {i for text, i in ids.items() if i < len(pieces) and pieces[i].type == proto.CONTROL}
    return {i for i in special if i >= len(pieces) or pieces[i].type not in (proto.UNKNOWN, proto.BYTE)}


def _spelt(piece: Piece) -> bool:
    """Returns whether a text may hold the piece."""
    return piece.type in (proto.NORMAL, proto.USER_DEFINED, proto.UNUSED)


def _encode(backend: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
    threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else -1
    return backend.encode(list(texts), out_type=int, num_threads=threads) if texts else []


def _pattern(tokens: Sequence[AddedToken]) -> re.Pattern[str] | None:
    """Returns what finds added tokens in a text, the longest first; the last group is the token's spelling."""
    parts = []
    for number, token in enumerate(sorted(tokens, key=lambda token: -len(token.content))):
        spelling = f"(?P<t{number}>{re.escape(token.content)})"
        spelling = rf"(?<!\w){spelling}(?!\w)" if token.single_word else spelling
        parts.append(rf"\s*{spelling}" if token.lstrip else spelling)
        parts[-1] += r"\s*" if token.rstrip else ""
    return re.compile("|".join(parts)) if parts else None
