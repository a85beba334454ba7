"""Files that somebody has planted: in the working directory as modules, as links where zoo writes, as names that lead
out of a directory."""

import ast
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo import files
from zoo.cli.common import new_app, run_command
from zoo.cli.train import train
from zoo.convert import gguf
from zoo.convert.files import save_safetensors
from zoo.data import prepare, remote, shards
from zoo.data.shards import Manifest, read_manifest, write_shard
from zoo.distributed.supervisor import python_command, supervise
from zoo.errors import UserError
from zoo.hardware import compile_cache
from zoo.rundir import layout
from zoo.rundir.mirror import Mirror
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.train.logging.log import MetricsLog
from zoo.util import atomic_write

ROOT = Path(zoo.__file__).parents[1]


# ------------------------------------------------------------------------------------- modules in the working directory


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A working directory with modules that leave a file when they run; returns a function that lists these files."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for module in ("typer", "multiprocessing", "numpy", "zoo", "tokenizers", "json"):
        trace = tmp_path / f"RAN_{module}"
        (downloads / f"{module}.py").write_text(f"open({str(trace)!r}, 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(downloads)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if ROOT not in map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda: sorted(path.name for path in tmp_path.glob("RAN_*"))


def test_the_plant_works(planted):
    assert subprocess.run([sys.executable, "-c", "import typer"]).returncode == 7
    assert planted() == ["RAN_typer"]


def test_a_supervised_process_runs_nothing_of_the_working_directory(planted, capfd):
    assert supervise([*python_command("zoo.cli.train"), "--help"], None) == 0
    assert planted() == [] and "RECIPE" in capfd.readouterr().out


def test_neither_do_the_processes_that_it_starts(planted, capfd):
    code = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import typer']).returncode)"
    assert supervise([sys.executable, "-P", "-c", code], None) == 0
    assert planted() == []


def test_a_start_in_the_source_tree_hands_its_path_on(monkeypatch, capfd):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    program = "import sys; from zoo.distributed.supervisor import *; "
    program += "sys.exit(supervise([*python_command('zoo.cli.train'), '--help'], None))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE).returncode == 0


POOL = """
import os
from zoo.data import encode
from zoo.tokenizers.characters import CharacterTokenizer

if __name__ == "__main__":
    with encode._pool(2, CharacterTokenizer("ab\\n")) as pool:
        assert "PYTHONSAFEPATH" in os.environ
        encoded = pool.submit(encode._encode_in_worker, ["ab"], "text", None).result()
    assert encoded.tokens.tolist()[:2] == [1, 2] and "PYTHONSAFEPATH" not in os.environ
"""


def test_workers_that_tokenise_run_nothing_of_the_working_directory(planted, tmp_path):
    # A program of its own: the process that tracks resources starts with the first pool, and stays.
    (tmp_path / "program").mkdir()
    program = tmp_path / "program" / "pool.py"
    program.write_text(POOL)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert planted() == [] and "died unexpectedly" not in done.stderr


def test_whatever_a_command_starts_runs_nothing_of_the_working_directory(planted):
    app, codes = new_app(), []

    def start() -> None:
        codes.append(subprocess.run([sys.executable, "-c", "import typer"]).returncode)

    app.command()(start)
    assert run_command(app, [], "zoo start") == 0 and codes == [0] and planted() == []
    assert "PYTHONSAFEPATH" not in os.environ


def test_every_command_that_starts_python_leaves_the_working_directory_out():
    found = 0
    for path in [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                second = ast.unparse(node.elts[1])
                # A program named by its path has that path first, and not the working directory.
                assert second in ("'-P'", "__file__"), f"{path}:{node.lineno}"
                found += 1
    assert found >= 3
    assert "python_command(" in Path(sys.modules[train.__module__].__file__).read_text(encoding="utf-8")


def test_a_quantiser_in_the_working_directory_is_not_run(tmp_path, monkeypatch):
    program = tmp_path / gguf.QUANTISER
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gguf.shutil, "which", lambda name: name)  # as an empty entry of PATH finds it
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match=gguf.QUANTISER):
        gguf._quantiser()


# ----------------------------------------------------------------------------------------------- links where zoo writes


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "thesis.tex"
    path.write_text("years of work\n")
    return path


def intact(victim):
    return victim.read_text() == "years of work\n" and not victim.is_symlink()


def test_locks_are_not_opened_through_links(tmp_path, victim):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(victim)
    for lock in (lambda: layout.lock(run), lambda: prepare._lock(run, print)):
        with pytest.raises(UserError, match=r"\.lock is a symbolic link.*delete it"), lock():
            pass
    with pytest.raises(UserError, match="symbolic link"):
        remote_run = tmp_path / "bucket"
        remote_run.mkdir()
        Mirror(remote_run, run).fetch()
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match="symbolic link"), layout.lock(run):
        pass
    assert intact(victim) and not (tmp_path / "new").exists()
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    with pytest.raises(UserError, match="no regular file"), layout.lock(run):
        pass
    (run / ".lock").rmdir()
    os.mkfifo(run / ".lock")
    with pytest.raises(UserError, match="no regular file"), layout.lock(run):
        pass
    (run / ".lock").unlink()
    with layout.lock(run), prepare._lock(tmp_path, print):
        assert (run / ".lock").is_file()


def test_logs_and_small_files_are_not_written_through_links(tmp_path, victim):
    log = tmp_path / "metrics.jsonl"
    log.symlink_to(victim)
    for step in (0, 5):
        with pytest.raises(UserError, match=r"metrics\.jsonl is a symbolic link"):
            MetricsLog(log, step=step)
    assert intact(victim) and not (tmp_path / "metrics.jsonl.damaged").exists()
    small = tmp_path / "small.json"
    small.symlink_to(victim)
    atomic_write(small, "{}")
    assert small.read_text() == "{}" and not small.is_symlink() and intact(victim)


def test_weights_shards_and_seals_are_not_written_through_links(tmp_path, victim):
    target = tmp_path / "out"
    target.mkdir()
    for name in (".model.safetensors.tmp", "model.safetensors", ".00000-x.tokens.tmp"):
        (target / name).symlink_to(victim)
    save_safetensors(target / "model.safetensors", {"a": np.ones(2, np.float32)})
    assert not (target / "model.safetensors").is_symlink() and (target / "model.safetensors").stat().st_mode & 0o044
    tokens, lengths = np.arange(3, dtype=np.uint16), np.array([3])
    name = f"00000-{shards.content_hash(tokens, lengths, None)[:8]}"
    (target / f".{name}.tokens.tmp").symlink_to(victim)
    (target / f"{name}.lengths.npy").symlink_to(victim)
    shard = write_shard(target, 0, tokens, lengths, None, 1)
    assert np.load(target / f"{shard.name}.tokens.npy").tolist() == [0, 1, 2]
    (target / ".y.tokens.tmp").mkdir()
    shards.delete_unlisted(target, Manifest({}, "t", 10, False, 10, (shard,)))
    assert not (target / ".y.tokens.tmp").exists() and not (target / ".00000-x.tokens.tmp").is_symlink()
    (target / "e-cache").write_bytes(b"x")
    (target / "e-cache.sha256").symlink_to(tmp_path / "elsewhere")
    compile_cache.seal(target)
    assert not (tmp_path / "elsewhere").exists() and intact(victim)


def test_a_tokenizer_is_not_saved_through_a_link(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (elsewhere / "kept").write_text("x")
    (run / ".tokenizer.tmp").symlink_to(elsewhere)
    layout.save_tokenizer(CharacterTokenizer("ab"), run)
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]
    assert (run / "tokenizer" / "characters.json").is_file() and not (run / "tokenizer").is_symlink()


def test_replacements_leave_nothing_behind_when_they_fail(tmp_path):
    target = tmp_path / "x.npy"
    target.write_text("old")
    with pytest.raises(RuntimeError), files.replacement(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["x.npy"]
    with files.replacement(target) as path:
        path.write_text("new")
    assert target.read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["x.npy"]
    files.remove(tmp_path / "nothing")
    files.remove(target)
    assert not target.exists() and not files.exists(tmp_path / ("a" * 5000)) and not files.exists(Path("a\0b"))


def test_nothing_in_zoo_opens_a_file_for_writing_in_another_way():
    """Files are written by atomic_write, files.open_new, files.open_in_place and files.replacement alone."""
    # What a library opens itself: in a new directory of its own, or in the remote store.
    allowed = {"util.py", "files.py", "checkpoints/storage.py", "checkpoints/orbax_io.py", "rundir/mirror.py"}
    allowed |= {"run/status.py"}
    for path in (ROOT / "zoo").rglob("*.py"):
        name = str(path.relative_to(ROOT / "zoo"))
        if name in allowed or "gelu_gpt" in name:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [ast.unparse(value) for value in (*node.args, *(key.value for key in node.keywords))]
            writes = function == "open" and any(mode in ("'w'", "'wb'", "'a'", "'ab'", "'r+b'") for mode in modes)
            assert not writes and function not in ("write_text", "write_bytes", "copyfile", "copy2", "copy_file"), (
                f"{name}:{node.lineno} writes a file through a link that may be there; take zoo.files or atomic_write"
            )


# ------------------------------------------------------------------------------------------------- names that lead out


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a" * 5000, "a\0b", "..", "link/x"])
def test_names_stay_inside(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"leads out of its directory|names no file"):
        files.safe_join(inside, name)


def test_names_inside_are_joined(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("x", "a/x", "a/../x", "ñ"):
        assert files.safe_join(tmp_path, name) == tmp_path / name


MANIFEST = {
    "format": 1,
    "source": {},
    "tokenizer": "x",
    "vocab_size": 100,
    "loss_masks": False,
    "shard_tokens": 8388608,
    "exhausted": True,
    "skipped": {},
}
SHARD = {"documents": 1, "tokens": 3, "items": 1, "sha256": "0"}


@pytest.fixture
def server():
    """Serves a manifest that names one shard, and the same bytes by any other name."""
    pytest.importorskip("aiohttp")  # by which fsspec reads http

    class Handler(http.server.BaseHTTPRequestHandler):
        name = "00000-x"

        def do_GET(self):
            manifest = json.dumps({**MANIFEST, "shards": [{"name": self.name, **SHARD}]}).encode()
            body = manifest if self.path.endswith("manifest.json") else b"bytes of the server's choice"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield Handler, f"http://127.0.0.1:{started.server_port}/shards"
        started.shutdown()


@pytest.mark.parametrize("name", ["../../../PWNED", "/tmp/zoo-test-PWNED", "a/../../PWNED"])
def test_shards_of_a_server_stay_in_the_cache(tmp_path, monkeypatch, server, name):
    handler, url = server
    cache = tmp_path / "home" / "cache"
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    handler.name = name
    with pytest.raises(UserError, match="leads out of its directory"):
        remote.fetch(url)
    assert not list(tmp_path.rglob("*PWNED*")) and not Path("/tmp/zoo-test-PWNED.tokens.npy").exists()


def test_shards_of_a_server_are_fetched_and_replace_no_target_of_a_link(tmp_path, monkeypatch, server, victim):
    handler, url = server
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(handler, "name", "00000-x")
    directory = remote.fetch(url)
    assert sorted(path.name for path in directory.iterdir()) == [
        "00000-x.lengths.npy",
        "00000-x.tokens.npy",
        "manifest.json",
    ]
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").symlink_to(victim)
    (directory / "00000-x.tokens.npy").unlink()
    (directory / "00000-x.tokens.npy").symlink_to(victim)
    with pytest.raises(UserError, match="leads out of its directory"):
        remote.fetch(url)
    assert intact(victim)


def test_a_local_manifest_names_no_files_elsewhere(tmp_path):
    directory = tmp_path / "shards"
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps({**MANIFEST, "shards": [{"name": "../x", **SHARD}]}))
    with pytest.raises(UserError, match="leads out of its directory"):
        read_manifest(directory)


def test_copies_of_a_bucket_stay_in_their_directory(tmp_path, monkeypatch):
    remote_run, local = tmp_path / "bucket", tmp_path / "local"
    remote_run.mkdir()
    mirror = Mirror(remote_run, local)
    local.mkdir()
    for name in ("tokenizer/../../x", "../x"):
        with pytest.raises(UserError, match="leads out of its directory"):
            mirror._replace({name: b"x"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (local / "tokenizer").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of its directory"):
        mirror._replace({"tokenizer/x": b"x"})
    assert not (tmp_path / "x").exists() and not list(outside.iterdir())
