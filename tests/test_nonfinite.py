"""A loss or gradient that is not finite: what each policy of a recipe makes of it, also across kills."""

import itertools
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import exact, toy_state, toy_step, write_inputs

from zoo.checkpoints.manager import Checkpoints
from zoo.cli.train import main
from zoo.distributed.stop import StopSignal
from zoo.errors import UserError
from zoo.run import job as run_module
from zoo.tasks.cronica.task import CronicaTask
from zoo.train import trainer as loop
from zoo.train.logging.log import MetricsLog, read_events, read_metrics
from zoo.train.state import TrainState
from zoo.train.trainer import MAX_EVALUATIONS, MAX_ROLLBACKS, MAX_SKIPPED, Callback, Trainer

ROWS = 2


class Killed(BaseException):
    """In the place of SIGKILL, which would end the tests too."""


def batches_from(first):
    """Batch i of the global order: all of its tokens are i."""
    return ({"tokens": np.full((ROWS, 3), i, np.int32)} for i in itertools.count(first))


def step_with(bad, policy, die_at=None):
    """A step whose loss is NaN on the batches in `bad`; the sum of all batches that it has learnt from is the state.

    die_at: (step, how often it has come to it).
    """
    calls = []

    def step(params, opt_state, batch, number):
        calls.append(number)
        if die_at is not None and number == die_at[0] and calls.count(number) == die_at[1]:
            raise Killed
        if int(batch["tokens"][0, 0]) not in bad:
            return toy_step(params, opt_state, batch, number)
        new, opt_state, values = toy_step(params, opt_state, batch, number)
        values["loss"] = jnp.float32(math.nan)
        return (params if policy == "skip" else {"w": new["w"] * math.nan}), opt_state, values

    return step


def trainer(directory, bad, policy, *, die_at=None, **changes) -> tuple[Trainer, TrainState]:
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)

    def restore():
        found = checkpoints.restore({"w": jnp.float32(0)}, {})
        return toy_state() if found is None else TrainState.from_checkpoint(found)

    state = restore()
    settings = {
        "step_fn": step_with(bad, policy, die_at),
        "batches": batches_from,
        "put": lambda batch: batch,
        "steps": 20,
        "checkpoints": checkpoints,
        "save_every": 4,
        "log": MetricsLog(directory / "metrics.jsonl", step=state.step),
        "log_every": 1,
        "meta": TrainState.meta,
        "flops_per_token": lambda length: 1.0,
        "peak": 1e9,
        "on_nonfinite": policy,
        "restore": restore,
    }
    return Trainer(**settings | changes), state


def run(directory, *args, **kwargs) -> TrainState:
    """To the end, however often it is killed on the way (`deaths`: see `step_with`)."""
    deaths = kwargs.pop("deaths", ())
    for die_at in deaths:
        killed, state = trainer(directory, *args, die_at=die_at, **kwargs)
        with pytest.raises(Killed):
            killed.run(state, StopSignal())
        killed.log.close()
        killed.checkpoints.__exit__()
    last, state = trainer(directory, *args, **kwargs)
    state = last.run(state, StopSignal())
    assert state.step == last.steps
    last.log.close()
    return state


def lines(directory):
    return [(line["step"], line["loss"]) for line in read_metrics(directory / "metrics.jsonl")]


def events(directory):
    return [{**event} for event in read_events(directory / "metrics.jsonl")]


def test_skipped_updates_change_nothing_and_are_told(tmp_path):
    state = run(tmp_path, {5, 6, 12}, "skip")
    assert float(state.params["w"]) == 6.0 * (sum(range(20)) - 5 - 6 - 12)
    found = events(tmp_path)
    assert [(event["step"], event["batch"], event["examples"]) for event in found] == [
        (6, 5, [10, 11]),
        (7, 6, [12, 13]),
        (13, 12, [24, 25]),
    ]
    assert {(event["event"], event["policy"], event["loss"], event["grad_norm"]) for event in found} == {
        ("nonfinite", "skip", "nan", 1.0)
    }
    assert [step for step, _ in lines(tmp_path)] == [step for step in range(1, 21) if step not in (6, 7, 13)]


def test_too_many_skipped_in_a_row_end_the_run_also_across_a_kill(tmp_path):
    bad = set(range(3, 3 + MAX_SKIPPED))
    last = 3 + MAX_SKIPPED
    for deaths, directory in (((), tmp_path / "a"), (((9, 1),), tmp_path / "b")):
        directory.mkdir()
        with pytest.raises(UserError, match=rf"step {last}: loss nan.* {MAX_SKIPPED} updates in a row were left out"):
            run(directory, bad, "skip", deaths=deaths)
        assert [event["step"] for event in events(directory)] == list(range(4, last + 1))
    (tmp_path / "c").mkdir()
    run(tmp_path / "c", bad - {7}, "skip")  # one good one begins the count anew


def test_going_back_leaves_the_batch_out_the_same_after_any_kill(tmp_path):
    """Steps stay without a gap; the data go on one batch further on, in the same order."""
    bad = {2, 9, 10}
    expected = 6.0 * (sum(range(23)) - sum(bad))
    records = None
    # Killed right after going back, before and after the next checkpoint, and between two times of going back.
    for number, deaths in enumerate([(), ((8, 2), (8, 3)), ((8, 3), (9, 1), (13, 1)), ((2, 2), (12, 1), (19, 1))]):
        directory = tmp_path / str(number)
        directory.mkdir()
        state = run(directory, bad, "rollback", deaths=deaths)
        assert float(state.params["w"]) == expected
        assert (state.left_out, state.batch) == ((2, 9, 10), 23)
        assert [(event["step"], event["batch"], event["back_to"]) for event in events(directory)] == [
            (3, 2, 0),
            (9, 9, 8),
            (9, 10, 8),
        ]
        records = records or lines(directory)
        assert lines(directory) == records
        assert [step for step, _ in records] == list(range(1, 21))


def test_going_back_too_often_from_one_checkpoint_ends_the_run(tmp_path):
    bad = set(range(5, 5 + MAX_ROLLBACKS + 1))
    with pytest.raises(UserError, match=rf"batch 8\).* went back to step 4 {MAX_ROLLBACKS} times"):
        run(tmp_path, bad, "rollback")
    assert [event["back_to"] for event in events(tmp_path)] == [4] * (MAX_ROLLBACKS + 1)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


def test_the_line_of_a_step_waits_for_its_evaluation_and_a_kill_in_its_midst_repeats_it(tmp_path):
    saved = []

    def measure(params, step):
        saved.append(Checkpoints(tmp_path / "checkpoints").latest() == step)
        if len(saved) == 2:
            raise Killed
        return {"heldout_loss": float(params["w"])}

    settings = {"callbacks": [Callback(7, measure)]}
    killed, state = trainer(tmp_path, (), "halt", **settings)
    with pytest.raises(Killed):
        killed.run(state, StopSignal())
    killed.log.close()
    killed.checkpoints.__exit__()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["unfinished"]
    run(tmp_path, (), "halt", **settings)
    found = {line["step"]: line["heldout_loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if len(line) > 10}
    assert found == {step: 6.0 * sum(range(step)) for step in (7, 14, 20)}
    assert not any("unfinished" in line for line in read_metrics(tmp_path / "metrics.jsonl"))
    assert saved == [True] * 4  # a save precedes every evaluation


def test_an_evaluation_that_ends_the_process_is_left_out_in_the_end(tmp_path):
    begun = []

    def measure(params, step):
        begun.append(step)
        if step == 7:
            raise Killed
        return {"heldout_loss": 0.5}

    settings = {"callbacks": [Callback(7, measure)]}
    for _ in range(MAX_EVALUATIONS):
        killed, state = trainer(tmp_path, (), "halt", **settings)
        with pytest.raises(Killed):
            killed.run(state, StopSignal())
        killed.log.close()
        killed.checkpoints.__exit__()
    run(tmp_path, (), "halt", **settings)
    assert begun == [7] * MAX_EVALUATIONS + [14, 20]
    assert [(event["step"], event["error"]) for event in events(tmp_path)] == [
        (7, f"the process ended in it {MAX_EVALUATIONS} times")
    ]
    assert [step for step, _ in lines(tmp_path)] == list(range(1, 21))


def test_a_process_that_writes_nothing_repeats_an_evaluation_with_the_others(tmp_path, monkeypatch, capsys):
    run(tmp_path, (), "halt", steps=8)
    begun = []

    def measure(params, step):
        begun.append(step)
        return {"heldout_loss": 0.5}

    settings = {"callbacks": [Callback(8, measure)], "log": MetricsLog(None), "steps": 8}
    other, state = trainer(tmp_path, (), "halt", **settings)
    monkeypatch.setattr(loop.runtime, "broadcast", lambda make: [8, 1])  # what process 0 tells it
    assert other.run(state, StopSignal()).step == 8
    other.checkpoints.__exit__()
    assert begun == [8] and "heldout" not in capsys.readouterr().out


def test_a_loss_over_no_target_is_no_number_to_be_logged(tmp_path):
    def step(params, opt_state, batch, number):
        new, opt_state, values = toy_step(params, opt_state, batch, number)
        return new, opt_state, values | {"loss": values["loss"] * (number % 2), "num_targets": number % 2 * 7}

    run(tmp_path, (), "halt", step_fn=step, callbacks=[Callback(4, lambda params, step: {"heldout_loss": 0.5})])
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found if "loss" in line] == list(range(2, 21, 2))
    assert all(line["loss"] > 0 for line in found if "loss" in line)
    assert [line["step"] for line in found if "heldout_loss" in line] == [4, 8, 12, 16, 20]


def test_what_is_evaluated_after_a_skipped_update_is_kept(tmp_path, capsys):
    run(tmp_path, {9}, "skip", callbacks=[Callback(5, lambda params, step: {"heldout_loss": float(step)})])
    assert [event["step"] for event in events(tmp_path)] == [10]
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 21))
    assert {line["step"]: line["heldout_loss"] for line in found if "heldout_loss" in line} == {
        step: float(step) for step in (5, 10, 15, 20)
    }
    assert "loss" not in found[9]
    assert "step 10  heldout_loss 10.0" in capsys.readouterr().out


def test_a_failing_evaluation_is_told_and_does_not_end_the_run(tmp_path, capsys):
    def measure(params, step):
        if step == 5:
            raise RuntimeError("no memory\nfor this")
        return {"heldout_loss": math.nan if step == 10 else 0.5}

    run(tmp_path, (), "halt", callbacks=[Callback(5, measure)])
    assert [(event["step"], event["error"]) for event in events(tmp_path)] == [
        (5, "RuntimeError: no memory"),
        (10, "ValueError: heldout_loss is nan"),
    ]
    assert "the evaluation after step 5 failed, training goes on: RuntimeError: no memory" in capsys.readouterr().out
    found = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "heldout_loss" in line]
    assert found == [15, 20]


@pytest.fixture
def poisoned(monkeypatch):
    """One loss mask of a batch is NaN: example 4 x 7 + 1 of the global order, row 1 of batch 7."""
    make = CronicaTask.batches
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))

    def batches(self, start_example, share=(0, 1)):
        for number, batch in enumerate(make(self, start_example, share), start_example // 4):
            if number == 7:
                batch["loss_mask"][1, -1] = np.nan
            yield batch

    monkeypatch.setattr(CronicaTask, "batches", batches)


def test_a_nan_in_a_batch_of_a_real_run_under_each_policy(tmp_path, poisoned, capsys):
    recipe = [str(write_inputs(tmp_path)), "train.steps=12", "checkpoint.every=5", "eval.every=0"]
    where = r"examples 28 to 31 \(batch 7\)"

    assert main([*recipe, "name=halt"]) == 2
    error = capsys.readouterr().err
    assert re.search(f"step 8: loss nan, .*{where}.*checkpoint of step 5 is from before", error)
    assert Checkpoints(tmp_path / "runs/halt/checkpoints").steps() == [5]

    assert main([*recipe, "name=skip", "train.on_nonfinite=skip"]) == 0
    assert [line["step"] for line in exact(tmp_path / "runs/skip")] == [step for step in range(1, 13) if step != 8]
    # It goes on under another policy: that is no part of what a run is.
    assert main([*recipe, "name=halt", "train.on_nonfinite=rollback"]) == 0
    rolled = exact(tmp_path / "runs/halt")
    assert [line["step"] for line in rolled] == list(range(1, 13))
    for name, step in (("skip", None), ("halt", 5)):
        found = read_events(tmp_path / "runs" / name / "metrics.jsonl")
        (event,) = (e for e in found if e["event"] == "nonfinite" and e["policy"] != "halt")
        assert (event["step"], event["batch"], event["examples"], event.get("back_to")) == (8, 7, [28, 31], step)
    assert all(math.isfinite(line["loss"]) for line in [*rolled, *exact(tmp_path / "runs/skip")])
    meta = Checkpoints(tmp_path / "runs/halt/checkpoints").read_meta(12)
    assert (meta["left_out"], meta["examples_seen"]) == ([7], 13 * 4)
