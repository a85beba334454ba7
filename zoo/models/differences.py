"""The differences of two architectures: in their named parts, in their configs' fields, in their costs.

The named parts are those of `ModelConfig.switches`. A model without them is compared by fields and costs.
"""

import dataclasses

from zoo.models.config import ModelConfig
from zoo.models.summary import Summary

# The value of a part in a model that does not name it.
UNNAMED = {"embedding": "token table", "residual": "plain sum", "packed documents": "positions restart"}
NONE = "none"
NO_FIELD = "no such field"

# The named part that says what holds for a model without such a field.
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
    """The values that a part, field or cost called `name` has in two models."""

    name: str
    left: str
    right: str


def differing_switches(left: ModelConfig, right: ModelConfig) -> list[Difference]:
    """Returns the named parts of the architecture in which two models differ, in the order of the left one."""
    lefts, rights = left.switches(), right.switches()
    if not lefts or not rights:
        return []
    return _unequal({name: (_part(name, lefts), _part(name, rights)) for name in [*lefts, *rights]})


def differing_fields(left: ModelConfig, right: ModelConfig) -> list[Difference]:
    """Returns the config fields in which two models differ; for a missing field, the named part that stands for it."""
    names = [*left.to_dict(), *right.to_dict()]
    return _unequal({name: (_field(name, left), _field(name, right)) for name in names})


def differing_costs(left: Summary, right: Summary) -> list[Difference]:
    """Returns the counts in which two models differ: parameters (all, by component), operations and cache bytes."""
    lefts, rights = _costs(left), _costs(right)
    names = sorted({**lefts, **rights}, key=lambda name: not name.startswith("parameters"))  # a stable sort
    return _unequal({name: (lefts.get(name, "0"), rights.get(name, "0")) for name in names})


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
