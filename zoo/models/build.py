"""Parameters of a model class and a config: random or abstract, on a mesh or on one device.

They are plain nested dicts, `params["layers"][3]["attn"]["q"]["kernel"]`; files name them by their path,
"layers/3/attn/q/kernel".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zoo.layers.sharding import param_shardings
from zoo.models.config import ModelConfig
from zoo.tree import flatten, unflatten  # noqa: F401 - parameters are flattened by this module's name

Params = dict[Any, Any]


def abstract(model_cls: type[nnx.Module], config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the graphdef and the abstract parameters (shapes, dtypes and logical axes); nothing is computed."""
    module = nnx.eval_shape(lambda: model_cls(config, key=jax.random.key(0)))
    return nnx.split(module)


def abstract_params(
    model_cls: type[nnx.Module],
    config: ModelConfig,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[nnx.GraphDef, Params]:
    """Returns the graphdef and the parameters as `jax.ShapeDtypeStruct`s of `dtype`, sharded if a mesh is given.

    Raises UserError where the mesh does not divide an axis.
    """
    graphdef, state = abstract(model_cls, config)
    shapes = nnx.to_pure_dict(state)
    if mesh is None:
        return graphdef, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    shardings = param_shardings(state, mesh)
    return graphdef, jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding), shapes, shardings
    )


def create_params(
    model_cls: type[nnx.Module],
    config: ModelConfig,
    seed: int,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[nnx.GraphDef, Params]:
    """Returns the graphdef and random parameters of `dtype`, created already sharded over the mesh.

    Their key is the first of the two keys that the seed's key is split into; the second is for training.

    Raises UserError where the mesh does not divide an axis.
    """
    graphdef, state = abstract(model_cls, config)

    def make(key: jax.Array) -> Params:
        params = nnx.to_pure_dict(nnx.state(model_cls(config, key=jax.random.split(key)[0])))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    shardings = None if mesh is None else param_shardings(state, mesh)
    return graphdef, jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def cast_floats(tree: Params, dtype: DTypeLike) -> Params:
    """Returns `tree` with its floating arrays cast to `dtype`, except for scalars and adapters.

    Scalars of the residual stream act in float32: bfloat16 would cost them three digits. Adapters compute in float32.
    """

    def cast(path, x):
        stays = x.ndim == 0 or (len(path) > 1 and path[-2].key == "lora") or not jnp.issubdtype(x.dtype, jnp.floating)
        return x if stays else x.astype(dtype)

    return jax.tree.map_with_path(cast, tree)


def count_params(model_cls: type[nnx.Module], config: ModelConfig) -> int:
    """Returns the exact number of parameters, from shapes alone."""
    _, state = abstract(model_cls, config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(state)))
