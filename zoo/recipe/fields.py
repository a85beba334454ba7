"""The strict base class of a recipe's sections, and the kinds of numbers in them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe. It refuses unknown keys, wrong types and infinite numbers, and it is immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def default(section: type[Section], field: str) -> Any:
    """Returns the value that a section's field has when the recipe does not give it."""
    return section.model_fields[field].get_default(call_default_factory=True)
