"""Checkpoints: what is saved comes back, and what is broken is found out."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import remote_paths  # noqa: F401  (registers file://)

from zoo.checkpoints import checksums, orbax_io
from zoo.checkpoints import pytree as trees
from zoo.checkpoints.manager import Checkpoints, DamagedCheckpoint
from zoo.errors import UserError
from zoo.tree import unflatten

# Orbax leaves coroutines behind when it fails, which Python mentions.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited:RuntimeWarning"
)

META = {"examples_seen": 24, "note": "ñ", "nested": {"a": [1, 2.5, None]}}


def make_state(seed: int = 0):
    key = jax.random.key(seed)
    params = {
        "embed": {"embedding": jax.random.normal(key, (40, 16))},
        "layers": {i: {"kernel": jax.random.normal(jax.random.fold_in(key, i), (4, 4))} for i in range(2)},
        "half": jnp.arange(5, dtype=jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    return params, tx.init(params)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(equal))


def save_steps(directory: Path, steps, keep: int = 2) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, *make_state(step), {**META, "at": step})


def data_file(directory: Path, item: str = "model") -> Path:
    """The file that holds the arrays: the largest one."""
    return max((directory / item).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def flip_bit_of(directory: Path, array) -> None:
    """Flip one bit in the middle of the array's bytes, which stand uncompressed in some file."""
    content = np.asarray(array).tobytes()
    file = next(f for f in sorted(directory.rglob("*")) if f.is_file() and content in f.read_bytes())
    raw = bytearray(file.read_bytes())
    raw[raw.index(content) + len(content) // 2] ^= 0x10
    file.write_bytes(raw)


def restore(directory: Path, keep: int | None = 2):
    return Checkpoints(directory, keep=keep).restore(*map(abstract, make_state()))


def test_what_is_saved_comes_back(tmp_path):
    save_steps(tmp_path, [3])
    found = restore(tmp_path)
    params, opt_state = make_state(3)
    assert found.step == 3
    assert found.meta == {**META, "at": 3}
    assert same(found.params, params)
    assert same(found.opt_state, opt_state)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path / "nothing") is None
    assert Checkpoints(tmp_path).latest() is None
    assert not (tmp_path / "nothing").exists()


def test_arrays_may_be_donated_while_they_are_being_written(tmp_path):
    wipe = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    params = {f"w{i}": jnp.full((512, 512), float(i)) for i in range(8)}
    shapes = abstract(params)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, params, {}, {})
        for _ in range(20):
            params = wipe(params)
        jax.block_until_ready(params)
    found = Checkpoints(tmp_path).restore(shapes, {})
    assert all((np.asarray(found.params[f"w{i}"]) == i).all() for i in range(8))


def test_a_save_on_cpus_leaves_all_of_orbax_to_the_background(tmp_path):
    """Nothing is copied, and yet what is saved is the state at that moment, on one device as on several."""
    program = f"""
        import threading

        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import NamedSharding, PartitionSpec

        from zoo.checkpoints import Checkpoints, orbax_io

        begun, go_on = threading.Event(), threading.Event()
        write = orbax_io.ocp.save_checkpointables_async

        def later(*args, **kwargs):
            begun.set()
            assert go_on.wait(60)
            return write(*args, **kwargs)

        orbax_io.ocp.save_checkpointables_async = later
        mesh = jax.make_mesh((4, 2), ("data", "tensor"))
        specs = [(), ("data",), (None, "tensor"), (("data", "tensor"),)]
        layouts = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
        params = {{
            f"w{{i}}": jax.device_put(jnp.full((64, 32), float(i), jnp.bfloat16), layout)
            for i, layout in enumerate(layouts)
        }} | {{"alone": jnp.full((5,), 7.0), "host": np.full(3, 8, np.int32)}}
        shapes = {{
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
            for name, x in params.items()
        }}
        wipe = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
        with Checkpoints({str(tmp_path)!r}, keep=1) as checkpoints:
            checkpoints.save(1, params, {{}}, {{}})
            assert begun.wait(60)
            params["host"][:] = -1
            for _ in range(5):
                params = wipe(params)
            jax.block_until_ready(params)
            go_on.set()
        found = Checkpoints({str(tmp_path)!r}).restore(shapes, {{}}).params
        for i in range(len(specs)):
            assert (np.asarray(found[f"w{{i}}"], np.float32) == i).all(), i
            assert found[f"w{{i}}"].sharding == shapes[f"w{{i}}"].sharding
        assert (np.asarray(found["alone"]) == 7).all() and (np.asarray(found["host"]) == 8).all()
        """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env={**os.environ, **flags})


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, [1, 2, 3, 10], keep=2)
    assert Checkpoints(tmp_path).steps() == [3, 10]
    with pytest.raises(UserError, match=r"checkpoint\.keep"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("item", ["model", "optimizer"])
def test_one_flipped_bit_is_detected_and_the_checkpoint_before_is_used(tmp_path, caplog, monkeypatch, item):
    params, opt_state = make_state(2)
    opt_state = jax.tree.map(lambda x: x + 2, opt_state)
    save_steps(tmp_path, [1])
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, params, opt_state, {})
    tree = params if item == "model" else opt_state[1][0].mu
    flip_bit_of(tmp_path / "2" / item, tree["embed"]["embedding"])

    # Orbax itself does not notice: this is why there are checksums.
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "verify", lambda arrays, checksums: None)
        assert restore(tmp_path, keep=None).step == 2

    with caplog.at_level(logging.WARNING):
        found = restore(tmp_path)
    assert found.step == 1
    assert "checkpoint 2 is damaged" in caplog.text
    assert "embed/embedding does not match its checksum" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["1", "2.damaged"]
    # The step can be reached and saved again.
    save_steps(tmp_path, [2])
    assert restore(tmp_path).step == 2


def _truncate(path: Path) -> None:
    data = data_file(path)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def _remove(path: Path) -> None:
    data_file(path).unlink()


def _empty_meta(path: Path) -> None:
    (path / "meta" / "data.json").write_text("")


def _other_meta(path: Path) -> None:
    file = path / "meta" / "data.json"
    file.write_text(file.read_text().replace('"examples_seen": 24', '"examples_seen": 25'))


def _missing_meta(path: Path) -> None:
    (path / "meta" / "data.json").unlink()


def _missing_checksums(path: Path) -> None:
    (path / "integrity" / "data.json").unlink()


def _other_checksum(path: Path) -> None:
    file = path / "integrity" / "data.json"
    sums = json.loads(file.read_text())
    file.write_text(json.dumps(sums | {"model/half": sums["model/half"] ^ 1}))


def _missing_item(path: Path) -> None:
    shutil.rmtree(path / "optimizer")


def _no_structure(path: Path) -> None:
    (path / "model" / "_METADATA").write_text("{")


HARMS = [_truncate, _remove, _empty_meta, _other_meta, _missing_meta, _no_structure, _missing_item]
HARMS += [_missing_checksums, _other_checksum]


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_checkpoint_is_set_aside(tmp_path, harm):
    save_steps(tmp_path, [1, 2])
    harm(tmp_path / "2")
    assert restore(tmp_path).step == 1
    assert sorted(os.listdir(tmp_path)) == ["1", "2.damaged"]


def test_when_every_checkpoint_is_broken_nothing_is_begun_anew_silently(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        _truncate(tmp_path / str(step))
    for _ in range(2):  # not on the second try either, when they have been renamed
        with pytest.raises(UserError, match=r"no good checkpoint .*1\.damaged, 2\.damaged.*--fresh"):
            restore(tmp_path)


def test_a_read_only_look_changes_nothing(tmp_path):
    save_steps(tmp_path, [1, 2])
    _truncate(tmp_path / "2")
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert restore(tmp_path, keep=None).step == 1
    assert sorted(os.listdir(tmp_path)) == ["1", "2", unfinished.name]
    Checkpoints(tmp_path, keep=2)
    assert not unfinished.exists()


def test_another_model_is_refused_by_name_and_nothing_is_set_aside(tmp_path):
    save_steps(tmp_path, [1])
    params, opt_state = make_state()
    wider = {**params, "embed": {"embedding": jnp.zeros((9, 4))}}
    with pytest.raises(UserError, match=r"embed/embedding: \[40, 16\] float32 there, \[9, 4\] float32 here"):
        Checkpoints(tmp_path, keep=2).restore(abstract(wider), abstract(opt_state))
    fewer = {name: leaf for name, leaf in params.items() if name != "half"}
    with pytest.raises(UserError, match=r"half: \[5\] bfloat16 there, missing here"):
        Checkpoints(tmp_path, keep=2).restore(abstract(fewer), abstract(opt_state))
    assert os.listdir(tmp_path) == ["1"]


def test_a_refusal_by_the_caller_comes_before_the_arrays_are_read(tmp_path):
    save_steps(tmp_path, [1])
    _truncate(tmp_path / "1")

    def refuse(meta):
        raise UserError(f"not {meta['at']}")

    with pytest.raises(UserError, match="not 1"):
        Checkpoints(tmp_path, keep=2).restore(*map(abstract, make_state()), accept=refuse)
    assert os.listdir(tmp_path) == ["1"]


def test_parameters_alone_and_cast(tmp_path):
    save_steps(tmp_path, [1, 2])
    _truncate_optimizer = data_file(tmp_path / "2", "optimizer")
    _truncate_optimizer.unlink()  # not needed for the parameters
    params, _ = make_state(2)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    found = Checkpoints(tmp_path).restore_params(half)
    assert (found.step, found.opt_state) == (2, None)
    assert same(found.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert same(Checkpoints(tmp_path).restore_params(abstract(params), step=1).params, make_state(1)[0])
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*\[1, 2\]"):
        Checkpoints(tmp_path).restore_params(abstract(params), step=5)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*\[1, 2\]"):
        Checkpoints(tmp_path).restore(*map(abstract, make_state()), step=5)
    assert Checkpoints(tmp_path).restore(*map(abstract, make_state()), step=1).step == 1


def test_a_newer_format_is_refused(tmp_path):
    save_steps(tmp_path, [1])
    file = tmp_path / "1" / "meta" / "data.json"
    content = json.loads(file.read_text())["content"] | {"format": 99}
    file.write_text(json.dumps({"content": content, "sha256": orbax_io._hash(content)}))
    with pytest.raises(UserError, match="format 99"):
        restore(tmp_path)
    assert os.listdir(tmp_path) == ["1"]


def test_read_meta(tmp_path):
    save_steps(tmp_path, [1])
    assert Checkpoints(tmp_path).read_meta(1) == {**META, "at": 1}
    _other_meta(tmp_path / "1")
    with pytest.raises(DamagedCheckpoint, match="hash"):
        Checkpoints(tmp_path).read_meta(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_checksum_against_its_definition(dtype):
    source = np.random.default_rng(0)
    x = jnp.asarray(source.integers(0, 2, (3, 5, 2))).astype(dtype)
    width = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    bits = np.asarray(x).view(width).ravel().astype(np.uint64)
    expected = int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1)).sum()) % 2**32
    on_device = checksums._compiled(None)
    assert int(checksums.compute([x])()[0]) == int(on_device([x])[0]) == expected
    flipped = np.asarray(x).view(width).copy()
    flipped[2, 4, 1] ^= 1
    flipped = jnp.asarray(flipped.view(x.dtype))
    assert int(checksums.compute([flipped])()[0]) == int(on_device([flipped])[0]) != expected


@pytest.mark.parametrize("shape", [(), (7,), (3, 70_000), (70, 3), (2, 70, 1, 3), (0, 4)])
def test_checksums_on_the_host_are_those_of_the_devices_for_every_part_of_an_array(shape):
    """Cut along each axis in turn: long and short runs, in pieces and at once."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    whole = int(checksums._compiled(None)([jnp.asarray(x)])[0])
    assert checksums._part_sum(x, [0] * x.ndim, x.shape) == whole
    for axis in range(x.ndim):
        total, begin = 0, 0
        for part in np.array_split(x, 2, axis=axis):
            total += checksums._part_sum(part, [begin if one == axis else 0 for one in range(x.ndim)], x.shape)
            begin += part.shape[axis]
        assert total % 2**32 == whole


def test_checksums_and_restore_do_not_depend_on_the_sharding(tmp_path):
    """Saved from eight devices, restored on one: the same bits, the same checksums."""
    program = f"""
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from zoo.checkpoints import Checkpoints
        from zoo.checkpoints.checksums import _compiled, compute
        x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
        mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
        leaves = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in
                  (P(), P("fsdp", "tensor"), P("tensor", "fsdp"), P(("fsdp", "tensor")))]
        assert len(jax.devices()) == 8
        with Checkpoints({str(tmp_path)!r}, keep=1) as checkpoints:
            checkpoints.save(1, {{str(i): leaf for i, leaf in enumerate(leaves)}}, {{}}, {{}})
        print(*compute(leaves)(), *map(int, _compiled(NamedSharding(mesh, P()))(leaves)))
        """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    assert set(map(int, done.stdout.split())) == {int(checksums.compute([jnp.asarray(x)])()[0])}
    shapes = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype) for i in range(4)}
    found = Checkpoints(tmp_path).restore(shapes, {})
    assert all(np.asarray(leaf).tobytes() == x.tobytes() for leaf in found.params.values())


# ------------------------------------------------------------------------------------------- which ones are kept


def save_at(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, {}, {})
    checkpoints.wait()


def test_one_in_so_many_is_kept_for_good(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        save_at(checkpoints, 2, 4, 6, 8, 10, 12, 14)
    assert checkpoints.steps() == [4, 8, 12, 14]


def test_the_pinned_one_is_kept_until_another_is(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.pinned() is None
        checkpoints.save(1, {"w": jnp.ones(3)}, {}, {})
        checkpoints.pin(1, {"heldout_loss": 2.5})  # while it is still being saved
        assert checkpoints.pinned() == (1, {"heldout_loss": 2.5})
        save_at(checkpoints, 2, 3)
        assert checkpoints.steps() == [1, 3]
        with pytest.raises(ValueError, match="no checkpoint of step 7"):
            checkpoints.pin(7, {})
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # of another process
        assert checkpoints.pinned() == (1, {"heldout_loss": 2.5})
        save_at(checkpoints, 4)
        assert checkpoints.steps() == [1, 4]
        checkpoints.pin(4, {"heldout_loss": 2.0})
        save_at(checkpoints, 5)
        assert checkpoints.steps() == [4, 5]
    assert Checkpoints(tmp_path).pinned() == (4, {"heldout_loss": 2.0})
    (tmp_path / "4").rename(tmp_path / "away")
    assert Checkpoints(tmp_path).pinned() is None
    (tmp_path / "away").rename(tmp_path / "4")
    (tmp_path / "best.json").write_text("{")
    assert Checkpoints(tmp_path).pinned() is None


def test_a_deletion_that_was_killed_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save_at(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr("zoo.checkpoints.storage.remove", lambda path: None)  # killed before the first file is gone
            save_at(checkpoints, 2)
    assert sorted(os.listdir(tmp_path)) == ["1.deleted", "2"]
    assert Checkpoints(tmp_path).steps() == [2]
    Checkpoints(tmp_path, keep=1)
    assert os.listdir(tmp_path) == ["2"]


# ------------------------------------------------------------------------------------------------ what is restored


def test_a_part_of_the_parameters(tmp_path):
    save_steps(tmp_path, [1])
    params, _ = make_state(1)
    wanted = abstract(params) | {"adapter": jnp.full(3, 7.0)}
    found = Checkpoints(tmp_path).restore_params(wanted, only=lambda name: name != "adapter" and name != "half")
    assert same(found.params["layers"], params["layers"]) and same(found.params["embed"], params["embed"])
    assert np.asarray(found.params["adapter"]).tolist() == [7.0, 7.0, 7.0]
    assert isinstance(found.params["half"], jax.ShapeDtypeStruct)  # untouched
    with pytest.raises(UserError, match="adapter: missing there"):
        Checkpoints(tmp_path).restore_params(wanted)
    with pytest.raises(UserError, match=r"layers/0/kernel: \[4, 4\] there, missing here"):
        Checkpoints(tmp_path).restore_params({"half": params["half"]}, only=lambda name: not name.startswith("embed"))
    half = {"half": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}
    flip_bit_of(tmp_path / "1" / "model", params["embed"]["embedding"])  # what is not read is not verified
    assert same(
        Checkpoints(tmp_path).restore_params(half, only=lambda name: name == "half").params["half"], params["half"]
    )


def test_names_shapes_and_dtypes_of_the_parameters(tmp_path):
    save_steps(tmp_path, [1])
    found = Checkpoints(tmp_path).parameter_shapes(1)
    assert found["embed/embedding"] == ((40, 16), "float32")
    assert found["half"] == ((5,), "bfloat16")
    assert sorted(found) == ["embed/embedding", "half", "layers/0/kernel", "layers/1/kernel"]
    _other_meta(tmp_path / "1")
    with pytest.raises(UserError, match=r"checkpoint 1 in .* is damaged"):
        Checkpoints(tmp_path).parameter_shapes(1)


def test_the_first_format_is_read_and_verified(tmp_path):
    """It had the checksums of all leaves in one array of Orbax's, model before optimizer, each sorted by name."""
    from orbax.checkpoint import v1 as ocp

    params, opt_state = make_state(1)
    items = {"model": trees.named(params), "optimizer": trees.named(opt_state)}
    leaves = {item: trees.described(tree) for item, tree in items.items()}
    content = {"format": 1, "step": 1, "leaves": leaves, "meta": META}
    every = [leaf for tree in items.values() for leaf in tree.values()]
    stored = {item: unflatten(tree, key=str) for item, tree in items.items()}
    stored["checksums"] = {"uint32": jnp.asarray(checksums.compute(every)())}
    stored["meta"] = {"content": content, "sha256": orbax_io._hash(content)}
    with orbax_io._context(Checkpoints(tmp_path).directory):
        ocp.save_checkpointables(tmp_path / "1", stored)
    found = restore(tmp_path)
    assert (found.step, found.meta) == (1, META)
    assert same(found.params, params) and same(found.opt_state, opt_state)
    flip_bit_of(tmp_path / "1" / "model", params["embed"]["embedding"])
    with pytest.raises(UserError, match="no good checkpoint"):
        restore(tmp_path)


# ---------------------------------------------------------------------------------------------- remote directories


def test_a_remote_directory_is_like_a_local_one(tmp_path, caplog):
    """Orbax commits by a file there, since an object store cannot rename a directory at once."""
    url = f"file://{tmp_path}/run/checkpoints"
    there = tmp_path / "run" / "checkpoints"
    assert Checkpoints(url).latest() is None and restore(url) is None and not there.exists()
    with Checkpoints(url, keep=2, keep_every=10) as checkpoints:
        for step in (10, 11, 12, 13):
            checkpoints.save(step, *make_state(step), META)
            if step == 11:
                checkpoints.pin(11, {"heldout_loss": 1.0})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 11, 12, 13] and checkpoints.pinned() == (11, {"heldout_loss": 1.0})
        checkpoints.save(14, *make_state(14), META)
    assert checkpoints.steps() == [10, 11, 13, 14]
    found = restore(url)
    assert found.step == 14 and found.meta == META and same(found.params, make_state(14)[0])

    # One that was being written when its process was killed has its name, but no mark of completeness.
    (there / "14" / "commit_success.txt").unlink()
    assert restore(url, keep=None).step == 13 and (there / "14").exists()
    with caplog.at_level(logging.WARNING):
        assert restore(url).step == 13
    assert not (there / "14").exists() and "damaged" not in caplog.text

    _truncate(there / "13")
    with caplog.at_level(logging.WARNING):
        assert restore(url).step == 11
    assert "checkpoint 13 is damaged" in caplog.text
    assert sorted(os.listdir(there)) == ["10", "11", "13.damaged", "best.json"]


def test_a_directory_of_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"floppy://a/b: no such kind of directory"):
        Checkpoints("floppy://a/b")
