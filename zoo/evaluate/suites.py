"""The suites of `zoo eval`: the options that each takes, what it runs and the tables of its results. Loads no JAX.

A new suite is a subclass of `ModelSuite` and a line in `_NAMED`; that of a task is a line in `zoo.registry.SUITES`.
"""

import importlib
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import registry
from zoo.errors import UserError
from zoo.models.spec import import_class

if TYPE_CHECKING:
    from zoo.evaluate.protocol import Progress
    from zoo.language_model import LanguageModel

    Load = Callable[[str | None], LanguageModel]

COMPUTING = ("batch_size", "dtype")  # options of every suite that computes


class Suite(ABC):
    """What `zoo eval` can be asked for.

    Attributes:
        spelling: how the command line asks for it.
        options: names of the options that it takes; their types are those in `zoo.cli.eval`.
        tables: the module whose `markdown` returns the tables of a result.
        items: section and key under which a result holds its single items; they are saved and not printed.
        unit: what is counted while it runs, as a word after the number.
    """

    spelling: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    tables: ClassVar[str] = "zoo.evaluate.tables"
    items: ClassVar[tuple[str, str]] = ("tasks", "items")
    unit: ClassVar[str] = ""

    def check(self, options: dict[str, Any]) -> None:
        """Raises UserError for the first option that the suite does not take."""
        for name in options:
            if name not in self.options:
                raise UserError(f"--{name.replace('_', '-')} has no meaning with {self.spelling}; leave it out")

    @abstractmethod
    def run(self, load: "Load", on_progress: "Progress", options: dict[str, Any]) -> dict[str, Any]:
        """Returns a JSON-serialisable result. Raises UserError for what cannot be measured.

        Args:
            load: loads the model; its argument is the dtype to compute in, None for float32.
            on_progress: called with what is measured, how much of it is done and how much it is.
            options: those that the user gave.
        """

    def markdown(self, result: dict[str, Any]) -> str:
        """Returns the tables of a result."""
        return importlib.import_module(self.tables).markdown(result)

    def without_items(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result as it is printed."""
        section, key = self.items
        parts = {name: {k: v for k, v in part.items() if k != key} for name, part in result[section].items()}
        return {**result, section: parts}


class ModelSuite(Suite):
    """A way of measuring a model.

    Attributes:
        dtype: the dtype that it computes in where the user names none; None is float32.
    """

    dtype: ClassVar[str | None] = None

    def run(self, load: "Load", on_progress: "Progress", options: dict[str, Any]) -> dict[str, Any]:
        """Loads the model and returns what `measure` does; what `prepare` refuses is reported before that."""
        limit = options.get("limit")
        if limit is not None and not 0 < limit < math.inf:
            raise UserError(f"--limit is {limit:g}; it must be a number above 0")
        options = self.prepare(dict(options))
        lm = load(options.pop("dtype", self.dtype))
        if "cache" in options:
            from zoo.evaluate.cache import ResultCache, identity_of

            options["cache"] = ResultCache(options["cache"], identity_of(lm))
        return self.measure(lm, on_progress=on_progress, **options)

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the options for `measure`. Raises UserError for what can be seen to be wrong without the model."""
        return options

    @abstractmethod
    def measure(self, lm: "LanguageModel", *, on_progress: "Progress", **options: Any) -> dict[str, Any]:
        """Returns the result of `run`; `cache` among the options is a `zoo.evaluate.cache.ResultCache`."""


class KodaliteCard(ModelSuite):
    """The benchmarks of KodaLite's card in its own protocol, see `zoo.evaluate.kodalite_card`."""

    spelling = "--suite kodalite-card"
    options = ("tasks", "data", "limit", "cache", *COMPUTING)
    tables = "zoo.evaluate.kodalite_card"
    dtype = "bfloat16"

    def measure(self, lm, *, tasks="", limit=None, **options):
        """Asks the card's questions; `tasks` are some of its eight."""
        from zoo.evaluate import kodalite_card

        names = _names(tasks) or tuple(kodalite_card.TASKS)
        return kodalite_card.evaluate(lm, names, limit=_whole(limit), **options)


class Wikitext(ModelSuite):
    """The loss on wikitext-103, see `zoo.evaluate.perplexity.wikitext`."""

    spelling = "--suite wikitext"
    options = ("data", "limit", "cache", *COMPUTING)

    def measure(self, lm, *, limit=None, **options):
        """Computes the loss of `limit` windows, by default of all."""
        from zoo.evaluate.perplexity import wikitext

        return wikitext(lm, limit=_whole(limit), **options)


class LmEval(ModelSuite):
    """Tasks of lm-eval, see `zoo.evaluate.lm_eval`."""

    spelling = "--tasks"
    options = ("tasks", "include_path", "limit", "num_fewshot", "max_length", "add_bos", "cache", *COMPUTING)

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Raises UserError where the package is not installed."""
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError("--tasks needs the package lm-eval: pip install 'zoo-nnx[eval]'")
        return options

    def measure(self, lm, *, tasks, **options):
        """Runs tasks of lm-eval on the model and returns the result."""
        from zoo.evaluate import lm_eval

        return lm_eval.evaluate(lm, _names(tasks), **options)


class Texts(ModelSuite):
    """The loss on the texts of a file, see `zoo.evaluate.perplexity.of_texts`."""

    spelling = "--perplexity"
    options = ("perplexity", "max_length", "cache", *COMPUTING)

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Raises UserError where there is no file."""
        if not options["perplexity"].is_file():
            raise UserError(f"--perplexity: there is no file {options['perplexity']}")
        return options

    def measure(self, lm, *, perplexity, **options):
        """Computes the loss on the texts of the file `perplexity`."""
        from zoo.evaluate.perplexity import of_texts, read_texts

        return of_texts(lm, read_texts(perplexity), name=perplexity.name, **options)


class Compare(Suite):
    """Two saved results, item by item, see `zoo.evaluate.compare`."""

    spelling = "--compare"
    options = ("compare",)
    tables = "zoo.evaluate.compare"

    def run(self, load: "Load", on_progress: "Progress", options: dict[str, Any]) -> dict[str, Any]:
        """Compares the two files; no model is loaded."""
        from zoo.evaluate import compare

        return compare.compare(*map(compare.read, options["compare"]))


_NAMED = {"kodalite-card": KodaliteCard, "wikitext": Wikitext}
# Suites that are asked for by an option of their own.
BY_OPTION: dict[str, Suite] = {"tasks": LmEval(), "perplexity": Texts(), "compare": Compare()}
NAMES = (*registry.SUITES, *_NAMED)


def named(name: str) -> Suite:
    """Returns the suite that `--suite name` asks for. Raises UserError for an unknown one."""
    if name in registry.SUITES:
        return import_class(registry.SUITES[name], f"--suite {name}")()
    if name not in _NAMED:
        raise UserError(f"--suite is {name!r}; there is: {', '.join(NAMES)}")
    return _NAMED[name]()


def _names(tasks: str) -> list[str]:
    return [name.strip() for name in tasks.split(",") if name.strip()]


def _whole(limit: float | None) -> int | None:
    if limit is not None and (limit < 1 or limit != int(limit)):
        raise UserError(f"--limit is {limit:g}; it must be a whole number of at least 1")
    return None if limit is None else int(limit)
