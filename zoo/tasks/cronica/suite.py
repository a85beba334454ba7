"""The suite `zoo eval --suite cronica`. Loads no JAX."""

from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.evaluate.suites import COMPUTING, ModelSuite


class CronicaSuite(ModelSuite):
    """Crónicas that a model writes for held-out matches, see `zoo.tasks.cronica.evaluation`."""

    spelling = "--suite cronica"
    options = ("data", *COMPUTING, "cronicas", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
    tables = "zoo.tasks.cronica.report"
    items = ("sets", "texts")
    unit = " crónicas"

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Reads the records of `data`."""
        if "cronicas" in options:
            options["num_cronicas"] = options.pop("cronicas")
        if "data" in options:
            options["sets"] = {"data": _records(options.pop("data"), options.get("num_cronicas", 200))}
        return options

    def measure(self, lm, **options):
        """Lets the model write, and measures its crónicas beside the references."""
        from zoo.tasks.cronica.evaluation import evaluate

        try:
            lm.check_cronica()
        except UserError as error:
            raise UserError(f"--suite cronica: {error}; others are measured by --tasks or --perplexity") from None
        return evaluate(lm, **options)


def _records(path: Path, count: int) -> list[dict]:
    from zoo.recipe.data import DataSection
    from zoo.tasks.cronica.records import load_records

    if count < 1:
        raise UserError(f"--cronicas is {count}; it must be at least 1")
    source = "parquet" if path.is_dir() or path.suffix == ".parquet" else "jsonl"
    return load_records(DataSection(source=source, path=str(path), num_pairs=count))
