"""Files, plain or compressed, cut into lines or documents of a bounded size.

A file of a megabyte can unpack to gigabytes. It is unpacked block by block, and a line or document that is longer than
`longest` allows is dropped on the way, so that no file takes more memory than that.
"""

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from zoo.errors import UserError
from zoo.util import first_line

SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst")
"""Of a plain file and of those compressed in a way that is recognised, by their first bytes, when they are read."""

_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # what follows "BZh" and a digit, which plain text may begin with
LONGEST, EXPANSION = 1 << 26, 20  # bytes, and times the size on disk: of a line or document, the larger counts
_BLOCK = 1 << 20
_XZ_MEMORY = 1 << 28  # bytes that a decoder of xz may take; the largest preset needs 65 MiB


class Stream(Protocol):
    """What is read of: `read` returns at most so many bytes, b"" at the end."""

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes."""
        ...


def longest(path: Path, least: int | None = None) -> int:
    """Returns how many bytes a line or document of the file may have: `LONGEST`, or 20 times its size on disk.

    `least` takes the place of `LONGEST` for what is larger than a line.
    """
    stat = path.stat()
    # Holes in a file take no room on disk.
    return max(LONGEST if least is None else least, EXPANSION * min(stat.st_size, stat.st_blocks * 512))


def parts(path: Path, separator: bytes | None, block: int = _BLOCK) -> Iterator[bytes | None]:
    """Yields what stands between separators in a file; without a separator, the whole file.

    Args:
        path: a file, plain or compressed by gzip, bzip2, xz or zstd.
        separator: parts the lines or documents; behind the last one nothing more is expected.
        block: how many bytes are read at a time.

    Yields:
        Parts as bytes, without their separators; None in the place of one that is longer than `longest`.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    number = 0
    try:
        limit = longest(path)
        with _open(path) as stream:
            for part in _whole(stream, limit, block) if separator is None else split(stream, separator, limit, block):
                number += 1
                yield part
    except FileNotFoundError:
        raise UserError(f"data.path: {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"data.path: {path} is a directory; give a file") from None
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:  # of damaged compressed files
        where = f"{path}, after line {number}" if separator == b"\n" else str(path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UserError(f"{where}: cannot be read ({reason})") from None


def split(stream: Stream, separator: bytes, limit: int, block: int = _BLOCK) -> Iterator[bytes | None]:
    """Yields what stands between separators in a stream, None in the place of what has more than `limit` bytes.

    What stands behind the last separator is yielded unless it is blank. At most `limit` bytes and a block are held.
    """
    overlap = len(separator) - 1
    pending, dropped = bytearray(), False
    while data := stream.read(block):
        searched = max(0, len(pending) - overlap)
        pending += data
        if pending.find(separator, searched) >= 0:
            *complete, rest = bytes(pending).split(separator)
            for part in complete:
                yield None if dropped or len(part) > limit else part
                dropped = False
            pending = bytearray(rest)
        if len(pending) > limit:
            dropped = True
            del pending[: len(pending) - overlap]
    if dropped:
        yield None
    elif pending.strip():
        yield bytes(pending)


def _whole(stream: Stream, limit: int, block: int) -> Iterator[bytes | None]:
    content = bytearray()
    while data := stream.read(block):
        content += data
        if len(content) > limit:
            yield None
            return
    yield bytes(content)


def _open(path: Path) -> contextlib.AbstractContextManager[Stream]:
    """Opens a file for reading, decompressed if its first bytes say that it is compressed."""
    with path.open("rb") as file:
        head = file.read(10)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh") and head[4:] in _BZIP2_BLOCKS:
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ\x00"):
        return contextlib.closing(_Xz(path))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return pyarrow.CompressedInputStream(str(path), "zstd")
    return path.open("rb")


class _Xz:
    """The content of an .xz file. Unlike `lzma.LZMAFile` it bounds the memory that a file may ask for."""

    def __init__(self, path: Path):
        self._file, self._decoder = path.open("rb"), None

    def read(self, size: int) -> bytes:
        """Returns the next bytes, b"" at the end. Raises LZMAError or EOFError for a damaged file."""
        while True:
            if self._decoder is None or self._decoder.eof:
                data = b"" if self._decoder is None else self._decoder.unused_data.lstrip(b"\0")
                while not data:  # streams may follow each other, with zeros between them
                    block = self._file.read(_BLOCK)
                    if not block:
                        return b""
                    data = block.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            else:
                data = self._file.read(_BLOCK) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not data:
                    raise EOFError("the compressed file ends too early")
            if content := self._decoder.decompress(data, size):
                return content

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
