"""A run whose directory is remote: its small files come along, and two processes do not train it at once."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import remote_paths  # noqa: F401  (registers file://)
from test_resume import quick, write_inputs  # noqa: F401  (quick: programs are compiled once)

from zoo.cli.train import main
from zoo.errors import UserError
from zoo.recipe import make_recipe
from zoo.rundir import layout
from zoo.rundir import mirror as run_mirror
from zoo.rundir.mirror import Mirror
from zoo.train.logging.log import read_metrics
from zoo.weights import resolve


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(run_mirror, "_VISIBLE_AFTER", 0.0)


@pytest.fixture
def remote(tmp_path) -> str:
    return f"file://{tmp_path}/bucket/run"


def write(directory: Path, **files: str) -> None:
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_machine_that_goes_on_gets_the_small_files_and_only_those(tmp_path, remote):
    first = Mirror(remote, tmp_path / "first")
    assert not first.fetch()
    write(tmp_path / "first", recipe_yaml="name: run", tokenizer__tokenizer_json="{}", metrics_jsonl="1\n", _lock="")
    write(tmp_path / "first", tensorboard__events="many", result_json="{}", notes_txt="mine")
    first.push()
    write(tmp_path / "first", metrics_jsonl="1\n2\n")
    first.push()
    expected = {"recipe.yaml": "name: run", "tokenizer/tokenizer.json": "{}", "metrics.jsonl": "1\n2\n"}
    expected |= {"result.json": "{}", "tensorboard/events": "many"}
    assert contents(tmp_path / "bucket" / "run") == expected

    second = Mirror(remote, tmp_path / "second")
    assert second.fetch()
    assert contents(tmp_path / "second") == expected | {".lock": ""}
    # What the first machine still has is not what the run is now.
    write(tmp_path / "second", metrics_jsonl="1\n2\n3\n")
    second.push()
    (tmp_path / "bucket" / "run" / "result.json").unlink()
    assert Mirror(remote, tmp_path / "first").fetch()
    assert contents(tmp_path / "first") == {
        "recipe.yaml": "name: run",
        "tokenizer/tokenizer.json": "{}",
        "metrics.jsonl": "1\n2\n3\n",
        "tensorboard/events": "many",
        "notes.txt": "mine",
        ".lock": "",
    }


def test_what_another_machine_did_before_the_lock_was_taken_is_fetched(tmp_path, remote):
    first, second = Mirror(remote, tmp_path / "first"), Mirror(remote, tmp_path / "second")
    write(tmp_path / "first", recipe_yaml="name: run", metrics_jsonl="1\n2\n")
    first.push()
    second.fetch()
    write(tmp_path / "first", metrics_jsonl="1\n2\n3\n")
    first.push()
    with second.locked():
        second.fetch_again()
        with (tmp_path / "second" / "metrics.jsonl").open("a") as file:
            file.write("4\n")
        second.push()
    assert (tmp_path / "bucket" / "run" / "metrics.jsonl").read_text() == "1\n2\n3\n4\n"


def test_lines_that_could_not_be_pushed_are_kept_unless_the_run_went_another_way(tmp_path, remote):
    write(tmp_path / "here", recipe_yaml="name: run", metrics_jsonl="1\n")
    Mirror(remote, tmp_path / "here").push()
    write(tmp_path / "here", metrics_jsonl="1\n2\n")
    mirror = Mirror(remote, tmp_path / "here")
    mirror.fetch()
    assert (tmp_path / "here" / "metrics.jsonl").read_text() == "1\n2\n"
    mirror.push()
    assert (tmp_path / "bucket" / "run" / "metrics.jsonl").read_text() == "1\n2\n"
    (tmp_path / "bucket" / "run" / "metrics.jsonl").write_text("1\n3\n")
    Mirror(remote, tmp_path / "here").fetch()
    assert (tmp_path / "here" / "metrics.jsonl").read_text() == "1\n3\n"


def test_what_has_not_changed_is_not_sent_again(tmp_path, remote):
    mirror = Mirror(remote, tmp_path / "here")
    write(tmp_path / "here", recipe_yaml="name: run", metrics_jsonl="1\n")
    mirror.push()
    there = tmp_path / "bucket" / "run"
    (there / "recipe.yaml").write_text("as it was")  # would be overwritten
    write(tmp_path / "here", metrics_jsonl="1\n2\n")
    mirror.push()
    assert contents(there) == {"recipe.yaml": "as it was", "metrics.jsonl": "1\n2\n"}


def test_the_files_of_a_process_that_trains_here_are_left_alone(tmp_path, remote):
    mirror = Mirror(remote, tmp_path / "here")
    write(tmp_path / "here", recipe_yaml="name: run", metrics_jsonl="1\n")
    mirror.push()
    with layout.lock(tmp_path / "here", mirror):
        write(tmp_path / "here", metrics_jsonl="2\n")
        assert Mirror(remote, tmp_path / "here").fetch()
        assert contents(tmp_path / "here")["metrics.jsonl"] == "2\n"
    assert Mirror(remote, tmp_path / "here").fetch()
    assert contents(tmp_path / "here")["metrics.jsonl"] == "1\n"


def test_a_run_that_was_deleted_there_is_deleted_here(tmp_path, remote):
    mirror = Mirror(remote, tmp_path / "here")
    write(tmp_path / "here", recipe_yaml="name: run", tokenizer__tokenizer_json="{}", metrics_jsonl="1\n")
    mirror.push()
    write(tmp_path / "bucket" / "run", checkpoints__5__meta="")
    layout.clear(tmp_path / "here", mirror)
    assert contents(tmp_path / "bucket") == {} and contents(tmp_path / "here") == {}
    write(tmp_path / "here", recipe_yaml="left over", tokenizer__tokenizer_json="{}")
    assert not Mirror(remote, tmp_path / "here").fetch()
    assert os.listdir(tmp_path / "here") == [".lock"]


def test_a_remote_directory_that_is_no_run_is_left_alone(tmp_path, remote):
    write(tmp_path / "bucket" / "run", thesis_tex="years of work")
    with pytest.raises(UserError, match=r"file://.*run holds files \(thesis\.tex\) but no recipe\.yaml"):
        Mirror(remote, tmp_path / "here").fetch()


def test_a_local_run_is_not_mirrored(tmp_path):
    mirror = Mirror(None, tmp_path)
    write(tmp_path, recipe_yaml="name: run")
    with mirror.locked():
        assert not mirror.fetch()
        mirror.push()
        mirror.clear()
    assert contents(tmp_path) == {"recipe.yaml": "name: run"}


def test_a_place_that_cannot_be_written_stops_the_start_but_not_the_run(tmp_path, remote, caplog):
    (tmp_path / "bucket").write_text("a file, where a directory would have to be")
    mirror = Mirror(remote, tmp_path / "here")
    write(tmp_path / "here", recipe_yaml="name: run")
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another logging\.runs_dir"):
        mirror.push()
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another logging\.runs_dir"), mirror.locked():
        pass
    (tmp_path / "bucket").unlink()
    mirror.push()
    (tmp_path / "bucket").rename(tmp_path / "away")
    (tmp_path / "bucket").write_text("")
    write(tmp_path / "here", metrics_jsonl="1\n")
    with caplog.at_level(logging.WARNING):
        mirror.push()
    assert "trying again at the next checkpoint" in caplog.text
    (tmp_path / "bucket").unlink()
    (tmp_path / "away").rename(tmp_path / "bucket")
    mirror.push()
    assert contents(tmp_path / "bucket" / "run")["metrics.jsonl"] == "1\n"


# ------------------------------------------------------------------------------------------------------- the lock


def hold(remote: str, **changes) -> Path:
    """A lock that another process has written."""
    path = Path(remote.removeprefix("file://")) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {"host": "elsewhere", "pid": 7, "time": time.time(), "token": "theirs"}
    path.write_text(json.dumps(holder | changes))
    return path


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_two_processes_do_not_train_a_remote_run(tmp_path, remote):
    path = hold(remote, time=time.time() - 100)
    mirror = Mirror(remote, tmp_path / "here")
    with (
        pytest.raises(
            UserError, match=r"another process is training this run: 7 on elsewhere, .* 1m 40s ago; .*5m 00s"
        ),
        layout.lock(tmp_path / "here", mirror),
    ):
        pass
    assert json.loads(path.read_text())["token"] == "theirs"
    alive = os.getppid()  # somebody on this machine
    hold(remote, host=socket.gethostname(), pid=alive, time=time.time() - 100)
    with pytest.raises(UserError, match="another process"), mirror.locked():
        pass


def test_a_lock_whose_holder_is_gone_is_taken(tmp_path, remote):
    mirror = Mirror(remote, tmp_path / "here")
    for changes in ({"time": time.time() - 301}, {"host": socket.gethostname(), "pid": gone()}):
        path = hold(remote, **changes)
        with mirror.locked():
            holder = json.loads(path.read_text())
            assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert not path.exists()
    path.write_text("{")
    with mirror.locked():
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_that_is_just_being_signed_is_held(tmp_path, remote, monkeypatch):
    path = hold(remote)
    path.write_text("")
    monkeypatch.setattr(run_mirror.time, "sleep", lambda seconds: hold(remote))  # its holder ends the line
    with pytest.raises(UserError, match="7 on elsewhere"), Mirror(remote, tmp_path / "here").locked():
        pass
    assert json.loads(path.read_text())["token"] == "theirs"


def test_of_two_that_start_at_once_the_last_one_has_it(tmp_path, remote, monkeypatch):
    mirror = Mirror(remote, tmp_path / "here")
    monkeypatch.setattr(run_mirror.time, "sleep", lambda seconds: hold(remote))  # while this one waits
    with pytest.raises(UserError, match="7 on elsewhere"), mirror.locked():
        pass
    assert hold(remote).exists()  # the other's lock was not removed


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path, remote):
    mirror = Mirror(remote, tmp_path / "here")
    write(tmp_path / "here", recipe_yaml="name: run")
    with mirror.locked():
        mirror.push()
        path = hold(remote)
        write(tmp_path / "here", metrics_jsonl="1\n")
        with pytest.raises(UserError, match="7 on elsewhere"):
            mirror.push()
    assert json.loads(path.read_text())["token"] == "theirs"
    assert "metrics.jsonl" not in contents(tmp_path / "bucket" / "run")


def test_the_lock_is_signed_again_and_again(tmp_path, remote, monkeypatch):
    monkeypatch.setattr(run_mirror, "_HEARTBEAT_EVERY", 0.02)
    with Mirror(remote, tmp_path / "here").locked():
        path = tmp_path / "bucket" / "run" / "lock"
        first = json.loads(path.read_text())["time"]
        until = time.monotonic() + 20
        seen = first
        while seen <= first and time.monotonic() < until:
            time.sleep(0.02)
            seen = _time_in(path)
        assert seen > first


def _time_in(path: Path) -> float:
    try:
        return json.loads(path.read_text())["time"]
    except ValueError:  # it is being written
        return 0.0


# ----------------------------------------------------------------------------------------------------- the recipe


def test_a_recipe_says_where_its_run_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    content = {"name": "x", "model": {"name": "cronica-5m"}}
    recipe = make_recipe(content | {"logging": {"runs_dir": "gs://bucket/some/runs/"}})
    assert recipe.run_dir == tmp_path / "cache" / "runs" / "gs" / "bucket" / "some" / "runs" / "x"
    assert str(recipe.remote_run_dir) == "gs://bucket/some/runs/x"
    assert str(recipe.checkpoints_dir) == "gs://bucket/some/runs/x/checkpoints"
    local = make_recipe(content | {"logging": {"runs_dir": str(tmp_path)}})
    assert (local.run_dir, local.remote_run_dir) == (tmp_path / "x", None)
    assert Path(local.checkpoints_dir) == tmp_path / "x" / "checkpoints"
    with pytest.raises(UserError, match=r"logging\.runs_dir floppy://a: no such kind of directory"):
        make_recipe(content | {"logging": {"runs_dir": "floppy://a"}})


@pytest.mark.slow
def test_a_remote_run_goes_on_on_a_machine_that_has_nothing_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "bucket" / "runs" / "tiny"
    command = [str(write_inputs(tmp_path)), f"logging.runs_dir=file://{tmp_path}/bucket/runs", "checkpoint.every=2"]
    command += ["optimizer.warmup_steps=1", "eval.every=0"]
    assert main([*command, "train.steps=4"]) == 0
    assert sorted(os.listdir(there / "checkpoints")) == ["2", "4"]
    assert not list((tmp_path / "cache").rglob("checkpoints"))
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()

    hold(f"file://{there}")
    assert main([*command, "train.steps=6"]) == 2
    assert "another process is training this run: 7 on elsewhere" in capsys.readouterr().err
    (there / "lock").unlink()
    shutil.rmtree(tmp_path / "cache")
    assert main([*command, "train.steps=6"]) == 0
    assert "going on from the checkpoint of step 4" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(there / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((there / "result.json").read_text())["step"] == 6
    assert {"report.md", "loss.png", "tokenizer", "recipe.yaml"} < set(os.listdir(there))
    assert not (there / "lock").exists()

    shutil.rmtree(tmp_path / "cache")
    found = resolve.find(f"file://{there}@4")
    assert (found.step, found.tokenizer().vocab_size) == (4, 300)
    _, params = found.read(dtype="float32")
    assert params
    with pytest.raises(UserError, match="there is no run"):
        resolve.find(f"file://{tmp_path}/bucket/runs/other")

    assert main([*command, "train.steps=2", "--fresh"]) == 0
    assert os.listdir(there / "checkpoints") == ["2"]
    assert [line["step"] for line in read_metrics(there / "metrics.jsonl")] == [1, 2]
