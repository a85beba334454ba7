"""Reading pickles of NumPy arrays without trusting them.

A pickle can name any callable and have it called. Here only what arrays and plain containers need can be
named; anything else is refused before it is imported.
"""

import io
import pickle
from typing import Any

import numpy as np

from zoo.errors import UserError

# NumPy 1 wrote "numpy.core", NumPy 2 writes "numpy._core".
_MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")
_NUMERIC = ("numpy._core.numeric", "numpy.core.numeric")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name == "dtype":
            return np.dtype
        if module == "numpy" and name == "ndarray":
            return _ARRAY  # only ever the first argument of _reconstruct; calling it could claim any memory
        if module in _MULTIARRAY and name == "_reconstruct":
            return _empty_array
        if module in _MULTIARRAY and name == "scalar":
            return np._core.multiarray.scalar
        if module in _NUMERIC and name == "_frombuffer":  # how pickle protocol 5 stores an array

            def from_buffer(buffer, dtype, shape, order):
                return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)

            return from_buffer
        raise _RefusedError(f"{module}.{name}")


_ARRAY = object()


def _empty_array(kind: Any, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What every pickled array begins as; its shape and data come with its state."""
    if kind is not _ARRAY or shape != (0,):
        raise _RefusedError(f"an array of shape {shape} without data")
    return np.ndarray((0,), code)


class _RefusedError(Exception):
    pass


def loads(data: bytes, source: str) -> Any:
    """Unpickle `data`, which may hold NumPy arrays and scalars, dicts, lists, tuples, numbers and text.

    UserError, naming `source`, for a damaged pickle and for one that asks for any other object; nothing the
    pickle names has then been imported or called.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except _RefusedError as refused:
        raise UserError(
            f"{source}: refused: the pickle asks for {refused}, which weights do not need and which could "
            "run code; get the file from a source you trust"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200]  # some are of several lines
        raise UserError(f"{source}: not a readable pickle: {type(error).__name__}: {reason}") from error
