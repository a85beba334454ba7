"""The suites of `zoo eval`: the options that each takes, what it runs and the tables of its results. Loads no JAX.

A new suite is a subclass of `Suite` and a line in `_NAMED`; the suite of a task is a line in `zoo.registry.SUITES`.
"""

import importlib.util
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import registry
from zoo.errors import UserError
from zoo.models.spec import import_class

if TYPE_CHECKING:
    from zoo.evaluate.cache import ResultCache
    from zoo.evaluate.protocol import Progress
    from zoo.language_model import LanguageModel

BATCH_SIZE = 32  # rows computed at a time, where the user does not say


class Suite(ABC):
    """A way of measuring.

    Attributes:
        spelling: how the command line asks for it.
        items: section and key under which a result holds its single items; they are saved and not printed.
        unit: what is counted while it runs, as a word after the number.
    """

    spelling: ClassVar[str]
    items: ClassVar[tuple[str, str]] = ("tasks", "items")
    unit: ClassVar[str] = ""

    @abstractmethod
    def run(self, load: "Callable[[str | None], LanguageModel]", on_progress: "Progress", **options: Any) -> dict:
        """Measures and returns a JSON-serialisable result. Raises UserError for options that it cannot use.

        A subclass names the options that it takes in its keyword parameters, by the names and with the types that they
        have in `zoo.cli.eval`. What needs no model is checked before it is loaded.

        Args:
            load: returns the model, which computes in the dtype of that name; None is float32.
            on_progress: called with what is measured, how much of it is done and how much it is.
            options: those that the user gave.
        """

    def markdown(self, result: dict[str, Any]) -> str:
        """Returns the tables of a result."""
        from zoo.evaluate import tables

        return tables.markdown(result)

    def takes(self, option: str) -> bool:
        """Returns whether the suite takes an option, such as "batch_size"."""
        return option in inspect.signature(self.run).parameters

    def check(self, options: dict[str, Any]) -> None:
        """Raises UserError for the first option that the suite does not take."""
        for name in options:
            if not self.takes(name):
                raise UserError(f"--{name.replace('_', '-')} has no meaning with {self.spelling}; leave it out")

    def without_items(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result as it is printed."""
        section, key = self.items
        parts = {name: {k: v for k, v in part.items() if k != key} for name, part in result.get(section, {}).items()}
        return {**result, section: parts} if section in result else result


class KodaliteCard(Suite):
    """The benchmarks of KodaLite's card, in its own protocol."""

    spelling = "--suite kodalite-card"

    def run(
        self,
        load,
        on_progress,
        *,
        tasks=None,
        data=None,
        limit=None,
        cache=None,
        batch_size=BATCH_SIZE,
        dtype="bfloat16",
    ):
        """Runs `zoo.evaluate.kodalite_card.evaluate`, in bfloat16 unless told otherwise."""
        from zoo.evaluate import kodalite_card

        limit, lm = _whole(limit), load(dtype)
        return kodalite_card.evaluate(
            lm,
            _names(tasks) or tuple(kodalite_card.TASKS),
            data=data,
            limit=limit,
            batch_size=batch_size,
            cache=_open(cache, lm),
            on_progress=on_progress,
        )

    def markdown(self, result: dict[str, Any]) -> str:
        """Returns the model's row above the card's."""
        from zoo.evaluate import kodalite_card

        return kodalite_card.markdown(result)


class Wikitext(Suite):
    """The loss on wikitext-103."""

    spelling = "--suite wikitext"

    def run(self, load, on_progress, *, data=None, limit=None, cache=None, batch_size=BATCH_SIZE, dtype=None):
        """Runs `zoo.evaluate.perplexity.wikitext`."""
        from zoo.evaluate.perplexity import wikitext

        limit, lm = _whole(limit), load(dtype)
        cache = _open(cache, lm)
        return wikitext(lm, data=data, limit=limit, batch_size=batch_size, cache=cache, on_progress=on_progress)


class LmEval(Suite):
    """Tasks of lm-eval."""

    spelling = "--tasks"

    def run(
        self,
        load,
        on_progress,
        *,
        tasks,
        include_path=None,
        limit=None,
        num_fewshot=None,
        max_length=None,
        add_bos=None,
        cache=None,
        batch_size=BATCH_SIZE,
        dtype=None,
    ):
        """Runs `zoo.evaluate.lm_eval.evaluate`."""
        _check_positive(limit)
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError("--tasks needs the package lm-eval: pip install 'zoo-nnx[eval]'")
        lm = load(dtype)
        from zoo.evaluate import lm_eval

        return lm_eval.evaluate(
            lm,
            _names(tasks),
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            max_length=max_length,
            add_bos=add_bos,
            cache=_open(cache, lm),
            on_progress=on_progress,
        )


class Texts(Suite):
    """The loss on the texts of a file."""

    spelling = "--perplexity"

    def run(self, load, on_progress, *, perplexity, max_length=None, cache=None, batch_size=BATCH_SIZE, dtype=None):
        """Runs `zoo.evaluate.perplexity.of_texts`."""
        if not perplexity.is_file():
            raise UserError(f"--perplexity: there is no file {perplexity}")
        from zoo.evaluate.perplexity import of_texts, read_texts

        lm = load(dtype)
        cache, texts = _open(cache, lm), read_texts(perplexity)
        return of_texts(
            lm,
            texts,
            name=perplexity.name,
            max_length=max_length,
            batch_size=batch_size,
            cache=cache,
            on_progress=on_progress,
        )


class Compare(Suite):
    """Two saved results, item by item; it loads no model."""

    spelling = "--compare"

    def run(self, load, on_progress, *, compare):
        """Runs `zoo.evaluate.compare.compare` on the two files."""
        from zoo.evaluate.compare import compare as compared
        from zoo.evaluate.compare import read

        return compared(*map(read, compare))

    def markdown(self, result: dict[str, Any]) -> str:
        """Returns the table of differences."""
        from zoo.evaluate import compare

        return compare.markdown(result)


_NAMED = {"kodalite-card": KodaliteCard, "wikitext": Wikitext}
# Suites that are asked for by an option of their own.
BY_OPTION: dict[str, Suite] = {"tasks": LmEval(), "perplexity": Texts(), "compare": Compare()}
NAMES = (*registry.SUITES, *_NAMED)


def named(name: str) -> Suite:
    """Returns the suite that `--suite name` asks for. Raises UserError for an unknown one."""
    if name in _NAMED:
        return _NAMED[name]()
    if name not in registry.SUITES:
        raise UserError(f"--suite is {name!r}; there is: {', '.join(NAMES)}")
    return import_class(registry.SUITES[name], f"--suite {name}")()


def _names(tasks: str | None) -> list[str]:
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def _check_positive(limit: float | None) -> None:
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"--limit is {limit:g}; it must be a number above 0")


def _whole(limit: float | None) -> int | None:
    _check_positive(limit)
    if limit is not None and (limit < 1 or limit != int(limit)):
        raise UserError(f"--limit is {limit:g}; it must be a whole number of at least 1")
    return None if limit is None else int(limit)


def _open(cache: Path | None, lm: "LanguageModel") -> "ResultCache | None":
    if cache is None:
        return None
    from zoo.evaluate.cache import ResultCache, identity_of

    return ResultCache(cache, identity_of(lm))
