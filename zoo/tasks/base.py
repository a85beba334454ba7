"""What a run asks of its data, whatever kind they are of."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.data.pipeline import Batch
from zoo.recipe import Recipe
from zoo.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

SAMPLE_TOKENS = 120  # of a text written in the middle of training


@dataclass(frozen=True)
class Finished:
    """What came out at the end of a run: report sections (heading -> Markdown) and what result.json keeps."""

    sections: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    sample: dict[str, str] | None = None


class Task(ABC):
    """The data of a run, ready, and what is to be done with the trained model.

    Attributes:
        recipe: with everything decided that it left open.
        tokenizer: of the data and the model.
    """

    recipe: Recipe
    tokenizer: Tokenizer

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what training sees; a checkpoint keeps it."""

    @property
    @abstractmethod
    def changed(self) -> str:
        """What to say when the fingerprint is not that of the checkpoint; {where} is the run's directory."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The data in a line."""

    @property
    @abstractmethod
    def epochs(self) -> float | None:
        """How many epochs the run's steps are; None where there is no such thing."""

    @abstractmethod
    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Batches from that example on; of each the share (index, count) of its rows: `zoo.train.mesh.batch_share`."""

    @abstractmethod
    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """The held-out rows, once, in batches of `rows`; what the last one lacks are rows that bear no loss."""

    @abstractmethod
    def finish(self, lm: "LanguageModel") -> Finished:
        """Evaluate the trained model and let it write a sample."""

    @abstractmethod
    def sample(self, lm: "LanguageModel") -> str:
        """What the model writes in the middle of training, as Markdown: the beginning of `finish`'s sample.

        At most SAMPLE_TOKENS tokens, the same prompt and seed every time, so that one sample compares with the next.
        Raises UserError where the prompt does not fit into the model.
        """

    def sampling(self) -> dict[str, Any]:
        """How the model writes: the settings of the recipe's `eval` section."""
        settings = self.recipe.eval
        return {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}

    def short_sampling(self) -> dict[str, Any]:
        """`sampling` for `sample`."""
        settings = self.sampling()
        return settings | {"max_new_tokens": min(settings["max_new_tokens"], SAMPLE_TOKENS)}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
