"""The engine: cached generation equals the full forward, rows are their own, limits hold."""

import dataclasses
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import TINY, fast_for, tiny

import zoo
from zoo import convert, registry
from zoo.errors import UserError
from zoo.generate import engine, programs
from zoo.generate.engine import bucket, chunks_of, start
from zoo.generate.sampling import Sampling
from zoo.language_model import create
from zoo.models import build
from zoo.models.cronica import Cronica, CronicaConfig

GOLDEN = Path(__file__).parent / "golden"
GREEDY = Sampling(temperature=0)
CONFIG = CronicaConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=2, head_dim=16, mlp_dim=48, max_seq_len=80, init_std=0.3
)
NEW = 64  # greedy tokens compared for every model: rows grow through several bucket sizes and past every window


@pytest.fixture(scope="module")
def module():
    graphdef, params = build.create_params(Cronica, CONFIG, 0)
    return nnx.merge(graphdef, params)


def draw_prompts(vocab_size, lengths=(3, 17, 9, 16, 1)):
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocab_size, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(96)


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


def full_forward_logprobs(module, prompts, run, window=None):
    """Log probabilities [new tokens, V] a row, of a forward pass without any cache over prompt and text."""
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, run.tokens, strict=True)]
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(module(tokens), axis=-1))
    if window is None:
        padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        found = np.asarray(forward(padded))
        return [found[i, len(prompts[i]) - 1 : len(row) - 1] for i, row in enumerate(rows)]
    # One row for each new token, which holds the last `window` tokens before it at positions from 0.
    cut = [row[:end][-window:] for i, row in enumerate(rows) for end in range(len(prompts[i]), len(row))]
    padded = np.array([row + [0] * (window - len(row)) for row in cut], np.int32)
    found = np.asarray(forward(padded))[np.arange(len(cut)), [len(row) - 1 for row in cut]]
    return np.split(found, np.cumsum([len(tokens) for tokens in run.tokens])[:-1])


@pytest.mark.parametrize("name", fast_for("gelu"))
def test_ragged_greedy_batch_equals_the_argmax_of_the_full_forward(name):
    graphdef, params, config = tiny(name)
    model = nnx.merge(graphdef, params)
    window = config.max_seq_len if config.generation_limit is None else None
    assert (window is not None) == (name == "tiny")
    prompts = draw_prompts(config.vocab_size)
    run = decode(model, prompts, NEW, window=window)
    assert [len(tokens) for tokens in run.tokens] == [NEW] * 5 and run.finished == ["length"] * 5
    for row, logprobs in enumerate(full_forward_logprobs(model, prompts, run, window)):
        assert logprobs.argmax(-1).tolist() == run.tokens[row]
        np.testing.assert_allclose(run.logprobs[row], logprobs.max(-1), atol=2e-4)
    # Random weights may repeat a token for ever; drawn texts do not, and their probabilities must agree as well.
    run = decode(model, prompts, NEW, Sampling(8.0), seeds=range(5), window=window)
    for row, logprobs in enumerate(full_forward_logprobs(model, prompts, run, window)):
        chosen = logprobs[np.arange(NEW), run.tokens[row]]
        np.testing.assert_allclose(run.logprobs[row], chosen, atol=2e-4, rtol=1e-4)
    assert min(len(set(tokens)) for tokens in run.tokens) > 8


@pytest.mark.parametrize(
    "name", ["gelu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "nanochat", "bwetaf"))]
)
def test_a_prompt_read_in_chunks_gives_the_same(name, monkeypatch):
    """Rows end in different chunks, one of them in the first; windows are shorter and longer than a chunk."""
    graphdef, params, config = tiny(name)
    model = nnx.merge(graphdef, params)
    prompts = draw_prompts(config.vocab_size, (60, 16, 33, 2, 47))
    whole = decode(model, prompts, 12)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 16)
    compiled = programs.prefill._cache_size()
    chunked = decode(model, prompts, 12)
    assert programs.prefill._cache_size() == compiled + 1  # it was another program
    assert chunked.tokens == whole.tokens
    np.testing.assert_allclose(chunked.logprobs, whole.logprobs, atol=1e-4)


def test_chunks_cover_a_prompt_with_little_to_spare():
    assert chunks_of(512) == (1, 512) and chunks_of(16) == (1, 16)
    for width in (640, 768, 1024, 1280, 9000):
        number, size = chunks_of(width)
        assert number > 1 and size <= 512 and size % 16 == 0
        assert width <= number * size < width + 16 * number


def load_golden(folder, **overrides):
    loaded = convert.load(GOLDEN / folder)
    spec = registry.describe(loaded.model_name)
    config = spec.make_config(**{**loaded.config, **overrides})
    graphdef, _ = build.abstract_params(spec.model_class(), config)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, loaded.params)), np.load(GOLDEN / folder / "tokens.npy")[0]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("folder", "overrides", "file"),
    [
        ("cronica", {}, "greedy_tokens"),
        ("kodalite", {}, "greedy_tokens"),
        ("gelu", {}, "greedy_tokens"),
        ("bwetaf", {"rope_dtype": "float32"}, "greedy_tokens_f32"),
    ],
)
def test_golden_greedy_decode_of_the_originals(folder, overrides, file, rows):
    model, tokens = load_golden(folder, **overrides)
    prompts = [tokens[:8].tolist(), tokens[3:7].tolist()]
    run = decode(model, prompts[:rows], max_new_tokens=16)
    assert run.tokens[0] == np.load(GOLDEN / folder / f"{file}.npy").tolist()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_on_a_cpu_copies_no_cache(module, rows):
    """Nothing but the compiled program shows it: the tokens are the same."""
    run = start(module, [[1, 2, 3]] * rows, max_new_tokens=40, sampling=GREEDY, seeds=[0] * rows)
    compiled = programs.decode.lower(
        run._params, run._state, run._inputs, jnp.int32(40), structure=run._structure, plan=run._plan
    ).compile()
    batch, heads, size, dim = run._state["memory"].k[0].shape
    whole = rf"= f32\[(?:{batch},)?{heads},(?:{size},{dim}|{dim},{size})\]"
    loops = [text for text in re.split(r"\n(?=%|ENTRY)", compiled.as_text()) if text.startswith("%")]
    made = [line for text in loops for line in text.splitlines() if re.search(whole, line)]
    assert made and not [line for line in made if line.strip().startswith("%copy")]
    # The joined kernels of q, k and v are made once, before the loop.
    joined = rf"f32\[{CONFIG.embed_dim},{3 * CONFIG.num_heads * CONFIG.head_dim}\]\S* concatenate\("
    assert bool(re.search(joined, compiled.as_text())) == (rows == 1)
    assert not any(re.search(joined, text) for text in loops)


def test_tiny_writes_on_past_its_context_as_the_original():
    lm = zoo.load(GOLDEN / "tiny")
    prompt = np.load(GOLDEN / "tiny" / "tokens.npy")[0, :8].tolist()
    expected = np.load(GOLDEN / "tiny" / "greedy_tokens_uncached.npy").tolist()
    assert len(prompt) + len(expected) > lm.config.max_seq_len
    assert lm.generate(prompt, temperature=0, max_new_tokens=len(expected)).tokens == expected
    # A prompt beyond the context is cropped the same way: it goes on where the text before went on.
    both, _ = lm.generate([prompt + expected[:20], prompt], temperature=0, max_new_tokens=8)
    assert both.tokens == expected[20:28]


def test_a_row_depends_on_its_own_seed_and_not_on_its_neighbours(module, prompts):
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.95, repetition_penalty=1.1)
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


def test_a_repetition_penalty_counts_prompt_and_text(module, prompts):
    """Greedy and with a penalty that nothing outweighs: no token comes twice, none of the prompt's comes at all."""
    run = decode(module, prompts[:2], max_new_tokens=40, sampling=Sampling(0, repetition_penalty=1e9))
    for prompt, tokens in zip(prompts[:2], run.tokens, strict=True):
        assert len(set(tokens)) == len(tokens) and not set(tokens) & set(prompt)
    assert len(set(decode(module, prompts[:2], max_new_tokens=40).tokens[0])) < 40


def test_biases_choose_and_forbid(module, prompts):
    run = decode(module, prompts, sampling=Sampling(0, logit_bias={7: 1e4}))
    assert all(tokens == [7] * 24 for tokens in run.tokens)
    free = decode(module, prompts)
    forbidden = {token: -np.inf for tokens in free.tokens for token in tokens[:1]}
    for tokens in decode(module, prompts, sampling=Sampling(0, logit_bias=forbidden)).tokens:
        assert not set(tokens) & set(forbidden)


def test_max_len_bounds_each_row_by_itself(module, prompts):
    run = decode(module, prompts, max_new_tokens=24, max_len=20)
    assert [len(tokens) for tokens in run.tokens] == [17, 3, 11, 4, 19]
    assert run.finished == ["length"] * 5


def test_ids_the_tokenizer_does_not_have_are_never_drawn(module, prompts):
    assert max(max(tokens) for tokens in decode(module, prompts, sampling=Sampling(5.0)).tokens) >= 30
    run = decode(module, prompts, sampling=Sampling(5.0), num_ids=30)
    assert max(max(tokens) for tokens in run.tokens) < 30


def test_another_prompt_length_or_number_does_not_compile_anew(module):
    decode(module, [[1] * 30], max_new_tokens=5, sampling=Sampling(0.5, 3, 0.9, min_p=0.1))
    before = programs.prefill._cache_size(), programs.decode._cache_size()
    decode(module, [[2] * 31], max_new_tokens=5, sampling=Sampling(0.7, 3, 0.8, min_p=0.2), seeds=[3], stop_ids=[4])
    assert (programs.prefill._cache_size(), programs.decode._cache_size()) == before


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
        ({"prompts": [[1]], "stop_ids": [2**40]}, f"stop names the id {2**40}"),
        ({"prompts": [[1]], "stop_ids": [-1]}, "stop names the id -1"),
        ({"prompts": [[1]], "sampling": Sampling(logit_bias={96: 1.0})}, "id 96"),
    ],
)
def test_impossible_requests_are_refused(module, change, named):
    prompts = change.pop("prompts")
    with pytest.raises(UserError, match=named):
        decode(module, prompts, **change)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.5), Sampling(top_k=5)])
def test_logits_that_are_no_numbers_give_ids_that_are_some(monkeypatch, sampling):
    """Of a vocabulary that is drawn from in blocks, and does not fill the last."""
    config = dataclasses.replace(CONFIG, vocab_size=1500)
    graphdef, params = build.create_params(Cronica, config, 0)
    broken = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params))
    run = decode(broken, [[1, 2]], 4, sampling, num_ids=1400)
    assert all(0 <= token < 1400 for token in run.tokens[0]) and np.isnan(run.logprobs[0]).all()


def make(name, **overrides):
    registered, values = TINY[name]
    return create(registered, **{**values, **overrides})


@pytest.mark.parametrize("name", ["cronica", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "bwetaf"))])
def test_more_than_max_seq_len_is_refused_with_both_numbers(name, caplog):
    lm = make(name, max_seq_len=24)
    with pytest.raises(UserError, match=r"30 tokens.*takes 24"):
        lm.generate([1] * 30)
    assert len(lm.generate([1] * 20, max_new_tokens=16).tokens) == 4
    assert not caplog.records


def test_gelu_warns_beyond_max_seq_len_and_refuses_beyond_ten_times_that(caplog):
    lm = make("gelu")
    assert lm.config.max_seq_len == 5
    with caplog.at_level(logging.WARNING):
        assert len(lm.generate([1], max_new_tokens=4).tokens) == 4
        assert not caplog.records
        assert len(lm.generate([1] * 45, max_new_tokens=16).tokens) == 5
    assert "50 tokens" in caplog.text and "max_seq_len 5" in caplog.text
    with pytest.raises(UserError, match=r"50 tokens.*takes 50"):
        lm.generate([1] * 50)


def test_bucket_sizes():
    sizes = [bucket(length) for length in range(1, 3000)]
    assert sizes == sorted(sizes)
    for length, size in enumerate(sizes, 1):
        assert length <= size <= max(16, 1.25 * length + 4)
    assert len(set(sizes)) < 35


ON_A_MESH = """
    import sys
    sys.path.insert(0, {tests!r})
    import jax
    from jax.sharding import AxisType
    from tiny_models import TINY
    from zoo.language_model import create

    name = {name!r}
    registered, values = TINY[name]
    sizes = dict(vocab_size=96, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)
    sizes |= dict(num_kv_heads=2) if "num_kv_heads" in values else dict()
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    single, sharded = (create(registered, mesh=on, **(values | sizes)) for on in (None, mesh))
    kernel = sharded.module.layers[0].attn.q.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (16, 16)
    prompts = [[5, 6, 7], [8], [9, 10], [11] * 6, [12]]
    for settings in (dict(temperature=0), dict(temperature=1.5, top_k=40, top_p=0.9)):
        for given in (prompts, prompts[:1]):
            one, other = (lm.generate(given, seed=3, max_new_tokens=20, **settings) for lm in (single, sharded))
            assert [item.tokens for item in one] == [item.tokens for item in other], settings
    print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gelu"])
def test_a_model_on_a_mesh_writes_the_same(name):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    code = textwrap.dedent(ON_A_MESH).format(tests=str(Path(__file__).parent), name=name)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
