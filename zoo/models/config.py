"""The base of model configs: coerced numbers, checked values, JSON in and out. Loads no JAX."""

import dataclasses
import math
import typing
from typing import Any, ClassVar

from zoo.errors import UserError
from zoo.util import nearest


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base of the frozen config dataclasses.

    Fields are int, float, bool or str. Numbers are coerced ("1e-5", which YAML reads as text, becomes a float; 4.0 an
    int) and must be positive, those named in MAY_BE_ZERO positive or zero. Text fields named in CHOICES must have one
    of the values given there.
    """

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self):
        for name, kind in _field_types(type(self)).items():
            object.__setattr__(self, name, _coerce(name, getattr(self, name), kind))
        self.check()

    def check(self) -> None:
        """Raises UserError if a field has an impossible value. Subclasses extend it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                zero_is_fine = field.name in self.MAY_BE_ZERO and value == 0
                if not (0 < value < math.inf or zero_is_fine):
                    kind = "zero or positive" if field.name in self.MAY_BE_ZERO else "positive"
                    raise UserError(f"model.{field.name}: must be {kind} and finite, got {value}")
        for name, known in self.CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"model.{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def check_pairs(self) -> None:
        """Raises UserError unless a head's features form rotary pairs."""
        if self.head_dim % 2:
            raise UserError(f"model.head_dim: rotary pairs need an even number, got {self.head_dim}")

    def check_heads(self) -> None:
        """Raises UserError unless the number of kv heads divides that of query heads."""
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}; every kv head "
                "serves equally many query heads"
            )

    @property
    def generation_limit(self) -> int | None:
        """The most tokens of a row in generation, prompt and new ones together; by default max_seq_len.

        Where it is higher, generation warns beyond max_seq_len and refuses beyond the limit. None means no limit: the
        model then sees the last max_seq_len tokens alone, at positions from 0.
        """
        return self.max_seq_len

    @property
    def layers_alike(self) -> bool:
        """Whether blocks differ only in the values of their parameters, so that a step may scan over them."""
        return True

    def flops_per_token(self, seq_len: int) -> float:
        """Returns the floating-point operations of training for one token, in rows of `seq_len` tokens.

        Subclasses compute it by `training_flops`.
        """
        raise NotImplementedError

    def switches(self) -> dict[str, str]:
        """Returns the architecture in words, name of a part -> what it is, which `zoo diff` compares."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, JSON-serialisable."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Returns the config with these fields, the others at their defaults.

        Raises UserError for an unknown field or an impossible value.
        """
        types = _field_types(cls)
        for key in values:
            if key not in types:
                near = nearest(key, types)
                hint = f"did you mean {near!r}?" if near else f"known: {', '.join(types)}"
                raise UserError(f"model.{key}: {cls.__name__} has no such field; {hint}")
        return cls(**{key: _coerce(key, value, types[key]) for key, value in values.items()})


def training_flops(matmul_weights: int, attended: float) -> float:
    """Returns the floating-point operations of the forward and backward pass for one token.

    They are counted as in PaLM (Chowdhery et al., arXiv:2204.02311, appendix B), but only for keys that the mask shows.

    Args:
        matmul_weights: the number of weights in matrix products (blocks and head, no look-ups): 6 operations each.
        attended: the sum over layers of attention width (heads * head_dim) times the keys that a token sees on
            average (`mean_keys`): 12 operations each, for scores and for values.
    """
    return 6.0 * matmul_weights + 12.0 * attended


def mean_keys(seq_len: int, window: int | None = None) -> float:
    """Returns how many keys a token of a row of `seq_len` tokens sees on average under a causal mask.

    `window` is how many tokens before its own it sees; None means all.
    """
    if window is None or window >= seq_len - 1:
        return (seq_len + 1) / 2
    full = window + 1  # keys that a token far enough from the beginning sees
    return (full * (full + 1) / 2 + (seq_len - full) * full) / seq_len


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
