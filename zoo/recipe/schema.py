"""Recipes: the YAML files that describe a run. Schema, loading and the checks that need more than one field.

    recipe = load_recipe("recipes/cronica_5m.yaml", ["train.steps=100", "optimizer.warmup_steps=10"])
    recipe.train.steps, recipe.run_dir, recipe.to_yaml()

The schema is strict: an unknown key, a wrong type or a value out of range is a `UserError` of one line that names the
file, the dotted field and, where there is one, the nearest known key. Only the `model` section is open: its keys are
the fields of the model's own config dataclass, and that checks them.
"""

import dataclasses
import errno
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from zoo import files
from zoo.errors import UserError
from zoo.recipe.data import DataSection, SourceSection, TokenizerSection
from zoo.recipe.errors import explain, place_of, sections
from zoo.recipe.fields import Section
from zoo.recipe.training import (
    CheckpointSection,
    EvalSection,
    FromSection,
    LoggingSection,
    LoraSection,
    MeshSection,
    OptimizerSection,
    TrainSection,
)
from zoo.recipe.yaml_layers import read_layers
from zoo.util import first_line

if TYPE_CHECKING:
    from etils import epath

FORMAT = 1  # of the recipe file; written into every run directory


class ModelSection(Section):
    """The model: `name` is of the registry; every other key overrides a field of that model's config dataclass."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def overrides(self) -> dict[str, Any]:
        """The config fields that the recipe sets, as given."""
        return dict(self.model_extra or {})

    def make_config(self) -> Any:
        """Returns the model's config with the recipe's overrides. Raises UserError naming the field."""
        from zoo import registry

        return registry.describe(self.name).make_config(**self.overrides)


class Recipe(Section):
    """A whole run. `load_recipe` makes one from a file, `make_recipe` from a dictionary."""

    format: Literal[1] = FORMAT
    name: str
    description: str | None = None
    model: ModelSection
    tokenizer: TokenizerSection = Field(default_factory=lambda: TokenizerSection(train=True))
    data: DataSection = Field(default_factory=lambda: DataSection(num_pairs=16_000))
    from_: FromSection | None = Field(default=None, alias="from")
    lora: LoraSection | None = None
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
                f"name must be letters, digits, '.', '_' or '-' (it names the run directory), got {self.name!r}"
            )
        self._check_schedule()
        rows = self.train.microbatch
        if isinstance(rows, int) and self.data.batch_size % rows:
            raise ValueError(
                f"train.microbatch {rows} does not divide data.batch_size {self.data.batch_size}; take a divisor of it"
            )
        if self.data.holds_pairs:
            if self.tokenizer.learns_texts:
                raise ValueError(
                    "tokenizer: crónica data train a BPE with special tokens of its own; leave tokenizer.kind, "
                    "strip_accents, eos_token and special_tokens out"
                )
            if self.eval.prompt is not None:
                raise ValueError("eval.prompt is for models of texts; a crónica's prompt is a match: leave it out")
        if self.lora is not None and self.lora.dropout and self.train.scan_layers:
            raise ValueError(
                "lora.dropout and train.scan_layers exclude each other: a scanned block has one mask for all layers; "
                "set train.scan_layers: false, or lora.dropout: 0"
            )
        if "://" in self.logging.runs_dir:
            try:
                self.remote_run_dir  # noqa: B018
            except UserError as error:
                raise ValueError(f"logging.runs_dir {error}") from None
        return self

    def _check_schedule(self) -> None:
        optimizer, steps = self.optimizer, self.train.steps
        warmup = optimizer.warmup(steps)
        if warmup >= steps:
            field = "warmup_steps" if optimizer.warmup_fraction is None else "warmup_fraction"
            raise ValueError(
                f"optimizer.{field} {getattr(optimizer, field)} must be below train.steps {steps}; lower the one or "
                f"raise the other"
            )
        if optimizer.schedule == "inverse_sqrt" and not warmup:
            raise ValueError(
                f"optimizer.warmup_fraction {optimizer.warmup_fraction} of train.steps {steps} is less than a step, "
                f"and optimizer.schedule inverse_sqrt falls from the end of a warm-up; raise it"
            )
        if optimizer.schedule == "trapezoid" and warmup + optimizer.cooldown(steps) > steps:
            field = "cooldown_fraction" if optimizer.cooldown_steps is None else "cooldown_steps"
            raise ValueError(
                f"optimizer.{field} {getattr(optimizer, field)} does not fit: a warm-up of {warmup} steps and a "
                f"cool-down of {optimizer.cooldown(steps)} are more than train.steps {steps}; lower it"
            )
        if self.from_ is not None and self.from_.optimizer and optimizer.average_field is not None:
            raise ValueError(
                f"from.optimizer: an average that optimizer.name {optimizer.name} has begun belongs to its own run; "
                f"leave it out"
            )

    @property
    def characters(self) -> bool:
        """Whether the model's vocabulary is the alphabet of the run's texts, which is known when they are read."""
        return self.tokenizer.kind == "characters" and "vocab_size" not in self.model.overrides

    def with_resolved(
        self, *, vocab_size: int | None = None, max_tokens: int | None = None, compute_dtype: str | None = None
    ) -> "Recipe":
        """Returns the recipe with the alphabet's size, the tokens to prepare and the compute dtype it leaves open.

        A run resolves them when it first starts and keeps them in its recipe.yaml.
        """
        update: dict[str, Any] = {}
        if self.characters and vocab_size is not None:
            update["model"] = self.model.model_copy(update={"vocab_size": vocab_size})
        if not self.data.holds_pairs and self.data.max_tokens is None and max_tokens is not None:
            update["data"] = self.data.model_copy(update={"max_tokens": max_tokens})
        if self.train.compute_dtype == "auto" and compute_dtype is not None:
            update["train"] = self.train.model_copy(update={"compute_dtype": compute_dtype})
        return self.model_copy(update=update)

    def with_resolved_from(self, old: "Recipe") -> "Recipe":
        """Returns `with_resolved` with the values of `old`, the recipe of a run that has begun."""
        return self.with_resolved(**old.resolutions())

    def resolutions(self) -> dict[str, Any]:
        """Returns the arguments of `with_resolved` that this recipe, of a run that has begun, holds."""
        return {
            "vocab_size": self.model.overrides.get("vocab_size"),
            "max_tokens": self.data.max_tokens,
            "compute_dtype": self.train.compute_dtype,
        }

    @property
    def run_dir(self) -> Path:
        """The absolute path of the run directory, not created; for a remote run, of the local copies of small files."""
        if "://" in self.logging.runs_dir:
            from zoo.checkpoints import storage

            return storage.cache("runs", self.logging.runs_dir) / self.name
        return Path(self.logging.runs_dir).expanduser().absolute() / self.name

    @property
    def remote_run_dir(self) -> "epath.Path | None":
        """The run directory where `logging.runs_dir` is remote (gs://bucket/runs), else None; it is not accessed."""
        if "://" not in self.logging.runs_dir:
            return None
        from zoo.checkpoints import storage

        return storage.directory(self.logging.runs_dir) / self.name

    @property
    def checkpoints_dir(self) -> "epath.Path":
        """The directory of the run's checkpoints, remote where `logging.runs_dir` is."""
        from zoo.checkpoints import storage

        return (self.remote_run_dir or storage.directory(self.run_dir)) / "checkpoints"

    def resolved(self) -> dict[str, Any]:
        """Returns a plain dictionary with every default written out, the model's whole config included."""
        plain = self.model_dump(mode="json", by_alias=True)
        plain["model"] = {"name": self.model.name, **dataclasses.asdict(self.model.make_config())}
        return plain

    def to_yaml(self) -> str:
        """Returns `resolved()` as YAML, which `load_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=110)


def load_recipe(path: str | os.PathLike, overrides: Sequence[str] = (), *, check_files: bool = True) -> Recipe:
    """Reads and validates a recipe file.

    Local paths in `data.path` and `tokenizer.path` are relative to the working directory and are made absolute.

    Args:
        path: a YAML file. Its `extends: other.yaml` (relative to the file) is read first and merged under
            it, section by section; `name` (default: the file's name) and `description` are not inherited.
        overrides: `section.field=value` each, over everything in the file; values are read as YAML.
        check_files: whether local files named in the recipe must exist. Off for reading a finished run's recipe.

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
    """Validates a recipe given as nested dictionaries.

    Args:
        content: the sections.
        source: how messages name the recipe.
        origins: dotted key -> the place that wrote it, for messages.
        check_files: as for `load_recipe`.

    Raises:
        UserError: as `load_recipe`.
    """
    origins = origins or {}
    # An empty section has its defaults; those that a recipe may do without stay absent.
    always = sections(Recipe).keys() - {"from", "lora"}
    content = {key: {} if value is None and key in always else value for key, value in content.items()}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, Recipe, source, origins, FORMAT)) from None
    recipe = _resolve_against_model(recipe, source, origins)
    return _absolute_paths(recipe, source, origins, check_files)


def _resolve_against_model(recipe: Recipe, source: str, origins: dict[str, str]) -> Recipe:
    """Checks the recipe against the model's config and fills in what depends on the model."""
    try:
        config = recipe.model.make_config()
    except UserError as error:
        message = str(error)
        field = next((f"model.{key}" for key in recipe.model.overrides if f"model.{key}" in message), "model.name")
        if field not in message:
            message = f"{field}: {message}"
        raise UserError(f"{place_of(origins, field, source)}: {message}") from None

    if recipe.data.seq_len > config.max_seq_len:
        raise UserError(
            f"{place_of(origins, 'data.seq_len', source)}: data.seq_len {recipe.data.seq_len} is more than the "
            f"model's max_seq_len {config.max_seq_len}; lower it, or raise model.max_seq_len"
        )
    if recipe.train.scan_layers and not getattr(config, "layers_alike", True):
        raise UserError(
            f"{place_of(origins, 'train.scan_layers', source)}: train.scan_layers: the blocks of {recipe.model.name} "
            "differ from each other and cannot be scanned; set it to false"
        )
    tokenizer = recipe.tokenizer
    if tokenizer.vocab_size is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{place_of(origins, 'tokenizer.vocab_size', source)}: tokenizer.vocab_size {tokenizer.vocab_size} "
            f"is larger than the model's vocab_size {config.vocab_size}; lower it, or raise model.vocab_size"
        )
    if tokenizer.train and tokenizer.kind == "bpe" and tokenizer.vocab_size is None:
        tokenizer = tokenizer.model_copy(update={"vocab_size": config.vocab_size})
    return recipe.model_copy(update={"tokenizer": tokenizer})


def _expanded(path: str) -> Path:
    """Returns the path with ~ replaced, where it names a user that there is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _no_path(path: str) -> str | None:
    """Returns why a path can name nothing, be it there or not; None where it can."""
    try:
        os.stat(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # a zero byte, no such user
        return first_line(error)
    except OSError as error:
        return error.strerror if error.errno == errno.ENAMETOOLONG else None
    return None


def _matches_something(pattern: Path) -> bool:
    """Returns whether a file or directory matches a pattern, in which `**` stands for any directories."""
    base, parts = files.split_pattern(pattern)
    found = glob.iglob(os.path.join(*parts), root_dir=base, recursive=True) if parts else iter(())
    return next(found, None) is not None


def _absolute_paths(recipe: Recipe, source: str, origins: dict[str, str], check_files: bool) -> Recipe:
    def absolute(key: str, path: str) -> str:
        full = _expanded(path).absolute()
        there = files.exists(full) or (any(letter in path for letter in "*?") and _matches_something(full))
        if check_files and not there:
            place = place_of(origins, key, source)
            raise UserError(f"{place}: {key}: there is no file {path} (looked for {full})")
        return str(full)

    def moved(key: str, section: SourceSection) -> SourceSection:
        if not section.is_file:
            return section
        return section.model_copy(update={"path": absolute(f"{key}.path", section.path)})

    data, tokenizer, changed = recipe.data, recipe.tokenizer, {}
    if check_files:
        for key, path in (("logging.runs_dir", recipe.logging.runs_dir), ("data.prepared_dir", data.prepared_dir)):
            if problem := _no_path(path):
                place = place_of(origins, key, source)
                raise UserError(f"{place}: {key}: {path[:80]!r} names no directory ({problem})")
    if data.file is not None:
        changed["path"] = absolute("data.path", data.file)
    if data.sources is not None:
        changed["sources"] = [moved(f"data.sources.{number}", part) for number, part in enumerate(data.sources)]
    if data.validation is not None:
        changed["validation"] = moved("data.validation", data.validation)
    if tokenizer.path is not None:
        check_files = check_files and not files.exists(recipe.run_dir / "tokenizer")  # a run has its own copy
        tokenizer = tokenizer.model_copy(update={"path": absolute("tokenizer.path", tokenizer.path)})
    update = {"data": data.model_copy(update=changed), "tokenizer": tokenizer}
    if recipe.from_ is not None and files.exists(_expanded(recipe.from_.source)):  # else it is a name
        full = str(_expanded(recipe.from_.source).absolute())
        update["from_"] = recipe.from_.model_copy(update={"source": full})
    return recipe.model_copy(update=update)
