"""Runs on texts and conversations: prepared shards, held-out loss, and at the end a text the model writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.pipeline import Batch
from zoo.data.text import TextData
from zoo.data.tokenizer import resolve_tokenizer
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.tasks.base import Finished, Task, say
from zoo.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

_PROMPT_TOKENS = 8  # of a held-out text, to go on from


@dataclass(frozen=True)
class TextTask(Task):
    """See `Task`; make one with `prepare`."""

    recipe: Recipe
    tokenizer: Tokenizer
    data: TextData

    @classmethod
    def prepare(cls, recipe: Recipe, tokenizer: Tokenizer | None) -> "TextTask":
        """Make the tokenizer (`tokenizer`: that of a run that has begun) and what is missing of the shards."""
        recipe, tokenizer = resolve_tokenizer(recipe, tokenizer, say=say)
        data = TextData.load(recipe, tokenizer, recipe.model.make_config(), say=say)
        say(f"data: {data}")
        return cls(recipe, tokenizer, data)

    @property
    def fingerprint(self) -> str:
        """See `Task`."""
        return self.data.fingerprint

    @property
    def changed(self) -> str:
        """See `Task`."""
        return (
            "data: the prepared tokens, or the order of the rows, are not those {where} was trained on; put the data "
            "back as they were (without data.validation, eval.num_pairs rows are held out), or start over with --fresh"
        )

    @property
    def description(self) -> str:
        """See `Task`."""
        return str(self.data)

    @property
    def epochs(self) -> float | None:
        """See `Task`."""
        return self.data.epochs(self.recipe.train.steps * self.recipe.data.batch_size)

    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """See `Task`."""
        index, count = share
        return self.data.batches(
            self.recipe.data.batch_size, start_example=start_example, process_index=index, process_count=count
        )

    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """See `Task`."""
        return self.data.heldout_batches(rows)

    def finish(self, lm: "LanguageModel") -> Finished:
        """See `Task`."""
        if not self.recipe.eval.final_sample:
            return Finished()
        try:
            given, pieces = self._writing(lm, self.sampling())
        except UserError as error:
            say(f"no sample: {error}")
            return Finished()
        print(f"\n[{given}]", end="", flush=True)
        text = ""
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
        say("\n")
        return Finished({"A sample": self._quoted(given, text)}, None, {"prompt": given, "text": text})

    def sample(self, lm: "LanguageModel") -> str:
        """See `Task`."""
        given, pieces = self._writing(lm, self.short_sampling())
        return self._quoted(given, "".join(pieces))

    def _quoted(self, prompt: str, text: str) -> str:
        """A prompt and what came after it, or the reply to it, as a quotation in Markdown."""
        between = "\n\n" if self.recipe.data.kind == "chat" and self.recipe.eval.prompt is not None else ""
        return "\n".join(f"> {line}".rstrip() for line in f"**{prompt}**{between}{text}".splitlines())

    def _writing(self, lm: "LanguageModel", settings: dict[str, Any]) -> tuple[str, Iterator[str]]:
        """The prompt as it is shown and what the model writes after it, piece by piece."""
        prompt, seed = self.recipe.eval.prompt, self.recipe.train.seed
        if prompt is None:
            start = self.data.first_tokens(_PROMPT_TOKENS)
            return self.tokenizer.decode(start), lm.stream(start, seed=seed, **settings)
        if self.recipe.data.kind == "chat":
            return prompt, lm.stream_chat(prompt, template=self.recipe.data.chat_template, seed=seed, **settings)
        return prompt, lm.stream(prompt, seed=seed, **settings)


def format_sample(sample: dict[str, str]) -> str:
    """A sample of result.json for the terminal."""
    return "\n[{prompt}]{text}".format(**sample)
