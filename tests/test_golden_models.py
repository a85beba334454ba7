"""Every model against what its original computes from the same weights (tests/golden), in float32 on CPU.

Bars: logits, loss, every parameter's gradient and every cached decode step within 1e-5 of the largest magnitude.
crónica's are in test_cronica_model.py.
"""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo.convert
from zoo import registry
from zoo.convert.base import Loaded
from zoo.layers.rotary import rotary_tables
from zoo.layers.segments import split_at
from zoo.models import build

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5


@dataclasses.dataclass
class Fixture:
    """A published model as loaded, and the arrays its original gave."""

    folder: str
    loaded: Loaded
    graphdef: nnx.GraphDef
    params: dict

    def array(self, name: str) -> np.ndarray:
        return np.load(GOLDEN / self.folder / f"{name}.npy")

    @property
    def tokens(self) -> jax.Array:
        return jnp.asarray(self.array("tokens"))

    def model(self, params=None, **overrides) -> nnx.Module:
        graphdef = self.graphdef if not overrides else structure(self.loaded, **overrides)
        return nnx.merge(graphdef, self.params if params is None else params)


def structure(loaded: Loaded, **overrides) -> nnx.GraphDef:
    spec = registry.describe(loaded.model_name)
    config = spec.config_class().from_dict({**loaded.config, **overrides})
    return build.abstract_params(spec.model_class(), config)[0]


def fixture(folder: str, path: str = "", **overrides) -> Fixture:
    loaded = zoo.convert.load(GOLDEN / folder / path)
    loaded = dataclasses.replace(loaded, config={**loaded.config, **overrides})
    return Fixture(folder, loaded, structure(loaded), jax.tree.map(jnp.asarray, loaded.params))


@pytest.fixture(scope="module")
def bwetaf():
    return fixture("bwetaf", rope_dtype="float32")


@pytest.fixture(scope="module", params=["gelu", "kodalite", "tiny", "bwetaf"])
def golden(request, bwetaf):
    return bwetaf if request.param == "bwetaf" else fixture(request.param)


# Beside the names that all folders have: what the originals call the same thing, or its float32 version.
WITH_DTYPE = ("logits", "loss", "grads", "prefill_logits", "step_logits", "greedy_tokens")
NAMES = {
    "bwetaf": {name: f"{name}_f32" for name in WITH_DTYPE},
    "tiny": {"logits": "raw_logits"},
}
CONVERTERS = {"gelu": "nanochat_names", "kodalite": "llama", "tiny": "tiny", "bwetaf": "bwetaf"}


def named(golden: Fixture, name: str) -> str:
    return NAMES.get(golden.folder, {}).get(name, name)


def close(actual, expected, tolerance=TOLERANCE):
    actual, expected = np.asarray(actual), np.asarray(expected, np.float32)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@jax.jit
def forward(model, tokens, **how):
    return model(tokens, **how)


@jax.jit
def cached(model, tokens, cache):
    hidden, cache = model.hidden(tokens, cache=cache)
    return model.unembed(hidden), cache


def mean_nll(logits, targets):
    """Over the targets that are not negative."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(targets >= 0, chosen, 0)) / jnp.sum(targets >= 0)


def check_gradients(golden: Fixture, grads, file: str) -> None:
    """Against the file's, by the original's names and with its layouts; all of them and no other."""
    converter = importlib.import_module(f"zoo.convert.{CONVERTERS[golden.folder]}")
    found = converter.to_original(grads, golden.loaded.config)
    with np.load(GOLDEN / golden.folder / f"{file}.npz") as expected:
        left = {bare(name): name for name in expected.files}
        for name, actual in found.items():
            wanted = expected[left.pop(bare(name))]
            if name == "model.embed_tokens.weight":
                # transformers gives the row of the padding token (127 here) no gradient; the model itself does.
                assert np.abs(wanted[127]).max() == 0
                actual = np.where(np.arange(128)[:, None] == 127, 0, actual)
            assert np.abs(actual.reshape(wanted.shape) - wanted).max() <= TOLERANCE * np.abs(wanted).max(), name
    assert not left


def bare(name: str) -> str:
    """Prefixes that some files put before every name."""
    return name.removeprefix("params.").removeprefix("model.").replace("transformer.", "")


def test_logits(golden):
    logits = forward(golden.model(), golden.tokens)
    assert logits.dtype == jnp.float32
    close(logits, golden.array(named(golden, "logits")))


def test_loss_and_gradients(golden):
    tokens = golden.tokens

    def loss(params):
        return mean_nll(golden.model(params)(tokens)[:, :-1], tokens[:, 1:])

    value, grads = jax.jit(jax.value_and_grad(loss))(golden.params)
    assert float(value) == pytest.approx(float(golden.array(named(golden, "loss"))), abs=4e-6)
    check_gradients(golden, grads, named(golden, "grads"))


def test_cached_greedy_decode(golden):
    if golden.folder == "tiny":
        pytest.skip("the original has no cache; see test_tiny_crops_and_starts_anew")
    expected, greedy = (golden.array(named(golden, name)) for name in ("step_logits", "greedy_tokens"))
    model = golden.model()
    logits, cache = cached(model, golden.tokens[:1, :8], model.init_cache(1, 24))
    close(logits[0], golden.array(named(golden, "prefill_logits")))
    logits = np.asarray(logits[0, -1])
    for k in range(16):
        assert np.abs(logits - expected[k]).max() <= TOLERANCE * np.abs(expected).max()
        assert logits.argmax() == greedy[k]
        logits, cache = cached(model, greedy[k].reshape(1, 1), cache)
        logits = np.asarray(logits[0, 0])


def test_tiny_crops_and_starts_anew():
    """Its generation: the last context_len tokens, positions from 0, no cache."""
    golden = fixture("tiny")
    model, context = golden.model(), golden.loaded.config["max_seq_len"]
    expected, greedy = golden.array("step_logits_uncached"), golden.array("greedy_tokens_uncached")
    row = golden.tokens[0, :8].tolist()
    for k in range(len(greedy)):
        seen = row[-context:]
        padded = jnp.asarray([seen + [0] * (context - len(seen))])
        logits = np.asarray(forward(model, padded)[0, len(seen) - 1])
        wanted = expected[k] - expected[k].max()
        assert np.abs(logits - logits.max() - wanted).max() <= TOLERANCE * np.abs(expected).max()
        row.append(int(logits.argmax()))
    assert row[8:] == greedy.tolist() and len(row) > context
    close(jax.nn.log_softmax(forward(model, golden.tokens)), golden.array("logits"))


@pytest.mark.parametrize("name", ["docmask_f32", "padmask_f32", "long_f32"])
def test_bwetaf_masks_and_length(bwetaf, name):
    tokens, kept, how = bwetaf.tokens, np.ones((2, 24), bool), {}
    if name == "docmask_f32":
        how = {"segment_ids": split_at(tokens, 0)}
    elif name == "padmask_f32":
        kept = bwetaf.array("pad_mask").reshape(2, 24) != 0
        how = {"segment_ids": jnp.asarray(kept, jnp.int32)}  # what stands at pads is unspecified here
        assert not kept.all()
    else:
        tokens = jnp.asarray(bwetaf.array("tokens_long"))
        kept = np.ones(tokens.shape, bool)
    expected = bwetaf.array(f"logits_{name}")
    error = np.abs(np.asarray(forward(bwetaf.model(), tokens, **how)) - expected)[kept]
    assert error.max() <= TOLERANCE * np.abs(expected).max()


def test_bwetaf_training_loss(bwetaf):
    tokens, targets = bwetaf.tokens, jnp.asarray(bwetaf.array("targets"))

    def loss(params):
        logits = bwetaf.model(params)(tokens, segment_ids=split_at(tokens, 0))
        return mean_nll(logits[:, :-1], targets[:, 1:])

    value, grads = jax.jit(jax.value_and_grad(loss))(bwetaf.params)
    assert float(value) == pytest.approx(float(bwetaf.array("loss_train_f32")), abs=4e-6)
    check_gradients(bwetaf, grads, "grads_train_f32")


def test_bwetaf_with_the_packages_casts(bwetaf):
    close(forward(bwetaf.model(legacy_casts=True), bwetaf.tokens), bwetaf.array("logits_jit"))
    assert np.abs(bwetaf.array("logits_jit") - bwetaf.array("logits_f32")).max() > 0.1


def bands(actual, expected):
    """The root mean square difference of each 64 positions."""
    difference = np.asarray(actual, np.float64) - expected
    return [np.sqrt((difference[:, at : at + 64] ** 2).mean()) for at in range(0, difference.shape[1], 64)]


@pytest.mark.parametrize("name", ["", "_long"])
def test_bwetaf_as_its_card_loads_it(bwetaf, name):
    """Everything in bfloat16, the rotary tables too: with float32 tables far positions are another function."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bwetaf.params)
    tokens, expected = jnp.asarray(bwetaf.array(f"tokens{name}")), bwetaf.array(f"logits{name}_bf16")
    errors = bands(forward(bwetaf.model(half, rope_dtype="bfloat16"), tokens), expected.astype(np.float64))
    assert max(errors) <= 0.03
    if name:
        other = bands(forward(bwetaf.model(half, rope_dtype="float32"), tokens), expected.astype(np.float64))
        assert other[-1] > 0.3


def test_bwetaf_bfloat16_tables(bwetaf):
    width = bwetaf.loaded.config["embed_dim"]
    with np.load(GOLDEN / "bwetaf" / "rope_bf16.npz") as tables:
        for suffix, features in (("", width), ("_kv", width // 2)):
            positions = jnp.arange(tables["cos"].shape[0])
            cos, sin = jax.jit(rotary_tables, static_argnums=(1, 2, 3))(positions, features, 10000.0, jnp.bfloat16)
            np.testing.assert_array_equal(np.asarray(cos, np.float32), tables[f"cos{suffix}"])
            np.testing.assert_array_equal(np.asarray(sin, np.float32), tables[f"sin{suffix}"])


@pytest.mark.parametrize("path", ["", "step_000100.orbax"])
def test_kodalite_as_it_was_trained(path):
    """The native files, with exact rotary tables and with the bfloat16 ones of its training."""
    golden = fixture("kodalite_native", path)
    close(forward(golden.model(), golden.tokens), golden.array("logits"))
    close(forward(golden.model(rope_dtype="bfloat16"), golden.tokens), golden.array("logits_rope_bf16"))
    difference = np.abs(golden.array("logits") - golden.array("logits_rope_bf16")).max((0, 2))
    assert difference[257:].max() > 10 * TOLERANCE * np.abs(golden.array("logits")).max()
