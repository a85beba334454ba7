"""The Llama class against transformers' LlamaForCausalLM, with weights converted from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo.convert
from zoo import registry
from zoo.models import build

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    0: dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32),
    1: dict(
        num_attention_heads=6, num_key_value_heads=1, head_dim=16, hidden_size=48, rope_theta=5e5, rms_norm_eps=1e-4
    ),
    2: dict(num_attention_heads=3, num_key_value_heads=3, head_dim=8, hidden_size=24, tie_word_embeddings=True)
    | dict(attention_bias=True, mlp_bias=True),
}


def theirs(seed, directory):
    """A LlamaForCausalLM with enlarged random weights, saved in `directory`."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=97,
        intermediate_size=40,
        num_hidden_layers=3,
        max_position_embeddings=64,
        attn_implementation="eager",
        **CONFIGS[seed],
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # what starts at one hides what it multiplies
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
                )
    model.save_pretrained(directory)
    return model


def ours(directory, dtype=jnp.float32):
    loaded = zoo.convert.load(directory)
    spec = registry.describe(loaded.model_name)
    graphdef, _ = build.abstract_params(spec.model_class(), spec.config_class().from_dict(loaded.config))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), loaded.params))


@pytest.mark.parametrize("seed", CONFIGS)
def test_logits_equal_transformers(seed, tmp_path):
    reference = theirs(seed, tmp_path)
    tokens = np.random.default_rng(seed).integers(0, 97, (2, 40))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    actual = np.asarray(jax.jit(lambda model, t: model(t))(ours(tmp_path), jnp.asarray(tokens, jnp.int32)))
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("seed", CONFIGS)
def test_bfloat16_differs_no_more_from_transformers_than_rounding_does(seed, tmp_path):
    reference = theirs(seed, tmp_path)
    tokens = np.random.default_rng(seed).integers(0, 97, (2, 40))
    with torch.no_grad():
        exact = reference(torch.tensor(tokens)).logits.numpy()
        expected = reference.to(torch.bfloat16)(torch.tensor(tokens)).logits.float().numpy()
    model = ours(tmp_path, jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    actual = np.asarray(jax.jit(lambda model, t: model(t))(model, jnp.asarray(tokens, jnp.int32)))

    def rms(x):
        return np.sqrt(np.square(x).mean())

    assert rms(actual - exact) <= 1.2 * rms(expected - exact)  # zoo rounds no more than transformers does
    assert rms(actual - expected) <= 1.6 * rms(expected - exact)
