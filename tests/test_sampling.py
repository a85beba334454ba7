"""Draws follow each filter's exact distribution, and all of them in the documented order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from zoo import registry
from zoo.errors import UserError
from zoo.generate.sampling import Sampling, sample
from zoo.generate.settings import Settings, resolve_settings

PROBABILITIES = np.array([0.4, 0.05, 0.3, 0.15, 0.1])
COUNT = 20_000


def exact(logits, sampling, seen=()):
    """The distribution that the documented steps give, one after the other, in float64."""
    logits = np.array(logits, np.float64)
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    for token in seen:
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    logits /= sampling.temperature
    kept = np.argsort(-logits, kind="stable")
    kept = kept[: sampling.top_k] if sampling.top_k else kept
    share = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    kept = kept[np.cumsum(share) - share <= sampling.top_p]
    share = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    kept = kept[share >= sampling.min_p * share.max()]
    out = np.zeros(len(logits))
    out[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    return out


def drawn(logits, sampling, seen=(), count=COUNT):
    """How often each token comes, and the tokens with their log probabilities."""
    size = len(logits)
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32))
    mask = jnp.broadcast_to(jnp.zeros(size, bool).at[jnp.array(seen, int)].set(True), (count, size))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, size))
    tokens, logprobs = sample(rows, keys, sampling.shape, sampling.numbers(size), mask)
    return np.bincount(np.asarray(tokens), minlength=size), np.asarray(tokens), np.asarray(logprobs)


def assert_follows(seen, wanted):
    """Chi-square at 99.9%; tokens that are expected fewer than 5 times count together."""
    assert not seen[wanted == 0].any()
    expected = seen.sum() * wanted
    rare = expected < 5
    seen, expected = (np.append(x[~rare], x[rare].sum() or []) for x in (seen, expected))
    if len(expected) > 1:
        assert ((seen - expected) ** 2 / expected).sum() <= chi2.ppf(0.999, len(expected) - 1)


@pytest.mark.parametrize(
    ("sampling", "repeated"),
    [
        (Sampling(), ()),
        (Sampling(0.5), ()),
        (Sampling(2.0), ()),
        (Sampling(top_k=3), ()),
        (Sampling(top_k=1), ()),
        (Sampling(top_p=0.6), ()),
        (Sampling(top_p=0.39), ()),
        (Sampling(top_p=0.9), ()),
        (Sampling(min_p=0.3), ()),
        (Sampling(min_p=1.0), ()),
        (Sampling(repetition_penalty=1.5), (0, 3)),
        (Sampling(repetition_penalty=0.7), (2,)),
        (Sampling(logit_bias={1: 2.0, 0: -1.0}), ()),
        (Sampling(logit_bias={0: -np.inf}), ()),
        (Sampling(1.0, 4, 0.5), ()),
        (Sampling(2.0, 4, 0.8), ()),
        (Sampling(0.7, 9, 0.39), ()),
        (Sampling(1.5, 4, 0.85, min_p=0.4), ()),
        (Sampling(1.3, 4, 0.9, 0.2, 1.4, {4: 1.5}), (0, 4)),
    ],
)
def test_draws_follow_the_exact_distribution(sampling, repeated):
    logits = np.log(PROBABILITIES) + 1.0  # some positive, some negative: a penalty treats them differently
    wanted = exact(logits, sampling, repeated)
    counts, tokens, logprobs = drawn(logits, sampling, repeated)
    assert_follows(counts, wanted)
    # Of the model itself, whatever the filters.
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES)[tokens], atol=1e-5)


def test_the_order_of_the_steps_matters_and_is_the_documented_one():
    """Each of these settings gives another distribution if two neighbours change places."""
    logits = np.log(PROBABILITIES) + 1.0
    sampling = Sampling(2.0, 4, 0.8, min_p=0.55, repetition_penalty=2.0, logit_bias={3: 1.0})
    wanted = exact(logits, sampling, (3,))
    bias_last = np.log(exact(logits, Sampling(repetition_penalty=2.0), (3,)))
    bias_last[3] += 1.0
    late = exact(bias_last, Sampling(2.0, 4, 0.8, min_p=0.55))
    cold = exact(logits, Sampling(1.0, 4, 0.8, min_p=0.55, repetition_penalty=2.0, logit_bias={3: 1.0}), (3,))
    assert np.abs(wanted - late).max() > 0.02 and np.abs(wanted - cold).max() > 0.02
    counts, _, _ = drawn(logits, sampling, (3,))
    assert_follows(counts, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_filters_agree_with_transformers(seed):
    """Its own processors, in its generate's order, on a vocabulary of 60."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=60).astype(np.float32)
    repeated = [int(token) for token in rng.choice(60, 8, replace=False)]
    top_k, top_p, min_p = [(40, 0.8, 0.0), (0, 0.7, 0.0), (30, 0.95, 0.1)][seed]
    chain = [
        processors.SequenceBiasLogitsProcessor([[[5], 2.0], [[9], -1.5]]),
        processors.RepetitionPenaltyLogitsProcessor(1.3),
        processors.TemperatureLogitsWarper(0.8),
        *([processors.TopKLogitsWarper(top_k)] if top_k else []),
        processors.TopPLogitsWarper(top_p),
        *([processors.MinPLogitsWarper(min_p)] if min_p else []),
    ]
    scores = torch.from_numpy(logits)[None]
    for processor in chain:
        scores = processor(torch.tensor([repeated]), scores)
    wanted = torch.softmax(scores, -1)[0].double().numpy()
    sampling = Sampling(0.8, top_k, top_p, min_p, 1.3, {5: 2.0, 9: -1.5})
    np.testing.assert_allclose(exact(logits, sampling, repeated), wanted, atol=1e-6)
    assert 4 < (wanted > 0).sum() < 40
    counts, _, _ = drawn(logits, sampling, repeated)
    assert_follows(counts, wanted)


def of_card(name, preset, given):
    return resolve_settings(name, registry.describe(name).sampling, preset, given)


@pytest.mark.parametrize("name", [name for name, spec in registry.BUILT_IN.items() if spec.sampling is not None])
def test_preset_original_draws_as_the_card_says(name):
    logits = np.random.default_rng(4).normal(size=70).astype(np.float32)
    sampling = of_card(name, "original", {}).sampling
    stated = {  # temperature, top-k, top-p
        "cronica-5m": (0.85, 50, 0.9),
        "bwetaf-97m": (0.8, 0, 0.92),
        "gelu-d12": (0.8, 0, 0.9),
        "kodalite-1.3b": (0.7, 40, 1.0),
        "tiny-lm": (1.0, 0, 1.0),
    }[name]
    counts, _, _ = drawn(logits, sampling)
    assert_follows(counts, exact(logits, Sampling(*stated)))


def test_settings_come_from_the_call_then_the_preset_then_the_defaults():
    found = of_card("kodalite-1.3b", "original", {"temperature": 0.2, "top_p": None})
    assert (found.temperature, found.top_k, found.top_p, found.max_new_tokens) == (0.2, 40, 1.0, 150)
    assert found.stop == ("<|end|>",)
    assert of_card("kodalite-1.3b", None, {}) == Settings()
    assert of_card("bwetaf-97m", "original", {}).ignore_eos
    with pytest.raises(UserError, match="original"):
        of_card("gelu-d12", "card", {})
    with pytest.raises(UserError, match="nanochat-d12"):
        of_card("nanochat-d12", "original", {})
    with pytest.raises(UserError, match="temperature"):
        of_card("gelu-d12", None, {"temprature": 1.0})


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_equals():
    logits = jnp.array([[0.0, 3.0, 3.0, -jnp.inf], [1.0, 0.0, -1.0, 0.5]])
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    tokens, logprobs = sample(logits, keys, Sampling(0).shape, Sampling(0).numbers(4))
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), tokens], atol=1e-6)


def test_the_nucleus_is_exact_for_many_rows():
    """Against sorting, for rows of very different sharpness; 1 keeps what softmax rounds to zero, too."""
    from zoo.generate.sampling import _in_nucleus

    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(50, 300)) * rng.uniform(0.01, 30, (50, 1))).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    for top_p in (0.1, 0.5, 0.92, 0.999):
        kept = np.asarray(_in_nucleus(jnp.asarray(logits), jnp.float32(top_p)))
        above = (probabilities[:, None] * (probabilities[:, None] > probabilities[..., None])).sum(-1)
        sure = np.abs(above - top_p) > 1e-5
        assert (kept == (above <= top_p))[sure].all() and sure.mean() > 0.99


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_from_a_large_vocabulary(top_p):
    """Most of 3,001 tokens are impossible, whole blocks of them too; the likely ones stand at the edges of blocks."""
    logits = np.full(3001, -np.inf, np.float32)
    places = [0, 1, 255, 256, 511, 1300, 2047, 2048, 2999, 3000]
    logits[places] = np.random.default_rng(1).normal(size=len(places))
    sampling = Sampling(0.9, top_p=top_p)
    counts, _, _ = drawn(logits, sampling, count=4000)
    wanted = np.zeros(3001)
    wanted[places] = exact(logits[places], sampling)
    assert_follows(counts, wanted)
    flat, _, _ = drawn(np.zeros(3001, np.float32), Sampling(), count=4000)
    assert_follows(np.add.reduceat(flat, np.arange(0, 3001, 64)), np.diff([*range(0, 3001, 64), 3001]) / 3001)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": np.inf},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"logit_bias": {1: np.nan}},
        {"logit_bias": {1: np.inf}},
        {"logit_bias": {1: 1e39}},
        {"temperature": 1e-40},
    ],
)
def test_impossible_sampling_is_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        Sampling(**setting)
