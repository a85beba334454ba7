"""Runs on crónica data: pairs in memory, the crónica suite and a crónica of a held-out match at the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zoo import tokenizers
from zoo.data import pipeline
from zoo.data.pipeline import Batch
from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.tasks.base import Finished, Task, say
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica import pairs as data_pairs
from zoo.tasks.cronica import tokens as cronica_tokenizer
from zoo.tasks.cronica.pairs import Pairs
from zoo.tokenizers.base import Tokenizer, check_fits

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

_MARKDOWN = "```\n{stats_block}\n```\n\n{style}:\n\n> {cronica}"


@dataclass(frozen=True)
class CronicaTask(Task):
    """See `Task`; make one with `prepare`."""

    recipe: Recipe
    tokenizer: Tokenizer
    pairs: Pairs
    heldout: list[dict]

    @classmethod
    def prepare(cls, recipe: Recipe, records: list[dict], tokenizer: Tokenizer | None, config: Any) -> "CronicaTask":
        """Split and tokenise records; `tokenizer` is that of a run that has begun, None to make it."""
        training, heldout = split(recipe, records)
        tokenizer = tokenizer or make_tokenizer(recipe, training)
        check_fits(tokenizer, config.vocab_size)
        say(f"tokenising {len(training):,} pairs")
        task = cls(recipe, tokenizer, data_pairs.tokenise(training, tokenizer), heldout)
        say(f"data: {task.fit}")
        return task

    @cached_property
    def fit(self) -> data_pairs.Fit:
        """How the rows hold the pairs."""
        return data_pairs.measure_fit(self.pairs, self.recipe.data.seq_len)

    @property
    def fingerprint(self) -> str:
        """See `Task`."""
        return self.pairs.fingerprint

    @property
    def changed(self) -> str:
        """See `Task`."""
        return (
            "data: the training pairs are not those {where} was trained on; put the data back as they "
            "were (of a file, eval.num_pairs pairs are held out), or start over with --fresh"
        )

    @property
    def description(self) -> str:
        """See `Task`."""
        data = self.recipe.data
        return f"{data.source}{f' {data.path}' if data.path else ''}: {self.fit}"

    @property
    def epochs(self) -> float:
        """See `Task`."""
        return self.recipe.train.steps * self.recipe.data.batch_size / len(self.pairs)

    def batches(self, start_example: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """See `Task`."""
        data = self.recipe.data
        return pipeline.make_loader(
            self.pairs,
            batch_size=data.batch_size,
            seq_len=data.seq_len,
            seed=data.seed,
            start_example=start_example,
            shuffle=data.shuffle,
            trim_to=data.trim_to,
            process_index=share[0],
            process_count=share[1],
        )

    @cached_property
    def _heldout_pairs(self) -> Pairs:
        return data_pairs.tokenise(self.heldout[: self.recipe.eval.num_pairs], self.tokenizer)

    def heldout_batches(self, rows: int) -> Iterator[Batch]:
        """See `Task`."""
        data = self.recipe.data
        return pipeline.eval_batches(self._heldout_pairs, batch_size=rows, seq_len=data.seq_len, trim_to=data.trim_to)

    def finish(self, lm: "LanguageModel") -> Finished:
        """See `Task`."""
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
        """See `Task`."""
        stats, style = self._first_heldout
        pieces = lm.stream_cronica(stats, style, seed=self.recipe.train.seed, **self.short_sampling())
        return _MARKDOWN.format(stats_block=stats, style=style, cronica="".join(pieces).strip())

    @property
    def _first_heldout(self) -> tuple[str, str]:
        """Block and style of the first held-out match."""
        record = self.heldout[0]
        return record["stats_block"].strip(), record["style_label"]

    def _evaluation(self, lm: "LanguageModel") -> dict[str, Any] | None:
        """The crónica suite on a few held-out matches; None if the texts do not fit into the model."""
        from zoo.tasks.cronica import evaluation

        wanted = self.recipe.eval.cronicas
        say(f"writing {wanted} crónicas of held-out matches")
        try:
            result = evaluation.evaluate(lm, num_cronicas=wanted, sets={"heldout": self.heldout}, **self.sampling())
        except UserError as error:
            say(f"no evaluation: {error}")
            return None
        found = result["sets"]["heldout"]["generated"]
        names = {"both": "both clubs named", "score": "score", "scorers": "scorers", "style_strict": "style"}
        told = (f"{text} {found[name]['hits']} of {found[name]['total']}" for name, text in names.items())
        say(f"held-out matches: {', '.join(told)}")
        return result

    def _final_sample(self, lm: "LanguageModel") -> dict[str, str] | None:
        """One crónica for the first held-out match, printed as it comes; None if the match does not fit."""
        stats, style = self._first_heldout
        try:
            pieces = lm.stream_cronica(stats, style, seed=self.recipe.train.seed, **self.sampling())
        except UserError as error:
            say(f"no crónica of a held-out match: {error}")
            return None
        say(f"\n{stats}\n\n[{style}]")
        text = ""
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
        say("\n")
        return {"stats_block": stats, "style": style, "cronica": text.strip()}


def split(recipe: Recipe, records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Training records and held-out ones, at least one.

    The built-in corpus has a split of its own. Of other sources the last `eval.num_pairs` are held out, with
    every other crónica of the same matches.
    """
    wanted = recipe.eval.num_pairs
    if recipe.data.source == "cronicas" or not wanted:
        number = max(wanted, recipe.eval.cronicas, 1)
        return records, corpus.generate(number, seed=recipe.data.seed, split="heldout")
    blocks = {record["stats_block"] for record in records[-wanted:]}
    training = [record for record in records if record["stats_block"] not in blocks]
    if not training:
        raise UserError(f"eval.num_pairs: {wanted} pairs are to be held out and nothing is left to train on; lower it")
    return training, [record for record in records if record["stats_block"] in blocks]


def make_tokenizer(recipe: Recipe, records: list[dict]) -> Tokenizer:
    """The tokenizer that the recipe names, or one trained on the records."""
    if recipe.tokenizer.path is not None:
        return tokenizers.load(recipe.tokenizer.path)
    if recipe.tokenizer.name is not None:
        return tokenizers.named(recipe.tokenizer.name)
    say(f"training a tokenizer of {recipe.tokenizer.vocab_size:,} entries")
    return cronica_tokenizer.train(data_pairs.tokenizer_texts(records), recipe.tokenizer.vocab_size)


def format_sample(sample: dict[str, str]) -> str:
    """A sample of result.json for the terminal."""
    return "\n{stats_block}\n\n[{style}]\n{cronica}".format(**sample)
