"""The suite `zoo eval --suite cronica`. Loads no JAX."""

from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.evaluate.suites import BATCH_SIZE, Suite


class CronicaSuite(Suite):
    """Crónicas that a model writes for held-out matches: do they tell the match, in the style asked for?"""

    spelling = "--suite cronica"
    items = ("sets", "texts")
    unit = " crónicas"

    def run(
        self,
        load,
        on_progress,
        *,
        data=None,
        cronicas=200,
        max_new_tokens=None,
        temperature=None,
        top_k=None,
        top_p=None,
        seed=0,
        batch_size=BATCH_SIZE,
        dtype=None,
    ):
        """Runs `zoo.tasks.cronica.evaluation.evaluate`."""
        sets = None if data is None else {"data": _records(data, cronicas)}
        from zoo.tasks.cronica.evaluation import evaluate

        lm = load(dtype)
        try:
            lm.check_cronica()
        except UserError as error:
            raise UserError(f"--suite cronica: {error}; others are measured by --tasks or --perplexity") from None
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
        return evaluate(
            lm,
            num_cronicas=cronicas,
            sets=sets,
            seed=seed,
            batch_size=batch_size,
            on_progress=on_progress,
            **{name: value for name, value in sampling.items() if value is not None},
        )

    def markdown(self, result: dict[str, Any]) -> str:
        """Returns the tables of metrics, styles and the card's match."""
        from zoo.evaluate import report

        return report.markdown(result)


def _records(path: Path, count: int) -> list[dict]:
    from zoo.data.sources import load_records
    from zoo.recipe.data import DataSection

    if count < 1:
        raise UserError(f"--cronicas is {count}; it must be at least 1")
    source = "parquet" if path.is_dir() or path.suffix == ".parquet" else "jsonl"
    return load_records(DataSection(source=source, path=str(path), num_pairs=count))
