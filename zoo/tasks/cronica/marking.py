"""Marking what a match does not hold, in a text that is still being written."""

import re

from zoo.tasks.cronica.grounding import Lexicon, mentions
from zoo.tasks.cronica.match import Match

# No mention goes across one of these with white space behind it, so the text before it is complete.
_BOUNDARY = re.compile(r"[.,;:!?…»)](?=\s)|\n")


class Marker:
    """Puts `before` and `after` around names, minutes and scores that are not in the block.

    It takes pieces of text and returns whole phrases: whether "A los 2" is in the block shows only when the
    minute is complete.

    Attributes:
        marked: how many mentions have been marked so far.
    """

    def __init__(self, match: Match, lexicon: Lexicon, before: str, after: str):
        self._match, self._lexicon, self._before, self._after = match, lexicon, before, after
        self._text, self._returned = "", 0
        self.marked = 0

    def push(self, piece: str) -> str:
        """Takes the next piece and returns the marked text of the phrases that are now complete."""
        self._text += piece
        ends = [boundary.end() for boundary in _BOUNDARY.finditer(self._text, self._returned)]
        return self._mark(ends[-1]) if ends else ""

    def flush(self) -> str:
        """Returns the marked rest, when the text is complete."""
        return self._mark(len(self._text))

    def _mark(self, end: int) -> str:
        out, at = [], self._returned
        for mention in mentions(self._text, self._match, self._lexicon):
            if mention.start >= self._returned and mention.end <= end and not mention.grounded:
                out += [self._text[at : mention.start], self._before, self._text[mention.start : mention.end]]
                out.append(self._after)
                at = mention.end
                self.marked += 1
        out.append(self._text[at:end])
        self._returned = end
        return "".join(out)
