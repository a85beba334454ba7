"""The strict base class of a recipe's sections, and the kinds of numbers in them."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe. It refuses unknown keys, wrong types and infinite numbers, and it is immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def changed(self, fields: Iterable[str]) -> list[str]:
        """Returns those of the named fields whose values are not their defaults, in the order given."""
        known = type(self).model_fields
        return [name for name in fields if getattr(self, name) != known[name].get_default(call_default_factory=True)]
