"""Writing crónicas with a model whose tokenizer has their special tokens: what `LanguageModel.cronica` calls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.recipe.training import EvalSection
from zoo.tasks.cronica import tokens
from zoo.tasks.cronica.match import Match, parse_block, to_block

if TYPE_CHECKING:
    from zoo.generate.text import Generation, TextStream
    from zoo.language_model import LanguageModel

# The published card's sampling, with room for the longest texts: what a run's `eval` section has by default.
SETTINGS: dict[str, Any] = {
    name: getattr(EvalSection(), name) for name in ("temperature", "top_k", "top_p", "max_new_tokens")
}


class Writer:
    """Writes crónicas with a language model. The methods are described at `LanguageModel`, which calls them."""

    def __init__(self, lm: "LanguageModel"):
        self._lm = lm

    def write(self, pairs: Sequence[tuple[str | Match, str]], **settings: Any) -> "list[Generation]":
        """Returns a crónica for each (stats, style)."""
        prompts = [self.prompt(stats, style) for stats, style in pairs]
        return self._lm.generate(prompts, stop=self._end(), **_with_defaults(settings))

    def stream(self, stats: str | Match, style: str, **settings: Any) -> "TextStream":
        """Returns a crónica in pieces as they come."""
        prompt = self.prompt(stats, style)
        return self._lm.stream(prompt, stop=self._end(), **_with_defaults(settings))

    def prompt(self, stats: str | Match, style: str) -> list[int]:
        """Returns the token ids of a crónica's prompt."""
        self._lm.check_cronica()
        return tokens.encode_prompt(self._lm.tokenizer, _block(stats), style)

    def check(self) -> None:
        """Raises UserError unless the model's tokenizer has the special tokens of crónicas."""
        lm = self._lm
        missing = [token for token in tokens.SPECIAL_TOKENS if token not in lm.tokenizer.special_tokens]
        if missing:
            where = "" if lm.origin is None else f" ({lm.origin.path})"
            raise UserError(
                f"this {lm.name}{where} is no model for crónicas: its tokenizer has no {missing[0]}; take a run of "
                "recipes/quickstart.yaml or recipes/cronica_5m.yaml, or cronica-5m"
            )

    def _end(self) -> int:
        return tokens.special_id(self._lm.tokenizer, "</cronica>")


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    return settings if settings.get("preset") else SETTINGS | settings  # a preset has its own defaults


def _block(stats: str | Match) -> str:
    """Returns the block as the training data have it: between `<STATS>` lines, no white space at line ends."""
    text = to_block(stats) if isinstance(stats, Match) else stats
    parse_block(text)  # a text that is no block at all must not give a crónica of nothing
    lines = [line.rstrip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and line.strip().upper() not in ("<STATS>", "</STATS>")]
    return "\n".join(["<STATS>", *lines, "</STATS>"])
