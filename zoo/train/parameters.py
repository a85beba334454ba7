"""Which parameters of a recipe's model are trained and which are frozen, and how both are created.

Without `lora:` and `train.trainable` all are trained. `lora:` trains its adapters alone, `train.trainable` those of the
model's own parameters that its patterns match, and both together train both. Names are paths, "layers/3/attn/q/kernel".
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from zoo.errors import UserError
from zoo.layers import lora
from zoo.layers.sharding import param_shardings
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import Recipe
from zoo.recipe.patterns import matching
from zoo.recipe.training import LoraSection

Tree = Any
ADAPTER_DTYPE = jnp.float32  # of adapters, whatever the model's own parameters are stored in


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model with its adapters, abstract.

    Attributes:
        graphdef: the model's definition.
        trained: nested dict of ShapeDtypeStructs.
        frozen: likewise; with `trained` it has every parameter of `graphdef` once, and may be {}.
    """

    graphdef: nnx.GraphDef
    trained: Tree
    frozen: Tree


def abstract(
    recipe: Recipe, model_cls: type[nnx.Module], config: ModelConfig, *, mesh: Mesh | None = None, dtype: DTypeLike
) -> Parameters:
    """Returns the parameters that a recipe trains and those that it freezes; nothing is computed.

    Args:
        recipe: its `lora` and `train.trainable` decide.
        model_cls: the model's class.
        config: of the model; the recipe's own or one of the same shapes.
        mesh: if given, the leaves have their shardings on it.
        dtype: of the model's own parameters.

    Raises:
        UserError: a pattern of lora.targets or train.trainable matches nothing, or the mesh does not divide an axis.
    """
    graphdef, flat = adapted(recipe.lora, model_cls, config, mesh=mesh, dtype=dtype)
    chosen = _chosen(recipe, flat)
    trained, frozen = split(flat, lambda path: path in chosen)
    return Parameters(graphdef, build.unflatten(trained), build.unflatten(frozen))


def adapted(
    section: LoraSection | None,
    model_cls: type[nnx.Module],
    config: ModelConfig,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike,
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the definition of a model with adapters, and all of its parameters by path as ShapeDtypeStructs.

    `dtype` is that of the model's own parameters; adapters have ADAPTER_DTYPE. `section` None adds no adapters.

    Raises:
        UserError: as `abstract`.
    """
    if section is None:
        graphdef, params = build.abstract_params(model_cls, config, mesh=mesh, dtype=dtype)
        return graphdef, build.flatten(params)

    def make() -> nnx.Module:
        key = jax.random.key(0)
        return _with_adapters(model_cls(config, key=key), section, key)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    placed = None if mesh is None else build.flatten(param_shardings(state, mesh))
    flat = {}
    for path, leaf in build.flatten(nnx.to_pure_dict(state)).items():
        kind = ADAPTER_DTYPE if is_adapter(path) else dtype
        sharding = None if placed is None else placed[path]
        flat[path] = jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)
    return graphdef, flat


def create(
    recipe: Recipe,
    model_cls: type[nnx.Module],
    config: ModelConfig,
    wanted: Iterable[str],
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike,
) -> dict[str, jax.Array]:
    """Returns new parameters of the paths `wanted`, from the recipe's seed, sharded over the mesh.

    The model's own parameters are those of `build.create_params`, whether there are adapters or not.
    """
    wanted = set(wanted)
    created: dict[str, jax.Array] = {}
    if any(not is_adapter(path) for path in wanted):
        _, params = build.create_params(model_cls, config, recipe.train.seed, mesh=mesh, dtype=dtype)
        created |= {path: leaf for path, leaf in build.flatten(params).items() if path in wanted}
    adapters = sorted(path for path in wanted if is_adapter(path))
    if adapters:
        _, flat = adapted(recipe.lora, model_cls, config, mesh=mesh, dtype=dtype)
        shardings = None if mesh is None else {path: flat[path].sharding for path in adapters}

        def make(key: jax.Array) -> dict[str, jax.Array]:
            # The model around them is only traced; none of its parameters is computed.
            model = _with_adapters(model_cls(config, key=key), recipe.lora, key)
            params = build.flatten(nnx.to_pure_dict(nnx.state(model)))
            return {path: params[path].astype(ADAPTER_DTYPE) for path in adapters}

        # The first half of the seed's key is the model's own: see `build.create_params`.
        rest = jax.random.split(jax.random.key(recipe.train.seed))[1]
        key = jax.random.fold_in(rest, zlib.crc32(b"lora"))
        created |= jax.jit(make, out_shardings=shardings)(key)
    return created


def split(flat: dict[str, Any], chosen: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the leaves of the paths that are `chosen`, and the others."""
    return (
        {path: leaf for path, leaf in flat.items() if chosen(path)},
        {path: leaf for path, leaf in flat.items() if not chosen(path)},
    )


def is_adapter(path: str) -> bool:
    """Returns whether the parameter of a path belongs to an adapter."""
    return path.split("/")[-2:-1] == ["lora"]


def _chosen(recipe: Recipe, flat: dict[str, Any]) -> set[str]:
    """Returns the paths of the trained parameters."""
    patterns = recipe.train.trainable
    if patterns is None:
        return {path for path in flat if recipe.lora is None or is_adapter(path)}
    own = [path for path in flat if not is_adapter(path)]
    matched = matching(patterns, own)
    for pattern, paths in matched.items():
        if not paths:
            raise UserError(
                f"train.trainable: {pattern!r} matches no parameter of {recipe.model.name}; they are called like "
                f"{own[0]} and {own[-1]}"
            )
    return {path for paths in matched.values() for path in paths} | {path for path in flat if is_adapter(path)}


def _with_adapters(model: nnx.Module, section: LoraSection, key: jax.Array) -> nnx.Module:
    lora.add_lora(
        model, rank=section.rank, alpha=section.alpha, targets=section.targets, dropout=section.dropout, key=key
    )
    return model
