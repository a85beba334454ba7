"""A longer context than a model was trained on, by config alone: `ntk:2` and the like."""

import math
from typing import Any

from zoo.errors import UserError
from zoo.models.config import ModelConfig


def overrides(config: ModelConfig, scaling: str) -> dict[str, Any]:
    """Returns the config fields that stretch a model's context.

    Args:
        config: a config with a field `rope_ntk_factor` (that of Llama; see `zoo.layers.rotary.ntk_theta`).
        scaling: "ntk:FACTOR"; max_seq_len is multiplied by FACTOR too.

    Raises:
        UserError: another spelling, or a model that cannot be stretched.
    """
    kind, _, number = scaling.partition(":")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if kind != "ntk" or not 1 <= factor < math.inf:
        raise UserError(f"rope scaling is {scaling!r}; write ntk: and a factor of at least 1, such as ntk:2")
    if not hasattr(config, "rope_ntk_factor"):
        raise UserError(f"rope scaling: {type(config).__name__} has no rope_ntk_factor; it is for Llama models")
    return {
        "rope_ntk_factor": config.rope_ntk_factor * factor,
        "max_seq_len": int(config.max_seq_len * factor),
    }
