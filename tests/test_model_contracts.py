"""What holds for every model: packing is invisible, nothing looks ahead, the cache equals the full forward."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import TINY, tiny

import zoo
from zoo import registry
from zoo.layers import cpu
from zoo.models import build

LENGTH = 18  # of packed rows
DOCUMENTS = 4  # at most, in a row
MODELS = pytest.mark.parametrize("name", TINY)

_made = {}


def made(name):
    """(graphdef, params, config, losses): made once a model, so that its programs are compiled once."""
    if name not in _made:
        graphdef, params, config = tiny(name)

        @jax.jit
        def losses(params, tokens, targets, mask, segment_ids):
            def total(params):
                model = nnx.merge(graphdef, params)
                nll = -jnp.take_along_axis(
                    jax.nn.log_softmax(model(tokens, segment_ids=segment_ids)), targets[..., None], axis=-1
                )[..., 0]
                return jnp.sum(nll * mask), nll

            (_, nll), grads = jax.value_and_grad(total, has_aux=True)(params)
            return nll, grads

        _made[name] = graphdef, params, config, losses
    return _made[name]


def close(actual, expected, tolerance=1e-5):
    assert np.abs(np.asarray(actual) - np.asarray(expected)).max() <= tolerance * np.abs(np.asarray(expected)).max()


@MODELS
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=DOCUMENTS - 1, unique=True),
    pad=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_packing_is_invisible(name, cuts, pad, seed):
    """Documents in one row give the losses and gradients that they give alone, each in a row of its own."""
    _, params, config, losses = made(name)
    rng = np.random.default_rng(seed)
    edges = [0, *sorted(cuts), LENGTH]
    lengths = [b - a for a, b in itertools.pairwise(edges)]
    stream = rng.integers(0, config.vocab_size, LENGTH + 1).astype(np.int32)
    packed = {key: np.zeros((1, LENGTH), np.int32) for key in ("tokens", "targets", "mask", "segment_ids")}
    alone = {key: np.zeros((DOCUMENTS, LENGTH), np.int32) for key in ("tokens", "targets", "mask")}
    for i, (at, length) in enumerate(zip(edges, lengths, strict=False)):
        document = stream[at : at + length]
        last = max(1, length - pad) if i == len(lengths) - 1 else length  # the row may end in padding
        packed["tokens"][0, at : at + last] = document[:last]
        packed["segment_ids"][0, at : at + last] = i + 1
        alone["tokens"][i, :last] = document[:last]
        for rows, row, start in ((packed, 0, at), (alone, i, 0)):
            rows["targets"][row, start : start + last - 1] = document[1:last]
            rows["mask"][row, start : start + last - 1] = 1
    if not packed["mask"].sum():
        return
    nll, grads = losses(params, *(packed[key] for key in ("tokens", "targets", "mask", "segment_ids")))
    # A document alone stands in a row without any segment ids: what follows it cannot reach it.
    nll_alone, grads_alone = losses(params, *(alone[key] for key in ("tokens", "targets", "mask")), None)
    close(np.asarray(nll)[packed["mask"] == 1], np.asarray(nll_alone)[alone["mask"] == 1])
    for (path, actual), expected in zip(build.flatten(grads).items(), build.flatten(grads_alone).values(), strict=True):
        scale = max(float(jnp.abs(expected).max()), 1e-3 if expected.ndim else 0.5)  # scalars: remainders of large sums
        assert float(jnp.abs(actual - expected).max()) <= 4e-5 * scale, path


@MODELS
def test_nothing_looks_ahead_or_into_another_document(name):
    """By the gradients of each position's logits to each position's own rows of the tables: exactly zero."""
    length = 10
    graphdef, params, _config = tiny(
        name, vocab_size=length, **({"vocab_pad_multiple": 1} if "vocab_pad_multiple" in TINY[name][1] else {})
    )
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 3]])
    tables = {
        path: leaf
        for path, leaf in build.flatten(params).items()
        if path.endswith("embed/embedding") or path == "embed/embedding"
    }
    tables = {path: leaf for path, leaf in tables.items() if leaf.shape[0] == length}
    assert "embed/embedding" in tables
    kernel = nnx.merge(graphdef, params).head()[0]

    def sums(tables, segment_ids):  # token t is t: every position has rows of its own
        own = build.unflatten({**build.flatten(params), **tables})
        hidden, _ = nnx.merge(graphdef, own).hidden(jnp.arange(length)[None], segment_ids=segment_ids)
        return (hidden[0] @ kernel).sum(-1)

    jacobian = jax.jit(jax.jacrev(sums))
    for segment_ids in (None, segments):
        found = jacobian(tables, segment_ids)
        reach = sum(np.abs(np.asarray(leaf)).sum(-1) for leaf in found.values())  # [position, source]
        same = np.ones((length, length), bool) if segment_ids is None else segments[0][:, None] == segments[0]
        may = np.tril(np.ones((length, length), bool)) & np.asarray(same)
        assert np.array_equal(reach * ~may, np.zeros((length, length)))
        # What may be seen is seen, one token back at the least.
        assert (np.diag(reach) > 0).all() and (np.diag(reach, -1)[np.diag(may, -1)] > 0).all()


@MODELS
def test_prefill_and_steps_equal_the_full_forward_at_every_split(name):
    """Ragged rows: the second is three tokens shorter. Then single steps to the end, or a chunk of three first."""
    graphdef, params, config = tiny(name)
    model = nnx.merge(graphdef, params)
    length = 14
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, length)).astype(np.int32)
    full = np.asarray(jax.jit(lambda tokens: model(tokens))(tokens))

    @jax.jit
    def call(tokens, segment_ids, cache):
        hidden, cache = model.hidden(tokens, segment_ids=segment_ids, cache=cache)
        return model.unembed(hidden), cache

    def feed(cache, seen, counts, width):
        chunk, segments = np.zeros((2, width), np.int32), np.zeros((2, width), np.int32)
        for row in range(2):
            chunk[row, : counts[row]] = tokens[row, seen[row] : seen[row] + counts[row]]
            segments[row, : counts[row]] = 1
        logits, cache = call(chunk, segments, cache)
        assert np.isfinite(np.asarray(logits)).all()
        for row in range(2):
            close_to = full[row, seen[row] : seen[row] + counts[row]]
            if counts[row]:
                close(np.asarray(logits)[row, : counts[row]], close_to, 2e-5)
        seen = [a + b for a, b in zip(seen, counts, strict=True)]
        assert cache.lengths.tolist() == seen
        return cache, seen

    for split in range(1, length):
        cache, seen = feed(model.init_cache(2, length + 1), [0, 0], [split, max(split - 3, 0)], length)
        if split % 2:
            cache, seen = feed(cache, seen, [min(3, length - seen[0]), min(2, length - seen[1])], 3)
        while min(seen) < length:
            cache, seen = feed(cache, seen, [int(n < length) for n in seen], 1)


@MODELS
def test_computes_in_the_dtype_of_its_parameters(name):
    graphdef, params, _config = tiny(name)
    half = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    tokens = jnp.arange(10)[None]
    assert half.dtype == jnp.bfloat16
    hidden, cache = jax.eval_shape(lambda: half.hidden(tokens, cache=half.init_cache(1, 12, half.dtype)))
    assert hidden.dtype == jnp.bfloat16
    kept = {jnp.dtype(jnp.bfloat16), jnp.dtype(cpu.cache_dtype(jnp.bfloat16)), jnp.dtype(jnp.int32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} <= kept
    logits = jax.jit(lambda: half(tokens))()
    exact = jax.jit(lambda: nnx.merge(graphdef, params)(tokens))()
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.square(logits - exact).mean()) / np.sqrt(np.square(exact).mean())
    assert 1e-4 < error < 0.1


def test_dropout_needs_a_key_and_follows_it():
    graphdef, params, _ = tiny("bwetaf", dropout=0.5)
    call = jax.jit(lambda tokens, key=None: nnx.merge(graphdef, params)(tokens, key=key))
    tokens = jnp.arange(10)[None]
    without = tiny("bwetaf", dropout=0.0)[0]
    close(call(tokens), nnx.merge(without, params)(tokens))
    one, again, other = (np.asarray(call(tokens, key=jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2 and np.abs(one - np.asarray(call(tokens))).max() > 1e-2


def test_layers_draw_different_masks():
    """Layers whose attention puts out the same numbers still drop different ones."""
    graphdef, params, config = tiny("bwetaf", dropout=0.5, num_layers=2)
    seen = []
    for layer in range(2):
        # Of one layer the attention branch is a constant, of the other nothing; the MLPs are silent.
        flat = {
            path: jnp.zeros_like(leaf) if "/attn/" in path or "/mlp/" in path else leaf
            for path, leaf in build.flatten(params).items()
        }
        flat[f"layers/{layer}/attn/o/bias"] = jnp.ones(config.embed_dim)
        model = nnx.merge(graphdef, build.unflatten(flat))
        tokens = jnp.arange(10)[None]
        with_mask, _ = model.hidden(tokens, key=jax.random.key(0))
        without, _ = model.hidden(tokens)
        seen.append(np.asarray(jnp.abs(with_mask - without) > 0.5) * np.sign(np.asarray(with_mask - without)))
    assert (seen[0] != seen[1]).mean() > 0


def test_tiny_refuses_a_row_longer_than_its_positions():
    graphdef, params, _ = tiny("tiny", max_seq_len=8)
    with pytest.raises(Exception, match="a row of 9 tokens, but the model has only max_seq_len 8 positions"):
        nnx.merge(graphdef, params)(jnp.zeros((1, 9), jnp.int32))


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded_again_every_parameter_is_the_same(name, tmp_path):
    graphdef, params, config = tiny(name)
    lm = zoo.LanguageModel(nnx.merge(graphdef, params), None, registry.describe(TINY[name][0]), config)
    lm.save(tmp_path / "saved")
    again = zoo.load(tmp_path / "saved")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(again.module)), params)
