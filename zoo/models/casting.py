"""A model that stores its parameters in one dtype and computes in another."""

from typing import Any

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.models.build import cast_floats


class Casting(nnx.Module):
    """`inner` with its parameters cast to `compute_dtype` at the beginning of every call, but for scalars and adapters.

    It keeps the contract of a model, so whatever calls one can call this. The casts are part of the compiled
    call: the parameters themselves stay as they are, and a gradient would reach them.
    """

    def __init__(self, inner: nnx.Module, compute_dtype: DTypeLike):
        self.inner, self.compute_dtype = inner, compute_dtype

    @property
    def config(self) -> Any:
        """That of the model."""
        return self.inner.config

    @property
    def dtype(self) -> DTypeLike:
        """In which calls compute."""
        return self.compute_dtype

    def hidden(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self._cast().hidden(*args, **kwargs)

    def head(self) -> Any:
        """As the model's."""
        return self._cast().head()

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """As the model's."""
        return self._cast().unembed(hidden)

    def init_cache(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self.inner.init_cache(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Array, "B T V"]:
        """As the model's."""
        return self._cast()(*args, **kwargs)

    def _cast(self) -> nnx.Module:
        graphdef, params = nnx.split(self.inner)
        return nnx.merge(graphdef, cast_floats(nnx.to_pure_dict(params), self.compute_dtype))
