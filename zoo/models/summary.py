"""The parts and costs of a model, from shapes alone: parameters by component, operations, cache.

No model is named here: components come from the names in the parameters' paths, operations from the shapes of kernels
and the config's own count, the cache from the model's `init_cache`.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.models import build
from zoo.models.config import ModelConfig

CACHE_DTYPES = ("bfloat16", "float32")
OVER_KEYS = "attention over the keys"
HEAD = "head"

# The names of modules in a table, in its order. Others have their own name and stand before the head.
_LABELS = {
    "embed": "embedding",
    "position": "positions",
    "value_embed": "value embeddings",
    "smear": "smear",
    "blend": "residual scalars",
    "norm": "norms",
    "attn": "attention",
    "mlp": "mlp",
    "backout": "backout",
}


@dataclass(frozen=True)
class Tensors:
    """Parameters of one shape and one path, in which * stands for the layer; `count` is the number of layers."""

    path: str
    shape: tuple[int, ...]
    count: int

    @property
    def parameters(self) -> int:
        """The number of scalars in all of them."""
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class Component:
    """A part of the model; `flops` are the operations of its matrix products in the forward pass of one token."""

    name: str
    tensors: tuple[Tensors, ...]
    flops: float

    @property
    def parameters(self) -> int:
        """The number of scalars in all its tensors."""
        return sum(tensors.parameters for tensors in self.tensors)


@dataclass(frozen=True)
class CacheSize:
    """Bytes of one row's cache. (One CPU keeps a bfloat16 cache in float32, see `zoo.layers.cpu.cache_dtype`.)

    Attributes:
        first_token: the bytes that a row's second token adds.
        last_token: the bytes that the last token of the context adds: fewer where some layers have a window.
        full: the bytes of a row as long as the context.
    """

    first_token: int
    last_token: int
    full: int


@dataclass(frozen=True)
class Summary:
    """A model's parameters and costs. FLOPs are of one token in rows of `seq_len` tokens; `cache` is by dtype."""

    parameters: int
    components: tuple[Component, ...]
    seq_len: int
    flops_forward: float
    flops_training: float
    cache: dict[str, CacheSize]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it, JSON-serialisable."""
        return {
            "parameters": self.parameters,
            "components": [
                {
                    "name": part.name,
                    "parameters": part.parameters,
                    "share": part.parameters / self.parameters,
                    "forward_flops_per_token": part.flops,
                    "tensors": [
                        {
                            "path": tensors.path,
                            "shape": list(tensors.shape),
                            "count": tensors.count,
                            "parameters": tensors.parameters,
                        }
                        for tensors in part.tensors
                    ],
                }
                for part in self.components
            ],
            "seq_len": self.seq_len,
            "flops_per_token": {"forward": self.flops_forward, "training": self.flops_training},
            "cache_bytes": {
                dtype: {
                    "per_token": size.first_token,
                    "per_token_at_full_context": size.last_token,
                    "full_context": size.full,
                }
                for dtype, size in self.cache.items()
            },
        }


def summarize(model_cls: type[nnx.Module], config: ModelConfig) -> Summary:
    """Returns the parameters, operations and cache of a model; nothing is computed or allocated.

    FLOPs are `config.flops_per_token` (forward and backward, rows of max_seq_len tokens), of which the forward pass is
    a third: 2 of 6 for each weight of a matrix product. What exceeds the kernels and the head is the attention of
    queries over keys. Table look-ups cost none.
    """
    graphdef, params = build.abstract_params(model_cls, config)
    head_shape = jax.eval_shape(lambda params: nnx.merge(graphdef, params).head()[0], params).shape
    groups = _grouped(build.flatten(params), head_shape)
    flops = {name: 2.0 * sum(map(_matrix_weights, tensors)) for name, tensors in groups.items()}
    flops[HEAD] = 2.0 * math.prod(head_shape)
    components = [Component(name, tuple(groups[name]), flops[name]) for name in sorted(groups, key=_rank)]
    training = config.flops_per_token(config.max_seq_len)
    over_keys = training / 3 - sum(flops.values())
    return Summary(
        parameters=sum(part.parameters for part in components),
        components=(*components, Component(OVER_KEYS, (), over_keys)),
        seq_len=config.max_seq_len,
        flops_forward=training / 3,
        flops_training=training,
        cache=_cache_sizes(graphdef, params, config.max_seq_len),
    )


def _cache_sizes(graphdef: nnx.GraphDef, params: build.Params, context: int) -> dict[str, CacheSize]:
    """The cache's sizes by dtype; {} for a model without a cache."""
    lengths = (1, 2, context - 1, context)

    def caches(params: build.Params) -> list[list[Any]]:
        module = nnx.merge(graphdef, params)
        return [jax.tree.leaves(module.init_cache(1, n, jnp.float32)) for n in lengths]

    try:
        abstract = jax.eval_shape(caches, params)
    except NotImplementedError:
        return {}
    sizes = {}
    for dtype in CACHE_DTYPES:
        one, two, before, full = (_num_bytes(leaves, jnp.dtype(dtype)) for leaves in abstract)
        sizes[dtype] = CacheSize(two - one, full - before, full)
    return sizes


def _num_bytes(leaves: list[jax.ShapeDtypeStruct], dtype: jnp.dtype) -> int:
    """The bytes of a cache whose floating-point leaves are of `dtype`."""
    of_floats = dtype.itemsize
    return sum(
        leaf.size * (of_floats if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype.itemsize) for leaf in leaves
    )


def _grouped(flat: dict[str, Any], head_shape: tuple[int, ...]) -> dict[str, list[Tensors]]:
    """Component -> its tensors; those of all layers with the same path and shape are one entry."""
    counts: dict[tuple[str, str, tuple[int, ...]], int] = {}
    for path, leaf in flat.items():
        parts = ["*" if part.isdigit() else part for part in path.split("/")]
        inner = parts[parts.index("*") + 1 :] if "*" in parts else parts
        is_head = inner is parts and parts[-1] == "kernel" and leaf.shape == head_shape
        key = (HEAD if is_head else _component(inner[0]), "/".join(parts), leaf.shape)
        counts[key] = counts.get(key, 0) + 1
    groups: dict[str, list[Tensors]] = {HEAD: []}
    for (name, path, shape), count in counts.items():
        groups.setdefault(name, []).append(Tensors(path, shape, count))
    return groups


def _component(module: str) -> str:
    if module == "lm_head":  # its bias, too, and a kernel padded beyond the logits
        return HEAD
    return _LABELS["norm"] if "norm" in module else _LABELS.get(module, module.replace("_", " "))


def _rank(component: str) -> int:
    order = list(_LABELS.values())
    return order.index(component) if component in order else len(order) + (component == HEAD)


def _matrix_weights(tensors: Tensors) -> int:
    """The number of weights that a token is multiplied with."""
    return tensors.parameters if tensors.path.endswith("kernel") and len(tensors.shape) == 2 else 0
