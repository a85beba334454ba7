"""Compiled programs are kept per machine, found again, and never read damaged."""

import os
import subprocess
import sys
import textwrap

import pytest

from zoo.hardware import compile_cache
from zoo.hardware.compile_cache import CHECKSUM, ENTRY
from zoo.util import cache_directory

PROGRAM = textwrap.dedent(
    """
    from collections import Counter
    from zoo.hardware import compile_cache
    directory = compile_cache.enable()
    import jax
    events = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[-1]]))
    compiled = jax.jit(lambda x: (x @ x + 1).sum())
    print(directory, events["cache_hits"], events["cache_misses"], float(compiled(jax.numpy.eye(3) / 7)))
    print(events["cache_hits"], events["cache_misses"])
    """
)


def run(cache, **env):
    settings = {"ZOO_CACHE": str(cache), "JAX_PLATFORMS": "cpu", **env}
    program = PROGRAM.replace("directory = compile", "compile_cache.MIN_COMPILE_SECONDS = 0\ndirectory = compile")
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Error reading" not in done.stderr
    first, last = done.stdout.splitlines()
    directory, *_, value = first.split()
    hits, misses = map(int, last.split())
    return directory, value, hits, misses


def test_programs_are_found_again_and_damaged_ones_compiled_again(tmp_path):
    directory, value, hits, misses = run(tmp_path)
    assert directory == str(tmp_path / "compiled" / compile_cache.machine())
    assert hits == 0 and misses > 0
    assert run(tmp_path) == (directory, value, misses, 0)

    entries = sorted(tmp_path.rglob(f"*{ENTRY}"))
    assert len(entries) == misses
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
    assert run(tmp_path) == (directory, value, 0, misses)
    entries[0].write_bytes(b"")
    entries[1].with_name(entries[1].name + CHECKSUM).unlink()
    assert run(tmp_path) == (directory, value, misses - 2, 2)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_directory() == tmp_path / ".cache" / "zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert cache_directory() == tmp_path / "elsewhere" / "zoo"
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_what_the_user_says_stands(tmp_path):
    directory, _, hits, misses = run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (directory, hits, misses) == ("None", 0, 0)
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    directory, _, _, misses = run(tmp_path / "a", **own)
    assert directory == "None" and misses and list((tmp_path / "own").glob(f"*{ENTRY}"))
    assert not (tmp_path / "a").exists()


def test_other_machines_have_other_directories(monkeypatch):
    here = compile_cache.machine()
    assert compile_cache.machine() == here
    monkeypatch.setattr(compile_cache, "_processor", lambda: "flags: fpu")
    assert compile_cache.machine() != here
    monkeypatch.undo()
    monkeypatch.setattr(compile_cache, "version", lambda package: "0.0.1")
    assert compile_cache.machine() != here


def test_the_oldest_go_first(tmp_path):
    for number, size in enumerate((10, 20, 30)):
        entry = tmp_path / f"{number}{ENTRY}"
        entry.write_bytes(bytes(size))
        os.utime(entry, (number, number))
    compile_cache.seal(tmp_path)
    compile_cache.drop_oldest(tmp_path, 55)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"1{ENTRY}", f"1{ENTRY}{CHECKSUM}", f"2{ENTRY}", f"2{ENTRY}{CHECKSUM}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_done_without(tmp_path):
    tmp_path.chmod(0o500)
    directory, _, hits, misses = run(tmp_path)
    assert (directory, hits, misses) == ("None", 0, 0)
