"""Pydantic's validation errors as one line for the author of a recipe."""

import re
import typing
from difflib import SequenceMatcher
from typing import Any

from pydantic import BaseModel, ValidationError

from zoo.util import nearest

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a section of `field: value` lines",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
    "string_too_short": ("of length at least", "min_length"),
}


def place_of(origins: dict[str, str], key: str, source: str) -> str:
    """Returns the place that set the dotted `key`, something inside it or a section around it; else `source`."""
    inside = (place for dotted, place in origins.items() if dotted.startswith(f"{key}."))
    outside = (place for dotted, place in origins.items() if "." in dotted and key.startswith(f"{dotted}."))
    return origins.get(key) or next(inside, None) or next(outside, source)


def sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Returns the sections of a recipe, field -> class."""
    classes = {field.alias or name: _section(field.annotation) for name, field in schema.model_fields.items()}
    return {name: section for name, section in classes.items() if section is not None}


def explain(error: ValidationError, schema: type[BaseModel], source: str, origins: dict[str, str], version: int) -> str:
    """Returns the first problem as one line, and how many more there are.

    Args:
        error: raised by `schema.model_validate`.
        schema: the recipe's class.
        source: the name of the recipe.
        origins: dotted key -> the place that wrote it.
        version: the recipe format that this zoo reads.
    """
    problems = error.errors(include_url=False)
    # A mistyped key often shows as a missing one too: the unknown key is the cause, so it comes first.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    loc = tuple(str(part) for part in first["loc"])
    key, got, context = ".".join(loc), first["input"], first.get("ctx", {})
    kind = first["type"]
    if kind == "extra_forbidden":
        message = _unknown_key(loc, schema)
    elif kind == "missing":
        message = f"{key} is missing; add it"
    elif kind == "value_error":
        message = str(context["error"])  # our own validators name the fields themselves
        key = next((word.strip(":;,") for word in message.split() if word.strip(":;,") in origins), key)
    elif kind == "literal_error" and key == "format":
        message = f"format {got!r} is not one this version reads (it reads {version}); use a zoo that wrote it"
    elif kind == "literal_error":
        guess = nearest(str(got), re.findall(r"'([^']*)'", context["expected"]))
        hint = f"; did you mean {guess}?" if guess else ""
        message = f"{key} must be {context['expected']}, got {got!r}{hint}"
    elif kind in _TYPES:
        quote = " (put it in quotes)" if kind == "string_type" and isinstance(got, int | float) else ""
        message = f"{key} must be {_TYPES[kind]}, got {got!r}{quote}"
    elif kind in _BOUNDS:
        relation, bound = _BOUNDS[kind]
        message = f"{key} must be {relation} {context[bound]}, got {got!r}"
    else:
        message = f"{key}: {first['msg']}, got {got!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place_of(origins, key, source)}: {message}{more}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `X`, `X | None` or `list[X] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, typing.get_args(annotation))), None)


def _unknown_key(loc: tuple[str, ...], schema: type[BaseModel]) -> str:
    """`unknown key train.stepz; did you mean train.steps?`"""
    prefix, key = ".".join(loc[:-1]), loc[-1]
    inside: type[BaseModel] | None = schema
    for part in loc[:-1]:
        if inside is not None and not part.isdigit():
            inside = sections(inside).get(part)
    siblings = [field.alias or name for name, field in inside.model_fields.items()] if inside else []
    if len(loc) == 1:
        siblings.append("extends")
    elsewhere = [
        f"{name}.{key}" for name, section in sections(schema).items() if name != prefix and key in section.model_fields
    ]
    near = nearest(key, siblings)
    # A typing error first, then the right key in the wrong section, then a key that is a little like it.
    typo = near is not None and SequenceMatcher(None, key, near).ratio() > 0.75
    if near and (typo or not elsewhere):
        hint = f"did you mean {prefix}.{near}?" if prefix else f"did you mean {near}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"known here: {', '.join(siblings)}"
    return f"unknown key {'.'.join(loc)}; {hint}"
