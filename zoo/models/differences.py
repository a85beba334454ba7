"""Where two architectures differ: by the switches they name, by the fields of their configs, by what they cost.

A model takes part by its config's `switches()`: the name of a part of the architecture -> what it is here.
Without them its fields and costs are compared all the same.
"""

import dataclasses

from zoo.models.config import ModelConfig
from zoo.models.summary import Summary

# What a part is in a model that does not name it.
UNNAMED = {"embedding": "token table", "residual": "plain sum", "packed documents": "positions restart"}
NONE = "none"
NO_FIELD = "no such field"

# The switch that says what holds for a model without such a field.
SWITCH_OF_FIELD = {
    "num_kv_heads": "attention",
    "attention_bias": "biases",
    "attention_out_bias": "biases",
    "mlp_bias": "biases",
    "activation": "mlp",
    "rope_theta": "positions",
    "rope_ntk_factor": "positions",
    "embed_rope": "positions",
    "rope_dtype": "rope dtype",
    "window_pattern": "windows",
    "qk_norm": "qk norm",
    "qk_norm_scale": "qk norm",
    "value_embeddings": "value embeddings",
    "smear": "embedding",
    "vocab_pad_multiple": "embedding",
    "backout": "residual",
    "x0_blend": "residual",
    "residual_scalars": "residual",
    "final_norm": "final norm",
    "tie_embeddings": "head",
    "logit_softcap": "soft-cap",
    "dropout": "dropout",
    "restart_positions": "packed documents",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """What `name` is in the one model and in the other."""

    name: str
    left: str
    right: str


def differing_switches(left: ModelConfig, right: ModelConfig) -> list[Difference]:
    """The named parts of the architecture in which the two differ, in the order the left one names them."""
    ours, theirs = left.switches(), right.switches()
    if not ours or not theirs:
        return []
    return _unequal({name: (_part(name, ours), _part(name, theirs)) for name in [*ours, *theirs]})


def differing_fields(left: ModelConfig, right: ModelConfig) -> list[Difference]:
    """The config fields in which the two differ. Where one has no such field, its switch says what holds there."""
    names = [*left.to_dict(), *right.to_dict()]
    return _unequal({name: (_field(name, left), _field(name, right)) for name in names})


def differing_costs(left: Summary, right: Summary) -> list[Difference]:
    """Parameters (all, and by component), operations and cache bytes in which the two differ."""
    ours, theirs = _costs(left), _costs(right)
    names = sorted({**ours, **theirs}, key=lambda name: not name.startswith("parameters"))  # else as they come
    return _unequal({name: (ours.get(name, "0"), theirs.get(name, "0")) for name in names})


def _unequal(pairs: dict[str, tuple[str, str]]) -> list[Difference]:
    return [Difference(name, left, right) for name, (left, right) in pairs.items() if left != right]


def _part(name: str, switches: dict[str, str]) -> str:
    return switches.get(name, UNNAMED.get(name, NONE))


def _field(name: str, config: ModelConfig) -> str:
    fields = config.to_dict()
    if name in fields:
        return str(fields[name]) or "(empty)"
    switch, switches = SWITCH_OF_FIELD.get(name), config.switches()
    return f"{NO_FIELD} ({switch}: {_part(switch, switches)})" if switch and switches else NO_FIELD


def _costs(summary: Summary) -> dict[str, str]:
    costs = {"parameters": f"{summary.parameters:,}"}
    costs |= {f"parameters, {part.name}": f"{part.parameters:,}" for part in summary.components}
    costs["training FLOPs a token"] = f"{summary.flops_training / 1e6:,.1f}M in rows of {summary.seq_len:,}"
    for dtype, size in summary.cache.items():
        costs[f"cache bytes a token, {dtype}"] = f"{size.first_token:,}"
        costs[f"full cache bytes, {dtype}"] = f"{size.full:,}"
    return costs
