"""Tokenizers behind one interface: `load(path)` gives a `zoo.tokenizers.base.Tokenizer`."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer


def load(path: str | os.PathLike) -> "Tokenizer":
    """Read a tokenizer from a `tokenizer.json` or from a directory that holds one.

    Raises UserError when there is no such file or it cannot be used.
    """
    from zoo.tokenizers.hf import HFTokenizer

    return HFTokenizer.from_file(path)
