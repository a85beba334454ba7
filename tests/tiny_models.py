"""All models at sizes that compile and run at once, for the tests that hold for every model."""

from typing import Any

from zoo import registry

# name: (registry name, config). What is special of each is in play: ratios of heads, odd and even depths, windows
# shorter than the rows, tied heads and others, vocabularies that need padding.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "cronica": ("cronica-5m", dict(vocab_size=40, num_layers=2, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24)),
    "llama": (
        "kodalite-1.3b",
        dict(vocab_size=40, num_layers=2, embed_dim=24, num_heads=6, num_kv_heads=2, head_dim=4, mlp_dim=32),
    ),
    "gelu": (
        "gelu-d12",
        dict(vocab_size=40, num_layers=3, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=32)
        | dict(max_seq_len=5, window_pattern="L", vocab_pad_multiple=16),
    ),
    "nanochat": (
        "nanochat-d12",
        dict(vocab_size=32, num_layers=4, embed_dim=24, num_heads=3, num_kv_heads=3, head_dim=8, mlp_dim=32)
        | dict(max_seq_len=7, vocab_pad_multiple=16),
    ),
    "bwetaf": (
        "bwetaf-97m",
        dict(vocab_size=40, num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=16)
        | dict(rope_dtype="float32", init_std=0.2, embed_init_std=0.3, restart_positions=True),
    ),
    "tiny": ("tiny-lm", dict(vocab_size=40, num_layers=2, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32)),
}


def fast_for(*names: str) -> list[Any]:
    """All models as parameters of a test, those but `names` marked slow."""
    import pytest

    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


def tiny(name: str, seed: int = 0, **overrides: Any):
    """(graphdef, params, config) of a tiny model, with nothing left at zero."""
    import jax
    import jax.numpy as jnp

    from zoo.models import build

    registered, values = TINY[name]
    spec = registry.describe(registered)
    config = spec.make_config(**{**values, **overrides})
    graphdef, params = build.create_params(spec.model_class(), config, seed)
    # Zeros (smear, projections out, biases) would hide what they multiply, ones in norms where they stand.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return graphdef, jax.tree.map(jnp.asarray, jax.tree.unflatten(tree, noisy)), config
