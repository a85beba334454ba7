"""A model that stores its parameters in one dtype and computes in another."""

from typing import Any

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from zoo.models.build import cast_floats


class Casting(nnx.Module):
    """A model whose parameters are cast to `compute_dtype` at the beginning of every call, except scalars and adapters.

    It keeps the contract of `zoo.models.decoder.Decoder`. The casts are part of the compiled call: the stored
    parameters do not change, and gradients reach them.
    """

    def __init__(self, inner: nnx.Module, compute_dtype: DTypeLike):
        self.inner, self.compute_dtype = inner, compute_dtype

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.inner.config

    @property
    def dtype(self) -> DTypeLike:
        """The dtype in which calls compute."""
        return self.compute_dtype

    def hidden(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the hidden states and the cache, as `Decoder.hidden` does."""
        return self._cast().hidden(*args, **kwargs)

    def head(self) -> Any:
        """Returns kernel, bias and soft-cap, as `Decoder.head` does."""
        return self._cast().head()

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns the float32 logits of hidden states."""
        return self._cast().unembed(hidden)

    def init_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Returns an empty cache, as `Decoder.init_cache` does."""
        return self.inner.init_cache(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Array, "B T V"]:
        """Returns the float32 logits of every position."""
        return self._cast()(*args, **kwargs)

    def _cast(self) -> nnx.Module:
        graphdef, params = nnx.split(self.inner)
        return nnx.merge(graphdef, cast_floats(nnx.to_pure_dict(params), self.compute_dtype))
