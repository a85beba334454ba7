"""Patterns over the paths of parameters, as `train.trainable` and the groups of `optimizer` have them."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from zoo.errors import UserError


def matching(patterns: Iterable[str], paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns for each pattern the paths that it matches.

    A pattern is a glob over the whole path, whose `*` crosses slashes ("layers/*/attn/*"); after "re:" it is a
    regular expression that is searched for ("re:^layers/(0|1)/").

    Raises:
        UserError: a regular expression is not valid.
    """
    paths = list(paths)
    return {pattern: [path for path in paths if matches(pattern, path)] for pattern in patterns}


def matches(pattern: str, path: str) -> bool:
    """Returns whether a pattern matches a path; see `matching`."""
    if not pattern.startswith("re:"):
        return fnmatch.fnmatchcase(path, pattern)
    try:
        return re.search(pattern.removeprefix("re:"), path) is not None
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression: {error}") from None


def first_match(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches a path, `default` where none does."""
    return next((value for pattern, value in values.items() if matches(pattern, path)), default)


def check_all_match(field: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
    """Raises UserError for a pattern of `field` that matches none of the paths of the trained parameters."""
    paths = list(paths)
    for pattern, matched in matching(patterns, paths).items():
        if not matched:
            raise UserError(
                f"{field}: {pattern!r} matches none of the {len(paths)} trained parameters; they are called like "
                f"{paths[0]} and {paths[-1]}"
            )
