"""Text from outside on its way to a terminal: control characters are made visible, so that no file steers it.

An escape sequence in the name of a tensor, in a text or in what a model writes could otherwise set the terminal's
title, fill its clipboard or hide lines. Standard library only.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

# All of C0 but tab and line feed, DEL and C1, the characters that override the direction of text, and surrogates,
# which no terminal's encoding has.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAK = re.compile("[\t\n\u2028\u2029]")
_BAR = re.compile(r"\r|(\n*(\x1b\[A)+)$")


def visible(text: str) -> str:
    """Returns the text with every control character but tab and line feed written as \\u001b is.

    That is also how JSON spells such a character, so a line of JSON keeps its meaning.
    """
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    """Returns the text as `visible` does, with tabs and line breaks spelt out too: for names and cells of tables."""
    return _BREAK.sub(_escape, visible(text))


def _escape(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


class GuardedStream:
    """A text stream that makes what is written to it `visible`; all else is the stream's own.

    Attributes:
        raw: the stream itself, for sequences that zoo writes on purpose.
    """

    def __init__(self, raw: TextIO, *, bars: bool = False):
        """`bars`: whether libraries may redraw their progress bars: a carriage return may begin what is written."""
        self.raw, self._bars = raw, bars

    def write(self, text: str) -> int:
        """Writes the text and returns the number of its characters."""
        bar = _BAR.match(text) if self._bars else None
        kept = bar.end() if bar else 0
        self.raw.write(text[:kept] + visible(text[kept:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes the lines one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class LastingStream:
    """A text stream that goes on silently when nobody reads it any more: its pipe is closed, or its terminal is gone.

    A run is then not lost for the sake of its progress. All but writing is the stream's own.
    """

    def __init__(self, raw: TextIO):
        self._raw, self._gone = raw, False

    def write(self, text: str) -> int:
        """Writes the text, where somebody reads it, and returns the number of its characters."""
        self._try(lambda: self._raw.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, where somebody reads it."""
        self._try(self._raw.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        if self._gone:
            return
        try:
            act()
        except OSError:
            self._gone = True
            with contextlib.suppress(OSError, ValueError):
                # What Python still holds of the text, and what libraries write, goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._raw.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def guard(stream: TextIO | None, *, bars: bool = False) -> Any:
    """Returns the stream behind a `GuardedStream`; None and a stream that is guarded already are returned as is."""
    return stream if stream is None or isinstance(stream, GuardedStream) else GuardedStream(stream, bars=bars)


def unguarded(stream: Any) -> Any:
    """Returns the stream that a `GuardedStream` writes to; any other stream itself."""
    return stream.raw if isinstance(stream, GuardedStream) else stream


@contextlib.contextmanager
def guarded(*, lasting: bool = False) -> Iterator[None]:
    """Guards sys.stdout and sys.stderr in the block: all that is printed there is made `visible`.

    `lasting`: whether the program goes on when nobody reads them any more, see `LastingStream`.
    """
    before = sys.stdout, sys.stderr
    if lasting:
        sys.stdout, sys.stderr = (stream and LastingStream(stream) for stream in before)
    sys.stdout, sys.stderr = guard(sys.stdout), guard(sys.stderr, bars=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
