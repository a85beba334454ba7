"""Means, ratios and their standard errors, of the items that an evaluation saves."""

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959964  # standard deviations on either side that hold 95% of a normal distribution


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of independent values and its standard error (None for fewer than two)."""
    n = len(values)
    middle = math.fsum(values) / n
    if n < 2:
        return middle, None
    return middle, math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)


def mean_error(errors: Sequence[float | None]) -> float | None:
    """Returns the standard error of the mean of independent values from theirs (None where one is unknown)."""
    return None if None in errors else math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float | None]:
    """Returns sum / sum over independent items and its standard error by linearisation (None for fewer than two)."""
    n, total = len(numerators), math.fsum(denominators)
    value = math.fsum(numerators) / total
    if n < 2:
        return value, None
    squares = math.fsum((up - value * down) ** 2 for up, down in zip(numerators, denominators, strict=True))
    return value, math.sqrt(squares * n / (n - 1)) / total


# The harness holds log-likelihoods of items; results hold losses, in nats or bits: log-likelihood times this.
_LOSSES = {"perplexity": -1.0, "word_perplexity": -1.0, "byte_perplexity": -1.0, "bits_per_byte": -1 / math.log(2)}


def item_value(metric: str, value: Any) -> float | list[float] | None:
    """Returns what a result holds of an item's value in the harness: a number, or [sum, weight]; else None.

    For perplexities that is the loss in nats (of an item, or with its words or bytes), for bits_per_byte in bits.
    """
    factor = _LOSSES.get(metric, 1.0)
    if isinstance(value, tuple | list):
        total, weight = map(_number, value) if len(value) == 2 else (None, None)
        return None if total is None or weight is None else [factor * total, weight]
    number = _number(value)
    return None if number is None else factor * number


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None


def weighted_stderr(metric: str, values: Sequence[Any]) -> float | None:
    """Returns the standard error of a weighted metric of the harness, whose items are [loss, words or bytes]."""
    if len(values) < 2 or not all(isinstance(value, list) for value in values):
        return None
    rate, error = ratio(*zip(*values, strict=True))
    if metric in ("word_perplexity", "byte_perplexity"):
        return math.exp(rate) * error
    return error if metric == "bits_per_byte" else None


def measured(value: float, stderr: float | None, higher_is_better: bool) -> dict[str, Any]:
    """Returns a metric as results hold it."""
    return {"value": value, "stderr": stderr, "higher_is_better": higher_is_better}


def perplexity(loss: float, stderr: float | None) -> dict[str, Any]:
    """Returns the metric "perplexity" for a loss in nats a token and its standard error."""
    value = math.exp(min(loss, 700.0))  # beyond, no float holds it
    return measured(value, None if stderr is None else value * stderr, False)


def sign_test(first_better: int, second_better: int) -> float:
    """Returns the two-sided p of the exact sign test, which for right and wrong answers is McNemar's.

    It is the chance that one of the two sides, whichever, has at most min(first_better, second_better) of the items
    that differ, if both are equally good.
    """
    n, few = first_better + second_better, min(first_better, second_better)
    if n == 0:
        return 1.0
    log_half = -n * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half) for k in range(few + 1)
    )
    return min(1.0, 2 * tail)


def normal_p(z: float) -> float:
    """Returns the two-sided p of a standard normal value."""
    return math.erfc(abs(z) / math.sqrt(2))
