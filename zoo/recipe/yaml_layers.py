"""Strict YAML mappings in layers: a file over the file that it extends, and command-line overrides over both."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UserError
from zoo.files import exists
from zoo.util import first_line, nearest

MAX_VALUES = 100_000  # of a document, with its aliases written out
AUTO = "auto"  # a section that the run chooses by itself; with one field of it given the others have their defaults


def read_layers(
    path: str | os.PathLike, overrides: Sequence[str] = (), *, not_inherited: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads the mapping in `path`, merged over what it extends and under `overrides`.

    Args:
        path: a YAML file holding a mapping of sections. `extends: other.yaml` in it is taken relative to it.
        overrides: `section.field=value` or `field=value` each; values are read as YAML.
        not_inherited: top-level keys that a file does not take over from the file it extends.

    Returns:
        The merged mapping without `extends`, and for each dotted key the place that set it last.

    Raises:
        UserError: one line naming the file and line, or the override.
    """
    content, origins = _read_with_bases(Path(path), tuple(not_inherited), ())
    for override in overrides:
        key, value = _parse_override(override)
        section, dot, field = key.rpartition(".")
        if not dot:
            content[key] = value
        elif isinstance(content.get(section), dict | None) or content[section] == AUTO:
            before = content.get(section)
            content[section] = {**(before if isinstance(before, dict) else {}), field: value}
        else:
            raise UserError(f"command line: {override}: {section} is not a section; write section.field=value")
        origins[key] = f"command line: {override}"
    return content, origins


def dotted(content: dict[str, Any]) -> dict[str, Any]:
    """Returns `{"train": {"steps": 5}}` as `{"train.steps": 5}`, one level deep."""
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in value.items()}
        else:
            flat[key] = value
    return flat


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 3e-4 as a number (YAML 1.1 wants 3.0e-4) and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:  # the scalar's text; a mapping as key is refused by SafeLoader
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value} is given twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_yaml(text: str) -> Any:
    """Returns what a YAML text says, as plain data.

    Raises yaml.YAMLError for a text that is no YAML, and for aliases that unfold to more than MAX_VALUES values or that
    hold themselves; other exceptions for tags and keys that only look right.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_bomb(root: yaml.Node) -> None:
    """Raises yaml.YAMLError where a document is larger, with its aliases written out, than any recipe is."""
    sizes: dict[int, int | None] = {}  # of nodes, with all that they hold; None while it is counted

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, inner))
        known = sizes[id(node)]
        if known is None or known > MAX_VALUES:
            reason = "an alias holds itself" if known is None else f"aliases unfold to more than {MAX_VALUES:,} values"
            raise yaml.composer.ComposerError(None, None, reason, node.start_mark)
        return known

    size(root)


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the recipe file in it")
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        beside = {file.stem: file for file in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
        guess = nearest(path.stem, beside)
        hint = f"did you mean {beside[guess]}?" if guess else "check the path"
        raise UserError(f"{path}: there is no such file; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: it is nested too deep") from None
    except Exception as error:  # dates, tags and keys that look right and are not: the library raises what comes
        raise UserError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: this is not a mapping of sections (name:, model:, ...) as a recipe is")
    for key in [
        *content,
        *(inner for value in content.values() if isinstance(value, dict) for inner in value),
    ]:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {key!r} is not text; put it in quotes or mend it")
    return content


def _read_with_bases(
    path: Path, not_inherited: tuple[str, ...], below: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    real = path.resolve()
    if real in below:
        chain = " -> ".join(part.name for part in (*below[below.index(real) :], real))
        raise UserError(f"{path}: extends runs in a circle: {chain}")
    content = _read_yaml(path)
    base_name = content.pop("extends", None)
    origins = dict.fromkeys(dotted(content), str(path))
    if base_name is None:
        return content, origins
    if not isinstance(base_name, str):
        raise UserError(f"{path}: extends must be the name of one recipe file, got {base_name!r}")
    base_path = path.parent / base_name
    if not exists(base_path) or not base_path.is_file():
        raise UserError(f"{path}: extends {base_name[:200]}: there is no such file (the name is taken from here)")
    base, base_origins = _read_with_bases(base_path, not_inherited, (*below, real))
    merged = {key: value for key, value in base.items() if key not in not_inherited}
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged, base_origins | origins


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or key.count(".") > 1 or key == "extends":
        raise UserError(f"command line: {override!r} is not an override; write section.field=value")
    try:
        return key, load_yaml(text)
    except Exception:  # as for a file
        raise UserError(f"command line: the value in {override!r} is not valid YAML; quote it") from None
