"""`load` and `create`: language models from a name or a path, with trained or with random weights."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zoo import registry
from zoo.convert.base import storage_dtype
from zoo.errors import UserError
from zoo.language_model.model import LanguageModel
from zoo.models import build
from zoo.weights import resolve


def create(
    name: str,
    *,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **config_overrides: Any,
) -> LanguageModel:
    """Returns a registered model with random weights and no tokenizer: prompts must be token ids.

    Args:
        name: one of `zoo.list_models`.
        seed: of the random weights.
        dtype, compute_dtype, mesh: as in `load`.
        config_overrides: fields of the model's config.

    Raises:
        UserError: an unknown name or field, with the nearest known one.
    """
    spec = registry.describe(name)
    config = spec.make_config(**config_overrides)
    stored, compute_dtype = _dtypes(dtype, compute_dtype)
    graphdef, params = build.create_params(spec.model_class(), config, seed, mesh=mesh, dtype=stored)
    return LanguageModel(nnx.merge(graphdef, params), None, spec, config, compute_dtype=compute_dtype)


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> LanguageModel:
    """Loads trained weights with their tokenizer.

    Args:
        name_or_path: a run directory (its newest good checkpoint, runs/x@500 for that of step 500, runs/x@ema for the
            moving average of its weights; of a run of adapters, these on the weights it started from), a directory
            that `save` wrote, adapters in PEFT's format, published files or the directory they lie in
            (docs/checkpoints.md lists the formats), a registry name, or owner/repository on the hub. A path's files
            tell what it is; of a repository only the files needed are fetched, once.
        dtype: of the parameters: float32 (also None), bfloat16 or float16.
        compute_dtype: in which the model computes; None is `dtype`.
        mesh: where parameters are placed, each as soon as it is read; None is the default device.
        revision: branch, tag or commit on the hub.
        config_overrides: config fields to change, such as rope_dtype; shapes must stay.

    Raises:
        UserError: nothing there, nothing that zoo reads, or files that do not fit together or are damaged.
    """
    stored, compute_dtype = _dtypes(dtype, compute_dtype)
    weights = resolve.find(name_or_path, revision=revision, overrides=config_overrides)
    tokenizer = weights.tokenizer()
    graphdef, params = weights.read(dtype=stored, mesh=mesh)
    if jnp.float16 in (stored, compute_dtype):
        _check_range(params)
    module = nnx.merge(graphdef, params)
    return LanguageModel(module, tokenizer, weights.spec, weights.config, compute_dtype=compute_dtype, origin=weights)


def _check_range(params: build.Params) -> None:
    """Raises UserError, naming a parameter, where float16 would make numbers of it infinite."""
    for path, leaf in build.flatten(params).items():
        if not bool(jnp.isfinite(leaf.astype(jnp.float16)).all()):
            raise UserError(f"{path} holds numbers beyond 65,504, where float16 ends; take bfloat16 or float32")


def _dtypes(dtype: DTypeLike | None, compute_dtype: DTypeLike | None) -> tuple[DTypeLike, DTypeLike | None]:
    """Returns the dtype of the parameters, and that in which the model computes (None: the same)."""
    stored = jnp.float32 if dtype is None else storage_dtype(dtype)
    return stored, None if compute_dtype is None else storage_dtype(compute_dtype, "compute_dtype")
