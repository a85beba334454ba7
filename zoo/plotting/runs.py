"""Runs side by side: loss, learning rate, gradient norm and throughput, as a picture and as a page of its own.

Runs whose recipes differ in nothing but the seed are one group, drawn as their mean with its deviation.
"""

import itertools
import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.errors import UserError
from zoo.plotting.page import page
from zoo.recipe import Recipe, load_recipe
from zoo.terminal import one_line
from zoo.train.logging.log import count_damaged, read_lines
from zoo.train.report import (
    final_loss,
    heldout_label,
    heldout_names,
    plain_text,
    running_mean,
    series,
    summary,
)
from zoo.util import atomic_write, first_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000  # of a raw curve: more cannot be told apart
PUBLISHED = ("final loss", "validation loss")  # the registry's facts that are drawn
PANELS = {"lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_s": "tokens/s"}


@dataclass(frozen=True)
class PlottedRun:
    """A run directory as far as plots need it.

    Attributes:
        path: the directory.
        recipe: the run's recipe.
        lines: those of metrics.jsonl that can be read, in order of their steps.
        notes: what the reader should know about the run, such as damaged lines; a sentence each.
    """

    path: Path
    recipe: Recipe
    lines: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name in its recipe."""
        return self.recipe.name

    @cached_property
    def group_key(self) -> str:
        """The recipe as JSON without names, places and seeds, which is equal for the runs of one group."""
        plain = self.recipe.resolved()
        for section in ("name", "description", "checkpoint", "logging", "eval", "mesh"):
            plain.pop(section, None)
        for section, name in (("train", "seed"), ("data", "seed"), ("data", "prepared_dir"), ("data", "workers")):
            plain[section].pop(name)
        return json.dumps(plain, sort_keys=True)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; there may be only one.

    Attributes:
        runs: at least one.
    """

    runs: list[PlottedRun]

    @property
    def label(self) -> str:
        """The name in the legend: the run's, or the beginning that the names share and the number of runs."""
        if len(self.runs) == 1:
            return self.runs[0].name
        letters = zip(*(run.name for run in self.runs), strict=False)
        shared = "".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, letters))
        return f"{shared.rstrip('_-.') or self.runs[0].name}, {len(self.runs)} runs"

    def final_losses(self) -> list[float]:
        """Returns each run's `zoo.train.report.final_loss`, in nats a target."""
        return [final_loss(run.lines) for run in self.runs]


def read_run(path: str | os.PathLike) -> PlottedRun:
    """Reads a run directory, whether it is finished, interrupted, just begun or has damaged lines.

    Raises UserError where there is no run.
    """
    path = Path(path).expanduser()
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{path}: is no run directory (it holds no recipe.yaml); name one, like runs/quickstart")
    recipe = load_recipe(path / "recipe.yaml", check_files=False)
    written, damaged = read_lines(path / "metrics.jsonl")[0], count_damaged(path / "metrics.jsonl")
    by_step = {line["step"]: line for line in written if "event" not in line}
    lines = [by_step[step] for step in sorted(by_step)]
    events = Counter(one_line(line["event"]) for line in written if "event" in line)
    notes = [f"{number} x {event}" for event, number in events.items()]
    if damaged:
        notes.append(f"{damaged} damaged line{'s' if damaged > 1 else ''} of metrics.jsonl left out")
    if not series(lines, "loss"):
        notes.append("no loss is logged yet")
    elif lines[-1]["step"] < recipe.train.steps:
        notes.append(f"not finished: step {lines[-1]['step']:,} of {recipe.train.steps:,}")
    return PlottedRun(path, recipe, lines, notes)


def grouped(runs: Sequence[PlottedRun]) -> list[Group]:
    """Returns the runs in groups, in the order of each group's first run."""
    groups: dict[str, list[PlottedRun]] = {}
    for run in runs:
        groups.setdefault(run.group_key, []).append(run)
    return [Group(members) for members in groups.values()]


def published_losses(recipe: Recipe) -> dict[str, float]:
    """Returns the losses that are published of the recipe's model, by label; {} for another size or where none are."""
    try:
        spec = registry.describe(recipe.model.name)
        config, published = recipe.model.make_config().to_dict(), spec.make_config().to_dict()
    except UserError:
        return {}
    # Initial weights and the dtype of tables may differ: they belong to the training, not to the model.
    if any(config[key] != published[key] and not key.endswith(("_std", "_dtype")) for key in published):
        return {}
    numbers = {label: re.match(r"\d+\.\d+", spec.facts.get(label, "")) for label in PUBLISHED}
    return {label: float(number[0]) for label, number in numbers.items() if number}


def write(runs: Sequence[PlottedRun], out: Path, *, x: str = "step") -> list[Path]:
    """Writes `out`.png and `out`.html for the runs that have logged a loss, and returns the two paths.

    Args:
        runs: from `read_run`.
        out: path without its suffix; the directory must exist.
        x: what the x axis counts, "step" or "tokens".

    Raises:
        UserError: no run has logged a loss, or the files cannot be written.
    """
    drawn = [run for run in runs if series(run.lines, "loss")]
    if not drawn:
        names = ", ".join(str(run.path) for run in runs)
        raise UserError(f"{names}: no loss is logged yet; there is nothing to plot")
    groups = grouped(drawn)
    picture, drawing = BytesIO(), StringIO()
    try:
        with plain_text():
            figure = draw(groups, x)
            figure.savefig(picture, format="png")
            figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    except Exception as error:  # matplotlib's of all kinds, at numbers that no scale holds
        names = ", ".join(str(run.path) for run in drawn)
        raise UserError(f"{names}: cannot be drawn ({first_line(error)}); leave a run out to see which") from None
    tables = [("", [run.name for run in runs], [summary(run.lines) | _identity(run) for run in runs])]
    spread = {group.label: _spread(group.final_losses()) for group in groups if len(group.runs) > 1}
    if spread:
        tables.append(("Over seeds", ["final loss"], [spread]))
    title = " and ".join(group.label for group in groups)
    html = page(title, drawing.getvalue(), tables, _footnotes(groups))
    paths = [out.with_name(f"{out.name}.png"), out.with_name(f"{out.name}.html")]
    try:
        atomic_write(paths[0], picture.getvalue())
        atomic_write(paths[1], html)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return paths


def draw(groups: Sequence[Group], x: str = "step") -> "Figure":
    """Draws the loss on top, learning rate, gradient norm and throughput below; `x` is that of `write`."""
    from matplotlib.figure import Figure  # the object interface: it opens no window and needs no back end

    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, len(PANELS), height_ratios=(1.7, 1))
    loss = figure.add_subplot(grid[0, :])
    below = {name: figure.add_subplot(grid[1, column]) for column, name in enumerate(PANELS)}
    for number, group in enumerate(groups):
        colour = f"C{number % 10}"
        _draw(loss, group, "loss", colour, x, label=group.label)
        for run in group.runs:
            _draw_heldout(loss, run, colour, x, named=len(group.runs) == 1)
        for name, axes in below.items():
            _draw(axes, group, name, colour, x)
    for (model, label), value in _published(groups).items():
        style = "--" if label == PUBLISHED[0] else ":"
        loss.axhline(value, color="grey", linestyle=style, label=f"{model}, published {label} {value:g}")
    loss.set_ylabel("loss (nats a target)")
    loss.legend()
    for name, axes in below.items():
        axes.set_title(PANELS[name], fontsize=10)
    for axes in (loss, *below.values()):
        axes.set_xlabel("tokens (batch positions)" if x == "tokens" else "step")
        axes.grid(alpha=0.3)
    return figure


def mean_and_deviation(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float, float]]:
    """Returns (step, mean, standard deviation) over curves of (step, value), at the steps that all of them have."""
    tables = [dict(curve) for curve in curves]
    steps = [step for step in tables[0] if all(step in table for table in tables[1:])]
    columns = ([table[step] for table in tables] for step in steps)
    return [
        (step, statistics.fmean(column), statistics.stdev(column)) for step, column in zip(steps, columns, strict=True)
    ]


def _draw(axes: "Axes", group: Group, name: str, colour: str, x: str, label: str | None = None) -> None:
    """Draws one quantity of a group: raw and smoothed curves of the runs; of several runs mean and deviation."""
    smooth = name != "lr"
    curves = []
    for run in group.runs:
        points = series(run.lines, name)
        if not points:
            continue
        steps, values = (list(part) for part in zip(*points, strict=True))
        at = _positions(run, steps, x)
        if smooth:
            thin = max(1, math.ceil(len(values) / MAX_POINTS))
            marker = "." if len(values) < 3 else None
            alpha = 0.35 if len(group.runs) == 1 else 0.15
            axes.plot(at[::thin], values[::thin], color=colour, alpha=alpha, linewidth=0.8, marker=marker)
            values = running_mean(values)
        curves.append((run, list(zip(steps, values, strict=True))))
    if len(curves) > 1:
        spread = mean_and_deviation([curve for _, curve in curves])
        if spread:
            steps, means, deviations = zip(*spread, strict=True)
            at = _positions(curves[0][0], steps, x)
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            axes.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(at, means, color=colour, label=label)
            return
    for run, curve in curves:
        steps, values = zip(*curve, strict=True)
        axes.plot(_positions(run, steps, x), values, color=colour, label=label)
        label = None  # once in the legend


def _draw_heldout(axes: "Axes", run: PlottedRun, colour: str, x: str, *, named: bool) -> None:
    for name in heldout_names(run.lines):
        steps, values = zip(*series(run.lines, name), strict=True)
        label = f"{run.name}, {heldout_label(name)}" if named else None
        axes.plot(_positions(run, steps, x), values, "o-", color=colour, markersize=4, linewidth=0.8, label=label)


def _positions(run: PlottedRun, steps: Iterable[int], x: str) -> list[float]:
    if x == "step":
        return list(steps)
    tokens = {line["step"]: line.get("tokens", math.nan) for line in run.lines}
    return [tokens[step] for step in steps]


def _published(groups: Sequence[Group]) -> dict[tuple[str, str], float]:
    """Returns (model, label) -> published loss for all models that are drawn."""
    recipes = [group.runs[0].recipe for group in groups]
    return {
        (recipe.model.name, label): value for recipe in recipes for label, value in published_losses(recipe).items()
    }


def _identity(run: PlottedRun) -> dict[str, str]:
    rows = {"Model": run.recipe.model.name, "Seed": str(run.recipe.train.seed), "Directory": str(run.path)}
    return rows | ({"Note": "; ".join(run.notes)} if run.notes else {})


def _spread(losses: Sequence[float]) -> str:
    mean, deviation = statistics.fmean(losses), statistics.stdev(losses)
    return f"{mean:.4f} ± {deviation:.4f} (mean and standard deviation of {len(losses)})"


def _footnotes(groups: Sequence[Group]) -> list[str]:
    notes = ["Faint: as logged. Strong: exponential mean over a twentieth of the run. Dots: held-out."]
    if any(len(group.runs) > 1 for group in groups):
        notes.append("Runs that differ in the seed alone: mean of the smoothed curves, ± one standard deviation.")
    if _published(groups):
        notes.append("Published losses are the authors' own, on their own data.")
    return notes
