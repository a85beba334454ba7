"""Engine, sampling, stopping: cached generation equals the full forward; draws follow the filters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import convert
from zoo.errors import UserError
from zoo.generate import engine
from zoo.generate.engine import bucket, start
from zoo.generate.sampling import Sampling, sample
from zoo.generate.stopping import StopText, split_stop
from zoo.models import build
from zoo.models.cronica import Cronica, CronicaConfig

GREEDY = Sampling(temperature=0)
CONFIG = CronicaConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=2, head_dim=16, mlp_dim=48, max_seq_len=80, init_std=0.3
)


@pytest.fixture(scope="module")
def module():
    graphdef, params = build.create_params(Cronica, CONFIG, 0)
    return nnx.merge(graphdef, params)


@pytest.fixture(scope="module")
def prompts():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 96, length).tolist() for length in (3, 17, 9, 16, 1)]


def decode(module, prompts, max_new_tokens=24, sampling=GREEDY, seeds=None, steps=None, **options):
    run = start(
        module,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seeds=seeds or [0] * len(prompts),
        **options,
    )
    while run.running:
        run.advance(steps)
    return run


@pytest.fixture(scope="module")
def forward(module):
    return jax.jit(lambda tokens: module(tokens))


def greedy_by_full_forward(forward, prompt, count):
    # One padded shape, so that the reference compiles once; causal attention does not see what follows.
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        row = np.zeros((1, 64), np.int32)
        row[0, : len(tokens)] = tokens
        logits = jax.nn.log_softmax(forward(row)[0, len(tokens) - 1])
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.max()))
    return tokens[len(prompt) :], logprobs


def test_ragged_greedy_batch_equals_the_full_forward(module, forward, prompts):
    run = decode(module, prompts)
    for row, prompt in enumerate(prompts):
        tokens, logprobs = greedy_by_full_forward(forward, prompt, 24)
        assert run.tokens[row] == tokens
        np.testing.assert_allclose(run.logprobs[row], logprobs, atol=1e-4)
    assert run.finished == ["length"] * 5


def test_golden_greedy_decode_of_the_original():
    golden = Path(__file__).parent / "golden" / "cronica"
    loaded = convert.load(golden)
    config = CronicaConfig.from_dict(loaded.config)
    graphdef, _ = build.abstract_params(Cronica, config)
    prompt = np.load(golden / "tokens.npy")[0, : len(np.load(golden / "prefill_logits.npy"))].tolist()
    run = decode(nnx.merge(graphdef, loaded.params), [prompt], max_new_tokens=16)
    assert run.tokens[0] == np.load(golden / "greedy_tokens.npy").tolist()


def test_a_row_depends_on_its_own_seed_and_not_on_its_neighbours(module, prompts):
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.95)
    together = decode(module, prompts, sampling=sampling, seeds=[5, 6, 7, 8, 9])
    for row in (0, 1, 4):
        alone = decode(module, [prompts[row]], sampling=sampling, seeds=[5 + row], longest_prompt=17)
        assert alone.tokens[0] == together.tokens[row]
    same = decode(module, [prompts[1]] * 5, sampling=sampling, seeds=[6, 6, 11, 0, 0])
    assert same.tokens[0] == same.tokens[1] == together.tokens[1] != same.tokens[2]


def test_streaming_in_small_steps_gives_the_same(module, prompts):
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.95)
    whole = decode(module, prompts, sampling=sampling)
    assert decode(module, prompts, sampling=sampling, steps=5).tokens == whole.tokens


def test_rows_stop_on_their_own(module, prompts):
    free = decode(module, prompts)
    stop = free.tokens[1][4]
    run = decode(module, prompts, stop_ids=[stop, 95])
    for row, tokens in enumerate(free.tokens):
        ends = [at for at, token in enumerate(tokens) if token in (stop, 95)]
        expected = tokens[: ends[0]] if ends else tokens
        assert run.tokens[row] == expected
        assert len(run.logprobs[row]) == len(expected)
        assert run.finished[row] == ("stop" if ends else "length")
    assert "length" in run.finished and run.finished[1] == "stop"


def test_max_len_bounds_each_row_by_itself(module, prompts):
    run = decode(module, prompts, max_new_tokens=24, max_len=20)
    assert [len(tokens) for tokens in run.tokens] == [17, 3, 11, 4, 19]
    assert run.finished == ["length"] * 5


def test_ids_the_tokenizer_does_not_have_are_never_drawn(module, prompts):
    assert max(max(tokens) for tokens in decode(module, prompts, sampling=Sampling(5.0)).tokens) >= 30
    run = decode(module, prompts, sampling=Sampling(5.0), num_ids=30)
    assert max(max(tokens) for tokens in run.tokens) < 30


def test_another_prompt_length_does_not_compile_anew(module):
    decode(module, [[1] * 30], max_new_tokens=5)
    before = engine._prefill._cache_size(), engine._decode._cache_size()
    decode(module, [[2] * 31], max_new_tokens=5, sampling=GREEDY, seeds=[3])
    assert (engine._prefill._cache_size(), engine._decode._cache_size()) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [[1], []]}, "prompt 2 is empty"),
        ({"prompts": [[96]]}, "id 96"),
        ({"prompts": [[-1]]}, "id -1"),
        ({"prompts": [[1] * 20], "max_len": 20}, "20 tokens"),
        ({"prompts": [[1]], "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompts": [[1]], "stop_ids": range(9)}, "9 stop ids"),
    ],
)
def test_impossible_requests_are_refused(module, change, named):
    prompts = change.pop("prompts")
    with pytest.raises(UserError, match=named):
        decode(module, prompts, **change)


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_impossible_sampling_is_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        Sampling(**setting)


def test_bucket_sizes():
    sizes = [bucket(length) for length in range(1, 3000)]
    assert sizes == sorted(sizes)
    for length, size in enumerate(sizes, 1):
        assert length <= size <= max(16, 1.25 * length + 4)
    assert len(set(sizes)) < 35


LOGITS = np.log(np.array([0.4, 0.05, 0.3, 0.15, 0.1]))


def expected_probabilities(temperature, top_k, top_p):
    """The filters as the original code states them, on sorted probabilities, in float64."""
    scaled = LOGITS / temperature
    order = np.argsort(-scaled)
    kept = order[:top_k] if top_k else order
    share = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    before = np.cumsum(share) - share
    kept = kept[before <= top_p]
    out = np.zeros(5)
    out[kept] = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6), (1.0, 4, 0.5), (2.0, 4, 0.8), (0.7, 9, 0.39)],
)
def test_draws_follow_the_filters(temperature, top_k, top_p):
    count = 20_000
    sampling = Sampling(temperature, top_k, top_p)
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (count, 5))
    tokens, logprobs = sample(logits, keys, sampling.shape, jnp.float32(temperature), jnp.float32(top_p))
    seen = np.bincount(np.asarray(tokens), minlength=5)
    wanted = expected_probabilities(temperature, top_k, top_p)
    assert not seen[wanted == 0].any()
    kept = wanted > 0
    chi_square = ((seen[kept] - count * wanted[kept]) ** 2 / (count * wanted[kept])).sum()
    assert chi_square < 20  # 99.9% point of 4 degrees of freedom is 18.5; the keys are fixed
    np.testing.assert_allclose(logprobs, LOGITS[np.asarray(tokens)], atol=1e-5)  # of the model, not the filters


def test_stop_text_never_shows_a_stop_string_or_its_beginning():
    stop = StopText(["<|end|>", "\n\n"])
    assert [stop.push(piece) for piece in ("Hola <", "b> ", "x\n", "y <|e", "nd", "|>zzz")] == [
        ("Hola ", False),
        ("<b> ", False),
        ("x", False),
        ("\ny ", False),
        ("", False),
        ("", True),
    ]
    unfinished = StopText(["fin"])
    assert unfinished.push("al fi") == ("al ", False)
    assert unfinished.flush() == "fi"
    assert StopText(["b", "ab"]).push("xab") == ("x", True)
    assert StopText([]).push("all of it") == ("all of it", False)


def test_split_stop():
    assert split_stop(None) == ([], [])
    assert split_stop(3) == ([3], [])
    assert split_stop([np.int64(3), "a", ""]) == ([3], ["a"])
