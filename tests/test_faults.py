"""What breaks around a run: disks that are full or read-only, files that change, processes that do not see the same.

See also test_checkpoints.py (broken files) and test_resume.py (kills, signals, other recipes, two writers).
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorstore
from test_checkpoints import META, abstract, data_file, make_state, restore, same, save_steps

from zoo.checkpoints import pytree as trees
from zoo.checkpoints import storage
from zoo.checkpoints.manager import Checkpoints
from zoo.cli.train import main
from zoo.errors import UserError

# Orbax leaves coroutines behind when it fails, which Python mentions.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited:RuntimeWarning"
)

# ------------------------------------------------------------------------------------------------- changed files


def flip_bit_in(item: Path, leaf: str) -> None:
    """Flip one bit of a stored leaf, wherever and however Orbax has put it."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    keys = [key.decode() for key in store.list().result()]
    chunk = next(key for key in keys if key.startswith(f"{leaf.replace('/', '.')}/c"))
    content = bytearray(store.read(chunk).result().value)
    content[(len(content) - 20) // 2] ^= 0x10  # the last 20 bytes are Zarr's own, with a checksum of their own
    store.write(chunk, bytes(content)).result()


def test_one_bit_of_any_leaf_is_found(tmp_path, caplog):
    params, opt_state = make_state(1)
    opt_state = jax.tree.map(lambda x: x + 1, opt_state)  # moments of a new optimizer are zero, and so are sums of them
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(1, params, opt_state, META)
    leaves = [("model", name) for name in trees.named(params)]
    leaves += [("optimizer", name) for name in trees.named(opt_state)]
    assert len(leaves) == 4 + 2 * 4 + 2  # two moments; the counts of Adam and of the schedule
    for number, (item, name) in enumerate(leaves):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", copy)
        assert restore(copy).step == 1
        flip_bit_in(copy / "1" / item, name)
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="no good checkpoint"):
            restore(copy)
        assert f"{item}/{name} does not match its checksum" in caplog.text


def test_a_misshapen_leaf_gives_one_line(tmp_path, caplog, capfd):
    """Orbax alone would spill thousands, from its threads."""
    save_steps(tmp_path / "run", [1, 2])
    params, opt_state = make_state(2)
    other = params | {"half": jnp.arange(6, dtype=jnp.bfloat16)}
    with Checkpoints(tmp_path / "other", keep=1) as checkpoints:
        checkpoints.save(2, other, opt_state, META)
    shutil.rmtree(tmp_path / "run" / "2" / "model")
    shutil.copytree(tmp_path / "other" / "2" / "model", tmp_path / "run" / "2" / "model")
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path / "run").step == 1
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint 2 is damaged (the arrays of its model are not those that were saved); trying the one before"
    ]
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------- full and read-only


@contextlib.contextmanager
def mounted(directory: Path, size: str) -> Iterator[Path]:
    """A file system of that size. Skips the test where none may be mounted."""
    directory.mkdir()
    made = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))
    if made is not None:
        pytest.skip(f"no file system can be mounted here: {made}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def mount(*arguments: str) -> str | None:
    """What went wrong, None if nothing did."""
    if shutil.which("mount") is None:
        return "there is no mount command"
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def big_state(megabytes: float):
    return {"w": jnp.arange(int(megabytes * 2**18), dtype=jnp.float32)}


def test_a_disk_without_room_is_seen_before_the_save(tmp_path):
    with mounted(tmp_path / "disk", "3m") as disk:
        state = big_state(2)
        with pytest.raises(UserError) as raised, Checkpoints(disk / "checkpoints", keep=2) as checkpoints:
            checkpoints.save(1, state, {}, META)
            checkpoints.save(2, state, {}, META)
        free = storage.free_bytes(checkpoints.directory)
        assert str(raised.value) == (
            f"{disk}/checkpoints: there is no room for the checkpoint of step 2: it needs 2,097,152 bytes, {free:,} "
            "are free; the checkpoint of step 1 is intact. Make room (or lower checkpoint.keep) and start again"
        )
        assert os.listdir(disk / "checkpoints") == ["1"]
        assert mount("-o", "remount,size=10m", str(disk)) is None  # room has been made
        with Checkpoints(disk / "checkpoints", keep=2) as checkpoints:
            assert checkpoints.restore(abstract(state), {}).step == 1
            checkpoints.save(2, state, {}, META)
        assert checkpoints.restore(abstract(state), {}).step == 2


def test_a_disk_that_fills_up_during_the_save_leaves_the_checkpoint_before(tmp_path, capfd):
    with mounted(tmp_path / "disk", "8m") as disk:
        state = big_state(2)
        checkpoints = Checkpoints(disk / "checkpoints", keep=2)
        checkpoints.save(1, state, {}, META)
        checkpoints.wait()
        free = storage.free_bytes(checkpoints.directory)
        (disk / "somebody else's").write_bytes(bytes(free - 2**21 - 2**13))  # enough for the arrays alone
        capfd.readouterr()
        checkpoints.save(2, state, {}, META)
        with pytest.raises(UserError, match=r"no room for the checkpoint of step 2.* step 1 is intact"):
            checkpoints.wait()
        assert capfd.readouterr() == ("", "")
        assert os.listdir(disk / "checkpoints") == ["1"]  # what had been written is gone
        (disk / "somebody else's").unlink()
        checkpoints.save(2, state, {}, META)
        checkpoints.wait()
        assert checkpoints.restore(abstract(state), {}).step == 2


def test_files_that_may_not_grow_further_are_a_full_disk(tmp_path):
    """A limit of the system's, as quotas are: no file of this process may be larger than 1 MB."""
    program = f"""
        import resource, sys
        import jax.numpy as jnp
        from zoo.checkpoints import Checkpoints
        from zoo.errors import UserError

        state = {{"w": jnp.arange(2**19, dtype=jnp.float32)}}
        with Checkpoints({str(tmp_path)!r}, keep=2) as checkpoints:
            checkpoints.save(1, state, {{}}, {{}})
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
            checkpoints.save(2, state, {{}}, {{}})
            try:
                checkpoints.wait()
            except UserError as error:
                print(error)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"{tmp_path}: there is no room for the checkpoint of step 2 (File too large): it needs "
    )
    assert "the checkpoint of step 1 is intact" in done.stdout
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["1"]
    assert restored_w(tmp_path, 2**19).step == 1


def restored_w(directory: Path, size: int):
    return Checkpoints(directory).restore({"w": jax.ShapeDtypeStruct((size,), jnp.float32)}, {})


@pytest.mark.slow
@pytest.mark.parametrize("left", [2**16, 2**12])  # for some lines of metrics.jsonl; for none
def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(tmp_path, capsys, left):
    """The first checkpoint is written, then somebody fills the disk."""
    from test_resume import exact, write_inputs

    with mounted(tmp_path / "disk", "20m") as disk:
        command = [str(write_inputs(tmp_path)), "train.steps=14", "checkpoint.keep=1"]
        for steps in (6, 14):
            assert main([*command, f"train.steps={steps}"]) == 0
        expected = exact(tmp_path / "runs" / "tiny")
        command += [f"logging.runs_dir={disk}"]
        assert main([*command, "train.steps=6"]) == 0
        (disk / "filler").write_bytes(bytes(storage.free_bytes(disk) - left))
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and str(disk) in error and "intact" in error
        assert Checkpoints(disk / "tiny" / "checkpoints").steps() == [6]
        (disk / "filler").unlink()
        assert main(command) == 0
        assert "going on from the checkpoint of step 6" in capsys.readouterr().out
        assert exact(disk / "tiny") == expected


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """A directory, moved to where nothing may be written, for root neither."""
    if os.geteuid() != 0:
        folders = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            yield directory
        finally:
            for folder in folders:
                folder.chmod(0o755)
        return
    with mounted(directory.with_name("mounted"), "20m") as disk:
        shutil.copytree(directory, disk / "run")
        if (problem := mount("-o", "remount,ro", str(disk))) is not None:
            pytest.skip(f"no file system can be made read-only here: {problem}")
        yield disk / "run"


def test_a_read_only_directory_says_so_and_can_be_read(tmp_path, capfd):
    from zoo.rundir import layout

    save_steps(tmp_path / "run", [1, 2])
    with read_only(tmp_path / "run") as run:
        capfd.readouterr()
        checkpoints = Checkpoints(run, keep=1)
        assert same(checkpoints.restore(*map(abstract, make_state())).params, make_state(2)[0])
        with pytest.raises(UserError, match=rf"{run} cannot be written \(.*\); the checkpoint of step 2 is intact"):
            checkpoints.save(3, *make_state(3), META)
            checkpoints.wait()
        for directory in (run, run / "new"):
            refused = pytest.raises(UserError, match=r"cannot be written \(.*\); make it writable, or choose another")
            with refused, layout.lock(directory):
                pass
        assert checkpoints.steps() == [1, 2]
        assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------- several processes


def two_processes(program: str, *arguments: str) -> list[str]:
    """The last line of each of two processes that run the program together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    begin = f"""
        import sys
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        me = int(sys.argv[1])
        jax.distributed.initialize("localhost:{port}", num_processes=2, process_id=me)
        """
    source = textwrap.dedent(begin) + textwrap.dedent(program)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "32", "PYTHONPATH": str(Path(__file__).parent)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", source, str(process), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(error[-3000:] for _, error in ended)
    return [out.splitlines()[-1] for out, _ in ended]  # Gloo speaks before


SHARDED = """
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from zoo.checkpoints import Checkpoints

    mesh = jax.make_mesh((4,), ("data",))
    params = {"w": jax.ShapeDtypeStruct((8, 600), np.float32, sharding=NamedSharding(mesh, P("data"))),
              "b": jax.ShapeDtypeStruct((6,), np.float32, sharding=NamedSharding(mesh, P()))}
    """


def whole(number: float) -> dict[str, jax.Array]:
    return {"w": number + jnp.arange(4800.0).reshape(8, 600), "b": jnp.full(6, number)}


def test_processes_that_see_different_damage_restore_the_same_checkpoint_and_save_the_next(tmp_path):
    """One process finds the newest broken, the other the one before that: neither waits for the other for ever."""
    with Checkpoints(tmp_path / "0", keep=4) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, whole(float(step)), {}, {"at": step})
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    cut = data_file(tmp_path / "1" / "4")
    cut.write_bytes(cut.read_bytes()[:100])
    (tmp_path / "0" / "3" / "meta" / "data.json").write_text("{")
    shutil.rmtree(tmp_path / "1" / "2" / "model")
    outputs = two_processes(
        SHARDED
        + """
    found = Checkpoints(f"{sys.argv[2]}/{me}", keep=4).restore(params, {})
    part = np.asarray(found.params["w"].addressable_shards[0].data)
    told = [found.step, found.meta["at"], float(part[0, 0])]

    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(f"{sys.argv[2]}/both", keep=1) as checkpoints:
        state = add(found.params)
        checkpoints.save(2, state, {}, {})
        checkpoints.pin(2, {"loss": 1.0})
        state = add(add(state))  # donated while it is being written
        checkpoints.save(4, state, {}, {"at": 4})
        checkpoints.wait()
        state = checkpoints.restore(params, {})
        print(*told, state.step, checkpoints.pinned()[0])
    """,
        str(tmp_path),
    )
    assert outputs == ["1 1 1.0 4 2", "1 1 2401.0 4 2"]
    assert sorted(os.listdir(tmp_path / "0")) == ["1", "2.damaged", "3.damaged", "4.damaged"]
    # And what two have written, one reads.
    assert sorted(os.listdir(tmp_path / "both")) == ["2", "4", "best.json"]
    both = Checkpoints(tmp_path / "both")
    assert same(both.restore(abstract(whole(0.0)), {}).params, whole(4.0))
    assert same(both.restore_params(abstract(whole(0.0)), step=2).params, whole(2.0))
