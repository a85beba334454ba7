"""Weights in files, of a run or of adapters, as `zoo.weights.resolve.find` returns them: described first, then read."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import registry, tokenizers
from zoo.checkpoints import pytree
from zoo.checkpoints.manager import Checkpoints, DamagedCheckpoint, Restored
from zoo.convert import chat_templates, files, peft, portable
from zoo.convert.base import Published
from zoo.convert.format import Format
from zoo.convert.portable import CONFIG_FILE, TOKENIZER_DIR
from zoo.errors import UserError
from zoo.layers import lora
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import Recipe, recorded_differences
from zoo.recipe.training import EMA_SUFFIX, LoraSection
from zoo.tokenizers.token_files import CONFIG_NAME
from zoo.train import parameters
from zoo.train.optimizers import EMA_FIELD
from zoo.weights import lineage

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name there, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def elements(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Returns the number of bytes the tensor takes on disk."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """Weights of which the files have been opened and no array has been read.

    Attributes:
        kind: what the files are, to be shown.
        path: the file or directory.
        spec: the registered model whose class they are of.
        config: the model's config, with the caller's overrides.
        step: of training; None where the files do not say.
        tokenizer_path: the tokenizer that lies with them; None where there is none.
        published: the opened files; None for a run directory and for adapters.
        official: whether they are what the spec's authors publish: from their repository, or in their own format, of
            their size and not written by zoo.
        is_community_model: whether they are a Llama that is neither the registry's nor trained by zoo. Template,
            settings and card of the spec are not those of such a model.
        display_name: what a community model is called.
        location: where `find` found them: an absolute path, a URL or a repository on the hub.
        revision: of the repository, as the caller gave it.
        format: of the opened files; None as `published`.
        ema: whether they are the moving average of a run's weights, which a run with `optimizer.ema_decay` keeps.
    """

    kind: str
    path: Path
    spec: registry.ModelSpec
    config: ModelConfig
    step: int | None = field(default=None, kw_only=True)
    tokenizer_path: Path | None = field(default=None, kw_only=True)
    published: Published | None = field(default=None, kw_only=True)
    official: bool = field(default=False, kw_only=True)
    is_community_model: bool = field(default=False, kw_only=True)
    display_name: str = field(default="", kw_only=True)
    location: str = field(default="", kw_only=True)
    revision: str | None = field(default=None, kw_only=True)
    format: Format | None = field(default=None, kw_only=True)
    ema: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """Returns the name by which `find`, with `revision`, finds the very same weights again.

        Raises UserError for a run without a checkpoint.
        """
        return self.location

    @property
    def lora(self) -> LoraSection | None:
        """Returns rank, alpha and targets of the adapters among the weights; None where there are none."""
        return None

    @property
    def base(self) -> "Weights | None":
        """Returns the weights that these adapters were made for; of weights without adapters, themselves.

        None where no file holds them: the run made them from its seed.
        """
        return self

    @property
    def non_adapter_changes(self) -> list[str]:
        """Returns the paths of parameters that are no adapters and differ from `base`: trained too, or created anew."""
        return []

    @property
    def chat_template(self) -> str | None:
        """Returns the template of the conversations that the weights were trained on; None where there were none."""
        if self.path.is_dir():
            told = chat_templates.name_of(files.peek_json(self.path / CONFIG_NAME).get("chat_template"))
            if told is not None:
                return told
        return None if self.is_community_model else self.spec.chat_template

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Returns the tokens that end a text by the files, such as those of a chat's turn; see `Published.eos_ids`."""
        return () if self.published is None else self.published.eos_ids

    def prefix_ids(self, tokenizer: "Tokenizer") -> list[int]:
        """Returns the ids that stand before a text that the model is to go on with."""
        return tokenizer.prefix_ids

    @property
    def of_run(self) -> bool:
        """Returns whether a run of zoo trained the weights, and its directory says how."""
        return False

    @property
    def trained_template(self) -> str | None:
        """Returns the template of the conversations that the run trained on; None of documents, and of no run."""
        return None

    def same_adapters(self, section: LoraSection | None) -> bool:
        """Returns whether the adapters among the weights can go on as those of `section`."""
        return lineage.same_adapters(self.lora, section, self.spec.model_class(), self.config)

    def new_paths(self, recipe: Recipe, model: parameters.Parameters) -> list[str]:
        """Returns the parameters that a run of `recipe` creates anew when it starts from these weights.

        Raises UserError where it may not start from them; see `zoo.weights.lineage.new_paths`.
        """
        return lineage.new_paths(recipe, model, self.path, self.spec, self.config, self.lora)

    def tensors(self) -> list[StoredTensor]:
        """Returns the stored tensors in the order of the files."""
        return [StoredTensor(name, item.shape, item.dtype) for name, item in self.published.tensors.items()]

    def problems(self) -> list[str]:
        """Returns what keeps the weights from being loaded, a line each; [] if nothing does."""
        return self.published.problems()

    def tokenizer(self) -> "Tokenizer | None":
        """Returns the tokenizer that lies with the weights; None where there is none."""
        return None if self.tokenizer_path is None else tokenizers.load(self.tokenizer_path)

    @property
    def tokenizer_place(self) -> str:
        """Returns where a tokenizer has to lie to be found with published files; the text goes on from "put"."""
        file = self.published.file
        if self.format.tokenizer_file is None:
            return f"the model's Hugging Face files in place of {file.name}, whose own tokenizer is not read"
        place = (self.path if self.path.is_dir() else file.parent) / self.format.tokenizer_file
        entry = f' and "tokenizer": "{TOKENIZER_DIR}" into {CONFIG_FILE}' if self.format is portable.FORMAT else ""
        return f"its {place.name} into {place.parent}{entry}"

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """Reads the weights: the model's structure and its parameters, of `dtype` (adapters: float32), on the mesh.

        One tensor after the other is read, cast and placed, so that the host never holds much more than the
        parameters. Raises UserError for what does not fit or is damaged.
        """
        graphdef, abstract = build.abstract_params(self.spec.model_class(), self.config, mesh=mesh, dtype=dtype)
        wanted = build.flatten(abstract)
        flat = {path: _place(array, wanted[path]) for path, array in self.published.arrays()}
        return graphdef, build.unflatten({path: flat[path] for path in wanted})


@dataclass(frozen=True)
class RunWeights(Weights):
    """Weights of a run directory: a checkpoint holds what the run trains, its source or its seed gives the rest.

    Attributes:
        recipe: the run's.
        explicit_step: whether the caller asked for `step`; if not, the newest good checkpoint is read.
        find_source: finds the weights that the run started from (the recipe's `from`), given the entry "base" of a
            checkpoint's meta.
    """

    recipe: Recipe
    explicit_step: bool
    find_source: Callable[[Mapping[str, Any] | None], Weights]

    @property
    def lora(self) -> LoraSection | None:
        """Returns the recipe's section of adapters."""
        return self.recipe.lora

    @property
    def name(self) -> str:
        """Returns the name of this checkpoint of the run."""
        if self.step is None:
            raise self._no_checkpoint()
        return f"{self.location}@{self.step}{EMA_SUFFIX if self.ema else ''}"

    @property
    def base(self) -> Weights | None:
        """Returns what the adapters are for; of continued adapters, what the run that made them started from."""
        if self.lora is None:
            return self
        return self._source.base if self._continues_adapters else self._source

    @property
    def non_adapter_changes(self) -> list[str]:
        """Returns the paths that this run, or the one whose adapters it continues, trained or created anew."""
        if self.lora is None:
            return []
        model, source = self._parameters(), self._source
        paths = list(build.flatten(model.trained))
        if source is not None:
            paths += source.new_paths(self.recipe, model)
        if self._continues_adapters:
            paths += source.non_adapter_changes
        return [path for path in dict.fromkeys(paths) if not parameters.is_adapter(path)]

    @property
    def chat_template(self) -> str | None:
        """Returns the template of the run's conversations, else that of its model."""
        return self.recipe.data.chat_template or super().chat_template

    @property
    def of_run(self) -> bool:
        """Returns True: the run directory is at `path`."""
        return True

    @property
    def trained_template(self) -> str | None:
        """Returns the recipe's `data.chat_template`."""
        return self.recipe.data.chat_template

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Returns those of the weights with what the run does not train."""
        return () if self._source is None else self._source.eos_ids

    def prefix_ids(self, tokenizer: "Tokenizer") -> list[int]:
        """Returns what stood before each document of the run's data."""
        return tokenizer.prefix_ids_after(self.recipe.data.kind)

    def tensors(self) -> list[StoredTensor]:
        """Returns the stored tensors of the source, then those of the checkpoint."""
        own = [StoredTensor(name, shape, jnp.dtype(dtype)) for name, (shape, dtype) in self._stored().items()]
        return own if self._source is None else [*self._source.tensors(), *own]

    def problems(self) -> list[str]:
        """Returns what keeps the source or the checkpoint from being loaded, a line each."""
        stored = {name: shape for name, (shape, _) in self._stored().items()}
        wanted = {name: tuple(leaf.shape) for name, leaf in build.flatten(self._parameters().trained).items()}
        own = [
            f"{name} is {stored.get(name, 'missing')} there, but {wanted.get(name, 'no parameter')} in the model"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]
        own = [*([] if self._meta is None else self._recipe_problems(self._meta)), *own]
        return own if self._source is None else [*self._source.problems(), *own]

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """Reads the checkpoint, and what the run does not train from its source or seed; see `Weights.read`.

        Raises UserError, too, where there is no checkpoint yet or the source is no longer what the run started from.
        """
        wanted = self._parameters(dtype=dtype, mesh=mesh)
        if self._meta is not None:  # before shapes are compared, which the recipe gives
            self._refuse_changed_recipe(self._meta)
        checkpoint = self._restored(wanted.trained)
        self._refuse_changed_recipe(checkpoint.meta)
        if not wanted.frozen:
            return wanted.graphdef, checkpoint.params
        # The recorded fingerprint is of the frozen parameters in the dtype in which the run keeps them.
        as_trained = self._parameters(mesh=mesh)
        recorded = checkpoint.meta.get("base")
        frozen, _ = initial_params(
            self.recipe,
            self.config,
            as_trained,
            None if self.recipe.from_ is None else self.find_source(recorded),
            build.flatten(as_trained.frozen),
            recorded=recorded,
            mesh=mesh,
        )
        leaves = build.flatten(wanted.frozen)
        flat = {path: array.astype(leaves[path].dtype) for path, array in frozen.items()}
        return wanted.graphdef, build.unflatten(build.flatten(checkpoint.params) | flat)

    def _restored(self, params: build.Params) -> Restored:
        """Returns the checkpoint with the parameters that are evaluated, those of an average where there is one."""
        checkpoints, optimizer = self.checkpoints(), self.recipe.optimizer
        step = self.step if self.explicit_step else None
        if self.ema:
            checkpoint = checkpoints.restore_params(params, step=step, of_state=EMA_FIELD)
        elif optimizer.average_field is None:
            checkpoint = checkpoints.restore_params(params, step=step)
        else:
            # As they were trained: the average of what has been rounded would not be the rounded average.
            exact = jax.tree.map(lambda leaf: pytree.abstract(leaf, jnp.float32), params)
            checkpoint = checkpoints.restore_params(exact, step=step)
            if checkpoint is not None:
                state = checkpoints.restore_params(exact, step=checkpoint.step, of_state=optimizer.average_field)
                average = jax.jit(optimizer.averaged)(checkpoint.params, state.params)
                average = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), average, params)
                checkpoint = replace(checkpoint, params=average)
        if checkpoint is None:
            raise self._no_checkpoint()
        return checkpoint

    def tokenizer(self) -> "Tokenizer | None":
        """Returns the run's tokenizer. Raises UserError where the checkpoint was trained with another one."""
        tokenizer = super().tokenizer()
        trained_with = None if self._meta is None else self._meta.get("tokenizer_fingerprint")
        if trained_with not in (None, tokenizer.fingerprint):
            raise UserError(
                f"{self.tokenizer_path}: is not the tokenizer that the checkpoint of step {self.step} was trained "
                f"with; put that back"
            )
        return tokenizer

    @cached_property
    def _meta(self) -> Mapping[str, Any] | None:
        """What the checkpoint records, under its checksum; None where there is none, or it is damaged."""
        if self.step is None:
            return None
        try:
            return self.checkpoints().read_meta(self.step)
        except DamagedCheckpoint:
            return None  # reading the arrays says so, or finds an older one

    def _refuse_changed_recipe(self, meta: Mapping[str, Any]) -> None:
        if problems := self._recipe_problems(meta):
            raise UserError(f"{problems[0]}; put the file back, or correct that line")

    def _recipe_problems(self, meta: Mapping[str, Any]) -> list[str]:
        """Returns where recipe.yaml is not the one that the checkpoint was trained under, a line each."""
        return [f"{self.path / 'recipe.yaml'}: {line}" for line in recorded_differences(meta, self.recipe)]

    def checkpoints(self) -> Checkpoints:
        """Returns the run's checkpoints, to be read."""
        return run_checkpoints(self.path, self.recipe)

    @cached_property
    def _source(self) -> Weights | None:
        """Returns the weights with what the run does not train; None where it trains all or its seed gives them."""
        if self.recipe.from_ is None or not self._parameters().frozen:
            return None
        if self.step is None:
            raise self._no_checkpoint()
        try:
            meta = self.checkpoints().read_meta(self.step)
        except DamagedCheckpoint as error:
            raise UserError(
                f"{self.path}: the checkpoint of step {self.step} is damaged ({error}); name the one of another step, "
                f"or go on with the run, which sets it aside"
            ) from None
        return self.find_source(meta.get("base"))

    @property
    def _continues_adapters(self) -> bool:
        return self._source is not None and self._source.same_adapters(self.recipe.lora)

    def _parameters(self, **options: Any) -> parameters.Parameters:
        options.setdefault("dtype", self.recipe.train.param_dtype)
        return parameters.abstract(self.recipe, self.spec.model_class(), self.config, **options)

    def _stored(self) -> dict[str, tuple[tuple[int, ...], str]]:
        if self.step is None:
            raise self._no_checkpoint()
        return self.checkpoints().parameter_shapes(self.step)

    def _no_checkpoint(self) -> UserError:
        return UserError(f"{self.path} has no checkpoint yet; go on training it with zoo-train")


@dataclass(frozen=True)
class AdapterWeights(Weights):
    """Adapters in a directory of PEFT's format, with the model they were made for.

    Attributes:
        base_model: the weights of that model.
        adapter: the adapters.
    """

    base_model: Weights
    adapter: peft.Adapter

    @property
    def lora(self) -> LoraSection:
        """Returns rank, alpha, targets and dropout of the adapters."""
        adapter = self.adapter
        return LoraSection(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets, dropout=adapter.dropout)

    @property
    def base(self) -> Weights:
        """Returns the weights that the adapters' config names."""
        return self.base_model

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Returns those of the base."""
        return self.base_model.eos_ids

    def tensors(self) -> list[StoredTensor]:
        """Returns the stored tensors of the base, then those of the adapters."""
        own = [StoredTensor(name, array.shape, array.dtype) for name, array in self.adapter.arrays.items()]
        return [*self.base.tensors(), *own]

    def problems(self) -> list[str]:
        """Returns what keeps the base from being loaded, a line each."""
        return self.base.problems()

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """Reads the base and the adapters; see `Weights.read`. Raises UserError, too, for a base with adapters."""
        if self.base.lora is not None:
            raise UserError(
                f"{self.path}: its base {self.base.path} has adapters itself; write it with them merged (`zoo merge "
                f"{self.base.name} --out DIR`) and name that as base_model_name_or_path in {peft.CONFIG}"
            )
        _, params = self.base.read(dtype=dtype, mesh=mesh)
        graphdef, wanted = parameters.adapted(self.lora, self.spec.model_class(), self.config, mesh=mesh, dtype=dtype)
        flat = build.flatten(params) | {path: _place(x, wanted[path]) for path, x in self.adapter.arrays.items()}
        return graphdef, build.unflatten(flat)


def initial_params(
    recipe: Recipe,
    config: ModelConfig,
    model: parameters.Parameters,
    source: Weights | None,
    paths: Iterable[str],
    *,
    recorded: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[dict[str, jax.Array], dict[str, Any] | None]:
    """Reads from `source`, or creates from the recipe's seed, parameters that the recipe's model starts with.

    Args:
        model: the model's parameters, abstract, of the dtype `train.param_dtype`.
        source: what the recipe's `from` names; None without that section.
        paths: the parameters that are returned; all that are frozen must be among them.
        recorded: of a run that has begun, the entry "base" of its checkpoint's meta; None of a new one.

    Returns:
        The arrays by path, and the entry "base" for the meta of checkpoints, {"source", "step", "fingerprint"}; None
        where nothing has to be read or created again later.

    Raises:
        UserError: the source does not fit, or is no longer what `recorded` says.
    """
    spec, dtype = registry.describe(recipe.model.name), jnp.dtype(recipe.train.param_dtype)
    paths, frozen = list(paths), build.flatten(model.frozen)
    arrays: dict[str, jax.Array] = {}
    base, place = None, "what the seed gives here"
    if source is not None:
        taken = set(paths) - set(source.new_paths(recipe, model))
        graphdef, params = source.read(dtype=dtype, mesh=mesh)
        base = {"source": str(recipe.from_.source), "step": source.step, "fingerprint": lineage.fingerprint(params)}
        place = f"{source.path} now"
        if source.lora is not None and not source.same_adapters(recipe.lora):
            params = nnx.to_pure_dict(nnx.state(lora.merge(nnx.merge(graphdef, params))))
        arrays = {path: x for path, x in build.flatten(params).items() if path in taken}
    missing = [path for path in paths if path not in arrays]
    if missing:
        arrays |= parameters.create(recipe, spec.model_class(), config, missing, mesh=mesh, dtype=dtype)
    if base is None and frozen:
        of_frozen = build.unflatten({path: arrays[path] for path in frozen})
        base = {"source": None, "step": None, "fingerprint": lineage.fingerprint(of_frozen)}
    if recorded is not None:
        lineage.check_fingerprint(recorded, base["fingerprint"], place)
    return {path: arrays[path] for path in paths}, base


def run_checkpoints(run: Path, recipe: Recipe) -> Checkpoints:
    """Returns the checkpoints in a run directory, or in the store where it is the local side of a remote run."""
    local = run / "checkpoints"
    is_remote = recipe.remote_run_dir is not None and not local.exists()
    return Checkpoints(recipe.checkpoints_dir if is_remote else local)


def _place(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # A copy in any case: a view of a mapped file would change, or end, with the file.
    array = np.array(array, leaf.dtype, order="C")
    if leaf.sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
