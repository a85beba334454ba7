"""What every published format has in common: named tensors on disk, and rules that carry them over.

A format's module says which tensors a file holds (`Published.tensors`) and where each parameter of the model
comes from (`Published.rules`). Holding the two against the model's shapes, reading tensor by tensor and
writing back are the same for all formats and are done here.
"""

from collections.abc import Callable, Iterator, Mapping
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
    """A tensor in a file; `read` gives it as a NumPy array of that shape and dtype, anew on every call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """Where one of our parameters stands in a published file.

    theirs: the name of the tensor there. layout: how it lies there. With `index`, our scalar is that element
    of a vector that they keep for all layers together.
    """

    theirs: str
    layout: Layout = AS_IS
    index: int | None = None


Rules = Mapping[str, Rule]
"""Our parameter path -> the rule for it."""


@dataclass(frozen=True)
class Loaded:
    """A published model in zoo's own terms.

    model_name: the registry name whose class fits. config: all fields of that model's config class.
    params: nested dict of NumPy float32 arrays, as the model class lays them out. tokenizer_path: the
    tokenizer file that lay beside the weights, or None. step: the training step, or None where the format
    does not say.
    """

    model_name: str
    config: dict[str, Any]
    params: dict[Any, Any]
    tokenizer_path: Path | None
    step: int | None


@dataclass(frozen=True)
class Published:
    """A published model whose files have been opened and understood, but whose tensors have not been read.

    kind: what the files are, in words. file: what errors name. model_name, config, tokenizer_path and step
    as in `Loaded`. tensors: what the files hold, by their own names. rules: where our parameters are in them.
    ignored: names of tensors that are no parameters (tables, random states).
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

    def with_rules(self, rules: Rules) -> "Published":
        """The same with other rules."""
        return replace(self, rules=rules)

    def with_config(self, overrides: Mapping[str, Any]) -> "Published":
        """The same with other values for some config fields; UserError for an unknown or impossible one."""
        return replace(self, config=full_config(self.model_name, {**self.config, **overrides}))

    @cached_property
    def wanted(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters of the model with this config, by our paths."""
        spec = registry.describe(self.model_name)
        config = spec.config_class().from_dict(self.config)
        _, abstract = build.abstract_params(spec.model_class(), config)
        return {path: tuple(leaf.shape) for path, leaf in build.flatten(abstract).items()}

    def problems(self) -> list[str]:
        """What keeps the model from being loaded: missing, misshapen, extra tensors and those of no float."""
        found, used = [], set(self.ignored)
        lengths = _vector_lengths(self.rules)
        for path, shape in self.wanted.items():
            rule = self.rules.get(path)
            if rule is None:
                found.append(f"the format has no place for {path}")
                continue
            if rule.theirs in used:
                continue
            used.add(rule.theirs)
            tensor = self.tensors.get(rule.theirs)
            needed = rule.layout.shape(shape) if rule.index is None else (lengths[rule.theirs],)
            if tensor is None:
                found.append(f"{rule.theirs} is missing")
            elif tensor.dtype.name not in FLOATS:
                found.append(f"{rule.theirs} is no array of floating-point numbers but of {tensor.dtype.name}")
            elif tensor.shape != needed:
                found.append(f"{rule.theirs} has shape {tensor.shape}, its config says {needed}")
        found += [f"{name} is not part of the model" for name in self.tensors if name not in used]
        return found

    def check(self) -> None:
        """Raise UserError with the first of the `problems`."""
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more; `zoo inspect` lists them)" if len(problems) > 1 else ""
            raise UserError(f"{self.file}: {problems[0]}{more}")

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Our path and the parameter in its stored dtype, one after the other; only one is held here.

        Raises UserError for a tensor that does not fit, cannot be read, or holds NaN or infinity.
        """
        self.check()
        for path in self.wanted:
            rule = self.rules[path]
            try:
                array = self.tensors[rule.theirs].read()
            except UserError:
                raise
            except Exception as error:  # each library has its own way to say that a file is damaged
                raise UserError(f"{self.file}: {rule.theirs} cannot be read ({first_line(error)})") from None
            if array.shape != self.tensors[rule.theirs].shape:
                raise UserError(f"{self.file}: {rule.theirs} has another shape than the file's head says")
            if not all_finite(array):
                raise UserError(f"{self.file}: {rule.theirs} holds NaN or infinity; the weights are damaged")
            yield path, array[rule.index] if rule.index is not None else rule.layout.to_ours(array)

    def load(self) -> Loaded:
        """All parameters, as float32."""
        flat = {path: np.array(array, np.float32, order="C") for path, array in self.arrays()}
        return Loaded(self.model_name, self.config, build.unflatten(flat), self.tokenizer_path, self.step)


def full_config(model_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of that model's config class: `values`, over the class's defaults. UserError for impossible ones."""
    config = registry.describe(model_name).config_class().from_dict(dict(values)).to_dict()
    for name, value in config.items():
        if isinstance(value, int) and value > LARGEST_SIZE:
            raise UserError(f"model.{name}: {value:.3g} is more than any model has")
    return config


def storage_dtype(dtype: DTypeLike, what: str = "dtype") -> np.dtype:
    """The dtype of that name for weights. UserError, which begins with `what`, unless it is one of DTYPES.

    Integers would take every weight for 0 without a word.
    """
    try:
        found = jnp.dtype(SHORT_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        given = repr(dtype) if found is None or isinstance(dtype, str) else found.name
        raise UserError(f"{what} is {given}; give float32, bfloat16 or float16")
    return found


def check_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise UserError where the config claims more layers than the file has tensors.

    Rules and shapes are made for every layer before any is held against the file: a number alone must not cost that.
    """
    layers = config.get("num_layers", 0)
    if layers > len(tensors):
        raise UserError(f"{file}: the config says {layers} layers, the file has {len(tensors)} tensors in all")


def to_original(rules: Rules, params: Any) -> dict[str, np.ndarray]:
    """Parameters (or their gradients: the rules only move elements) by the original's names and layouts."""
    flat = build.flatten(params)
    found: dict[str, Any] = {}
    for path, rule in rules.items():
        array = np.asarray(flat[path])
        if rule.index is None:
            found[rule.theirs] = np.asarray(rule.layout.to_theirs(array), order="C")
        else:
            found.setdefault(rule.theirs, {})[rule.index] = array
    return {
        name: np.stack([value[i] for i in range(len(value))]) if isinstance(value, dict) else value
        for name, value in found.items()
    }


def from_original(rules: Rules, tensors: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """The nested dict of parameters (or gradients) from the original's names and layouts."""
    flat = {}
    for path, rule in rules.items():
        array = np.asarray(tensors[rule.theirs])
        flat[path] = array[rule.index] if rule.index is not None else rule.layout.to_ours(array)
    return build.unflatten(flat)


def all_finite(array: np.ndarray, step: int = 1 << 20) -> bool:
    """Whether no element is NaN or infinite; looks at `step` elements at a time to need little memory."""
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
            lengths[rule.theirs] = max(lengths.get(rule.theirs, 0), rule.index + 1)
    return lengths
