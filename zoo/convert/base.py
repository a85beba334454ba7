"""What every published format has in common: named tensors on disk, and rules that carry them over.

A format's module says which tensors a file holds (`Published.tensors`) and where each parameter of the model
comes from (`Published.rules`). Comparing the two with the model's shapes, reading tensor by tensor and
writing back are the same for all formats and are done here.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from zoo import registry
from zoo.convert.layouts import AS_IS, Layout
from zoo.errors import UserError
from zoo.models import build
from zoo.util import first_line

LARGEST_SIZE = 1 << 40  # of a config's whole numbers; products of larger ones overflow what computes with them
FLOATS = ("float16", "bfloat16", "float32", "float64")  # what weights may be stored as in files

# What zoo keeps and computes in, and short names for it.
DTYPES = ("float32", "bfloat16", "float16")
SHORT_DTYPES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file; `read` returns it as a NumPy array of that shape and dtype, anew on every call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """Where one of zoo's parameters stands in a published file.

    Attributes:
        name: the tensor's name in the file.
        layout: how the parameter lies in the tensor.
        index: for a scalar, its place in a vector that holds those of all layers; None for every other parameter.
    """

    name: str
    layout: Layout = AS_IS
    index: int | None = None


Rules = Mapping[str, Rule]
"""zoo's path of a parameter -> the rule for it."""


@dataclass(frozen=True)
class Loaded:
    """A published model in zoo's own terms.

    Attributes:
        model_name: the registered model whose class fits.
        config: all fields of that model's config class.
        params: nested dict of NumPy float32 arrays, as the model class lays them out.
        tokenizer_path: the tokenizer file beside the weights, or None.
        step: the training step, or None where the format does not say.
    """

    model_name: str
    config: dict[str, Any]
    params: dict[Any, Any]
    tokenizer_path: Path | None
    step: int | None


def eos_ids_of(file: Path, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids that `eos_token_id` names, one or a list, in the first of the configs that has the field.

    Raises UserError, naming `file`, for anything else.
    """
    value = next((config["eos_token_id"] for config in configs if config.get("eos_token_id") is not None), [])
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(
            f"{file}: eos_token_id is {json.dumps(value)[:80]}; it must be the id of a token or a list of ids"
        )
    return tuple(i for i in ids if i >= 0)


@dataclass(frozen=True)
class Published:
    """A published model whose files have been opened and understood, but whose tensors have not been read.

    Attributes:
        kind: what the files are, for people.
        file: the file that errors name.
        model_name, config, tokenizer_path, step: as in `Loaded`.
        tensors: what the files hold, by the files' own names.
        rules: where the parameters are among the tensors.
        ignored: names of tensors that are no parameters (tables, random states).
        eos_ids: the tokens that end a text by the files; the tokenizer's EOS may be missing.
        unstated: config fields that change what is computed and that the files do not tell -> what to give for them.
    """

    kind: str
    file: Path
    model_name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    rules: Rules
    tokenizer_path: Path | None = None
    step: int | None = None
    ignored: frozenset[str] = field(default_factory=frozenset)
    eos_ids: tuple[int, ...] = ()
    unstated: Mapping[str, str] = field(default_factory=dict)

    def with_config(self, overrides: Mapping[str, Any]) -> "Published":
        """Returns the same with other values for some config fields; UserError for an unknown or impossible one."""
        config = full_config(self.model_name, {**self.config, **overrides})
        unstated = {name: remedy for name, remedy in self.unstated.items() if name not in overrides}
        return replace(self, config=config, unstated=unstated)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters of the model with this config, by zoo's paths."""
        spec = registry.describe(self.model_name)
        config = spec.config_class().from_dict(self.config)
        _, abstract = build.abstract_params(spec.model_class(), config)
        return {path: tuple(leaf.shape) for path, leaf in build.flatten(abstract).items()}

    def problems(self) -> list[str]:
        """Returns what keeps the model from being loaded: missing, misshapen, extra tensors and those of no float."""
        messages, used = (
            [f"does not say the {name}: {remedy}" for name, remedy in self.unstated.items()],
            set(self.ignored),
        )
        lengths = _vector_lengths(self.rules)
        for path, shape in self.shapes.items():
            rule = self.rules.get(path)
            if rule is None:
                messages.append(f"the format has no place for {path}")
                continue
            if rule.name in used:
                continue
            used.add(rule.name)
            tensor = self.tensors.get(rule.name)
            needed = rule.layout.shape(shape) if rule.index is None else (lengths[rule.name],)
            if tensor is None:
                messages.append(f"{rule.name} is missing")
            elif tensor.dtype.name not in FLOATS:
                messages.append(f"{rule.name} is no array of floating-point numbers but of {tensor.dtype.name}")
            elif tensor.shape != needed:
                messages.append(f"{rule.name} has shape {tensor.shape}, its config says {needed}")
        messages += [f"{name} is not part of the model" for name in self.tensors if name not in used]
        return messages

    def check(self) -> None:
        """Raises UserError with the first of the `problems`."""
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more; `zoo inspect` lists them)" if len(problems) > 1 else ""
            raise UserError(f"{self.file}: {problems[0]}{more}")

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields zoo's path and the parameter in its stored dtype, one after the other; only one is held here.

        Raises UserError for a tensor that does not fit, cannot be read, or holds NaN or infinity.
        """
        self.check()
        for path in self.shapes:
            rule = self.rules[path]
            try:
                array = self.tensors[rule.name].read()
            except UserError:
                raise
            except Exception as error:  # each library has its own way to say that a file is damaged
                raise UserError(f"{self.file}: {rule.name} cannot be read ({first_line(error)})") from None
            if array.shape != self.tensors[rule.name].shape:
                raise UserError(f"{self.file}: {rule.name} has another shape than the file's head says")
            if not all_finite(array):
                raise UserError(f"{self.file}: {rule.name} holds NaN or infinity; the weights are damaged")
            yield path, array[rule.index] if rule.index is not None else rule.layout.from_file(array)

    def load(self) -> Loaded:
        """Reads all parameters, as float32."""
        flat = {path: np.array(array, np.float32, order="C") for path, array in self.arrays()}
        return Loaded(self.model_name, self.config, build.unflatten(flat), self.tokenizer_path, self.step)


def full_config(model_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all fields of that model's config class: `values` over the class's defaults.

    Raises UserError for impossible ones.
    """
    config = registry.describe(model_name).config_class().from_dict(dict(values)).to_dict()
    for name, value in config.items():
        if isinstance(value, int) and value > LARGEST_SIZE:
            raise UserError(f"model.{name}: {value:.3g} is more than any model has")
    return config


def storage_dtype(dtype: DTypeLike, what: str = "dtype") -> np.dtype:
    """Returns the dtype of that name for weights. Raises UserError, which begins with `what`, if it is none of DTYPES.

    Integers would take every weight for 0 without a word.
    """
    try:
        resolved = jnp.dtype(SHORT_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        resolved = None
    if resolved is None or resolved.name not in DTYPES:
        given = repr(dtype) if resolved is None or isinstance(dtype, str) else resolved.name
        raise UserError(f"{what} is {given}; give float32, bfloat16 or float16")
    return resolved


def cast(flat: Mapping[str, Any], dtype: DTypeLike) -> dict[str, np.ndarray]:
    """Returns arrays by name in another dtype. Raises UserError, naming one, where numbers lie beyond its range."""
    return {name: cast_array(array, dtype, name) for name, array in flat.items()}


def cast_array(array: Any, dtype: DTypeLike, name: str) -> np.ndarray:
    """Returns an array in another dtype. Raises UserError, with its name, where numbers lie beyond the dtype's range.

    NumPy would make them infinite without a word. NaN and infinity that are there already stay.
    """
    array, dtype = np.asarray(array), np.dtype(dtype)
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if dtype == np.float16 and array.dtype != dtype and not all_finite(result) and all_finite(array):
        worst = max(abs(float(array.max())), abs(float(array.min())))
        raise UserError(f"{name} holds numbers up to {worst:.4g}, and float16 ends at 65,504; take bfloat16 or float32")
    return result


def check_fields(
    source_config: Mapping[str, Any],
    file: Path,
    required: Iterable[str],
    *,
    known: Iterable[str] | None = None,
    program: str = "",
    what: str = "",
) -> None:
    """Raises UserError where a file's config has a field that `program` does not know, or lacks a required one.

    `known` lists what it knows, None lets any field pass. `file` and `what` begin the error's text.
    """
    for name in source_config:
        if known is not None and name not in known:
            raise UserError(f"{file}: {what}field {name!r} is not one of {program}'s")
    missing = sorted(set(required) - set(source_config))
    if missing:
        raise UserError(f"{file}: {what}lacks {', '.join(missing)}")


def check_sizes(sizes: Mapping[str, Any], file: Path) -> None:
    """Raises UserError, which names `file`, where one of the values is no whole number of at least 1."""
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {name} is {value!r}, not a whole number")


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], program: str) -> None:
    """Raises UserError where a model differs from what the format's program computes with; `program` is its name."""
    for name, value in fixed.items():
        if config[name] != value:
            raise UserError(f"model.{name}: {program} computes with {value} alone, this model has {config[name]}")


def check_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raises UserError where the config claims more layers than the file has tensors.

    Rules and shapes are made for every layer before any is compared with the file: a number alone must not cost that.
    """
    layers = config.get("num_layers", 0)
    if layers > len(tensors):
        raise UserError(f"{file}: the config says {layers} layers, the file has {len(tensors)} tensors in all")


def layered_rules(
    top: Mapping[str, str],
    layer: Mapping[str, str],
    prefix: str,
    num_layers: int,
    layouts: Mapping[str, Layout] | None = None,
) -> Rules:
    """Returns the rules of a file whose layers all have the same names.

    Args:
        top, layer: the file's name -> zoo's path, outside layers and within one ("attn/q/kernel").
        prefix: of the names in a layer; {} stands for its number.
        num_layers: of the model.
        layouts: zoo's path within a layer -> layout; the others lie as they are.
    """
    table = {path: Rule(name) for name, path in top.items()}
    for i in range(num_layers):
        for name, path in layer.items():
            table[f"layers/{i}/{path}"] = Rule(prefix.format(i) + name, (layouts or {}).get(path, AS_IS))
    return table


def to_original(rules: Rules, params: Any) -> dict[str, np.ndarray]:
    """Returns parameters (or their gradients: rules only move elements) by the original's names and layouts."""
    flat = build.flatten(params)
    tensors: dict[str, Any] = {}
    for path, rule in rules.items():
        array = np.asarray(flat[path])
        if rule.index is None:
            tensors[rule.name] = np.asarray(rule.layout.to_file(array), order="C")
        else:
            tensors.setdefault(rule.name, {})[rule.index] = array
    return {
        name: np.stack([value[i] for i in range(len(value))]) if isinstance(value, dict) else value
        for name, value in tensors.items()
    }


def from_original(rules: Rules, tensors: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """Returns the nested dict of parameters (or gradients) from the original's names and layouts."""
    flat = {}
    for path, rule in rules.items():
        array = np.asarray(tensors[rule.name])
        flat[path] = array[rule.index] if rule.index is not None else rule.layout.from_file(array)
    return build.unflatten(flat)


def same_numbers(one: Tensor, other: Tensor, file: Path, step: int = 1 << 20) -> bool:
    """Returns whether two tensors of a file hold the same numbers. Raises UserError where they cannot be read."""
    if one.shape != other.shape:
        return False
    try:
        first, second = one.read().reshape(-1), other.read().reshape(-1)
    except UserError:
        raise
    except Exception as error:  # each library has its own way to say that a file is damaged
        raise UserError(f"{file}: a tensor cannot be read ({first_line(error)})") from None
    parts = range(0, first.size, step)
    return all(np.array_equal(first[at : at + step], second[at : at + step], equal_nan=True) for at in parts)


def all_finite(array: np.ndarray, step: int = 1 << 20) -> bool:
    """Returns whether no element is NaN or infinite; looks at `step` elements at a time to need little memory."""
    flat = array.reshape(-1)
    native = array.dtype.kind == "f"
    for at in range(0, flat.size, step):
        part = flat[at : at + step]
        if not np.isfinite(part if native else part.astype(np.float32)).all():
            return False
    return True


def _vector_lengths(rules: Rules) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for rule in rules.values():
        if rule.index is not None:
            lengths[rule.name] = max(lengths.get(rule.name, 0), rule.index + 1)
    return lengths
