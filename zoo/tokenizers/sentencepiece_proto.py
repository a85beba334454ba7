"""The fields of a sentencepiece model file that its library does not show, read and changed in its protobuf bytes.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece).
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # of ModelProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary: its text, its score and its type."""

    text: str
    score: float
    type: int


class Model:
    """A model file, whose bytes the library has accepted."""

    def __init__(self, content: bytes):
        """`content`: the bytes of the file. Raises ValueError for bytes that are no message."""
        self._fields = list(_fields(content))

    @cached_property
    def pieces(self) -> list[Piece]:
        """The entries, in the order of their ids."""
        return [_piece(value) for number, value, _ in self._fields if number == _PIECE]

    @cached_property
    def model_type(self) -> int:
        """UNIGRAM, BPE, or another kind."""
        return self._part(_TRAINER).get(3, UNIGRAM)

    @property
    def byte_fallback(self) -> bool:
        """Whether characters without an entry become bytes."""
        return bool(self._part(_TRAINER).get(35, 0))

    @property
    def suffix(self) -> bool:
        """Whether the mark of a space stands behind a word."""
        return bool(self._part(_TRAINER).get(24, 0))

    @property
    def charsmap(self) -> bytes:
        """The rules by which characters are normalised; empty where they stay as they are."""
        return self._part(_NORMALIZER).get(2, b"")

    @property
    def add_dummy_prefix(self) -> bool:
        """Whether a space is put before a text."""
        return bool(self._part(_NORMALIZER).get(3, 1))

    @property
    def remove_extra_whitespaces(self) -> bool:
        """Whether spaces at both ends of a text, and all but one of several, are dropped."""
        return bool(self._part(_NORMALIZER).get(4, 1))

    @property
    def escape_whitespaces(self) -> bool:
        """Whether spaces become the mark U+2581."""
        return bool(self._part(_NORMALIZER).get(5, 1))

    def changed(self, types: Mapping[int, int], *, dummy_prefix: bool) -> bytes:
        """Returns the file with other types for some ids, and without a space before a text unless `dummy_prefix`."""
        parts, number_of_piece = [], 0
        for number, value, raw in self._fields:
            if number == _PIECE:
                if number_of_piece in types:
                    kept = b"".join(part for field, _, part in _fields(value) if field != 3)
                    raw = _message(_PIECE, kept + _number(3, types[number_of_piece]))
                number_of_piece += 1
            elif number == _NORMALIZER and not dummy_prefix:
                kept = b"".join(part for field, _, part in _fields(value) if field != 3)
                raw = _message(_NORMALIZER, kept + _number(3, 0))
            parts.append(raw)
        if not dummy_prefix and not any(number == _NORMALIZER for number, _, _ in self._fields):
            parts.append(_message(_NORMALIZER, _number(3, 0)))
        return b"".join(parts)

    def _part(self, wanted: int) -> dict[int, int | bytes]:
        found = [value for number, value, _ in self._fields if number == wanted]
        return {number: value for part in found for number, value, _ in _fields(part)}


def _piece(content: bytes) -> Piece:
    fields = {number: value for number, value, _ in _fields(content)}
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields.get(1, b"").decode("utf-8", "replace"), score, fields.get(3, NORMAL))


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Yields the number, the value and the bytes of each field of a message."""
    at = 0
    while at < len(content):
        start = at
        key, at = _varint(content, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64, _BYTES):
            if kind == _BYTES:
                size, at = _varint(content, at)
            else:
                size = 4 if kind == _FIXED32 else 8
            value, at = content[at : at + size], at + size
        else:
            raise ValueError(f"a field of the kind {kind} at byte {start}")
        if at > len(content):
            raise ValueError("the message ends in the middle of a field")
        yield key >> 3, value, content[start:at]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("the message ends in the middle of a number")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _write_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _write_varint(field << 3 | _VARINT) + _write_varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _write_varint(field << 3 | _BYTES) + _write_varint(len(content)) + content
