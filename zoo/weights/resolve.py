"""From a name or a path to weights: found and understood first (`find`), then laid where they belong (`read`).

A name is one of the registry or of the hub; a path is a run directory, a portable directory, adapters in PEFT's
format or a published format, which its files tell. `runs/x@500` is the checkpoint of step 500 of a run.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import convert, registry, tokenizers
from zoo.checkpoints import storage
from zoo.checkpoints.manager import Checkpoints
from zoo.convert import files, peft
from zoo.convert.base import Published
from zoo.convert.llama_shaped import KODALITE_CHAT
from zoo.convert.portable import CONFIG_FILE, TOKENIZER_DIR
from zoo.errors import UserError
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.models.spec import HUB
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.training import LoraSection
from zoo.rundir import mirror
from zoo.train import parameters
from zoo.util import nearest
from zoo.weights import hub, model_card

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer

RECIPE_FILE, CHECKPOINTS = "recipe.yaml", "checkpoints"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies on disk: its name there, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """Weights that have been found and not read.

    kind: what they are, in words. step: of training, None where the files do not say. published: the opened
    files, None for a run directory and for adapters. official: whether they are what the spec's authors publish: out
    of their repository, or in their own format, of their size and not written by zoo. foreign: whether they are a Llama
    that is neither the registry's nor zoo's. title: what to call such a one. place: where `find` found them, an
    absolute path, a URL or a repository on the hub. revision: of the repository, as it was asked for.
    """

    kind: str
    path: Path
    spec: registry.ModelSpec
    config: ModelConfig
    step: int | None
    tokenizer_path: Path | None
    published: Published | None
    official: bool = field(default=False, kw_only=True)
    foreign: bool = field(default=False, kw_only=True)
    title: str = field(default="", kw_only=True)
    place: str = field(default="", kw_only=True)
    revision: str | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """By what `find`, with `revision`, finds the very same again; UserError where a run has no checkpoint."""
        return self.place

    @property
    def lora(self) -> LoraSection | None:
        """The adapters among them, None where there are none."""
        return None

    @property
    def adapted(self) -> "Weights | None":
        """What adapters on these are for: these themselves, unless they are adapters on others.

        None where no file holds it: adapters on the new weights of a run's seed.
        """
        return self

    @property
    def beside_adapters(self) -> list[str]:
        """Paths of parameters that are no adapters and yet other than in `adapted`: trained too, or begun anew."""
        return []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters of the model, by path."""
        _, flat = parameters.adapted(self.lora, self.spec.model_class(), self.config, dtype=jnp.float32)
        return {path: tuple(leaf.shape) for path, leaf in flat.items()}

    def tensors(self) -> list[StoredTensor]:
        """What is stored, in the order of the files."""
        return [StoredTensor(name, item.shape, item.dtype) for name, item in self.published.tensors.items()]

    def problems(self) -> list[str]:
        """What keeps them from being loaded; [] is well."""
        return self.published.problems()

    def tokenizer(self) -> "Tokenizer | None":
        """The tokenizer that lies with them, None where there is none."""
        return None if self.tokenizer_path is None else tokenizers.load(self.tokenizer_path)

    @property
    def tokenizer_place(self) -> str:
        """Where a tokenizer has to lie to be found with them, in words that go on from "put"."""
        file = self.published.file if self.published is not None else self.path
        directory = self.path if self.path.is_dir() else file.parent
        if (directory / CONFIG_FILE).is_file():
            entry = f'"tokenizer": "{TOKENIZER_DIR}" into {CONFIG_FILE}'
            return f"its tokenizer.json into {directory / TOKENIZER_DIR} and {entry}"
        if self.spec.name == "tiny-lm":
            return f"its characters.json into {directory}"
        if self.spec.name == "bwetaf-97m":
            return f"its yap.json into {directory / TOKENIZER_DIR}"
        if file.suffix.lower() == ".gguf":
            return f"the model's Hugging Face files in place of {file.name}, whose own tokenizer is not read"
        return f"its tokenizer.json into {directory}"

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """The model's structure and its parameters, of that dtype (adapters: float32) and laid on the mesh.

        One tensor after the other is read, cast and placed, so that the host never holds much more than the
        parameters. UserError for what does not fit or is damaged.
        """
        graphdef, abstract = build.abstract_params(self.spec.model_class(), self.config, mesh=mesh, dtype=dtype)
        wanted = build.flatten(abstract)
        flat = {path: _place(array, wanted[path]) for path, array in self.published.arrays()}
        return graphdef, build.unflatten({path: flat[path] for path in wanted})


@dataclass(frozen=True)
class RunWeights(Weights):
    """Those of a run directory: what the run trains lies in its checkpoint, the rest where the run began.

    recipe: the run's. asked: whether `step` was asked for; if not, the newest good checkpoint is read.
    """

    recipe: Recipe
    asked: bool

    @property
    def lora(self) -> LoraSection | None:
        """See `Weights`."""
        return self.recipe.lora

    @property
    def name(self) -> str:
        """See `Weights`."""
        if self.step is None:
            raise self._nothing_yet()
        return f"{self.place}@{self.step}"

    @property
    def adapted(self) -> Weights | None:
        """See `Weights`. Adapters that went on here are for what the run that made them began from."""
        if self.lora is None:
            return self
        return self._base.adapted if self._adapters_went_on else self._base

    @property
    def beside_adapters(self) -> list[str]:
        """See `Weights`."""
        from zoo.weights import initialize

        if self.lora is None:
            return []
        wanted, base = self._parameters(), self._base
        paths = list(build.flatten(wanted.trained))
        if base is not None:
            paths += initialize.new_paths(self.recipe, base, wanted)
        if self._adapters_went_on:
            paths += base.beside_adapters
        return [path for path in dict.fromkeys(paths) if not parameters.is_adapter(path)]

    def tensors(self) -> list[StoredTensor]:
        """See `Weights`."""
        found = [StoredTensor(name, shape, jnp.dtype(dtype)) for name, (shape, dtype) in self._stored().items()]
        return found if self._base is None else [*self._base.tensors(), *found]

    def problems(self) -> list[str]:
        """See `Weights`."""
        stored = {name: shape for name, (shape, _) in self._stored().items()}
        wanted = {name: tuple(leaf.shape) for name, leaf in build.flatten(self._parameters().trained).items()}
        found = [
            f"{name} is {stored.get(name, 'missing')} there, but {wanted.get(name, 'no parameter')} in the model"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]
        return found if self._base is None else [*self._base.problems(), *found]

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """See `Weights`; UserError, too, where there is no checkpoint yet or what the run began with is another now."""
        wanted = self._parameters(dtype=dtype, mesh=mesh)
        step = self.step if self.asked else None
        found = self.checkpoints().restore_params(wanted.trained, step=step)
        if found is None:
            raise self._nothing_yet()
        if not wanted.frozen:
            return wanted.graphdef, found.params
        from zoo.weights import initialize

        # What a run leaves alone is known by a fingerprint in the dtype that the run keeps it in.
        as_kept = self._parameters(dtype=self.recipe.train.param_dtype, mesh=mesh)
        frozen = initialize.initialize(
            self.recipe, self.config, as_kept, only_frozen=True, base=found.meta.get("base"), near=self.path, mesh=mesh
        )
        kinds = build.flatten(wanted.frozen)
        flat = {path: array.astype(kinds[path].dtype) for path, array in frozen.arrays.items()}
        return wanted.graphdef, build.unflatten(build.flatten(found.params) | flat)

    @cached_property
    def _base(self) -> Weights | None:
        """Where the parameters that the run does not train come from; None where it trains all, or has made them."""
        if self.recipe.from_ is None or not self._parameters().frozen:
            return None
        if self.step is None:
            raise self._nothing_yet()
        from zoo.weights import initialize

        return initialize.find_source(self.recipe, self.checkpoints().read_meta(self.step).get("base"), self.path)

    @property
    def _adapters_went_on(self) -> bool:
        from zoo.weights import initialize

        return self._base is not None and initialize.same_adapters(self._base, self.recipe)

    def _parameters(self, **options: Any) -> parameters.Parameters:
        options.setdefault("dtype", self.recipe.train.param_dtype)
        return parameters.abstract(self.recipe, self.spec.model_class(), self.config, **options)

    def checkpoints(self) -> Checkpoints:
        """Of the run, to be read."""
        return _checkpoints_of(self.path, self.recipe)

    def _stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        if self.step is None:
            raise self._nothing_yet()
        return self.checkpoints().parameter_shapes(self.step)

    def _nothing_yet(self) -> UserError:
        return UserError(f"{self.path} has no checkpoint yet; go on training it with zoo-train")


@dataclass(frozen=True)
class AdapterWeights(Weights):
    """A model and the adapters to it that lie, in PEFT's format, in a directory of their own."""

    base: Weights
    adapter: peft.Adapter

    @property
    def lora(self) -> LoraSection:
        """See `Weights`."""
        adapter = self.adapter
        return LoraSection(
            rank=adapter.rank, alpha=adapter.alpha, targets=list(adapter.targets), dropout=adapter.dropout
        )

    @property
    def adapted(self) -> Weights:
        """See `Weights`."""
        return self.base

    def tensors(self) -> list[StoredTensor]:
        """See `Weights`."""
        own = [StoredTensor(name, array.shape, array.dtype) for name, array in self.adapter.arrays.items()]
        return [*self.base.tensors(), *own]

    def problems(self) -> list[str]:
        """See `Weights`."""
        return self.base.problems()

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """See `Weights`; UserError, too, where the base has adapters itself."""
        if self.base.lora is not None:
            raise UserError(
                f"{self.path}: its base {self.base.path} has adapters itself; write it with them merged (`zoo merge "
                f"{self.base.name} --out DIR`) and name that as base_model_name_or_path in {peft.CONFIG}"
            )
        _, params = self.base.read(dtype=dtype, mesh=mesh)
        graphdef, wanted = parameters.adapted(self.lora, self.spec.model_class(), self.config, mesh=mesh, dtype=dtype)
        flat = build.flatten(params) | {path: _place(x, wanted[path]) for path, x in self.adapter.arrays.items()}
        return graphdef, build.unflatten(flat)


def find(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> Weights:
    """The weights that a name or a path stands for; see `zoo.load`. No array is read.

    Args:
        revision: branch, tag or commit on the hub.
        overrides: config fields in place of those found.
        step: which checkpoint of a run directory; None is the newest.

    Raises:
        UserError: nothing of that name or path, nothing that zoo reads, a step that is not there, a revision of a path.
    """
    if storage.is_remote(name_or_path):
        return _find_remote(str(name_or_path), overrides or {}, step)
    path = Path(name_or_path).expanduser()
    at_step = re.fullmatch(r"(.+)@(\d+)", str(path))
    if at_step and step is None and not path.exists():
        path, step = Path(at_step[1]), int(at_step[2])
    if path.exists():
        if revision is not None:
            raise UserError(f"revision: {name_or_path} is a path; revisions are of names on the hub")
        return replace(_find_path(path, overrides or {}, step), place=str(path.absolute()))
    name = str(name_or_path)
    if name not in registry.list_models():
        _refuse_missing(path, name)
    if step is not None:
        raise UserError(f"{name_or_path}: is no run directory here, and steps are of the checkpoints of a run")
    if name in registry.list_models():
        return _find_published(registry.describe(name), revision, overrides or {})
    if hub.is_hub_name(name):
        what = f"{name}: is no path here, and on the hub it is {HUB}{name}"
        return _find_snapshot(hub.fetch(name, revision, what=what), name, revision, overrides or {})
    near = nearest(name, registry.list_models())
    hint = f"did you mean {near!r}?" if near else f"models are: {', '.join(registry.list_models())}"
    raise UserError(f"{name}: no such file or directory, and no model of that name; {hint}")


def _refuse_missing(path: Path, name: str) -> None:
    """Raise UserError for a path that begins in a directory here: that reads like owner/repository, and is none."""
    if len(path.parts) < 2 or not Path(path.parts[0]).is_dir():
        return
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:  # no directory, or none that may be listed
        beside = []
    near = nearest(path.name, beside)
    hint = f"did you mean {path.parent / near}?" if near else "name another, or train it first with zoo-train"
    raise UserError(f"{name}: no such file or directory here, so no run either; {hint}")


def _find_path(path: Path, overrides: Mapping[str, Any], step: int | None = None) -> Weights:
    if (path / RECIPE_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        return _find_run(path, overrides, step)
    if step is not None:
        raise UserError(f"{path}: is no run directory, and steps are of the checkpoints of a run")
    if peft.detect(path):
        return _find_adapter(path, overrides)
    format = convert.detect_format(path)
    if format is None:
        raise UserError(
            f"{path} is no run directory ({RECIPE_FILE}), no portable one ({CONFIG_FILE}) and in no published "
            f"format that zoo reads ({', '.join(convert.FORMATS)})"
        )
    published = format.open(path)
    spec = registry.describe(published.model_name)
    usual = published.config == spec.make_config().to_dict()
    if format.name == "portable":
        foreign = bool(files.read_json(path / CONFIG_FILE).get("foreign"))
    else:
        # A tokenizer without KodaLite's template was not made for it; bare weights of another size may well be its.
        tokenizer = path / "tokenizer_config.json"
        other = path.is_file() or (
            tokenizer.is_file() and files.peek_json(tokenizer).get("chat_template") != KODALITE_CHAT
        )
        foreign = format.community and not usual and other
    if overrides:
        published = published.with_config(overrides)
    return Weights(
        kind=published.kind,
        path=path,
        spec=spec,
        config=spec.config_class().from_dict(published.config),
        step=published.step,
        tokenizer_path=published.tokenizer_path,
        published=published,
        official=usual and format.official and not model_card.written_by_zoo(path),
        foreign=foreign,
        title=path.resolve().stem if path.is_file() else path.resolve().name,
    )


def _find_remote(url: str, overrides: Mapping[str, Any], step: int | None) -> RunWeights:
    at_step = re.fullmatch(r"(.+)@(\d+)", url)
    if at_step:
        url, step = at_step[1], int(at_step[2]) if step is None else step
    found = _find_run(mirror.fetched(url), overrides, step)
    if str(found.recipe.remote_run_dir) != url.rstrip("/"):
        raise UserError(f"{url} was trained as {found.recipe.remote_run_dir or found.recipe.run_dir}; name that")
    return replace(found, place=url.rstrip("/"))


def _checkpoints_of(run: Path, recipe: Recipe) -> Checkpoints:
    """Those in a run directory; those in the store where it is the local side of a remote run."""
    remote = recipe.remote_run_dir is not None and not (run / CHECKPOINTS).exists()
    return Checkpoints(recipe.checkpoints_dir if remote else run / CHECKPOINTS)


def _find_run(path: Path, overrides: Mapping[str, Any], step: int | None) -> RunWeights:
    recipe = load_recipe(path / RECIPE_FILE, check_files=False)
    spec, config = registry.describe(recipe.model.name), recipe.model.make_config()
    if overrides:
        config = type(config).from_dict({**config.to_dict(), **overrides})
    checkpoints = _checkpoints_of(path, recipe)
    if step is not None and step not in checkpoints.steps():
        raise UserError(f"{path} has no checkpoint of step {step}; there are {checkpoints.steps() or 'none'}")
    return RunWeights(
        kind="zoo run directory",
        path=path,
        spec=spec,
        config=config,
        step=checkpoints.latest() if step is None else step,
        tokenizer_path=path / TOKENIZER_DIR,
        published=None,
        recipe=recipe,
        asked=step is not None,
    )


def _find_adapter(path: Path, overrides: Mapping[str, Any]) -> AdapterWeights:
    adapter = peft.load(path)
    if adapter.base is None:
        raise UserError(f"{path}: does not say what it adapts; set base_model_name_or_path in {peft.CONFIG}")
    try:
        base = find(adapter.base, revision=adapter.revision, overrides=overrides)
    except UserError as error:
        raise UserError(f"{path}: its base_model_name_or_path: {error}") from None
    adapter.check(base.spec.model_class(), base.config)
    return AdapterWeights(
        kind=f"adapters in PEFT's format, on {base.path}",
        path=path,
        spec=base.spec,
        config=base.config,
        step=None,
        tokenizer_path=base.tokenizer_path,
        published=None,
        base=base,
        adapter=adapter,
        foreign=base.foreign,
        title=base.title,
    )


def _find_published(spec: registry.ModelSpec, revision: str | None, overrides: Mapping[str, Any]) -> Weights:
    wanted = f"{spec.name}: its weights are in {spec.source} (files: {spec.facts.get('files', registry.NOT_STATED)})"
    repo, random = next(iter(spec.repositories), None), f"zoo.create({spec.name!r}), which has random weights"
    if repo is None:
        raise UserError(f"{spec.name}: zoo knows of no published weights; train it with zoo-train, or take {random}")
    try:
        directory = hub.fetch(repo, revision, what=wanted)
    except UserError as error:
        raise UserError(f"{error}, or take {random}") from None
    return _find_snapshot(directory, repo, revision, overrides)


def _find_snapshot(directory: Path, repo: str, revision: str | None, overrides: Mapping[str, Any]) -> Weights:
    found = replace(_find_path(directory, overrides), place=repo, revision=revision)
    if isinstance(found, AdapterWeights):
        return found
    official = repo in found.spec.repositories
    found = replace(found, official=official, foreign=found.foreign and not official, title=repo.rpartition("/")[2])
    return found if found.tokenizer_path else replace(found, tokenizer_path=hub.fetch_tokenizer(found.spec, repo))


def _place(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # A copy in any case: a view of a mapped file would change, or end, with the file.
    array = np.array(array, leaf.dtype, order="C")
    if leaf.sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
