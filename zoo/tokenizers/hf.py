"""`tokenizer.json` files, read by the `tokenizers` library (https://github.com/huggingface/tokenizers)."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from zoo.errors import UserError
from zoo.files import refuse_lfs_pointer
from zoo.tokenizers import plain_text, token_files
from zoo.tokenizers.base import Tokenizer, faults_refused
from zoo.tokenizers.token_files import CONFIG_NAME
from zoo.util import atomic_write, first_line, parse_json, sha256_hex

FILE_NAME = "tokenizer.json"
# BwETAF's file is a tokenizer.json by another name, and so is the config beside it.
_CONFIG_OF = {"yap.json": "understanding_yap.json"}

# A tokenizer.json does not say which special token is BOS, EOS or padding. Where the config beside it does not say so
# either, these usual spellings are looked for.
_SPELLINGS = {
    "bos": ("<bos>", "<s>", "<|bos|>", "<|begin_of_text|>"),
    "eos": ("<eos>", "</s>", "<|eos|>", "<|EOS|>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "<|pad|>", "[PAD]"),
}


class HFTokenizer(Tokenizer):
    """A tokenizer given as the text of a `tokenizer.json`, which `save` writes unchanged.

    Padding and truncation that the file may ask for are switched off.
    """

    def __init__(self, content: str, *, origin: str = FILE_NAME, parts: Mapping[str, str] | None = None):
        """Raises UserError if `content`, the JSON text, cannot be used; `origin` is its name in the error.

        `parts` gives the tokens that are BOS, EOS and padding, {"bos": ..., "eos": ..., "pad": ...}; a part that is
        left out has no token. None looks for the usual spellings.
        """
        self._backend = _opened(content, origin)
        if not self._backend.get_vocab_size(with_added_tokens=True):
            raise UserError(f"{origin}: not a {FILE_NAME} that can be used (its vocabulary is empty)")
        self._content, self._origin = content, origin
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
        # Texts are encoded by another one where the model of this one finds special tokens in them.
        entries = self._backend.get_vocab(with_added_tokens=False) if self.special_tokens else {}
        plain = plain_text.without_special(content, self.special_tokens, entries)
        self._encoder = self._backend if plain is None else _opened(plain, origin)
        self._parts = None if parts is None else dict(parts)
        self.bos_id = self._find("bos")
        self.eos_id = self._find("eos")
        self.pad_id = self._find("pad")

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "HFTokenizer":
        """Reads a `tokenizer.json`, or the one in the directory `path`. Raises UserError if there is none."""
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; give a {FILE_NAME} or its directory") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a {FILE_NAME} ({error})") from None
        files = token_files.read(path.parent, _CONFIG_OF.get(path.name, CONFIG_NAME))
        tokenizer = cls(plain_text.with_added(content, files), origin=str(path), parts=files.parts)
        for i, token in sorted((files.added or {}).items()):
            if tokenizer._backend.id_to_token(i) is None:
                raise UserError(
                    f"{path}: {token.content!r} is to have the id {i} by the files beside it, and gets "
                    f"{tokenizer._backend.token_to_id(token.content)}; put the {FILE_NAME} there that belongs to them"
                )
        return tokenizer

    @functools.cached_property
    def prefix_ids(self) -> list[int]:
        """The ids that the post-processor of the file puts before a text; transformers goes by it alone, too."""
        processor = self._backend.post_processor
        return [] if processor is None else plain_text.ids_in_front(json.loads(processor.__getstate__()))

    def with_prefix(self, ids: Sequence[int]) -> "HFTokenizer":
        if list(ids) == self.prefix_ids:
            return self
        names = {i: self._backend.id_to_token(i) for i in ids}
        return HFTokenizer(plain_text.with_prefix(self._content, list(ids), names), parts=self._parts)

    def _find(self, part: str) -> int | None:
        if self._parts is not None:
            return self._backend.token_to_id(self._parts[part]) if part in self._parts else None
        return next((self.special_tokens[s] for s in _SPELLINGS[part] if s in self.special_tokens), None)

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        try:
            content = json.dumps(parse_json(self._content), sort_keys=True)
        except (ValueError, RecursionError) as error:  # the library's parser took it, with what it passes over
            raise UserError(f"{self._origin}: cannot be read as JSON ({first_line(error)})") from None
        return sha256_hex(
            (content if self._parts is None else content + json.dumps(self._parts, sort_keys=True)).encode()
        )

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        # The fast variant skips character offsets, which are not needed.
        with faults_refused(self._origin):
            encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        start = [self.bos_id] if add_special and self.bos_id is not None else []
        return [start + encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            # The library would leave out an unknown id silently.
            if not 0 <= i < self.vocab_size or self._backend.id_to_token(i) is None:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        with faults_refused(self._origin):
            return self._backend.decode(ids, skip_special_tokens=skip_special)

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / FILE_NAME, self._content)
        if self._parts is not None:
            config = {f"{part}_token": token for part, token in self._parts.items()}
            atomic_write(directory / CONFIG_NAME, json.dumps(config, ensure_ascii=False, indent=1) + "\n")

    def __reduce__(self):
        return _rebuild, (self._content, self._parts)

    def __repr__(self):
        return f"HFTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"


def _rebuild(content: str, parts: Mapping[str, str] | None) -> HFTokenizer:
    return HFTokenizer(content, parts=parts)


def _opened(content: str, origin: str) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer, without padding and truncation; special tokens in a text are plain text to it.

    Raises UserError, naming `origin`, for content that cannot be used.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except BaseException as error:  # the library raises bare Exception for every fault in a file, or panics
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        refuse_lfs_pointer(Path(origin))
        raise UserError(f"{origin}: not a {FILE_NAME} that can be used ({error})") from None
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend
