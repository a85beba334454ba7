"""From a name or a path to weights: found and understood first (`find`), then laid where they belong (`read`).

A name is one of the registry or of the hub; a path is a run directory, a portable directory or a published
format, which its files tell.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import convert, hub, registry, tokenizers
from zoo.checkpoints import Checkpoints
from zoo.convert.base import Published
from zoo.convert.portable import CONFIG_FILE, TOKENIZER_DIR
from zoo.errors import UserError
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import load_recipe
from zoo.util import nearest

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer

RECIPE_FILE = "recipe.yaml"


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
    files, None for a run directory.
    """

    kind: str
    path: Path
    spec: registry.ModelSpec
    config: ModelConfig
    step: int | None
    tokenizer_path: Path | None
    published: Published | None

    def tensors(self) -> list[StoredTensor]:
        """What is stored, in the order of the files."""
        if self.published is not None:
            return [StoredTensor(name, item.shape, item.dtype) for name, item in self.published.tensors.items()]
        return [
            StoredTensor(name, tuple(shape), jnp.dtype(dtype))
            for name, (shape, dtype) in _leaves(self.path, self.step).items()
        ]

    def problems(self) -> list[str]:
        """What keeps them from being loaded; [] is well."""
        if self.published is not None:
            return self.published.problems()
        stored = {tensor.name: tensor.shape for tensor in self.tensors()}
        _, abstract = build.abstract_params(self.spec.model_class(), self.config)
        wanted = {name: tuple(leaf.shape) for name, leaf in build.flatten(abstract).items()}
        return [
            f"{name} is {stored.get(name, 'missing')} there, but {wanted.get(name, 'no parameter')} in the model"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]

    def tokenizer(self) -> "Tokenizer | None":
        """The tokenizer that lies with them, None where there is none."""
        return None if self.tokenizer_path is None else tokenizers.load(self.tokenizer_path)

    def read(self, *, dtype: DTypeLike, mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.GraphDef, build.Params]:
        """The model's structure and its parameters, of that dtype and laid on the mesh.

        One tensor after the other is read, cast and placed, so that the host never holds much more than the
        parameters. UserError for what does not fit or is damaged.
        """
        graphdef, abstract = build.abstract_params(self.spec.model_class(), self.config, mesh=mesh, dtype=dtype)
        if self.published is None:
            found = Checkpoints(self.path / "checkpoints").restore_params(abstract)
            if found is None:
                raise UserError(f"{self.path} has no checkpoint yet; go on training it with zoo-train")
            return graphdef, found.params
        leaves = build.flatten(abstract)
        flat = {path: _place(array, leaves[path]) for path, array in self.published.arrays()}
        return graphdef, build.unflatten({path: flat[path] for path in leaves})


def find(
    name_or_path: str | os.PathLike, *, revision: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Weights:
    """The weights that a name or a path stands for; see `zoo.load`. No array is read."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise UserError(f"revision: {name_or_path} is a path; revisions are of names on the hub")
        return _find_path(path, overrides or {})
    name = str(name_or_path)
    if name in registry.list_models():
        return _find_published(registry.describe(name), revision, overrides or {})
    if hub.is_hub_name(name):
        what = f"{name}: is no path here, and on the hub it is {hub.PREFIX}{name}"
        return _find_snapshot(hub.fetch(name, revision, what=what), name, overrides or {})
    near = nearest(name, registry.list_models())
    hint = f"did you mean {near!r}?" if near else f"models are: {', '.join(registry.list_models())}"
    raise UserError(f"{name}: no such file or directory, and no model of that name; {hint}")


def _find_path(path: Path, overrides: Mapping[str, Any]) -> Weights:
    if (path / RECIPE_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        return _find_run(path, overrides)
    if convert.detect_format(path) is None:
        raise UserError(
            f"{path} is no run directory ({RECIPE_FILE}), no portable one ({CONFIG_FILE}) and in no published "
            f"format that zoo reads ({', '.join(convert.FORMATS)})"
        )
    published = convert.examine(path)
    if overrides:
        published = published.with_config(overrides)
    spec = registry.describe(published.model_name)
    return Weights(
        kind=published.kind,
        path=path,
        spec=spec,
        config=spec.config_class().from_dict(published.config),
        step=published.step,
        tokenizer_path=published.tokenizer_path,
        published=published,
    )


def _find_run(path: Path, overrides: Mapping[str, Any]) -> Weights:
    section = load_recipe(path / RECIPE_FILE, check_files=False).model
    spec, config = registry.describe(section.name), section.make_config()
    if overrides:
        config = type(config).from_dict({**config.to_dict(), **overrides})
    return Weights(
        kind="zoo run directory",
        path=path,
        spec=spec,
        config=config,
        step=Checkpoints(path / "checkpoints").latest(),
        tokenizer_path=path / TOKENIZER_DIR,
        published=None,
    )


def _find_published(spec: registry.ModelSpec, revision: str | None, overrides: Mapping[str, Any]) -> Weights:
    wanted = f"{spec.name}: its weights are in {spec.source} (files: {spec.facts.get('files', registry.NOT_STATED)})"
    repo, random = hub.repository(spec), f"zoo.create({spec.name!r}) has random weights"
    if repo is None:
        raise UserError(f"{spec.name}: zoo knows of no published weights; train it with zoo-train; {random}")
    try:
        directory = hub.fetch(repo, revision, what=wanted)
    except UserError as error:
        raise UserError(f"{error}, or take {random}") from None
    return _find_snapshot(directory, repo, overrides)


def _find_snapshot(directory: Path, repo: str, overrides: Mapping[str, Any]) -> Weights:
    found = _find_path(directory, overrides)
    return found if found.tokenizer_path else replace(found, tokenizer_path=hub.fetch_tokenizer(repo))


def _leaves(run: Path, step: int | None) -> dict[str, Any]:
    """{path: [shape, dtype]} of the model in a checkpoint, from its description alone."""
    if step is None:
        raise UserError(f"{run} has no checkpoint yet; go on training it with zoo-train")
    file = run / "checkpoints" / str(step) / "meta" / "data.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))["content"]["leaves"]["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error!r}); the checkpoint is damaged") from None


def _place(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # A copy in any case: a view of a mapped file would change, or end, with the file.
    array = np.array(array, leaf.dtype, order="C")
    if leaf.sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
