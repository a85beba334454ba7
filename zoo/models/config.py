"""What every model's config shares: coerced numbers, checked values, JSON in and out."""

import dataclasses
import math
import typing
from typing import Any

from zoo.errors import UserError
from zoo.util import nearest


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the frozen config dataclasses.

    Fields are int, float, bool or str. Numbers are coerced ("1e-5", which YAML reads as text, becomes a
    float; 4.0 an int) and integers and floats must be positive, unless `check` of the class says otherwise.
    """

    def __post_init__(self):
        for name, kind in _field_types(type(self)).items():
            object.__setattr__(self, name, _coerce(name, getattr(self, name), kind))
        self.check()

    def check(self) -> None:
        """Raise UserError where a field has an impossible value. Classes extend it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < math.inf:
                raise UserError(f"model.{field.name}: must be positive and finite, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-serialisable."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The config with these fields, the rest at their defaults; unknown names raise UserError."""
        types = _field_types(cls)
        for key in values:
            if key not in types:
                near = nearest(key, types)
                hint = f"did you mean {near!r}?" if near else f"known: {', '.join(types)}"
                raise UserError(f"model.{key}: {cls.__name__} has no such field; {hint}")
        return cls(**{key: _coerce(key, value, types[key]) for key, value in values.items()})


def _field_types(cls: type) -> dict[str, type]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _coerce(name: str, value: Any, kind: type) -> Any:
    if kind in (bool, str):
        ok = isinstance(value, kind)
    else:
        ok = not isinstance(value, bool)
        try:
            number = float(value) if ok else 0.0
            ok = ok and (kind is float or number.is_integer())
            value = kind(number) if ok else value
        except (TypeError, ValueError, OverflowError):
            ok = False
    if not ok:
        raise UserError(f"model.{name}: expected {kind.__name__}, got {value!r}")
    return value
