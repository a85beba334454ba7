"""Recipes: the YAML files that describe a run. Schema, validation, overrides, `extends`, resume check.

    recipe = load_recipe("recipes/cronica_5m.yaml", ["train.steps=100", "optimizer.warmup_steps=10"])
    recipe.train.steps, recipe.run_dir, recipe.to_yaml()

The schema is strict: an unknown key, a wrong type or a value out of range is a `UserError` of one line that
names the file, the dotted field and, where there is one, the nearest known key. Only the `model` section is
open; its keys are the fields of the model's own config dataclass and are held against that.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zoo.errors import UserError
from zoo.layered_yaml import flatten, read_layers
from zoo.util import nearest

FORMAT = 1  # of the recipe file; written into every run directory

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """A registry name; every other key overrides a field of that model's config dataclass."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def overrides(self) -> dict[str, Any]:
        """The config fields the recipe sets, as given."""
        return dict(self.model_extra or {})

    def make_config(self) -> Any:
        """The model's config dataclass with the recipe's overrides. Raises UserError naming the field."""
        from zoo import registry

        return registry.describe(self.name).make_config(**self.overrides)


class TokenizerSection(_Section):
    """Either trained on the run's texts (the default) or loaded from `path`, never both.

    `vocab_size` belongs to training; absent, it is the model's.
    """

    path: str | None = None
    train: bool
    vocab_size: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _train_unless_a_path_is_given(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("train") is None:
            return {**data, "train": data.get("path") is None}
        return data

    @model_validator(mode="after")
    def _path_or_train(self) -> "TokenizerSection":
        if self.path is not None and self.train:
            raise ValueError(
                "tokenizer.path and tokenizer.train exclude each other; to load the file set "
                "tokenizer.train: false, to train one leave tokenizer.path out"
            )
        if self.path is None and not self.train:
            raise ValueError(
                "tokenizer.train is false and tokenizer.path is not given; name a tokenizer.json in "
                "tokenizer.path, or set tokenizer.train: true"
            )
        if self.path is not None and self.vocab_size is not None:
            raise ValueError(
                "tokenizer.vocab_size is for a tokenizer that is trained; the file in tokenizer.path has "
                "its own size, so leave tokenizer.vocab_size out"
            )
        return self


class DataSection(_Section):
    """Where the training pairs come from and how rows of them are made.

    `num_pairs`: how many are generated (source cronicas, default 16,000), or at most how many are read from
    a file or hub data set (default: all). `batch_size`: global rows a step. `seq_len`: tokens a row.
    `seed`: of the built-in corpus and of the order of examples. `trim_to`: columns behind a batch's last
    target are dropped, its length rounded up to a multiple of this (0: rows keep seq_len).
    """

    source: Literal["cronicas", "jsonl", "parquet", "hub"] = "cronicas"
    path: str | None = None
    split: str = "train"
    revision: str | None = None
    num_pairs: PositiveInt | None = None
    seed: Seed = 0
    seq_len: PositiveInt = 768
    batch_size: PositiveInt = 8
    shuffle: bool = True
    trim_to: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _corpus_size(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("num_pairs") is not None:
            return data
        return {**data, "num_pairs": 16_000} if data.get("source", "cronicas") == "cronicas" else data

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> "DataSection":
        if self.source == "cronicas":
            if self.path is not None:
                raise ValueError(
                    "data.path has no meaning for data.source cronicas, the built-in corpus; leave it out "
                    "or set data.source to jsonl, parquet or hub"
                )
            if self.split not in ("train", "heldout", "unseen"):
                raise ValueError(
                    f"data.split must be 'train', 'heldout' or 'unseen' for data.source cronicas, got "
                    f"{self.split!r}"
                )
        elif self.path is None:
            what = "the data set's name on the hub" if self.source == "hub" else f"the {self.source} file"
            raise ValueError(f"data.path is missing; data.source {self.source} wants {what} there")
        if self.source in ("jsonl", "parquet") and self.split != "train":
            raise ValueError(
                f"data.split has no meaning for data.source {self.source}; leave it out, or name another "
                f"file in data.path"
            )
        if self.source != "hub" and self.revision is not None:
            raise ValueError("data.revision is for data.source hub; leave it out")
        return self

    @property
    def file(self) -> str | None:
        """The local file of the data, None for the built-in corpus and the hub."""
        return self.path if self.source in ("jsonl", "parquet") else None


class OptimizerSection(_Section):
    """AdamW under a linear warm-up from 0 to `peak_lr` and a cosine down to `final_lr` at `train.steps`."""

    name: Literal["adamw"] = "adamw"
    peak_lr: Annotated[float, Field(gt=0)] = 3e-4
    final_lr: Annotated[float, Field(ge=0)] = 3e-5
    warmup_steps: NonNegativeInt = 100
    schedule: Literal["cosine"] = "cosine"
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _cosine_goes_down(self) -> "OptimizerSection":
        if self.final_lr > self.peak_lr:
            raise ValueError(
                f"optimizer.final_lr {self.final_lr} is above optimizer.peak_lr {self.peak_lr}; lower it"
            )
        return self


class TrainSection(_Section):
    """`compute_dtype: auto` is bfloat16 on accelerators and float32 on CPU."""

    steps: PositiveInt = 2000
    seed: Seed = 0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False


class MeshSection(_Section):
    """Devices along each axis of the mesh; one of them may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    @model_validator(mode="after")
    def _sizes(self) -> "MeshSection":
        for name, size in self:
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name} must be at least 1, or -1 for the devices left, got {size}")
        rest = [f"mesh.{name}" for name, size in self if size == -1]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} are both -1; only one axis can take the devices left")
        return self


class CheckpointSection(_Section):
    """A checkpoint `every` so many steps (and at the end); the newest `keep` stay."""

    every: PositiveInt = 500
    keep: PositiveInt = 2


class LoggingSection(_Section):
    """The run directory is `runs_dir`/<name>; metrics are logged `every` so many steps."""

    runs_dir: Annotated[str, Field(min_length=1)] = "runs"
    every: PositiveInt = 10
    tensorboard: bool = False


class EvalSection(_Section):
    """Held-out loss `every` so many steps (0: only at the end) over `num_pairs` pairs; at the end `cronicas`
    generated and measured (0: none), and one more streamed to the terminal (`final_sample`)."""

    every: NonNegativeInt = 0
    num_pairs: NonNegativeInt = 64
    cronicas: NonNegativeInt = 16
    max_new_tokens: PositiveInt = 400
    temperature: Annotated[float, Field(ge=0)] = 0.85
    top_k: NonNegativeInt = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    final_sample: bool = True


class Recipe(_Section):
    """A whole run. Make one with `load_recipe`, or `make_recipe` from a dictionary."""

    format: Literal[1] = FORMAT
    name: str
    description: str | None = None
    model: ModelSection
    tokenizer: TokenizerSection = Field(default_factory=lambda: TokenizerSection(train=True))
    data: DataSection = Field(default_factory=lambda: DataSection(num_pairs=16_000))
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    train: TrainSection = Field(default_factory=TrainSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)
    eval: EvalSection = Field(default_factory=EvalSection)

    @model_validator(mode="after")
    def _cross_checks(self) -> "Recipe":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name must be letters, digits, '.', '_' or '-' (it names the run directory), got "
                f"{self.name!r}"
            )
        if self.optimizer.warmup_steps >= self.train.steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below train.steps "
                f"{self.train.steps}; lower the one or raise the other"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Absolute path of the run directory; not created."""
        return Path(self.logging.runs_dir).expanduser().absolute() / self.name

    def resolved(self) -> dict[str, Any]:
        """Plain dictionary with every default written out, the model's whole config included."""
        plain = self.model_dump(mode="json")
        plain["model"] = {"name": self.model.name, **dataclasses.asdict(self.model.make_config())}
        return plain

    def to_yaml(self) -> str:
        """`resolved()` as YAML; `load_recipe` reads it back to an equal resolved recipe."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=110)


def load_recipe(
    path: str | os.PathLike, overrides: Sequence[str] = (), *, check_files: bool = True
) -> Recipe:
    """Read and validate a recipe file.

    Args:
        path: a YAML file. Its `extends: other.yaml` (relative to the file) is read first and merged under
            it, section by section; `name` (default: the file's name) and `description` are not inherited.
        overrides: `section.field=value` each, over everything in the file; values are read as YAML.
        check_files: that local files named in the recipe exist. Off for reading a finished run's recipe.

    Local paths in `data.path` and `tokenizer.path` are taken from the working directory and made absolute.

    Raises:
        UserError: one line naming the file (or the command line), the dotted field and the remedy.
    """
    content, origins = read_layers(path, overrides, not_inherited=("name", "description"))
    content.setdefault("name", Path(path).stem)
    return make_recipe(content, source=str(path), origins=origins, check_files=check_files)


def make_recipe(
    content: dict[str, Any],
    *,
    source: str = "recipe",
    origins: dict[str, str] | None = None,
    check_files: bool = True,
) -> Recipe:
    """Validate a recipe given as nested dictionaries. `source` and `origins` (dotted key -> where it was
    written) only serve the error messages. Raises UserError."""
    origins = origins or {}
    content = {key: {} if value is None and key in _SECTIONS else value for key, value in content.items()}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(error, source, origins)) from None
    recipe = _resolve_against_model(recipe, source, origins)
    return _absolute_paths(recipe, source, origins, check_files)


def resume_diff(old: Recipe, new: Recipe) -> list[str]:
    """What forbids going on with a run of recipe `old` under recipe `new`: a line a field; [] is nothing.

    Refused: the model, the tokenizer, the data and their order, the optimizer's kind, the seed, the storage
    dtype. Free to change: steps, learning rates and the other numbers of the optimizer, compute dtype, mesh,
    logging, checkpoints, evaluation, and `data.path` (the file may move; its content is held by the
    fingerprint in the checkpoint).
    """
    before, after = flatten(old.resolved()), flatten(new.resolved())
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {before.get(key, 'not set')} in the run, {after.get(key, 'not set')} in the recipe"
        for key in keys
        if before.get(key) != after.get(key) and _fixed_for_a_run(key)
    ]


def _fixed_for_a_run(key: str) -> bool:
    if key == "data.path":
        return False
    return key.startswith(("model.", "tokenizer.", "data.")) or key in (
        "optimizer.name",
        "train.seed",
        "train.param_dtype",
    )


# --------------------------------------------------------------------------------- checks beyond the schema


def _where(origins: dict[str, str], key: str, source: str) -> str:
    """The place that set `key`, or something in it."""
    inside = (place for dotted, place in origins.items() if dotted.startswith(f"{key}."))
    return origins.get(key) or next(inside, source)


def _resolve_against_model(recipe: Recipe, source: str, origins: dict[str, str]) -> Recipe:
    """Hold the model section against the model's config dataclass and fill what depends on the model."""
    try:
        config = recipe.model.make_config()
    except UserError as error:
        text = str(error)
        field = next(
            (f"model.{key}" for key in recipe.model.overrides if f"model.{key}" in text), "model.name"
        )
        if field not in text:
            text = f"{field}: {text}"
        raise UserError(f"{_where(origins, field, source)}: {text}") from None

    if recipe.data.seq_len > config.max_seq_len:
        raise UserError(
            f"{_where(origins, 'data.seq_len', source)}: data.seq_len {recipe.data.seq_len} is more than the "
            f"model's max_seq_len {config.max_seq_len}; lower it, or raise model.max_seq_len"
        )
    tokenizer = recipe.tokenizer
    if tokenizer.vocab_size is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{_where(origins, 'tokenizer.vocab_size', source)}: tokenizer.vocab_size {tokenizer.vocab_size} "
            f"is larger than the model's vocab_size {config.vocab_size}; lower it, or raise model.vocab_size"
        )
    if tokenizer.train and tokenizer.vocab_size is None:
        tokenizer = tokenizer.model_copy(update={"vocab_size": config.vocab_size})
    return recipe.model_copy(update={"tokenizer": tokenizer})


def _absolute_paths(recipe: Recipe, source: str, origins: dict[str, str], check_files: bool) -> Recipe:
    update = {}
    for key, section, path in (
        ("data", recipe.data, recipe.data.file),
        ("tokenizer", recipe.tokenizer, recipe.tokenizer.path),
    ):
        if path is None:
            continue
        absolute = Path(path).expanduser().absolute()
        if check_files and not absolute.exists():
            where = _where(origins, f"{key}.path", source)
            raise UserError(f"{where}: {key}.path: there is no file {path} (looked for {absolute})")
        update[key] = section.model_copy(update={"path": str(absolute)})
    return recipe.model_copy(update=update)


# -------------------------------------------------------------------------------------------- error messages

_SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
}
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "a section of `field: value` lines",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
    "string_too_short": ("of length at least", "min_length"),
}


def _explain(error: ValidationError, source: str, origins: dict[str, str]) -> str:
    """The first problem pydantic found, as one line; how many more there are."""
    problems = error.errors(include_url=False)
    # A mistyped key often shows as a missing one too: the unknown key is the cause, so it comes first.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    loc = tuple(str(part) for part in first["loc"])
    key, got, context = ".".join(loc), first["input"], first.get("ctx", {})
    kind = first["type"]
    if kind == "extra_forbidden":
        text = _unknown_key(loc, _siblings(loc))
    elif kind == "missing":
        text = f"{key} is missing; add it"
    elif kind == "value_error":
        text = str(context["error"])  # our own validators name the fields themselves
        key = next((word.strip(":;,") for word in text.split() if word.strip(":;,") in origins), key)
    elif kind == "literal_error" and key == "format":
        text = f"format {got!r} is not one this version reads (it reads {FORMAT}); use a zoo that wrote it"
    elif kind == "literal_error":
        guess = nearest(str(got), re.findall(r"'([^']*)'", context["expected"]))
        hint = f"; did you mean {guess}?" if guess else ""
        text = f"{key} must be {context['expected']}, got {got!r}{hint}"
    elif kind in _TYPES:
        quote = " (put it in quotes)" if kind == "string_type" and isinstance(got, int | float) else ""
        text = f"{key} must be {_TYPES[kind]}, got {got!r}{quote}"
    elif kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        text = f"{key} must be {words} {context[bound]}, got {got!r}"
    else:
        text = f"{key}: {first['msg']}, got {got!r}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_where(origins, key, source)}: {text}{more}"


def _siblings(loc: tuple[str, ...]) -> list[str]:
    if len(loc) == 1:
        return [*Recipe.model_fields, "extends"]
    section = _SECTIONS.get(loc[0])
    return list(section.model_fields) if section else []


def _unknown_key(loc: tuple[str, ...], siblings: list[str]) -> str:
    """`unknown key train.stepz; did you mean train.steps?`"""
    prefix, key = ".".join(loc[:-1]), loc[-1]
    elsewhere = [
        f"{name}.{key}"
        for name, section in _SECTIONS.items()
        if name != prefix and key in section.model_fields
    ]
    near = nearest(key, siblings)
    if near:
        hint = f"did you mean {prefix}.{near}?" if prefix else f"did you mean {near}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"known here: {', '.join(siblings)}"
    return f"unknown key {'.'.join(loc)}; {hint}"
