"""A run that is stopped, killed or damaged goes on as if nothing had happened, bit for bit."""

import importlib.util
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache

from zoo.checkpoints.manager import Checkpoints
from zoo.cli.train import main
from zoo.distributed.stop import Stopped, StopSignal
from zoo.errors import UserError
from zoo.run import evaluations
from zoo.run import job as run_module
from zoo.tasks.cronica.task import CronicaTask
from zoo.tasks.cronica.tokens import STYLES
from zoo.terminal import visible
from zoo.train import trainer as trainer_module
from zoo.train.logging import meter as meter_module
from zoo.train.logging.log import MetricsLog, read_events, read_metrics
from zoo.train.report import write_report
from zoo.train.state import TrainState
from zoo.train.step import TrainStep
from zoo.train.trainer import Callback, Trainer

STEPS, EVERY, EVALUATED = 20, 6, 7
EXACT = ("step", "tokens", "loss", "lr", "grad_norm", "heldout_loss")


def write_inputs(directory: Path) -> Path:
    """A recipe of a few seconds and its data; the path of the recipe. Three epochs, rows of several lengths."""
    source = random.Random(0)
    words = ["".join(source.choices("aeilmnorst", k=source.randint(2, 7))) for _ in range(300)]
    with (directory / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(36):
            home, away, scorer = (word.title() for word in source.sample(words, 3))
            record = {
                "stats_block": f"local: {home}\nvisitante: {away}\nresultado: 1-0\ngoles:\n  - 9' {scorer} ({home})",
                "style_label": list(STYLES)[number % 8],
                "cronica": " ".join(source.choices(words, k=source.randint(3, 25))),
            }
            file.write(json.dumps(record) + "\n")
    recipe = {
        "name": "tiny",
        "model": {
            "name": "cronica-5m",
            "vocab_size": 300,
            "num_layers": 1,
            "embed_dim": 16,
            "num_heads": 2,
            "head_dim": 8,
            "mlp_dim": 24,
            "max_seq_len": 128,
        },
        "data": {
            "source": "jsonl",
            "path": str(directory / "pairs.jsonl"),
            "seq_len": 128,
            "batch_size": 4,
            "trim_to": 64,
        },
        "optimizer": {"warmup_steps": 3, "peak_lr": 1e-2, "final_lr": 1e-3},
        "train": {"steps": STEPS},
        "checkpoint": {"every": EVERY},
        "logging": {"runs_dir": str(directory / "runs"), "every": 1},
        "eval": {"every": EVALUATED, "num_pairs": 4, "cronicas": 0, "final_sample": False},
    }
    (directory / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return directory / "tiny.yaml"


def exact(run_dir: Path) -> list[dict]:
    return [{key: line[key] for key in EXACT if key in line} for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """The runs of this process share their compiled programs, and none measures the machine."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
        for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Recipe, run directory and metrics of a run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    recipe = write_inputs(directory)
    assert main([str(recipe)]) == 0
    run_dir = directory / "runs" / "tiny"
    return recipe, run_dir, exact(run_dir)


def killed_run(recipe: Path, when: str, step: int) -> str:
    """Go on with a run in a process of its own that kills itself by SIGKILL: `when` is "before" the step is
    computed, "during" it or "in save" of its checkpoint. What it printed."""
    program = f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        from zoo.checkpoints import orbax_io
        from zoo.cli.train import main
        from zoo.run import job
        from zoo.train.step import TrainStep

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        run_step, save = TrainStep.__call__, orbax_io.ocp.save_checkpointables_async

        def step(self, params, opt_state, batch, number):
            here = number == {step} - 1
            if here and {when!r} == "before":
                die()
            out = run_step(self, params, opt_state, batch, number)
            if here and {when!r} == "during":
                die()  # the update has been started and is still running
            return out

        def save_and_die(path, *args, **kwargs):
            response = save(path, *args, **kwargs)
            if path.name == "{step}" and {when!r} == "in save":
                while not list(path.parent.glob("*tmp*/model")):
                    if path.exists():
                        sys.exit("too late to be killed in mid-save")
                die()
            return response

        job.peak_flops = lambda: (1e11, "not measured")
        TrainStep.__call__ = step
        orbax_io.ocp.save_checkpointables_async = save_and_die
        sys.exit(main([{str(recipe)!r}]))
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_killed_at_any_moment_it_gives_the_same_numbers(tmp_path, undisturbed):
    recipe, run_dir = write_inputs(tmp_path), tmp_path / "runs" / "tiny"
    expected = undisturbed[2]
    assert [line["step"] for line in expected] == list(range(1, STEPS + 1))

    again = "starts again at step 0"
    assert again not in killed_run(recipe, "before", 3)  # before the first checkpoint
    assert Checkpoints(run_dir / "checkpoints").steps() == []
    assert 0 < len(exact(run_dir)) < 3
    assert again in killed_run(recipe, "during", EVERY + 4)
    assert Checkpoints(run_dir / "checkpoints").steps() == [EVERY, EVALUATED]
    after = exact(run_dir)
    assert EVERY < len(after) < EVERY + 4 and after == expected[: len(after)]
    assert again not in killed_run(recipe, "in save", 2 * EVERY)
    assert Checkpoints(run_dir / "checkpoints").steps() == [EVERY, EVALUATED]
    after = exact(run_dir)  # the steps went on while it was being saved
    assert 2 * EVERY <= len(after) < 3 * EVERY and after[: 2 * EVERY] == expected[: 2 * EVERY]

    # And a line torn by a power cut.
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "to')
    assert main([str(recipe)]) == 0
    assert exact(run_dir) == expected
    assert Checkpoints(run_dir / "checkpoints").steps() == [3 * EVERY, STEPS]


def send_signals(patch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Have this process get signals while the given step is being computed."""
    run_step = TrainStep.__call__

    def call(self, params, opt_state, batch, at):
        out = run_step(self, params, opt_state, batch, at)
        if at == step - 1:
            for number in numbers:
                os.kill(os.getpid(), number)
        return out

    patch.setattr(TrainStep, "__call__", call)


def test_stopped_stopped_harder_and_damaged_it_goes_on_to_the_same_numbers(
    tmp_path, undisturbed, monkeypatch, capsys, caplog
):
    recipe, run_dir, expected = write_inputs(tmp_path), tmp_path / "runs" / "tiny", undisturbed[2]
    checkpoints = Checkpoints(run_dir / "checkpoints")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    with monkeypatch.context() as patch:
        send_signals(patch, 9, signal.SIGTERM)
        assert main([str(recipe)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("saved step 9; go on with: zoo-train ")
    assert Path(command) == run_dir / "recipe.yaml"
    assert checkpoints.steps() == [7, 9]
    assert exact(run_dir) == expected[:9]
    assert "Interrupted at step 9 of 20" in (run_dir / "report.md").read_text()
    assert (run_dir / "loss.png").stat().st_size > 1000
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers

    with monkeypatch.context() as patch:  # the second signal does not wait for anything
        send_signals(patch, 15, signal.SIGINT, signal.SIGINT)
        assert main([command]) == 130
    out = capsys.readouterr().out
    assert "going on from the checkpoint of step 9" in out
    assert "stopped by SIGINT; go on with: zoo-train" in out
    assert checkpoints.steps() == [12, 14]

    newest = [file for file in (run_dir / "checkpoints" / "14").rglob("*") if file.is_file()]
    largest = max(newest, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-2000])
    assert main([command]) == 0
    assert "checkpoint 14 is damaged" in caplog.text
    assert "going on from the checkpoint of step 12" in capsys.readouterr().out
    assert exact(run_dir) == expected
    assert (run_dir / "checkpoints" / "14.damaged").is_dir()


def test_a_signal_before_the_first_step_writes_nothing(tmp_path, monkeypatch, capsys):
    recipe = write_inputs(tmp_path)
    monkeypatch.setattr(CronicaTask, "prepare", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert main([str(recipe)]) == 0
    assert "stopped by SIGTERM; nothing had been written yet" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_says_so_and_changes_nothing(undisturbed, capsys):
    recipe, run_dir, _ = undisturbed
    before = contents(run_dir)
    assert main([str(recipe)]) == 0
    assert "finished at step 20; nothing is left to do" in capsys.readouterr().out
    assert contents(run_dir) == before
    report = (run_dir / "report.md").read_text()
    assert "Finished: 20 steps." in report and "Heldout loss" in report


def contents(run_dir: Path) -> dict[Path, int]:
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(run_dir): path.stat().st_mtime_ns for path in files}


def test_another_recipe_other_data_or_another_tokenizer_are_refused(undisturbed, capsys):
    recipe, run_dir, _ = undisturbed
    more, before = "train.steps=30", contents(run_dir)

    assert main([str(recipe), more, "model.embed_dim=24", "data.batch_size=8"]) == 2
    error = capsys.readouterr().err
    assert "model.embed_dim: 16 in the run, 24 in the recipe" in error
    assert "data.batch_size: 4 in the run, 8 in the recipe" in error
    assert "--fresh" in error

    data = recipe.parent / "pairs.jsonl"
    content = data.read_text()
    data.write_text(content.replace('"cronica": "', '"cronica": "otra ', 1))
    assert main([str(recipe), more]) == 2
    assert "training pairs are not those" in capsys.readouterr().err
    data.write_text(content)

    (run_dir / "tokenizer").rename(run_dir / "away")
    assert main([str(recipe), more]) == 2
    assert "tokenizer is missing but the run has checkpoints" in capsys.readouterr().err
    (run_dir / "away").rename(run_dir / "tokenizer")
    assert contents(run_dir) == before


def test_more_steps_go_on_and_fresh_starts_over(tmp_path, capsys):
    recipe, run_dir = write_inputs(tmp_path), tmp_path / "runs" / "tiny"
    board = importlib.util.find_spec("tensorboardX") is not None  # an extra
    assert main([str(recipe), "train.steps=4", f"logging.tensorboard={board}"]) == 0
    assert bool(list(run_dir.glob("tensorboard/events.*"))) == board
    assert main([str(recipe), "train.steps=6"]) == 0
    out = capsys.readouterr().out
    assert "going on from the checkpoint of step 4" in out and "the recipe has changed: train.steps: 4 -> 6" in out
    (event,) = read_events(run_dir / "metrics.jsonl")
    assert (event["event"], event["step"]) == ("recipe changed", 4) and "train.steps: 4 -> 6" in event["changes"]
    first = exact(run_dir)
    assert [line["step"] for line in first] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["train"]["steps"] == 6
    assert main([str(recipe), "--fresh", "train.seed=1", "train.steps=4"]) == 0
    assert [line["step"] for line in exact(run_dir)] == [1, 2, 3, 4]
    assert exact(run_dir)[0]["loss"] != first[0]["loss"]
    assert not (run_dir / "tensorboard").exists()


def test_at_the_end_it_evaluates_and_tells_a_match_and_says_so_again(tmp_path, capsys):
    recipe, run_dir = write_inputs(tmp_path), tmp_path / "runs" / "tiny"
    more = ["eval.cronicas=2", "eval.final_sample=true", "eval.max_new_tokens=6", "eval.every=0"]
    more += ["eval.sample_every=2", "checkpoint.keep_best=true"]
    short = [str(recipe), "train.steps=4", "model.max_seq_len=400", *more]
    assert main(short) == 0
    out = capsys.readouterr().out
    result = json.loads((run_dir / "result.json").read_text())
    assert result["step"] == 4
    found = result["evaluation"]["sets"]["heldout"]["generated"]
    assert found["n"] == 2
    assert f"both clubs named {found['both']['hits']} of 2" in out
    # The match is one of those held out: the last records of the file.
    last = [json.loads(line)["stats_block"] for line in (tmp_path / "pairs.jsonl").open()][-4:]
    sample = result["sample"]
    assert sample["stats_block"] in last
    told = f"{sample['stats_block']}\n\n[{sample['style']}]\n"
    assert told in out and visible(sample["cronica"]) in out
    headings = re.findall("^## .*", (run_dir / "samples.md").read_text(), re.MULTILINE)
    assert headings == ["## Step 2", "## Step 4"]
    loss = read_metrics(run_dir / "metrics.jsonl")[-1]["heldout_loss"]
    assert Checkpoints(run_dir / "checkpoints").pinned() == (4, {"heldout_loss": loss})
    report = (run_dir / "report.md").read_text()
    assert "## Evaluation" in report and "## A held-out match" in report and visible(sample["cronica"]) in report

    assert main(short) == 0
    again = capsys.readouterr().out
    assert "nothing is left to do" in again and told + visible(sample["cronica"]) in again


def test_the_best_checkpoint_stays_and_samples_of_a_life_before_are_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 2.5)):
        checkpoints.save(step, {"w": jnp.float32(0)}, {}, {})
        evaluations.pin_if_best(checkpoints, step, loss)
        evaluations.add_sample(tmp_path / "samples.md", step, f"> text {step}\n\n## Step by step")
    checkpoints.wait()
    assert checkpoints.pinned() == (2, {"heldout_loss": 2.0})
    assert checkpoints.steps() == [2, 4]
    evaluations.add_sample(tmp_path / "samples.md", 3, "> again")
    wanted = "## Step 1\n\n> text 1\n\n## Step by step\n\n## Step 2\n\n> text 2\n\n## Step by step\n\n"
    assert (tmp_path / "samples.md").read_text() == f"{wanted}## Step 3\n\n> again\n"


def test_an_evaluation_that_fails_at_the_end_costs_nothing_but_itself(tmp_path, monkeypatch, capsys):
    def fail(self, lm):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(CronicaTask, "finish", fail)
    recipe, run_dir = write_inputs(tmp_path), tmp_path / "runs" / "tiny"
    assert main([str(recipe), "train.steps=4"]) == 0
    assert "warning: the evaluation at the end failed: RuntimeError: out of memory" in capsys.readouterr().out
    assert "out of memory" in (run_dir / "report.md").read_text()
    assert json.loads((run_dir / "result.json").read_text())["step"] == 4


def test_a_directory_that_is_no_run_is_left_alone(tmp_path, capsys):
    recipe = write_inputs(tmp_path)
    precious = tmp_path / "runs" / "tiny" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    for arguments in ([], ["--fresh"]):
        assert main([str(recipe), *arguments]) == 2
        assert "holds files but no recipe.yaml" in capsys.readouterr().err
    assert os.listdir(precious.parent) == ["thesis.tex"]


def test_two_processes_do_not_train_one_run(tmp_path, capsys):
    recipe = write_inputs(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with run_module.layout.lock(tmp_path / "runs" / "tiny"):
        assert main([str(recipe)]) == 2
    assert "another process is training this run" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    recipe = write_inputs(tmp_path)
    assert main([str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "dry run: would start in" in out and "parameters" in out
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------- the loop alone, with a toy step


def toy_step(params, opt_state, batch, step):
    values = {"loss": jnp.float32(step), "grad_norm": jnp.float32(1.0), "lr": jnp.float32(0.1)}
    return {"w": params["w"] + batch["tokens"].sum()}, opt_state, values


def toy_trainer(directory: Path, **changes) -> Trainer:
    settings = {
        "step_fn": toy_step,
        "batches": lambda first: ({"tokens": np.full((2, 3), i, np.int32)} for i in itertools.count(first)),
        "put": lambda batch: batch,
        "steps": 10,
        "checkpoints": Checkpoints(directory / "checkpoints", keep=2),
        "save_every": 4,
        "log": MetricsLog(directory / "metrics.jsonl"),
        "log_every": 3,
        "meta": lambda state: {"tokens": state.tokens},
        "flops_per_token": lambda length: 1.0,
        "peak": 1e9,
    }
    return Trainer(**settings | changes)


def toy_state() -> TrainState:
    return TrainState({"w": jnp.float32(0)}, {})


@pytest.mark.parametrize("bad", ["loss", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_and_never_overwrites_what_is_good(tmp_path, bad):
    def diverging(params, opt_state, batch, step):
        params, opt_state, values = toy_step(params, opt_state, batch, step)
        if step == 7:  # the eighth update, whose checkpoint is due
            values[bad], params = jnp.float32(math.nan), {"w": jnp.float32(math.nan)}
        return params, opt_state, values

    trainer = toy_trainer(tmp_path, step_fn=diverging)
    with pytest.raises(UserError, match=r"step 8: .*diverged.* checkpoint of step 4 .*peak_lr"):
        trainer.run(toy_state(), StopSignal())
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6]


def test_lines_callbacks_and_checkpoints_come_when_they_are_due(tmp_path):
    seen = []

    def measure(params, step):
        seen.append((step, float(params["w"])))
        return {"heldout_loss": 0.5}

    trainer = toy_trainer(tmp_path, callbacks=[Callback(5, measure)], steps=11)
    state = toy_state()
    assert trainer.run(state, StopSignal()).step == 11
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 11]
    # The loss of a line is that of its own step, though it is fetched while a later one is running.
    assert [line["loss"] for line in lines] == [2.0, 4.0, 5.0, 8.0, 9.0, 10.0]
    assert [line["tokens"] for line in lines] == [6 * line["step"] for line in lines]
    assert [line["step"] for line in lines if "heldout_loss" in line] == [5, 10, 11]
    assert seen == [(step, 6.0 * sum(range(step))) for step in (5, 10, 11)]  # parameters after that step
    found = Checkpoints(tmp_path / "checkpoints").restore({"w": jnp.float32(0)}, {})
    assert (found.step, found.meta, float(found.params["w"])) == (11, {"tokens": 66}, 6.0 * sum(range(11)))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10, 11]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves_it(tmp_path, number):
    def signalled(params, opt_state, batch, step):
        if step == 6:  # the seventh
            os.kill(os.getpid(), number)
        return toy_step(params, opt_state, batch, step)

    with StopSignal() as stop:
        state = toy_trainer(tmp_path, step_fn=signalled).run(toy_state(), stop)
    assert state.step == 7
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 7]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6]  # none for 7


@pytest.mark.parametrize(("moment", "done"), [("the first step", 1), ("a save", 4), ("an evaluation", 5)])
def test_a_signal_while_something_else_is_done_costs_none_of_it(tmp_path, moment, done):
    """The first step compiles."""

    def now(here):
        if here == moment:
            os.kill(os.getpid(), signal.SIGTERM)

    def step(params, opt_state, batch, number):
        if number == 0:
            now("the first step")
        return toy_step(params, opt_state, batch, number)

    def measure(params, number):
        now("an evaluation")
        return {"heldout_loss": float(number)}

    settings = {"before_save": lambda: now("a save"), "callbacks": [Callback(5, measure)]}
    with StopSignal() as stop:
        state = toy_trainer(tmp_path, step_fn=step, **settings).run(toy_state(), stop)
    assert state.step == Checkpoints(tmp_path / "checkpoints").latest() == done
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert not any("unfinished" in line for line in lines)
    assert [line["heldout_loss"] for line in lines if line["step"] == 5] == [5.0] * (done == 5)


def test_a_terminal_that_is_closed_hangs_up_twice_and_a_run_under_nohup_goes_on(tmp_path):
    def closed(params, opt_state, batch, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        return toy_step(params, opt_state, batch, step)

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with StopSignal() as stop:
        assert toy_trainer(tmp_path / "one", step_fn=closed).run(toy_state(), stop).step == 7
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            assert toy_trainer(tmp_path / "two", step_fn=closed).run(toy_state(), stop).step == 10
    finally:
        signal.signal(signal.SIGHUP, before)


class Clock:
    """In the place of the time module; the time moves when the toy works."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Pending:
    """A number that a device is still computing until the clock shows a time."""

    def __init__(self, clock, at):
        self.clock, self.at = clock, at

    def is_ready(self):
        return self.clock.now >= self.at

    def __float__(self):
        self.clock.now = max(self.clock.now, self.at)
        return 1.0


@pytest.mark.parametrize("device", ["computes in the calling thread", "computes beside it"])
def test_rates_are_of_what_the_device_did(tmp_path, monkeypatch, device):
    """Around saves, evaluations and at the last step, too; an update takes a second, and a tenth to wait for data."""
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", clock)
    monkeypatch.setattr(meter_module, "time", clock)
    free = [0.0]  # when the device has done all that it was given

    def step(params, opt_state, batch, number):
        if device == "computes beside it":
            free[0] = max(free[0], clock.now) + 1.0
        else:
            clock.now += 1.0
            free[0] = clock.now
        values = {name: Pending(clock, free[0]) for name in ("loss", "grad_norm", "lr")}
        return toy_step(params, opt_state, batch, number)[0], opt_state, values

    def batches(first):
        for i in itertools.count(first):
            clock.now += 0.1
            yield {"tokens": np.full((2, 3), i, np.int32)}

    def slow(*args):
        clock.now += 100.0
        return {"heldout_loss": 1.0}

    settings = {"step_fn": step, "batches": batches, "log_every": 1, "peak": 6.0, "before_save": slow}
    toy_trainer(tmp_path, **settings, callbacks=[Callback(5, slow)]).run(toy_state(), StopSignal())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[0]["tokens_per_s"] is lines[0]["mfu"] is None and len(lines) == 10
    for line in lines[1:]:
        assert 6.0 / 1.1 - 1e-9 <= line["tokens_per_s"] <= 6.0 + 1e-9, line
        assert line["mfu"] == pytest.approx(line["tokens_per_s"] / 6.0) and line["data_wait"] <= 0.1 + 1e-9


def test_no_share_of_the_peak_is_above_it():
    meter = meter_module.Meter(peak=1.0)
    meter.start(at=0.0)
    meter.add(positions=10, flops=20.0, waited=0.0)
    assert meter.read(at=10.0) == {"tokens_per_s": 1.0, "mfu": None, "data_wait": 0.0}


def test_a_signal_where_there_is_no_step_to_finish_raises():
    with StopSignal() as stop, pytest.raises(Stopped, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)  # gives Python the chance to run the handler
    assert stop.requested


def test_the_report_of_a_run_without_lines_has_no_plot(tmp_path):
    write_report(tmp_path, title="t", status="s", facts={"Model": "m"})
    assert os.listdir(tmp_path) == ["report.md"]
