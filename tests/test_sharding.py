"""Logical axes on meshes: specs by arithmetic, and the model on eight virtual devices."""

import logging
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from tiny_models import TINY

from zoo import registry
from zoo.errors import UserError
from zoo.layers.sharding import RULES, constrain, param_shardings, partition_spec
from zoo.models import build


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


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_logical_axes_that_a_mesh_can_lay_out(name):
    """Also where the mesh does not divide everything: vocabulary 257, kv heads below the tensor axis."""
    registered, values = TINY[name]
    awkward = dict(vocab_size=257, embed_dim=32, num_heads=4, head_dim=16, mlp_dim=48)
    fields = {**values, **awkward}
    if "num_kv_heads" in values:
        fields["num_kv_heads"] = 2
    if "vocab_pad_multiple" in values:
        fields["vocab_pad_multiple"] = 1
    spec = registry.describe(registered)
    _, state = build.abstract(spec.model_class(), spec.make_config(**fields))
    for path, param in nnx.to_flat_state(state):
        axes = param.get_metadata()["axes"]
        assert len(axes) == len(param.shape), path
        assert set(axes) <= set(RULES), path
        used = [mesh_axis for axis in axes for mesh_axis in RULES[axis]]
        assert len(used) == len(set(used)), f"{path}: a mesh axis lies on two axes of one array"
    m = mesh(1, 2, 4)
    flat = {path: sharding.spec for path, sharding in build.flatten(param_shardings(state, m)).items()}
    shapes = {"/".join(map(str, path)): param.shape for path, param in nnx.to_flat_state(state)}
    for path, spec_ in flat.items():
        for size, entry in zip(shapes[path], spec_, strict=True):
            names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
            assert size % math.prod(m.shape[n] for n in names) == 0, path
    assert flat["embed/embedding"] == P(None, "fsdp")  # 257 rows
    kv = fields.get("num_kv_heads", fields["num_heads"])
    assert flat["layers/0/attn/q/kernel"] == P("fsdp", "tensor")
    assert flat["layers/0/attn/k/kernel"] == P("fsdp", "tensor" if kv % 4 == 0 else None)
    if name == "gelu":
        assert flat["layers/0/value_embed/embedding"] == P(None, ("fsdp", "tensor"))


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "features")) is x


EIGHT_DEVICES = """
    import sys
    sys.path.insert(0, {tests!r})
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from tiny_models import tiny, TINY
    from zoo import registry
    from zoo.layers.embedding import Embedding
    from zoo.layers.sharding import constrain
    from zoo.models import build

    name, meshes = {name!r}, {meshes!r}
    sizes = dict(vocab_size=96, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=48)
    if "num_kv_heads" in TINY[name][1]:
        sizes["num_kv_heads"] = 2
    graphdef, single, config = tiny(name, **sizes)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (8, 12)), jnp.int32)

    def loss(params):
        logits = nnx.merge(graphdef, params)(tokens[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(single)
    model_class = registry.describe(TINY[name][0]).model_class()
    for shape in meshes:
        mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        _, abstract = build.abstract_params(model_class, config, mesh=mesh)
        _, created = build.create_params(model_class, config, 0, mesh=mesh)
        plain = build.flatten(build.create_params(model_class, config, 0)[1])
        for (path, leaf), wanted in zip(build.flatten(created).items(), build.flatten(abstract).values()):
            assert leaf.sharding == wanted.sharding, path
            np.testing.assert_allclose(leaf, plain[path], atol=1e-6)
        kernel = created["layers"][1]["attn"]["q"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (32 // shape[1], 32 // shape[2])
        params = jax.device_put(single, jax.tree.map(lambda leaf: leaf.sharding, abstract))
        with jax.set_mesh(mesh):
            pinned = jax.jit(lambda x: constrain(x, ("batch", "length", "mlp")))(jnp.zeros((8, 3, 48)))
            # twelve prompts on eight devices: the batch axis is left alone, not refused
            jax.jit(lambda x: constrain(x, ("batch", "length", "mlp")))(jnp.zeros((12, 3, 48)))
            got, got_grads = jax.jit(jax.value_and_grad(loss))(params)
        assert pinned.addressable_shards[0].data.shape == (8 // shape[0] // shape[1], 3, 48 // shape[2])
        np.testing.assert_allclose(got, value, rtol=2e-6)
        for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads)):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)

    # More tokens than rows: no device ever holds what was looked up for all of them.
    mesh = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    definition = nnx.graphdef(Embedding(96, 32, key=jax.random.key(0), init=jax.random.normal))
    table = jax.device_put(jnp.arange(96 * 32.0).reshape(96, 32), NamedSharding(mesh, P(None, "fsdp")))
    ids = jax.device_put(jnp.arange(40 * 12).reshape(40, 12) % 96, NamedSharding(mesh, P("fsdp")))

    def lookup(table, ids):
        embed = nnx.merge(definition, {{"embedding": table}})
        return constrain(embed(ids), ("batch", "length", "features"))

    with jax.set_mesh(mesh):
        compiled = jax.jit(lookup).lower(table, ids).compile()
        assert "f32[5,12,32]" in compiled.as_text() and "[40,12," not in compiled.as_text()
        np.testing.assert_array_equal(compiled(table, ids), np.asarray(table)[np.asarray(ids)])
    print("equal on", len(meshes))
"""


def equal_on_eight_devices(name, meshes):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    code = textwrap.dedent(EIGHT_DEVICES).format(tests=str(Path(__file__).parent), name=name, meshes=meshes)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"equal on {len(meshes)}"


@pytest.mark.slow
def test_eight_devices_equal_one():
    equal_on_eight_devices("cronica", [(1, 8, 1), (2, 1, 4)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu", "llama", "bwetaf", "tiny"])
def test_eight_devices_equal_one_for_every_model(name):
    equal_on_eight_devices(name, [(2, 2, 2)])
