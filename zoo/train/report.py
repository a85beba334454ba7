"""A run's report.md and loss.png, written from its metrics.jsonl at the end and on interruption."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from zoo.terminal import one_line, visible
from zoo.train.logging.log import count_damaged, read_metrics
from zoo.util import atomic_write, first_line, human_duration

logger = logging.getLogger(__name__)


def write_report(
    run_dir: str | os.PathLike,
    *,
    title: str,
    status: str,
    facts: Mapping[str, str],
    sections: Mapping[str, str] | None = None,
) -> None:
    """Writes `report.md` and, if a step has been logged, `loss.png` into the run directory.

    A picture that cannot be drawn is left out, with a warning. Control characters are written visibly.

    Args:
        run_dir: the run directory.
        title: heading of the report.
        status: one sentence on how far the run is.
        facts: the first rows of the table, in order: model, data, hardware, ...
        sections: Markdown under further headings (evaluation tables, a sample).
    """
    run_dir = Path(run_dir)
    lines, damaged = read_metrics(run_dir / "metrics.jsonl"), count_damaged(run_dir / "metrics.jsonl")
    rows = {**facts, **summary(lines)} | ({"Damaged log lines": f"{damaged}, left out"} if damaged else {})
    parts = [f"# {one_line(title)}", status, _table(rows)]
    picture = _loss_picture(lines, title)
    if picture is not None:
        atomic_write(run_dir / "loss.png", picture)
        parts.append("![loss](loss.png)")
    for heading, text in (sections or {}).items():
        parts += [f"## {heading}", text]
    atomic_write(run_dir / "report.md", visible("\n\n".join(parts)) + "\n")


@dataclass(frozen=True)
class Report:
    """The content of a report.md.

    Attributes:
        facts: the rows of its first table, name -> text.
        sections: the Markdown under each further heading.
    """

    facts: dict[str, str]
    sections: dict[str, str]


def read_report(run_dir: str | os.PathLike) -> Report:
    """Returns the report that `write_report` wrote; an empty one where there is none, as far as a damaged one reads."""
    path = Path(run_dir) / "report.md"
    if not path.is_file():
        return Report({}, {})
    head, *rest = path.read_text(encoding="utf-8", errors="replace").split("\n## ")
    rows = [line.strip("|").split(" | ", 1) for line in head.splitlines() if line.startswith("| ")]
    facts = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[0].strip()}
    parts = (part.partition("\n") for part in rest)
    return Report(facts, {heading.strip(): text.strip() for heading, _, text in parts})


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns a summary of the lines of a metrics.jsonl as rows of a table, name -> text."""
    if not lines:
        return {}
    last = lines[-1]
    rows = {"Steps": f"{last['step']:,}"}
    if last.get("tokens"):
        rows["Tokens (batch positions)"] = f"{last['tokens']:,}"
    if last.get("seconds"):
        rows["Time"] = human_duration(last["seconds"])
    losses = series(lines, "loss")
    if losses:
        number = max(1, len(losses) // 20)
        rows["First loss"] = f"{losses[0][1]:.4f} (step {losses[0][0]})"
        rows["Final loss"] = f"{final_loss(lines):.4f} (mean of the last {number} logged steps)"
    for name in heldout_names(lines):
        values = [(value, step) for step, value in series(lines, name)]
        rows[name.replace("_", " ").capitalize()] = (
            f"{values[-1][0]:.4f} (lowest {min(values)[0]:.4f} at step {min(values)[1]})"
        )
    rates, shares = (sorted(value for _, value in series(lines, name)) for name in ("tokens_per_s", "mfu"))
    if rates:
        share = f", MFU {shares[len(shares) // 2]:.1%}" if shares else ""
        rows["Speed"] = f"{rates[len(rates) // 2]:,.0f} tokens/s (median){share}"
    memory = series(lines, "memory_mb")
    if memory:
        rows["Peak memory"] = f"{max(value for _, value in memory):,.0f} MB"
    return rows


def series(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of every line that has a finite number under `name`."""
    pairs = [(line["step"], line.get(name)) for line in lines]
    return [(step, value) for step, value in pairs if isinstance(value, int | float) and math.isfinite(value)]


def heldout_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the held-out losses in the lines."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("heldout"))
    return [name for name in names if series(lines, name)]


def heldout_label(name: str) -> str:
    """Returns a held-out loss's name for a legend: heldout_loss -> heldout."""
    return one_line(name.replace("_loss", "").replace("_", " "))


def final_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the mean loss, in nats a target, of the last twentieth of the logged steps; None where there is none."""
    losses = [loss for _, loss in series(lines, "loss")]
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail) if tail else None


def running_mean(values: Sequence[float]) -> list[float]:
    """Returns the exponential mean over about a twentieth of the run, without a bias at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {one_line(name)} | {one_line(text)} |" for name, text in rows.items())]
    )


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Lets matplotlib draw texts as they are in the block: names of runs are neither mathematics nor TeX."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def _loss_picture(lines: Sequence[Mapping[str, Any]], title: str) -> bytes | None:
    """Returns `_loss_plot`; None where there is nothing to draw, and with a warning where it cannot be drawn."""
    try:
        with plain_text():
            return _loss_plot(lines, one_line(title)) if lines else None
    except Exception as error:  # of matplotlib, its fonts and its back end: no run must depend on them
        reason = f"{type(error).__name__}: {first_line(error)}"
        logger.warning("loss.png cannot be drawn (%s); the report goes without", reason)
        return None


def _loss_plot(lines: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Returns a PNG of the training loss, its running mean and the held-out loss over steps."""
    from matplotlib.figure import Figure  # unlike pyplot it opens no window and needs no back end

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = series(lines, "loss")
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, marker="." if len(steps) < 3 else None)
        axes.plot(steps, running_mean(losses), color="tab:blue", label="training")
    for name in heldout_names(lines):
        axes.plot(*zip(*series(lines, name), strict=True), marker="o", label=heldout_label(name))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a target)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
