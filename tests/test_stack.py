"""Blocks scanned or unrolled, recomputed or not, give the same numbers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import TINY, tiny

from zoo.errors import UserError
from zoo.layers.lora import add_lora, projections
from zoo.layers.stack import Execution, executing
from zoo.recipe import make_recipe

ALIKE = [name for name in TINY if name not in ("gelu", "nanochat")]
TOKENS = np.random.default_rng(0).integers(1, 30, (2, 9))
SEGMENTS = np.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2], np.int32)


def loss_and_gradients(graphdef, params, execution, **arguments):
    """Of a function of all positions' hidden states, compiled."""

    def loss(params):
        with executing(execution):
            hidden, _ = nnx.merge(graphdef, params).hidden(jnp.asarray(TOKENS), **arguments)
        weights = jax.random.normal(jax.random.key(0), hidden.shape)
        return jnp.sum(hidden * weights), hidden

    (_, hidden), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return hidden, gradients


def assert_same(found, expected):
    def close(a, b):
        # Of the largest number: sums in another order differ by the last bits of their terms.
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * float(jnp.abs(b).max() + 1e-9))

    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(
    "remat", ["none", *(pytest.param(remat, marks=pytest.mark.slow) for remat in ("dots", "full"))]
)
@pytest.mark.parametrize("name", ALIKE)
def test_scanned_blocks_compute_what_unrolled_ones_do(name, remat):
    graphdef, params, _ = tiny(name)
    arguments = {"segment_ids": jnp.asarray(SEGMENTS), "key": jax.random.key(3)}
    expected = loss_and_gradients(graphdef, params, Execution(), **arguments)
    assert_same(loss_and_gradients(graphdef, params, Execution(True, remat), **arguments), expected)


@pytest.mark.parametrize("remat", ["dots", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["bwetaf", "gelu", pytest.param("nanochat", marks=pytest.mark.slow)])
def test_recomputed_blocks_give_the_same_gradients(name, remat):
    graphdef, params, _ = tiny(name)
    arguments = {"key": jax.random.key(3)}
    expected = loss_and_gradients(graphdef, params, Execution(), **arguments)
    assert_same(loss_and_gradients(graphdef, params, Execution(remat=remat), **arguments), expected)


def saved_for_backward(remat, scan):
    """Numbers that the backward pass of a tiny crónica of six blocks finds saved."""
    graphdef, params, _ = tiny("cronica", num_layers=6)

    def hidden(params):
        with executing(Execution(scan, remat)):
            return nnx.merge(graphdef, params).hidden(jnp.asarray(TOKENS))[0]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(hidden, p)[1], params)))


@pytest.mark.parametrize("scan", [False, True])
def test_the_more_is_recomputed_the_less_is_saved(scan):
    none, dots, full = (saved_for_backward(remat, scan) for remat in ("none", "dots", "full"))
    assert none > 1.2 * dots and dots > 1.2 * full


def test_a_scan_holds_one_block():
    graphdef, params, _ = tiny("llama", num_layers=6)

    def products(execution):
        def hidden(params):
            with executing(execution):
                return nnx.merge(graphdef, params).hidden(jnp.asarray(TOKENS))[0]

        return str(jax.make_jaxpr(hidden)(params)).count("dot_general")

    assert products(Execution(scan_layers=True)) * 6 == products(Execution())


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_takes_the_layers_own_keys(scan):
    graphdef, params, _ = tiny("bwetaf", dropout=0.5)
    params = jax.tree.map(jnp.zeros_like, params) | {"embed": params["embed"]}
    for block in params["layers"].values():
        # Every block adds the same ones to the stream, dropped where its mask says so.
        block["attn"]["o"]["bias"] = jnp.ones_like(block["attn"]["o"]["bias"])
    plain, _ = loss_and_gradients(graphdef, params, Execution(scan))
    dropped, _ = loss_and_gradients(graphdef, params, Execution(scan), key=jax.random.key(1))
    # Two blocks of equal masks would leave 0 and 4 alone; ones kept by one of the two give 2.
    assert set(np.unique(np.round(dropped - plain + 2))) == {0, 2, 4}


def test_adapters_are_scanned_too():
    graphdef, params, _ = tiny("llama")
    model = nnx.merge(graphdef, params)
    for path in add_lora(model, rank=2, alpha=4.0, targets=["q", "layers/*/mlp/down"], key=jax.random.key(1)):
        b = projections(model)[path].lora.b
        b[...] = jax.random.normal(jax.random.fold_in(jax.random.key(2), len(path)), b.shape)
    graphdef, state = nnx.split(model)
    with_adapters = nnx.to_pure_dict(state)
    expected = loss_and_gradients(graphdef, with_adapters, Execution())
    found = loss_and_gradients(graphdef, with_adapters, Execution(True, "full"))
    assert_same(found, expected)
    assert jnp.abs(found[1]["layers"][1]["mlp"]["down"]["lora"]["a"]).max() > 0
    # Blocks of which only some have an adapter are not alike.
    model.layers[0].attn.q.lora = None
    with pytest.raises(UserError, match="scan_layers"):
        loss_and_gradients(*nnx.split(model), Execution(scan_layers=True))


def test_cached_calls_never_scan():
    graphdef, params, _ = tiny("cronica")
    model, tokens = nnx.merge(graphdef, params), jnp.asarray(TOKENS)
    expected, _ = model.hidden(tokens)
    with executing(Execution(True, "full")):
        found, cache = model.hidden(tokens, cache=model.init_cache(2, 9))
    assert_same(found, expected)
    assert cache.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("name", ["gelu", "nanochat"])
def test_blocks_that_differ_are_not_scanned(name):
    graphdef, params, _ = tiny(name)
    with pytest.raises(UserError, match=r"train\.scan_layers"):
        loss_and_gradients(graphdef, params, Execution(scan_layers=True))
    with pytest.raises(UserError, match=r"train\.scan_layers: the blocks of \S+ differ.*false$"):
        make_recipe({"name": "x", "model": {"name": TINY[name][0]}, "train": {"scan_layers": True}})


def test_a_model_that_runs_its_own_loop_is_not_silently_left_alone():
    with pytest.raises(UserError, match=r"train\.remat.*run_layers"), executing(Execution(remat="full")):
        pass
    with executing(Execution()):
        pass


PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, "tests")
    import jax, numpy as np
    from tiny_models import TINY
    from zoo.recipe import make_recipe
    from zoo.train.mesh import make_mesh, put_batch
    from zoo.train.program import Program

    losses = {}
    for fields in ({}, {"scan_layers": True, "remat": "dots"}):
        name, config = TINY["llama"]
        config = {**config, "vocab_size": 64, "embed_dim": 32, "num_heads": 8, "num_kv_heads": 4}
        recipe = make_recipe({
            "name": "x", "model": {"name": name, **config}, "tokenizer": {"vocab_size": 64},
            "data": {"source": "stories", "seq_len": 8, "batch_size": 8}, "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
            "optimizer": {"warmup_steps": 1}, "train": {"steps": 4, **fields},
        })
        program = Program(recipe, make_mesh(recipe.mesh))
        params, state = program.create()
        step = program.step()
        tokens = np.random.default_rng(0).integers(0, 64, (8, 8)).astype(np.int32)
        batch = {"tokens": tokens, "targets": tokens, "loss_mask": np.ones((8, 8), np.float32)}
        found = []
        for i in range(3):
            params, state, metrics = step(params, state, put_batch(batch, program.mesh), i)
            found.append(float(metrics["loss"]))
        kernel = params["layers"][1]["mlp"]["up"]["kernel"]
        assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor"), kernel.sharding
        losses[bool(fields)] = found
    np.testing.assert_allclose(losses[True], losses[False], rtol=2e-6)
    print("same")
    """
)


@pytest.mark.slow
def test_a_scanned_step_on_a_mesh():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **flags},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("same"), done.stderr[-2000:]
