"""Byte-pair encodings of tiktoken (https://github.com/openai/tiktoken): GPT-2's, and files of ranks."""

import base64
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tiktoken

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer, faults_refused
from zoo.util import atomic_write, first_line, nearest, parse_json

FILE_NAME, SETTINGS_NAME, FORMAT = "tokenizer.tiktoken", "tiktoken.json", 1
EOS = "<|endoftext|>"
# GPT-2's pattern of words, as in tiktoken_ext/openai_public.py.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_SMALL = 1_000_000  # characters; smaller batches are not worth threads


class TiktokenTokenizer(Tokenizer):
    """A byte-level BPE given by the rank of every token.

    GPT-2's `<|endoftext|>` ends a document; there is no BOS and no padding token.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int]):
        """`ranks` is token -> id, `pattern` the regular expression of words, `special_tokens` spelling -> id."""
        _check_ranks(ranks, special_tokens)
        self._ranks, self._pattern = ranks, pattern
        self.special_tokens = dict(sorted(special_tokens.items(), key=lambda item: item[1]))
        self._encoding = tiktoken.Encoding(
            "zoo", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )
        self._special_ids = frozenset(self.special_tokens.values())
        self.bos_id, self.eos_id, self.pad_id = None, self.special_tokens.get(EOS), None

    @classmethod
    def named(cls, name: str) -> "TiktokenTokenizer":
        """Returns an encoding that tiktoken knows, fetched once. Raises UserError where it cannot be fetched."""
        if name not in tiktoken.list_encoding_names():
            guess = nearest(name, tiktoken.list_encoding_names())
            hint = f"did you mean {guess}? " if guess else ""
            raise UserError(
                f"tokenizer.name: there is no encoding {name!r}; {hint}tiktoken knows "
                f"{', '.join(tiktoken.list_encoding_names())}; a repository of the hub is written owner/name"
            )
        try:
            encoding = tiktoken.get_encoding(name)
        except Exception as error:  # the http library's, or a damaged download
            files = "its vocab.bpe and encoder.json" if name == "gpt2" else f"its {name}.tiktoken"
            raise UserError(
                f"tokenizer.name: {name} cannot be fetched by tiktoken ({first_line(error)}); get {files} (or a "
                f"tokenizer.json of the same vocabulary) on a machine that can, and name the file or its directory "
                f"in tokenizer.path"
            ) from None
        return cls(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "TiktokenTokenizer":
        """Reads a .tiktoken file of ranks, or GPT-2's vocab.bpe. Raises UserError if it cannot be used.

        Pattern and special tokens are those of the tiktoken.json beside it, else GPT-2's.
        """
        path = Path(path)
        pattern, special = GPT2_PATTERN, None
        try:
            if path.name == "vocab.bpe":
                ranks = _gpt2_ranks(path)
            else:
                pairs = (line.split() for line in path.read_bytes().splitlines() if line)
                ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
                settings = path.with_name(SETTINGS_NAME)
                if settings.is_file():
                    content = parse_json(settings.read_text(encoding="utf-8"))
                    if content["format"] != FORMAT:
                        raise UserError(
                            f"{settings}: format {content['format']!r}; this version reads {FORMAT}: install the zoo "
                            f"that wrote it"
                        )
                    pattern, special = content["pattern"], content["special_tokens"]
            return cls(ranks, pattern, {EOS: len(ranks)} if special is None else special)
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no such file; a tokenizer of tiktoken needs it") from None
        except Exception as error:  # asserts of the loader, broken base64, JSON, ranks with holes
            raise UserError(f"{path}: cannot be read as a tokenizer of tiktoken ({first_line(error)})") from None

    @property
    def vocab_size(self) -> int:
        return self._encoding.max_token_value + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self._pattern, self.special_tokens], sort_keys=True).encode())
        digest.update(_ranks_file(self._ranks))
        return digest.hexdigest()

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        with faults_refused("tokenizer.tiktoken"):
            if sum(map(len, texts)) < _SMALL or os.environ.get("TOKENIZERS_PARALLELISM") == "false":
                return [self._encoding.encode_ordinary(text) for text in texts]
            with ThreadPoolExecutor() as pool:  # the library releases the GIL
                return list(pool.map(self._encoding.encode_ordinary, texts))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        if skip_special:
            ids = [i for i in ids if i not in self._special_ids]
        try:
            return self._encoding.decode_bytes(ids).decode("utf-8", errors="replace")
        except (KeyError, OverflowError) as error:
            bad = next(i for i in ids if not self._known(i))
            raise ValueError(f"token id {bad} is outside the vocabulary of {self.vocab_size}") from error

    def _known(self, i: int) -> bool:
        try:
            self._encoding.decode_single_token_bytes(i)
        except (KeyError, OverflowError):
            return False
        return True

    def save(self, directory: str | os.PathLike) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / FILE_NAME, _ranks_file(self._ranks))
        content = {"format": FORMAT, "pattern": self._pattern, "special_tokens": self.special_tokens}
        atomic_write(directory / SETTINGS_NAME, json.dumps(content, indent=1) + "\n")

    def __reduce__(self):
        return type(self), (self._ranks, self._pattern, self.special_tokens)

    def __repr__(self):
        return f"TiktokenTokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"


def _check_ranks(ranks: dict[bytes, int], special_tokens: dict[str, int]) -> None:
    """Raises ValueError for ranks at which the library panics, in building the encoding or at some later text."""
    ids = [*ranks.values(), *special_tokens.values()]
    if not all(type(number) is int and 0 <= number < 2**32 - 1 for number in ids):
        raise ValueError("a rank is no whole number from 0 to 4294967294")
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("a rank is given twice")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise ValueError(f"there is no token for the byte {missing}")


def _gpt2_ranks(path: Path) -> dict[bytes, int]:
    """Returns the ranks in GPT-2's vocab.bpe (merges in order) and the encoder.json beside it (token -> id).

    The library's own reader is not used: it caches by path and does not notice a changed file.
    """
    plain = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    encoder = json.loads(path.with_name("encoder.json").read_text(encoding="utf-8"))
    encoder.pop(EOS, None)
    ranks = {bytes(letters[letter] for letter in token): rank for token, rank in encoder.items()}
    merges = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
    merged = [bytes(letters[letter] for letter in first + second) for first, second in merges]
    if len(ranks) != 256 + len(merged) or any(ranks[token] != 256 + i for i, token in enumerate(merged)):
        raise ValueError("vocab.bpe and encoder.json do not belong together")
    return ranks


def _ranks_file(ranks: dict[bytes, int]) -> bytes:
    """Returns the content of a .tiktoken file: a line of base64 and rank for each token, in the order of ranks."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" " + str(rank).encode() + b"\n" for token, rank in ordered)
