"""Runs on texts and conversations: prepared shards, held-out loss, and at the end a text the model writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.data.pipeline import Batch
from zoo.data.text import TextData
from zoo.data.vocabulary import settle
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.run.task import Finished, Task, say
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
        recipe, tokenizer = settle(recipe, tokenizer, say=say)
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

    def batches(self, start_example: int) -> Iterator[Batch]:
        """See `Task`."""
        return self.data.batches(self.recipe.data.batch_size, start_example=start_example, **self.process())

    def heldout_batches(self) -> Iterator[Batch]:
        """See `Task`."""
        return self.data.heldout_batches(self.recipe.data.batch_size)

    def finish(self, lm: "LanguageModel") -> Finished:
        """See `Task`."""
        if not self.recipe.eval.final_sample:
            return Finished()
        prompt = self.recipe.eval.prompt
        given = self.tokenizer.decode(self.data.first_tokens(_PROMPT_TOKENS)) if prompt is None else prompt
        if self.recipe.data.kind == "chat" and prompt is not None:
            start = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], template=self.recipe.data.chat_template
            )
        else:
            start = self.data.first_tokens(_PROMPT_TOKENS) if prompt is None else prompt
        try:
            pieces = lm.stream(start, seed=self.recipe.train.seed, **self.sampling())
        except UserError as error:
            say(f"no sample: {error}")
            return Finished()
        print(f"\n[{given}]", end="", flush=True)
        text = ""
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
        say("\n")
        sample = {"prompt": given, "text": text}
        quoted = "\n".join(f"> {line}".rstrip() for line in f"**{given}**{text}".splitlines())
        return Finished({"A sample": quoted}, None, sample)


def shown(sample: dict[str, str]) -> str:
    """A sample of result.json for the terminal."""
    return "\n[{prompt}]{text}".format(**sample)
