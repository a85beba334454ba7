"""`zoo plot`: curves of one run and of several, whatever state they are in, and pages that need nothing else."""

import json
import re
import statistics
from xml.etree import ElementTree

import pytest

from zoo.cli.main import main
from zoo.errors import UserError
from zoo.plotting import runs as plot
from zoo.recipe import make_recipe
from zoo.train.report import final_loss, running_mean, series, summary

SMALL = {"name": "cronica-5m", "num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}


def line(step, loss, **more):
    measured = {"tokens_per_s": 1000.0 + step, "mfu": 0.1, "memory_mb": 5.0, "data_wait": 0.0, "seconds": step / 10}
    return {"step": step, "tokens": 32 * step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, **measured, **more}


def made(root, name, lines, *, model=SMALL, steps=100, **sections):
    """A run directory as training leaves it. `lines`: dicts, or text as it is."""
    run = root / name
    run.mkdir()
    content = {"name": name, "model": model, "train": {"steps": steps, **sections.pop("train", {})}, **sections}
    content.setdefault("optimizer", {"warmup_steps": 1})
    run.joinpath("recipe.yaml").write_text(make_recipe(content).to_yaml())
    text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in lines)
    run.joinpath("metrics.jsonl").write_text(text)
    return run


def falling(seed=0.0, count=100, every=1):
    return [line(step, 5.0 / step + seed, heldout_loss=5.0) for step in range(every, count + 1, every)]


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_one_run_is_drawn_raw_and_smoothed_with_all_its_panels(tmp_path, capsys):
    run = made(tmp_path, "one", falling())
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "plot.png"), str(run / "plot.html")]
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")
    figure = plot.draw(plot.grouped([plot.read_run(run)]))
    loss, *below = figure.axes
    raw, smooth, heldout = loss.get_lines()
    losses = [5.0 / step for step in range(1, 101)]
    assert list(raw.get_ydata()) == losses and list(raw.get_xdata()) == list(range(1, 101))
    assert list(smooth.get_ydata()) == running_mean(losses) and set(heldout.get_ydata()) == {5.0}
    assert labels(figure) == ["one", "one, heldout"]
    assert [axes.get_title() for axes in below] == ["learning rate", "gradient norm", "tokens/s"]
    assert [list(axes.get_lines()[-1].get_xdata())[-1] for axes in below] == [100] * 3
    by_tokens = plot.draw(plot.grouped([plot.read_run(run)]), "tokens")
    assert by_tokens.axes[0].get_lines()[0].get_xdata()[-1] == 3200


def test_the_page_needs_nothing_but_itself(tmp_path):
    run = made(tmp_path, "a_b", falling(), description="a < b & c")
    assert main(["plot", str(run), "--out", str(tmp_path / "out.html")]) == 0
    html = (tmp_path / "out.html").read_text("utf-8")
    assert "<script" not in html and "@import" not in html and "<link" not in html
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html) and "url(http" not in html
    assert html.count("<svg") == 1 and "<!DOCTYPE svg" not in html
    ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))  # every tag is closed
    assert "<td>100</td>" in html and "Final loss" in html


def test_runs_that_differ_in_the_seed_are_a_mean_with_its_deviation(tmp_path):
    runs = [made(tmp_path, f"s{seed}", falling(seed), train={"seed": seed}) for seed in range(3)]
    other = made(tmp_path, "other", falling(9.0), optimizer={"warmup_steps": 2})
    groups = plot.grouped([plot.read_run(path) for path in [*runs, other]])
    assert [[run.name for run in group.runs] for group in groups] == [["s0", "s1", "s2"], ["other"]]
    figure = plot.draw(groups)
    assert labels(figure)[0] == "s, 3 runs" and "other" in labels(figure)
    loss = figure.axes[0]
    mean = next(part for part in loss.get_lines() if part.get_label() == "s, 3 runs")
    smooth = [running_mean([5.0 / step + seed for step in range(1, 101)]) for seed in range(3)]
    assert list(mean.get_ydata()) == pytest.approx([statistics.fmean(column) for column in zip(*smooth, strict=True)])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(mean.get_ydata()) + 1.0)  # of 0, 1 and 2 the deviation is 1
    assert main(["plot", *map(str, [*runs, other]), "--out", str(tmp_path / "all")]) == 0
    html = (tmp_path / "all.html").read_text("utf-8")
    finals = [final_loss(plot.read_run(path).lines) for path in runs]
    assert f"{statistics.fmean(finals):.4f} ± {statistics.stdev(finals):.4f}" in html


def test_of_runs_of_different_length_the_mean_covers_what_all_have():
    spread = plot.mean_and_deviation([[(1, 1.0), (2, 2.0), (3, 3.0)], [(2, 4.0), (3, 3.0)]])
    assert spread == [(2, 3.0, pytest.approx(2**0.5)), (3, 3.0, 0.0)]
    assert plot.mean_and_deviation([[(1, 1.0)], [(2, 1.0)]]) == []


def test_seeds_without_a_common_step_are_drawn_one_by_one(tmp_path):
    early = made(tmp_path, "early", falling(count=10), train={"seed": 1})
    late = made(tmp_path, "late", [line(step, 2.0) for step in range(11, 15)], train={"seed": 2})
    figure = plot.draw(plot.grouped([plot.read_run(early), plot.read_run(late)]))
    drawn = {tuple(part.get_xdata()) for part in figure.axes[0].get_lines()}
    assert {tuple(range(1, 11)), tuple(range(11, 15))} <= drawn


def test_damaged_unfinished_and_empty_runs(tmp_path, capsys):
    hurt = [*falling(count=3), '{"step": 4, "lo', '"text"', '{"loss": 1.0}', line(6, None), line(7, 0.5), '{"step": 8']
    damaged, empty = made(tmp_path, "damaged", hurt), made(tmp_path, "empty", [])
    fresh = made(tmp_path, "fresh", [])
    (fresh / "metrics.jsonl").unlink()
    run = plot.read_run(damaged)
    assert series(run.lines, "loss") == [(1, 5.0), (2, 2.5), (3, 5.0 / 3), (7, 0.5)]
    event = {"event": "nonfinite", "step": 7, "policy": "skip"}
    skipped = plot.read_run(made(tmp_path, "skipped", [line(7, 1.0), event, event], steps=7))
    assert skipped.notes == ["2 x nonfinite"] and series(skipped.lines, "loss") == [(7, 1.0)]
    assert run.notes == ["4 damaged lines of metrics.jsonl left out", "not finished: step 7 of 100"]
    assert main(["plot", str(damaged), str(empty), str(fresh), "--out", str(tmp_path / "p")]) == 0
    told = capsys.readouterr().err
    assert f"{empty}: no loss is logged yet" in told and f"{fresh}: no loss" in told and "4 damaged" in told
    html = (tmp_path / "p.html").read_text("utf-8")
    assert "no loss is logged yet" in html and "not finished: step 7 of 100" in html
    assert main(["plot", str(empty), str(fresh)]) == 2
    assert "nothing to plot" in capsys.readouterr().err


def test_the_published_loss_stands_beside_the_published_size_alone(tmp_path):
    whole = made(tmp_path, "whole", falling(), model={"name": "cronica-5m", "init_std": 0.0625})
    found = plot.published_losses(plot.read_run(whole).recipe)
    assert found == {"final loss": 2.8}
    figure = plot.draw(plot.grouped([plot.read_run(whole)]))
    assert "cronica-5m, published final loss 2.8" in labels(figure)
    small = make_recipe({"name": "small", "model": SMALL})
    assert plot.published_losses(small) == {}
    bwetaf, kodalite = ({"name": "x", "model": {"name": name}} for name in ("bwetaf-97m", "kodalite-1.3b"))
    assert plot.published_losses(make_recipe(bwetaf)) == {"validation loss": 3.02}
    assert plot.published_losses(make_recipe(kodalite)) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "no run directory"), (["run", "--out", "no/such"], "--out"), (["run", "--x", "hours"], "--x")],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "run", falling())
    assert main(["plot", *arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[0]


def test_a_long_run_is_thinned_and_its_smoothed_curve_is_not(tmp_path):
    run = made(tmp_path, "long", falling(count=5000), steps=5000)
    raw, smooth, *_ = plot.draw(plot.grouped([plot.read_run(run)])).axes[0].get_lines()
    assert len(raw.get_xdata()) <= plot.MAX_POINTS < len(smooth.get_xdata()) == 5000


def test_a_summary_stands_lines_without_some_numbers():
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": 3.0, "tokens_per_s": None}]
    assert summary(lines) == {
        "Steps": "2",
        "First loss": "3.0000 (step 2)",
        "Final loss": "3.0000 (mean of the last 1 logged steps)",
    }
    assert summary([]) == {} and final_loss([]) is None
    with pytest.raises(UserError):
        plot.read_run("/nowhere")
