"""The ends of rows: stop ids, which the decode loop looks for, and stop strings, which are looked for in the text."""

from collections.abc import Sequence

import numpy as np

from zoo.errors import UserError


class StopText:
    """Finds stop strings in text that comes in pieces, and holds back what may be the start of one.

    Neither a stop string nor the beginning of one is ever returned.
    """

    def __init__(self, strings: Sequence[str]):
        """Looks for `strings`, none of them empty; without any, all text is returned as it comes."""
        self._strings = tuple(strings)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Adds a piece; returns the text that is safe to show now, and whether a stop string is complete."""
        text = self._held + piece
        found = [text.index(string) for string in self._strings if string in text]
        if found:
            self._held = ""
            return text[: min(found)], True
        safe = len(text) - self._possible_start(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """Returns what is held back, once the text has ended without a stop string."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        longest = max((len(string) for string in self._strings), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-size:]) for string in self._strings):
                return size
        return 0


def split_stop(stop: int | str | Sequence[int | str] | None) -> tuple[list[int], list[str]]:
    """Returns the stop ids and the stop strings of a `stop` argument: an id, a string, a list of both, or None.

    Raises UserError for anything else.
    """
    items = [] if stop is None else [stop] if isinstance(stop, str) or np.ndim(stop) == 0 else list(stop)
    for item in items:
        if not isinstance(item, str | int | np.integer) or isinstance(item, bool):
            raise UserError(f"stop holds {item!r}; give strings and token ids")
    ids = [int(item) for item in items if not isinstance(item, str)]
    return ids, [item for item in items if isinstance(item, str) and item]
