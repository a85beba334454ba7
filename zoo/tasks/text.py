"""Training on texts and conversations: prepared shards, held-out loss, and a sample text at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.batches import Batch
from zoo.data.text import TextData
from zoo.data.tokenizer import resolve_tokenizer
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.rundir.layout import display_path
from zoo.tasks.base import Finished, Say, Task, say, write
from zoo.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

_PROMPT_TOKENS = 8  # of a held-out text, for the model to continue


@dataclass(frozen=True)
class TextTask(Task):
    """A run on texts or conversations (`data.kind` text or chat). Make one with `prepare`."""

    recipe: Recipe
    tokenizer: Tokenizer
    data: TextData

    @classmethod
    def resolve(cls, recipe: Recipe, tokenizer: Tokenizer | None, say: Say) -> tuple[Recipe, Tokenizer]:
        """Loads or trains the tokenizer where there is none yet, and sets `data.max_tokens` and an alphabet's size.

        Raises:
            UserError: the tokenizer cannot be loaded or trained, or is too large for the model.
        """
        return resolve_tokenizer(recipe, tokenizer, say=say)

    @classmethod
    def prepare(cls, recipe: Recipe, tokenizer: Tokenizer, say: Say) -> "TextTask":
        """Writes the token shards that are missing, verifies all of them and packs them into rows."""
        data = TextData.load(recipe, tokenizer, recipe.model.make_config(), say=say)
        say(f"data: {data}")
        return cls(recipe, tokenizer, data)

    @classmethod
    def describe_sources(cls, recipe: Recipe) -> str:
        """Returns the sources' paths or names, separated by commas."""
        return ", ".join(source.path or source.source for source in recipe.data.document_sources)

    @classmethod
    def dry_run_description(cls, recipe: Recipe) -> str:
        """Returns the sources, and how many tokens would be prepared where."""
        data = recipe.data
        return (
            f"{cls.describe_sources(recipe)}; up to {data.max_tokens:,} tokens are prepared in "
            f"{display_path(data.prepared_path)}"
        )

    @staticmethod
    def format_sample(sample: dict[str, str]) -> str:
        """Returns the prompt in brackets, followed by the text."""
        return "\n[{prompt}]{text}".format(**sample)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the prepared tokens and the order of the rows."""
        return self.data.fingerprint

    @property
    def changed_message(self) -> str:
        """The error message where the tokens or their order have changed."""
        return (
            "data: the prepared tokens, or the order of the rows, are not those {where} was trained on; put the data "
            "back as they were (without data.validation, eval.num_pairs rows are held out), or start over with --fresh"
        )

    @property
    def description(self) -> str:
        """The sources, tokens and rows in one line."""
        return str(self.data)

    @property
    def epochs(self) -> float | None:
        """The number of epochs that the run's steps make; None for endless sources."""
        return self.data.epochs(self.recipe.train.steps * self.recipe.data.batch_size)

    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Returns batches of packed rows without end."""
        index, count = share
        return self.data.batches(
            self.recipe.data.batch_size, start_example=start_example, process_index=index, process_count=count
        )

    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """Returns the held-out rows once."""
        return self.data.heldout_batches(rows)

    def finish(self, lm: "LanguageModel") -> Finished:
        """Lets the model write a sample, which is printed as it is written."""
        if not self.recipe.eval.final_sample:
            return Finished()
        try:
            prompt, pieces = self._writing(lm, self.sampling())
        except UserError as error:
            say(f"no sample: {error}")
            return Finished()
        write(f"\n[{prompt}]")
        text = ""
        for piece in pieces:
            write(piece)
            text += piece
        say("\n")
        return Finished({"A sample": self._quoted(prompt, text)}, None, {"prompt": prompt, "text": text})

    def sample(self, lm: "LanguageModel") -> str:
        """Returns a short sample as a Markdown quotation."""
        prompt, pieces = self._writing(lm, self.short_sampling())
        return self._quoted(prompt, "".join(pieces))

    def _quoted(self, prompt: str, text: str) -> str:
        """Returns a prompt and its continuation, or the reply to it, as a quotation in Markdown."""
        between = "\n\n" if self.recipe.data.kind == "chat" and self.recipe.eval.prompt is not None else ""
        return "\n".join(f"> {line}".rstrip() for line in f"**{prompt}**{between}{text}".splitlines())

    def _writing(self, lm: "LanguageModel", settings: dict[str, Any]) -> tuple[str, Iterator[str]]:
        """Returns the prompt as it is shown, and what the model writes after it, piece by piece."""
        prompt, seed = self.recipe.eval.prompt, self.recipe.train.seed
        if prompt is None:
            start = self.data.first_tokens(_PROMPT_TOKENS)
            return self.tokenizer.decode(start), lm.stream(start, seed=seed, **settings)
        if self.recipe.data.kind == "chat":
            return prompt, lm.stream_chat(prompt, template=self.recipe.data.chat_template, seed=seed, **settings)
        return prompt, lm.stream(prompt, seed=seed, **settings)
