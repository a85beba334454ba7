"""Marks, in a text that is still being written, what its match does not hold."""

import re

from zoo.tasks.cronica.grounding import Lexicon, mentions
from zoo.tasks.cronica.match import Match

# A mention never goes across one of these with white space behind it, so the text before it is settled.
_SETTLED = re.compile(r"[.,;:!?…»)](?=\s)|\n")


class Marker:
    """Puts `before` and `after` around names, minutes and scores that are not in the block.

    Fed with pieces of text, it gives out whole phrases: whether "A los 2" is in the block shows only when the
    minute is complete.
    """

    def __init__(self, match: Match, lexicon: Lexicon, before: str, after: str):
        self._match, self._lexicon, self._before, self._after = match, lexicon, before, after
        self._text, self._given = "", 0
        self.marked = 0
        """How many have been marked so far."""

    def push(self, piece: str) -> str:
        """Take in the next piece; the marked text of the phrases that are now complete."""
        self._text += piece
        settled = [found.end() for found in _SETTLED.finditer(self._text, self._given)]
        return self._give(settled[-1]) if settled else ""

    def flush(self) -> str:
        """The marked rest, when the text is complete."""
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        out, at = [], self._given
        for mention in mentions(self._text, self._match, self._lexicon):
            if mention.start >= self._given and mention.end <= end and not mention.grounded:
                out += [self._text[at : mention.start], self._before, self._text[mention.start : mention.end]]
                out.append(self._after)
                at = mention.end
                self.marked += 1
        out.append(self._text[at:end])
        self._given = end
        return "".join(out)
