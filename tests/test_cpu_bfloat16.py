"""bfloat16 products on CPUs with matrix units for it (AMX); on other CPUs the same programs run without these units."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from test_resume import exact, write_inputs
from tiny_models import TINY, fast_for, tiny

from zoo.cli.train import main
from zoo.layers import attention_kernels, cpu
from zoo.models.build import cast_floats, flatten
from zoo.train.losses import cross_entropy

# Every equation in zoo, and those of its derivatives.
EQUATIONS = (
    *("ni,io->no", "no,io->ni", "ni,no->io", "nd,dv->nv", "cd,dv->cv", "cv,dv->cd", "cd,cv->dv"),
    *("gth,sh->gts", "gts,sh->gth", "sh,gth->sgt", "sgt,gth->sh", "sgt,sh->gth"),
    *("bkgth,bksh->bkgts", "bkgts,bksh->bkgth", "bksh,bkgth->bksgt", "bkgts,bkgth->bksh"),
)
SIZES = (1, 2, 3, 17, 40)
PER_EQUATION = 4
# The largest error of a loss, and of a parameter's gradient as a share of its norm, against float32. One rounding to
# bfloat16 is 0.004 at most; the models with more layers or logits that are capped add up more of them.
LOSS, GRADIENT = 0.01, 0.05


@pytest.fixture
def matrix_units(monkeypatch):
    """The CPU is taken for one with AMX."""
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"amx_bf16"}))


@pytest.fixture
def no_matrix_units(monkeypatch):
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)


def shapes(equation, seed):
    random = np.random.default_rng(seed)
    sizes = {axis: int(random.choice(SIZES)) for axis in sorted(set(equation) - set(",->"))}
    return [tuple(sizes[axis] for axis in term) for term in equation.split("->")[0].split(",")]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_every_product_of_every_shape_runs_and_is_exact_up_to_rounding(matrix_units, equation):
    for seed in range(PER_EQUATION):
        a, b = (jax.random.normal(jax.random.key(seed + n), s) for n, s in enumerate(shapes(equation, seed)))

        @jax.jit
        @cpu.bfloat16_products
        def value_and_gradients(a, b):
            y, backward = jax.vjp(lambda a, b: cpu.einsum(equation, a, b), a, b)
            # A use that wants the result transposed must not make XLA choose another layout.
            return y, y.T.copy(), backward(jnp.cos(y))

        y, transposed, gradients = value_and_gradients(a, b)
        expected, backward = jax.vjp(lambda a, b: jnp.einsum(equation, a, b, precision="highest"), a, b)
        assert y.dtype == jnp.float32 and [g.dtype for g in gradients] == [jnp.float32] * 2
        assert np.linalg.norm(y - expected) <= 0.01 * np.linalg.norm(expected)
        np.testing.assert_array_equal(transposed, y.T)
        for gradient, exact_one in zip(gradients, backward(jnp.cos(y)), strict=True):
            assert np.linalg.norm(gradient - exact_one) <= 0.02 * np.linalg.norm(exact_one) + 1e-6


def test_operands_are_rounded_and_sums_are_not(matrix_units):
    a, b = jax.random.normal(jax.random.key(0), (8, 512)), jax.random.normal(jax.random.key(1), (512, 8))
    y = jax.jit(cpu.bfloat16_products(lambda a, b: cpu.einsum("ni,io->no", a, b)))(a, b)
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (a, b)]
    np.testing.assert_allclose(y, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    assert np.abs(y - np.asarray(a, np.float64) @ np.asarray(b, np.float64)).max() > 1e-3


def test_products_reach_the_units_only_where_there_are_some(matrix_units, monkeypatch):
    def taken():
        return [cpu.takes_bfloat16(dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)]

    assert (taken(), cpu.bfloat16_products(taken)()) == ([False, True, False], [True, True, False])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not any(cpu.bfloat16_products(taken)())
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert not any(cpu.bfloat16_products(taken)())


def test_results_have_the_layout_that_jax_expects(matrix_units):
    """Of jaxlib 0.10 a transposed result in a tuple would have another, which the next program reads wrongly."""

    @jax.jit
    @cpu.bfloat16_products
    def program(a, b):
        y = cpu.einsum("ni,io->no", a, b)
        return y, {"transposed": y.T}

    y, others = program(jnp.ones((17, 40)), jax.random.normal(jax.random.key(0), (40, 3)))
    assert others["transposed"].format.layout.major_to_minor == (0, 1)
    assert bool(jnp.all(others["transposed"] == y.T))


def loss_and_gradients(name, batch, rounds):
    graphdef, params, _ = tiny(name)

    def loss(params):
        model = nnx.merge(graphdef, params)
        hidden, _ = model.hidden(batch["tokens"], segment_ids=batch.get("segment_ids"))
        nll, count = cross_entropy(hidden, *model.head(), batch["targets"], batch["mask"])
        return nll / jnp.maximum(count, 1)

    program = jax.value_and_grad(loss)
    value, gradients = jax.jit(cpu.bfloat16_products(program) if rounds else program)(params)
    return float(value), {path: np.asarray(leaf, np.float64) for path, leaf in flatten(gradients).items()}


def made_up(vocab_size, rows, length, kind):
    random = np.random.default_rng(length)
    tokens = random.integers(0, vocab_size, (rows, length + 1)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "mask": np.ones((rows, length), np.float32)}
    if kind == "no targets":
        batch["mask"][:] = 0
    if kind == "segments":
        batch["segment_ids"] = 1 + np.cumsum(random.random((rows, length)) < 0.2, axis=1).astype(np.int32)
    return {name: jnp.asarray(array) for name, array in batch.items()}


@pytest.mark.parametrize("name", fast_for(*TINY))
def test_losses_and_gradients_are_those_of_float32_within_the_rounding(matrix_units, name):
    batch = made_up(32, 2, 13, "segments" if name in ("llama", "cronica") else "plain")
    (loss, gradients), (expected, exact_ones) = (loss_and_gradients(name, batch, rounds) for rounds in (True, False))
    assert loss == pytest.approx(expected, abs=LOSS)
    whole = np.sqrt(sum(np.sum(leaf**2) for leaf in exact_ones.values()))
    for path, leaf in gradients.items():
        error = np.linalg.norm(leaf - exact_ones[path])
        assert error <= GRADIENT * max(np.linalg.norm(exact_ones[path]), 0.05 * whole), path


@pytest.mark.parametrize(
    ("rows", "length", "kind"),
    [(1, 1, "plain"), (1, 7, "plain"), (3, 130, "plain"), (2, 5, "no targets"), (2, 129, "segments")],
)
def test_batches_of_all_kinds_run(matrix_units, rows, length, kind):
    loss, gradients = loss_and_gradients("cronica", made_up(40, rows, length, kind), True)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in gradients.values())
    assert (loss == 0) == (kind == "no targets")


@pytest.mark.parametrize("units", ["matrix_units", "no_matrix_units"])
@pytest.mark.parametrize("name", fast_for("cronica", "gelu"))
def test_generation_in_bfloat16_continues_whole_rows(name, units, request):
    request.getfixturevalue(units)
    graphdef, params, config = tiny(name)
    model = nnx.merge(graphdef, cast_floats(params, jnp.bfloat16))
    for rows in (1, 3):
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, 9)).astype(np.int32)
        whole = jax.jit(model.__call__)(tokens)
        cache, logits = model.init_cache(rows, 12, jnp.bfloat16), []

        @jax.jit
        def step(tokens, cache, model=model):
            hidden, cache = model.hidden(tokens, cache=cache)
            return model.unembed(hidden), cache

        for part in (tokens[:, :4], *np.split(tokens[:, 4:], 5, axis=1)):
            out, cache = step(part, cache)
            logits.append(out)
        spread = float(jnp.std(whole))
        np.testing.assert_allclose(jnp.concatenate(logits, axis=1), whole, atol=0.15 * spread)


def test_a_single_row_is_multiplied_as_bfloat16_and_summed_in_float32():
    x, kernel = jax.random.normal(jax.random.key(0), (1, 33)), jax.random.normal(jax.random.key(1), (33, 7))
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = jax.jit(cpu.single_row_product)(x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ np.asarray(kernel, np.float64), rtol=1e-5, atol=1e-5)


def test_tables_are_kept_as_they_are(matrix_units):
    table = jnp.cos(jnp.arange(60.0).reshape(2, 6, 5))
    for dtype in (jnp.float32, jnp.bfloat16):
        kept = jax.jit(cpu.bfloat16_products(cpu.materialized))(table.astype(dtype))
        assert kept.dtype == dtype
        np.testing.assert_array_equal(kept, table.astype(dtype))


def test_attention_with_windows_is_that_of_plain_products(matrix_units):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 300, heads, 8)) for n, heads in enumerate((4, 2, 2)))
    for window in (None, 50):
        attention = partial(attention_kernels.attention, causal=True, window=window)
        out, expected = jax.jit(cpu.bfloat16_products(attention))(q, k, v), attention(q, k, v)
        np.testing.assert_allclose(out, expected, atol=0.03)


def test_auto_takes_bfloat16_where_it_is_faster_and_the_run_keeps_it(tmp_path, monkeypatch, capsys):
    recipe = write_inputs(tmp_path)

    def train(units, steps):
        monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"amx_bf16"} if units else ()))
        assert main([str(recipe), f"train.steps={steps}", "eval.num_pairs=0"]) == 0
        return capsys.readouterr().out

    first = train(True, 4)
    assert "computes in bfloat16" in first and "AMX" in first and "compute in bfloat16" in first
    run_dir = next((tmp_path / "runs").iterdir())
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["train"]["compute_dtype"] == "bfloat16"
    moved = train(False, 8)
    assert "compute in bfloat16" in moved and "train.compute_dtype=float32 would be faster" in moved
    assert [line["step"] for line in exact(run_dir)][-1] == 8
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["train"]["compute_dtype"] == "bfloat16"


def test_a_run_begun_in_float32_stays_there_and_several_devices_do_not_take_it(tmp_path, monkeypatch, capsys):
    recipe = write_inputs(tmp_path)
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)
    assert main([str(recipe), "train.steps=4", "eval.num_pairs=0"]) == 0
    assert "compute in float32" in capsys.readouterr().out
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert main([str(recipe), "train.steps=8", "eval.num_pairs=0"]) == 0
    assert "compute in float32" in capsys.readouterr().out


def test_a_run_in_bfloat16_resumes_bit_for_bit(tmp_path, matrix_units):
    recipe, lines = write_inputs(tmp_path), {}
    for name, stops in {"whole": (8,), "parts": (4, 8)}.items():
        for steps in stops:
            # The schedule must not depend on where the first part ends.
            assert (
                main(
                    [
                        str(recipe),
                        f"name={name}",
                        f"train.steps={steps}",
                        "optimizer.schedule=constant",
                        "optimizer.final_lr=null",
                    ]
                )
                == 0
            )
        lines[name] = exact(tmp_path / "runs" / name)
    assert lines["whole"] and lines["parts"][-1] == lines["whole"][-1]
