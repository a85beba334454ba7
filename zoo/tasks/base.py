"""The interface between a run and its kind of data: what the data are, how a model is evaluated and sampled on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from zoo.data.batches import Batch
from zoo.recipe import Recipe
from zoo.terminal import visible
from zoo.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

Say = Callable[[str], None]
SAMPLE_TOKENS = 120  # the longest text written in the middle of training


@dataclass(frozen=True)
class Finished:
    """The results of a task at the end of a run.

    Attributes:
        sections: of the report: heading -> Markdown.
        evaluation: what result.json keeps of the evaluation; None where there was none.
        sample: what result.json keeps of the sample, readable by `Task.format_sample`; None where there is none.
    """

    sections: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    sample: dict[str, str] | None = None


class Task(ABC):
    """The data of a run, ready for training, and the evaluation and the sample that belong to this kind of data.

    `zoo.registry.TASKS` names the class for each `data.kind` of a recipe. A run first calls `resolve`, checks that
    the program fits the devices, and then calls `prepare`, which may take hours.

    Attributes:
        recipe: the resolved recipe.
        tokenizer: the tokenizer of the data and the model.
    """

    recipe: Recipe
    tokenizer: Tokenizer

    @classmethod
    def resolve(cls, recipe: Recipe, tokenizer: Tokenizer | None, say: Say) -> tuple[Recipe, Tokenizer | None]:
        """Returns the recipe and the tokenizer with what the recipe leaves open decided; no data are prepared.

        By default both stay as they are.

        Args:
            recipe: the run's recipe.
            tokenizer: that of a resumed run; None where the task has to load or train one, here or in `prepare`.
            say: shows a line of progress.
        """
        return recipe, tokenizer

    @classmethod
    @abstractmethod
    def prepare(cls, recipe: Recipe, tokenizer: Tokenizer | None, say: Say) -> Self:
        """Reads the data, or prepares them, and returns the task; the run directory is not written.

        Args:
            recipe: from `resolve`; the task keeps it unchanged.
            tokenizer: from `resolve`.
            say: shows a line of progress.

        Raises:
            UserError: the data or the tokenizer cannot be read, or the tokenizer is too large for the model.
        """

    @classmethod
    @abstractmethod
    def describe_sources(cls, recipe: Recipe) -> str:
        """Returns the names of the recipe's data sources for a line of text."""

    @classmethod
    def dry_run_description(cls, recipe: Recipe) -> str | None:
        """Returns how a dry run describes data that it does not prepare; None where a dry run calls `prepare`.

        A dry run writes nothing, so a task whose `prepare` writes files must return a description.
        """
        return None

    @staticmethod
    @abstractmethod
    def format_sample(sample: dict[str, str]) -> str:
        """Returns the sample of a result.json as text for the terminal."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The SHA-256 of the training data in their order; checkpoints keep it."""

    @property
    @abstractmethod
    def changed_message(self) -> str:
        """The error message where a checkpoint has another fingerprint; `{where}` stands for the run's directory."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The data in one line."""

    @property
    @abstractmethod
    def epochs(self) -> float | None:
        """The number of epochs that the run's steps make; None where the data have no epochs."""

    @abstractmethod
    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Returns training batches without end, from an example of the global order on.

        Args:
            start_example: the number of the first row's example.
            share: (index, count): which part of each batch's rows to return, see `zoo.train.mesh.batch_share`.
        """

    @abstractmethod
    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """Returns the held-out rows once, in batches of `rows`; the last one is filled up with rows without loss."""

    @abstractmethod
    def finish(self, lm: "LanguageModel") -> Finished:
        """Evaluates the trained model and lets it write a sample."""

    @abstractmethod
    def sample(self, lm: "LanguageModel") -> str:
        """Returns, as Markdown, the beginning of the sample that `finish` writes, at most SAMPLE_TOKENS tokens.

        Prompt and seed are always the same, so that samples of different steps can be compared.

        Raises:
            UserError: the prompt does not fit into the model.
        """

    def sampling(self) -> dict[str, Any]:
        """Returns the sampling settings of the recipe's `eval` section."""
        settings = self.recipe.eval
        return {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}

    def short_sampling(self) -> dict[str, Any]:
        """Returns `sampling`, limited to SAMPLE_TOKENS tokens."""
        settings = self.sampling()
        return settings | {"max_new_tokens": min(settings["max_new_tokens"], SAMPLE_TOKENS)}


def say(text: str) -> None:
    """Prints a line and flushes it at once; control characters in it are made visible."""
    write(f"{text}\n")


def write(text: str) -> None:
    """Prints a piece of text, such as a model writes, as `say` does, and goes on in the same line."""
    print(visible(text), end="", flush=True)
