"""crónica against what the original program computes (tests/golden/cronica), and the model contract."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo.convert
from zoo.models import build
from zoo.models.cronica import Cronica, CronicaConfig

GOLDEN = Path(__file__).parent / "golden" / "cronica"


@pytest.fixture(scope="module")
def loaded():
    return zoo.convert.load(GOLDEN)


@pytest.fixture(scope="module")
def parts(loaded):
    graphdef, _ = build.abstract_params(Cronica, CronicaConfig(**loaded.config))
    return graphdef, jax.tree.map(jnp.asarray, loaded.params)


@pytest.fixture(scope="module")
def model(parts):
    return nnx.merge(*parts)


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda tokens, **how: model(tokens, **how))


@pytest.fixture(scope="module")
def cached(model):
    """(tokens, cache, segment_ids) -> logits, cache."""

    @jax.jit
    def call(tokens, cache, segment_ids=None):
        hidden, cache = model.hidden(tokens, segment_ids=segment_ids, cache=cache)
        return model.unembed(hidden), cache

    return call


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.load(GOLDEN / "tokens.npy"))


def masked_loss(parts, tokens, mask):
    """Mean negative log-likelihood of tokens[:, 1:] where the mask is one, with its gradients."""

    def loss(params):
        logits = nnx.merge(parts[0], params)(tokens[:, :-1])
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(nll * mask) / jnp.maximum(jnp.sum(mask), 1)

    return jax.jit(jax.value_and_grad(loss))(parts[1])


def test_logits(forward, tokens):
    expected = np.load(GOLDEN / "logits.npy")
    actual = forward(tokens)
    assert actual.dtype == jnp.float32
    assert np.abs(actual - expected).max() <= 2e-5


@pytest.mark.parametrize("suffix", ["", "_masked"])
def test_loss_and_gradients(parts, tokens, suffix):
    mask = np.load(GOLDEN / "mask.npy")[:, 1:] if suffix else np.ones((tokens.shape[0], tokens.shape[1] - 1))
    value, grads = masked_loss(parts, tokens, jnp.asarray(mask, jnp.float32))
    assert float(value) == pytest.approx(float(np.load(GOLDEN / f"loss{suffix}.npy")), abs=2e-6)
    flat = build.flatten(grads)
    compared = 0
    with np.load(GOLDEN / f"grads{suffix}.npz") as expected:
        for name in expected.files:
            actual = np.asarray(flat.pop(our_name(name)))
            wanted = expected[name]
            assert np.abs(actual - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
            compared += 1
    assert compared == 20 and not flat


def our_name(dotted):
    """layers.0.wq -> layers/0/attn/q/kernel."""
    from zoo.convert.cronica import LAYER_NAMES, TOP_NAMES

    if dotted in TOP_NAMES:
        return TOP_NAMES[dotted]
    _, layer, name = dotted.split(".")
    return f"layers/{layer}/{LAYER_NAMES[name]}"


def test_cached_greedy_decode(model, cached, tokens):
    expected = np.load(GOLDEN / "step_logits.npy")
    greedy = np.load(GOLDEN / "greedy_tokens.npy")
    logits, cache = cached(tokens[:1, :8], model.init_cache(1, 24, jnp.float32))
    assert np.abs(logits[0] - np.load(GOLDEN / "prefill_logits.npy")).max() <= 2e-5
    logits = np.asarray(logits[0, -1])
    for k in range(16):
        assert np.abs(logits - expected[k]).max() <= 2e-5
        assert logits.argmax() == greedy[k]
        logits, cache = cached(np.array([[greedy[k]]], np.int32), cache)
        logits = np.asarray(logits[0, 0])
    assert cache.lengths.tolist() == [24]


def test_sizes_of_the_published_model():
    assert build.count_params(Cronica, CronicaConfig()) == 5_261_568
    # performance conventions: 6 x matmul weights and causal attention, 0.0363 GFLOP a token
    assert CronicaConfig().flops_per_token(768) == pytest.approx(0.0363e9, rel=1e-3)


def test_state_paths(parts):
    names = set(build.flatten(parts[1]))
    layer = {"attn_norm/scale", "mlp_norm/scale"}
    layer |= {f"attn/{n}/kernel" for n in "qkvo"} | {f"mlp/{n}/kernel" for n in ("gate", "up", "down")}
    expected = {f"layers/{i}/{name}" for i in range(2) for name in layer}
    assert names == expected | {"embed/embedding", "final_norm/scale"}
    assert build.flatten(build.unflatten(build.flatten(parts[1]))).keys() == names


def test_initialisation_draws_the_originals_numbers():
    config = CronicaConfig(vocab_size=11, num_layers=2, embed_dim=6, num_heads=2, head_dim=4, mlp_dim=10)
    _, params = build.create_params(Cronica, config, 3)
    keys = iter(jax.random.split(jax.random.split(jax.random.PRNGKey(3))[0], 2 + 7 * 2))

    def draw(*shape):
        return np.asarray(jax.random.truncated_normal(next(keys), -2, 2, shape) * 0.02)

    expected = {"embed/embedding": draw(11, 6)}
    for i in range(2):
        for name in "qkvo":
            expected[f"layers/{i}/attn/{name}/kernel"] = draw(*((8, 6) if name == "o" else (6, 8)))
        for name in ("gate", "up", "down"):
            expected[f"layers/{i}/mlp/{name}/kernel"] = draw(*((10, 6) if name == "down" else (6, 10)))
    for name, leaf in build.flatten(params).items():
        wanted = np.ones(6) if name.endswith("scale") else expected.pop(name)
        np.testing.assert_allclose(leaf, wanted, atol=1e-8, err_msg=name)
    assert not expected


# The golden weights are random; their sequences are 48 tokens long.
@pytest.mark.parametrize("split", [1, 5, 17])
def test_ragged_prefill_chunks_and_steps_equal_the_full_forward(model, forward, cached, tokens, split):
    full = np.asarray(forward(tokens))
    lengths = np.array([split, split + 3])  # two rows of different length, right-padded
    total = 30
    cache = model.init_cache(2, total + 2, jnp.float32)
    seen = np.zeros(2, int)
    for width in (split + 3, 4, 1, 1, 2):
        take = lengths if width == split + 3 else np.array([width, max(width - 1, 1)])
        chunk = np.zeros((2, width), np.int32)
        segments = np.zeros((2, width), np.int32)
        for row in range(2):
            chunk[row, : take[row]] = tokens[row, seen[row] : seen[row] + take[row]]
            segments[row, : take[row]] = 1
        logits, cache = cached(chunk, cache, segments)
        logits = np.asarray(logits)
        assert np.isfinite(logits).all()
        for row in range(2):
            expected = full[row, seen[row] : seen[row] + take[row]]
            assert np.abs(logits[row, : take[row]] - expected).max() <= 1e-5 * np.abs(full).max()
        seen += take
        assert cache.lengths.tolist() == seen.tolist()


def test_a_padded_call_leaves_finished_rows_alone(model, cached, tokens):
    _, cache = cached(tokens[:, :6], model.init_cache(2, 8, jnp.float32))
    _, after = cached(tokens[:, 6:7], cache, np.array([[1], [0]], np.int32))
    assert after.lengths.tolist() == [7, 6]
    assert np.array_equal(after.k[1][1], cache.k[1][1]) and not np.array_equal(after.k[1][0], cache.k[1][0])


def test_segments_are_isolated(forward, tokens):
    """Two packed pieces, each with its own positions, give what each gives alone."""
    alone = np.asarray(forward(tokens))
    packed = np.concatenate([tokens[0, :7], tokens[1, :9], [0, 0]]).astype(np.int32)[None]
    segments = np.array([[1] * 7 + [2] * 9 + [0] * 2], np.int32)
    positions = np.concatenate([np.arange(7), np.arange(9), np.arange(2)]).astype(np.int32)[None]
    logits = np.asarray(forward(packed, positions=positions, segment_ids=segments))
    assert np.abs(logits[0, :7] - alone[0, :7]).max() <= 2e-5
    assert np.abs(logits[0, 7:16] - alone[1, :9]).max() <= 2e-5
    assert np.isfinite(logits).all()


def test_no_logit_depends_on_a_later_token(parts, tokens):
    """By gradients with respect to the embedded rows: exactly zero for every later position."""
    row = tokens[:1, :12]
    length = row.shape[1]
    graphdef, params = parts
    table = params["embed"]["embedding"]

    def logits_from(rows):  # position t looks up row t
        own = {**params, "embed": {"embedding": rows}}
        model = nnx.merge(graphdef, own)
        hidden, _ = model.hidden(jnp.arange(length)[None])
        return (hidden[0] @ table.T).sum(-1)

    sensitivity = np.abs(jax.jit(jax.jacrev(logits_from))(table[row[0]])).sum(-1)  # [position, source]
    assert np.array_equal(np.triu(sensitivity, 1), np.zeros((length, length)))
    assert (sensitivity[np.tril_indices(length)] > 0).all()


def test_computes_in_the_dtype_of_the_parameters(parts, tokens):
    graphdef, params = parts
    model = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    assert jax.eval_shape(lambda: model.hidden(tokens)[0]).dtype == jnp.bfloat16
    logits = jax.jit(lambda: model(tokens))()
    assert logits.dtype == jnp.float32
    error = np.abs(logits - np.load(GOLDEN / "logits.npy"))
    assert 1e-4 < error.mean() < 0.1


def test_config_round_trip():
    config = CronicaConfig.from_dict({"norm_eps": "1e-6", "num_layers": 3.0})
    assert (config.norm_eps, config.num_layers) == (1e-6, 3)
    assert CronicaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
