"""Low-rank adapters (LoRA: Hu et al., arXiv:2106.09685) in a model's projections.

`add_lora` puts them into any model made of `zoo.layers.linear.Linear`; neither the model's file nor the paths of its
own parameters change. Their parameters are `nnx.LoRAParam`s at "<projection>/lora/a" and "<projection>/lora/b".
"""

import fnmatch
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.layers.dropout import dropout as drop
from zoo.layers.embedding import Head
from zoo.layers.initializers import normal
from zoo.layers.linear import Linear
from zoo.layers.precision import matmul_precision

TARGETS = ("q", "k", "v", "o")

_dropout_key: ContextVar[Array | None] = ContextVar("zoo_lora_dropout_key", default=None)


class LoRA(nnx.Module):
    """An adapter that adds (dropout(x) . a . b) alpha / rank to a projection's output.

    Parameters: `a` [in_features, rank], normal with standard deviation 1/sqrt(in_features), and `b` [rank,
    out_features], zero, so that a new adapter changes nothing. It computes in float32 and returns the dtype of `x`.

    Args:
        kernel: the projection's kernel, which gives the shapes and the logical axes.
        dropout: the probability with which each number of x is set to zero, inside of `dropout_key`.
        salt: distinguishes this adapter's dropout from that of others.
    """

    def __init__(self, kernel: nnx.Param, *, rank: int, alpha: float, dropout: float = 0.0, salt: int = 0, key: Array):
        (in_axis, out_axis), (in_unit, out_unit) = kernel.get_metadata("axes"), kernel.get_metadata("units")
        in_features, out_features = kernel.shape
        draw = normal(in_features**-0.5)(key, (in_features, rank))
        self.a = nnx.LoRAParam(draw, axes=(in_axis, "lora_rank"), units=(in_unit, 1))
        self.b = nnx.LoRAParam(jnp.zeros((rank, out_features)), axes=("lora_rank", out_axis), units=(1, out_unit))
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        # Without dropout the adapters of all layers are alike, as a scan over layers wants them.
        self.salt = salt if dropout else 0

    @property
    def scale(self) -> float:
        """The factor alpha / rank."""
        return self.alpha / self.rank

    def delta(self) -> Float[Array, "in out"]:
        """Returns what the adapter adds to the kernel, float32."""
        a, b = self._factors()
        return jnp.matmul(a, b, precision=matmul_precision(jnp.float32)) * self.scale

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        precision = matmul_precision(jnp.float32)
        a, b = self._factors()
        wide = x.astype(jnp.float32)
        key = _dropout_key.get()
        if self.dropout and key is not None:
            wide = drop(wide, self.dropout, jax.random.fold_in(key, self.salt))
        low = jnp.matmul(wide, a, precision=precision)
        return (jnp.matmul(low, b, precision=precision) * self.scale).astype(x.dtype)

    def _factors(self):
        return self.a[...].astype(jnp.float32), self.b[...].astype(jnp.float32)


@contextmanager
def dropout_key(key: Array) -> Iterator[None]:
    """Turns on the dropout of adapters for models that are traced inside of it; outside nothing is dropped.

    An adapter's own key is this one folded with a hash of its path, so that masks depend on key and path alone.
    """
    token = _dropout_key.set(key)
    try:
        yield
    finally:
        _dropout_key.reset(token)


def add_lora(
    model: nnx.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = TARGETS,
    dropout: float = 0.0,
    key: Array,
) -> list[str]:
    """Puts new adapters into a model's projections and returns their paths in order ("layers/0/attn/q", ...).

    Args:
        targets: patterns (`*`, `?`, `[...]`) of a projection's name ("q", "*") or, with a slash, of its whole path
            ("layers/1?/mlp/*"). The head is no target: the loss reads its kernel directly.
        key: seeds the adapters; each one's values depend on its path, not on the other targets.

    Raises:
        UserError: a target that matches no projection.
    """
    linears = projections(model)
    chosen = {path for target in targets for path in _matching(target, linears)}
    paths = [path for path in linears if path in chosen]
    for path in paths:
        salt = zlib.crc32(path.encode())
        linear = linears[path]
        linear.lora = LoRA(
            linear.kernel, rank=rank, alpha=alpha, dropout=dropout, salt=salt, key=jax.random.fold_in(key, salt)
        )
    return paths


def projections(model: nnx.Module) -> dict[str, Linear]:
    """Returns the projections of a model that can have an adapter, by path."""
    return {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Linear) and not isinstance(module, Head)
    }


def adapters(model: nnx.Module) -> dict[str, LoRA]:
    """Returns the adapters of a model by the path of their projection."""
    return {path: linear.lora for path, linear in projections(model).items() if linear.lora is not None}


def merge(model: nnx.Module) -> nnx.Module:
    """Returns a copy of the model without adapters, each added to its kernel in float32 and cast to its dtype."""
    plain = nnx.clone(model)
    for linear in projections(plain).values():
        if linear.lora is not None:
            kernel = linear.kernel[...]
            linear.kernel[...] = (kernel.astype(jnp.float32) + linear.lora.delta()).astype(kernel.dtype)
            linear.lora = nnx.data(None)
    return plain


def _matching(target: str, linears: dict[str, Linear]) -> list[str]:
    def matches(path: str) -> bool:
        return fnmatch.fnmatchcase(path if "/" in target else path.rpartition("/")[2], target)

    paths = [path for path in linears if matches(path)]
    if not paths:
        names = ", ".join(dict.fromkeys(path.rpartition("/")[2] for path in linears))
        raise UserError(f"lora.targets: {target!r} matches no projection of this model; they are called {names}")
    return paths
