"""What the ways of measuring share: checks of their arguments, progress, and the frame of their results."""

import time
from collections.abc import Callable
from typing import Any

from zoo.errors import UserError
from zoo.language_model import LanguageModel

FORMAT = 1  # of the JSON results with "tasks" and their "items"

Progress = Callable[[str, int, int], None]  # called with what is measured, how much of it is done, and how much it is


def check_tokenizer(lm: LanguageModel) -> None:
    """Raises UserError for a model without a tokenizer, such as one with random weights."""
    if lm.tokenizer is None:
        raise UserError(f"this {lm.spec.name} has no tokenizer; load trained weights to evaluate it")


def check_limit(limit: int | None) -> None:
    """Raises UserError for a number of questions or windows below 1; None stands for all of them."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1")


def progress_of(name: str, on_progress: Progress | None) -> Callable[[int, int], None] | None:
    """Returns `on_progress` for one thing that is measured, called with what is done and the total."""
    return None if on_progress is None else lambda done, total: on_progress(name, done, total)


def make_result(
    lm: LanguageModel, suite: str, tasks: dict[str, Any], settings: dict[str, Any], started: float
) -> dict[str, Any]:
    """Returns a result as it is saved, see docs/evaluation.md; `started` is from `time.perf_counter`."""
    head = {"format": FORMAT, "suite": suite, "model": lm.spec.name, "settings": settings}
    return head | {"seconds": time.perf_counter() - started, "tasks": tasks}
