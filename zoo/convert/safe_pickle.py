"""Reading pickles of NumPy arrays without trusting them.

A pickle can name any callable and have it called. Here only what arrays and plain containers need can be
named; anything else is refused before it is imported.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from zoo.errors import UserError

# NumPy 1 wrote "numpy.core", NumPy 2 writes "numpy._core".
_MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")
_NUMERIC = ("numpy._core.numeric", "numpy.core.numeric")

MOST_OPERATIONS = 1_000_000  # an array has about 25; looking through so many takes a second or two


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name == "dtype":
            return _Dtype
        if module == "numpy" and name == "ndarray":
            return _ARRAY  # only ever the first argument of _reconstruct; calling it could claim any memory
        if module in _MULTIARRAY and name == "_reconstruct":
            return _empty_array
        if module in _MULTIARRAY and name == "scalar":
            return _scalar
        if module in _NUMERIC and name == "_frombuffer":  # how pickle protocol 5 stores an array
            return _from_buffer
        raise _RefusedError(f"{module}.{name}")


_ARRAY = object()


class _Dtype:
    """Stands for a dtype: NumPy's own takes any flags from a pickle, and with those of objects reads past the data."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(code) if isinstance(code, str) else np.dtype("V")
        if self.dtype.kind not in "biufc":
            raise _RefusedError(f"an array of {str(code)[:40]!r}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that takes plain numbers alone from a pickle."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, by_columns, data = state
        if not isinstance(data, bytes):
            raise _RefusedError("an array of objects")
        super().__setstate__((version, shape, dtype.dtype, by_columns, data))


def _empty_array(kind: Any, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Returns what every pickled array begins as; its shape and data come with its state."""
    if kind is not _ARRAY or shape != (0,):
        raise _RefusedError(f"an array of shape {shape} without data")
    return _Array((0,), "b")


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.dtype)[0]


def _from_buffer(buffer: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)


class _RefusedError(Exception):
    pass


def _check_operations(data: bytes) -> None:
    """Raises ValueError for what would cost far more than the length of the file.

    The unpickler makes room for as many remembered objects, and for as long a text, as a number in the file says.
    """
    for count, (operation, value, _) in enumerate(pickletools.genops(data)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and value > len(data):
            raise ValueError(f"{len(data):,} bytes that claim to remember {value:,} objects")
        if count > MOST_OPERATIONS:
            raise ValueError(f"more than {MOST_OPERATIONS:,} operations, which no file of weights has")


def loads(data: bytes, source: str) -> Any:
    """Unpickles `data`, which may hold NumPy arrays and scalars, dicts, lists, tuples, numbers and text.

    Raises UserError, naming `source`, for a damaged pickle and for one that asks for any other object; nothing the
    pickle names has then been imported or called.
    """
    try:
        _check_operations(data)
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except _RefusedError as refused:
        raise UserError(
            f"{source}: refused: the pickle asks for {refused}, which weights do not need and which could "
            "run code; get the file from a source you trust"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200]  # some are of several lines
        raise UserError(f"{source}: not a readable pickle: {type(error).__name__}: {reason}") from error
