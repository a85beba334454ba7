"""What reading a published format gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """A published model in zoo's own terms.

    model_name: the registry name whose class fits. config: all fields of that model's config class.
    params: nested dict of NumPy float32 arrays, as the model class lays them out. tokenizer_path: the
    tokenizer file that lay beside the weights, or None. step: the training step, or None where the format
    does not say.
    """

    model_name: str
    config: dict[str, Any]
    params: dict[Any, Any]
    tokenizer_path: Path | None
    step: int | None
