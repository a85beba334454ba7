"""Training on pairs of a match and its crónica: data in memory, the crónica suite and a sample at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.data.batches import Batch
from zoo.data.tokenizer import load_tokenizer
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.tasks.base import Finished, Say, Task, say, write
from zoo.tasks.cronica import corpus, tokens
from zoo.tasks.cronica import pairs as cronica_pairs
from zoo.tasks.cronica.pairs import Pairs
from zoo.tasks.cronica.records import load_records
from zoo.tasks.cronica.writing import Writer
from zoo.tokenizers.base import Tokenizer, check_fits

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

_MARKDOWN = "```\n{stats_block}\n```\n\n{style}:\n\n> {cronica}"


@dataclass(frozen=True)
class CronicaTask(Task):
    """A run on crónicas (`data.kind` cronicas). Make one with `prepare`.

    Attributes:
        recipe: the resolved recipe.
        tokenizer: has the special tokens of crónicas.
        pairs: the training rows.
        heldout: the held-out records, at least one.
        writer: the class behind `LanguageModel.cronica`.
    """

    recipe: Recipe
    tokenizer: Tokenizer
    pairs: Pairs
    heldout: list[dict]
    writer: ClassVar[type[Writer]] = Writer

    @classmethod
    def prepare(cls, recipe: Recipe, tokenizer: Tokenizer | None, say: Say) -> "CronicaTask":
        """Reads, splits and tokenises the records, and trains a tokenizer where there is none."""
        return cls.from_records(recipe, load_records(recipe.data), tokenizer, say)

    @classmethod
    def from_records(
        cls, recipe: Recipe, records: list[dict], tokenizer: Tokenizer | None, say: Say = say
    ) -> "CronicaTask":
        """Returns the task of these records, split into training and held-out ones."""
        training, heldout = split(recipe, records)
        tokenizer = tokenizer or load_tokenizer(recipe.tokenizer) or _train_tokenizer(recipe, training, say)
        check_fits(tokenizer, recipe.model.make_config().vocab_size)
        say(f"tokenising {len(training):,} pairs")
        task = cls(recipe, tokenizer, cronica_pairs.tokenise(training, tokenizer), heldout)
        say(f"data: {task.fit}")
        return task

    @cached_property
    def fit(self) -> cronica_pairs.Fit:
        """How the rows hold the training pairs."""
        return cronica_pairs.measure_fit(self.pairs, self.recipe.data.seq_len)

    @classmethod
    def describe_sources(cls, recipe: Recipe) -> str:
        """Returns the name of the recipe's source."""
        return recipe.data.source

    @staticmethod
    def format_sample(sample: dict[str, str]) -> str:
        """Returns the match, the style and the crónica."""
        return "\n{stats_block}\n\n[{style}]\n{cronica}".format(**sample)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the tokenised training pairs."""
        return self.pairs.fingerprint

    @property
    def changed_message(self) -> str:
        """The error message where the training pairs have changed."""
        return (
            "data: the training pairs are not those {where} was trained on; put the data back as they "
            "were (of a file, eval.num_pairs pairs are held out), or start over with --fresh"
        )

    @property
    def description(self) -> str:
        """The source, and how the rows hold its pairs."""
        data = self.recipe.data
        return f"{data.source}{f' {data.path}' if data.path else ''}: {self.fit}"

    @property
    def epochs(self) -> float:
        """The number of epochs that the run's steps make."""
        return self.recipe.train.steps * self.recipe.data.batch_size / len(self.pairs)

    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Returns batches of pairs without end."""
        return cronica_pairs.training_batches(self.pairs, self.recipe.data, start_example, share)

    @cached_property
    def _heldout_pairs(self) -> Pairs:
        return cronica_pairs.tokenise(self.heldout[: self.recipe.eval.num_pairs], self.tokenizer)

    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """Returns the first `eval.num_pairs` held-out pairs once."""
        return cronica_pairs.heldout_batches(self._heldout_pairs, self.recipe.data, rows)

    def finish(self, lm: "LanguageModel") -> Finished:
        """Measures crónicas of held-out matches and writes one more, which is printed as it is written."""
        from zoo.tasks.cronica.report import markdown

        sections: dict[str, str] = {}
        evaluation = self._evaluation(lm) if self.recipe.eval.cronicas else None
        if evaluation is not None:
            sections["Evaluation"] = markdown(evaluation)
        sample = self._final_sample(lm) if self.recipe.eval.final_sample else None
        if sample is not None:
            sections["A held-out match"] = _MARKDOWN.format(**sample)
        return Finished(sections, evaluation, sample)

    def sample(self, lm: "LanguageModel") -> str:
        """Returns the beginning of a crónica of the first held-out match, below its block."""
        stats, style = self._first_heldout
        pieces = lm.stream_cronica(stats, style, seed=self.recipe.train.seed, **self.short_sampling())
        return _MARKDOWN.format(stats_block=stats, style=style, cronica="".join(pieces).strip())

    @property
    def _first_heldout(self) -> tuple[str, str]:
        """Block and style of the first held-out match."""
        record = self.heldout[0]
        return record["stats_block"].strip(), record["style_label"]

    def _evaluation(self, lm: "LanguageModel") -> dict[str, Any] | None:
        """Returns the crónica suite's result on a few held-out matches; None if the texts do not fit into the model."""
        from zoo.tasks.cronica import evaluation

        wanted = self.recipe.eval.cronicas
        say(f"writing {wanted} crónicas of held-out matches")
        try:
            result = evaluation.evaluate(lm, num_cronicas=wanted, sets={"heldout": self.heldout}, **self.sampling())
        except UserError as error:
            say(f"no evaluation: {error}")
            return None
        metrics = result["sets"]["heldout"]["generated"]
        names = {"both": "both clubs named", "score": "score", "scorers": "scorers", "style_strict": "style"}
        counts = (f"{text} {metrics[name]['hits']} of {metrics[name]['total']}" for name, text in names.items())
        say(f"held-out matches: {', '.join(counts)}")
        return result

    def _final_sample(self, lm: "LanguageModel") -> dict[str, str] | None:
        """Prints a crónica of the first held-out match as it is written; None if the match does not fit."""
        stats, style = self._first_heldout
        try:
            pieces = lm.stream_cronica(stats, style, seed=self.recipe.train.seed, **self.sampling())
        except UserError as error:
            say(f"no crónica of a held-out match: {error}")
            return None
        say(f"\n{stats}\n\n[{style}]")
        text = ""
        for piece in pieces:
            write(piece)
            text += piece
        say("\n")
        return {"stats_block": stats, "style": style, "cronica": text.strip()}


def split(recipe: Recipe, records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Returns the training records and the held-out ones, at least one.

    The built-in corpus has a split of its own. Of other sources the last `eval.num_pairs` are held out, with
    every other crónica of the same matches. Raises UserError where nothing would be left to train on.
    """
    wanted = recipe.eval.num_pairs
    if recipe.data.built_in or not wanted:
        number = max(wanted, recipe.eval.cronicas, 1)
        return records, corpus.generate(number, seed=recipe.data.seed, split="heldout")
    blocks = {record["stats_block"] for record in records[-wanted:]}
    training = [record for record in records if record["stats_block"] not in blocks]
    if not training:
        raise UserError(f"eval.num_pairs: {wanted} pairs are to be held out and nothing is left to train on; lower it")
    return training, [record for record in records if record["stats_block"] in blocks]


def _train_tokenizer(recipe: Recipe, records: list[dict], say: Say) -> Tokenizer:
    say(f"training a tokenizer of {recipe.tokenizer.vocab_size:,} entries")
    return tokens.train(cronica_pairs.tokenizer_texts(records), recipe.tokenizer.vocab_size)
