"""Logical axes on meshes: specs by arithmetic, and the model on eight virtual devices."""

import logging
import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError
from zoo.layers.sharding import constrain, partition_spec


def mesh(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def test_axes_map_to_the_mesh():
    m = mesh(1, 4, 2)
    assert partition_spec(("embed", "mlp"), (256, 704), m) == P("fsdp", "tensor")
    assert partition_spec(("heads", "embed"), (256, 256), m, units=(64, 1)) == P("tensor", "fsdp")
    assert partition_spec(("vocab", "embed"), (8000, 256), m) == P("tensor", "fsdp")
    assert partition_spec(("norm",), (256,), m) == P(None)
    assert partition_spec(("batch", "length"), (8, 16), m) == P(("data", "fsdp"), None)


def test_a_mesh_without_an_axis_does_not_split_it():
    m = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    assert partition_spec(("embed", "mlp"), (256, 704), m) == P(None, None)


def test_indivisible_vocabulary_and_kv_heads_are_replicated_and_logged(caplog):
    m = mesh(1, 1, 4)
    with caplog.at_level(logging.INFO, logger="zoo.layers.sharding"):
        assert partition_spec(("vocab", "embed"), (50257, 64), m, name="embed/embedding") == P(None, "fsdp")
        # two heads of 64: 128 divides by 4, but a head must stay whole
        assert partition_spec(("embed", "kv_heads"), (64, 128), m, units=(1, 64)) == P("fsdp", None)
    assert [r.getMessage() for r in caplog.records] == [
        "embed/embedding: axis 'vocab' (50257) is replicated: 4 devices do not divide it",
        "parameter: axis 'kv_heads' (2) is replicated: 4 devices do not divide it",
    ]


def test_any_other_indivisible_axis_is_an_error():
    with pytest.raises(UserError, match=r"layers/0/attn/q/kernel: axis 'heads' has 4 parts.* of size 8"):
        partition_spec(("embed", "heads"), (256, 256), mesh(1, 1, 8), units=(1, 64), name="layers/0/attn/q/kernel")
    with pytest.raises(UserError, match="'embd' has no sharding rule"):
        partition_spec(("embd",), (4,), mesh(1, 1, 1))


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "features")) is x


EIGHT_DEVICES = """
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from jax.sharding import AxisType, PartitionSpec as P
    from zoo.layers.sharding import constrain
    from zoo.models import build
    from zoo.models.cronica import Cronica, CronicaConfig

    config = CronicaConfig(vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (8, 12)), jnp.int32)
    graphdef, single = build.create_params(Cronica, config, 0)

    def loss(params):
        logits = nnx.merge(graphdef, params)(tokens[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(single)
    for shape in ((8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2)):
        mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        _, abstract = build.abstract_params(Cronica, config, mesh=mesh)
        _, params = build.create_params(Cronica, config, 0, mesh=mesh)
        for (name, leaf), wanted in zip(build.flatten(params).items(), build.flatten(abstract).values()):
            assert leaf.sharding == wanted.sharding, name
            np.testing.assert_allclose(leaf, build.flatten(single)[name], atol=1e-8)
        kernel = params["layers"][1]["mlp"]["gate"]["kernel"]
        assert kernel.sharding.spec == P("fsdp", "tensor")
        assert kernel.addressable_shards[0].data.shape == (32 // shape[1], 48 // shape[2])
        with jax.set_mesh(mesh):
            pinned = jax.jit(lambda x: constrain(x, ("batch", "length", "mlp")))(jnp.zeros((8, 3, 48)))
            # twelve prompts on eight devices: the batch axis is left alone, not refused
            jax.jit(lambda x: constrain(x, ("batch", "length", "mlp")))(jnp.zeros((12, 3, 48)))
            got, got_grads = jax.jit(jax.value_and_grad(loss))(params)
        assert pinned.addressable_shards[0].data.shape == (8 // shape[0] // shape[1], 3, 48 // shape[2])
        np.testing.assert_allclose(got, value, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads)):
            np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(b).max()) + 1e-9)
    print("equal on 4 meshes")
"""


def test_eight_devices_equal_one():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT_DEVICES)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal on 4 meshes"
