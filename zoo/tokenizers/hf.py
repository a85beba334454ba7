"""`tokenizer.json` files, read by the `tokenizers` library (https://github.com/huggingface/tokenizers)."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, first_line, is_utf8, parse_json, sha256_hex

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
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
        try:
            self._backend = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception for every fault in a file
            raise UserError(f"{origin}: not a {FILE_NAME} that can be used ({error})") from None
        if not self._backend.get_vocab_size(with_added_tokens=True):
            raise UserError(f"{origin}: not a {FILE_NAME} that can be used (its vocabulary is empty)")
        self._content, self._origin = content, origin
        self._backend.no_padding()
        self._backend.no_truncation()
        # A special token's spelling inside a text is plain text.
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
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
        return cls(content, origin=str(path), parts=_read_parts(path.with_name(_CONFIG_OF.get(path.name, CONFIG_NAME))))

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
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        start = [self.bos_id] if add_special and self.bos_id is not None else []
        return [start + encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        for i in ids:
            # The library would leave out an unknown id silently.
            if not 0 <= i < self.vocab_size or self._backend.id_to_token(i) is None:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
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


def _read_parts(path: Path) -> dict[str, str] | None:
    """Returns the tokens that are BOS, EOS and padding by a tokenizer_config.json, None where it does not say."""
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        tokens = {part: content.get(f"{part}_token") for part in _SPELLINGS}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as the settings of a tokenizer ({error})") from None
    # A token is given as its text, or as an object that describes it.
    texts = {part: token.get("content") if isinstance(token, dict) else token for part, token in tokens.items()}
    texts = {part: text for part, text in texts.items() if isinstance(text, str)}
    broken = [part for part, text in texts.items() if not is_utf8(text)]
    if broken:
        raise UserError(f"{path}: {broken[0]}_token is {texts[broken[0]]!r}, which is not UTF-8; get the file again")
    return texts or None
