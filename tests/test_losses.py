"""The fused cross-entropy against the plain one, in float64, and what it promises about memory and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.train.losses import cross_entropy

B, T, D, V = 3, 7, 5, 11


def inputs(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, T, D)).astype(dtype)
    kernel = rng.normal(size=(D, V)).astype(dtype)
    bias = rng.normal(size=V).astype(dtype)
    return hidden, kernel, bias, rng.integers(0, V, (B, T)).astype(np.int32)


def plain(hidden, kernel, bias, softcap, targets, mask):
    """Mean loss with all the logits at once."""
    logits = hidden @ kernel + (0 if bias is None else bias)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (nll * mask).sum() / jnp.maximum(mask.sum(), 1)


def fused(hidden, kernel, bias, softcap, targets, mask, chunk=None, columns=None):
    nll, count = cross_entropy(hidden, kernel, bias, softcap, targets, mask, chunk=chunk, columns=columns)
    return nll / jnp.maximum(count, 1)


MASKS = {
    "all": np.ones((B, T)),
    "some": (np.arange(B * T).reshape(B, T) % 3 == 1).astype(float),
    "one": np.eye(1, B * T, 13).reshape(B, T),
    "weights": np.random.default_rng(5).random((B, T)) * (np.arange(B * T).reshape(B, T) % 4 > 0),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chunk", [1, 4, 21, 64])
@pytest.mark.parametrize("bias,softcap", [(False, None), (True, None), (False, 1.5), (True, 1.5)])
def test_value_and_gradients_are_those_of_the_plain_loss(mask, chunk, bias, softcap):
    with jax.enable_x64(True):
        hidden, kernel, b, targets = inputs()
        b = b if bias else None
        argnums = (0, 1, 2) if bias else (0, 1)
        args = (hidden, kernel, b, softcap, targets, MASKS[mask])
        value, gradients = jax.value_and_grad(fused, argnums)(*args, chunk)
        expected, expected_gradients = jax.value_and_grad(plain, argnums)(*args)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(fused(*args, chunk), expected, rtol=1e-12)  # without gradients, its own code
        for actual, wanted in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias,softcap", [(False, None), (True, 1.5)])
@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_columns_beyond_the_vocabulary_count_for_nothing(bias, softcap, shift):
    """Also where every real logit lies far below the zeros of the padding."""
    with jax.enable_x64(True):
        hidden, kernel, b, targets = inputs()
        hidden, kernel = np.abs(hidden), np.abs(kernel) + shift
        args = (hidden, kernel, b if bias else None, softcap, targets, MASKS["some"])
        argnums = (0, 1, 2) if bias else (0, 1)
        value, gradients = jax.value_and_grad(fused, argnums)(*args, 4, 16)
        expected, expected_gradients = jax.value_and_grad(plain, argnums)(*args)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(fused(*args, 4, 16), expected, rtol=1e-12)
        for actual, wanted in zip(gradients, expected_gradients, strict=True):
            assert actual.shape == wanted.shape
            np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-12)


def test_nothing_to_predict_is_loss_zero_with_zero_gradients():
    hidden, kernel, _, targets = inputs(np.float32)
    value, gradients = jax.value_and_grad(fused, (0, 1))(hidden, kernel, None, None, targets, np.zeros((B, T)), 4)
    assert value == 0
    assert all(not g.any() for g in gradients)


def test_targets_under_a_zero_mask_are_never_looked_at():
    hidden, kernel, _, targets = inputs(np.float32)
    mask = MASKS["some"]
    wild = np.where(mask > 0, targets, np.where(targets % 2, -100, 10**6))
    run = jax.value_and_grad(fused, (0, 1))
    for a, b in zip(
        jax.tree.leaves(run(hidden, kernel, None, None, targets, mask, 4)),
        jax.tree.leaves(run(hidden, kernel, None, None, wild.astype(np.int32), mask, 4)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_partial_sums_of_a_batch_add_up():
    hidden, kernel, _, targets = inputs(np.float32)
    mask = MASKS["weights"].astype(np.float32)
    whole = cross_entropy(hidden, kernel, None, None, targets, mask)
    parts = [
        cross_entropy(hidden[i : i + 1], kernel, None, None, targets[i : i + 1], mask[i : i + 1]) for i in range(B)
    ]
    for total, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(total, sum(pieces), rtol=1e-6)


def test_large_logits_stay_finite():
    hidden, kernel, _, targets = inputs(np.float32)
    value, gradients = jax.value_and_grad(fused, (0, 1))(1e4 * hidden, kernel, None, None, targets, MASKS["all"], 4)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_inputs_give_float32_sums_and_gradients_of_their_own_dtype():
    hidden, kernel, bias, targets = inputs(np.float32)
    small = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, kernel, bias)]
    rounded = [np.asarray(x, np.float32) for x in small]
    run = jax.value_and_grad(fused, (0, 1, 2))
    value, gradients = run(*small, 20.0, targets, MASKS["some"], 4)
    expected, expected_gradients = run(*rounded, 20.0, targets, MASKS["some"], 4)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-3)  # bfloat16 logits would be off by 4e-3
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(actual, np.float32), wanted, atol=0.02 * np.abs(wanted).max())


def test_no_array_is_as_large_as_the_logits():
    """64 positions in chunks of 8 over 512 entries: anything in the traced program stays well below 64 x 512."""
    rows, width, vocab = (2, 32), 4, 512
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((*rows, width), (width, vocab))]
    targets, mask = (jax.ShapeDtypeStruct(rows, d) for d in (np.int32, np.float32))

    def walk(jaxpr):
        sizes = [0]
        for equation in jaxpr.eqns:
            sizes += [v.aval.size for v in equation.outvars]
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        sizes.append(walk(inner))
        return max(sizes)

    def loss(h, k, t, m, chunk):
        return fused(h, k, None, None, t, m, chunk)

    def size(chunk):
        run = jax.value_and_grad(lambda *args: loss(*args, chunk), (0, 1))
        return walk(jax.make_jaxpr(run)(*shapes, targets, mask).jaxpr)

    assert size(64) == 64 * vocab  # the measure sees the logits where they are whole
    assert size(8) == 8 * vocab
