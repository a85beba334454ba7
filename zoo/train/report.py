"""report.md and loss.png of a run, made from its metrics.jsonl at the end and on interruption."""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from zoo.train.metrics import read_metrics
from zoo.util import atomic_write, human_duration


def write_report(
    run_dir: str | os.PathLike,
    *,
    title: str,
    status: str,
    facts: Mapping[str, str],
    sections: Mapping[str, str] | None = None,
) -> None:
    """Write `report.md` and, once there is a logged step, `loss.png` into the run directory.

    Args:
      title: heading of the report.
      status: one sentence on where the run stands.
      facts: what to list in the first table, in order: model, data, hardware, ...
      sections: Markdown under further headings (evaluation tables, a sample).
    """
    run_dir = Path(run_dir)
    lines = read_metrics(run_dir / "metrics.jsonl")
    parts = [f"# {title}", status, _table({**facts, **summary(lines)})]
    if lines:
        atomic_write(run_dir / "loss.png", _loss_plot(lines, title))
        parts.append("![loss](loss.png)")
    for heading, text in (sections or {}).items():
        parts += [f"## {heading}", text]
    atomic_write(run_dir / "report.md", "\n\n".join(parts) + "\n")


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the lines of a metrics.jsonl say, as rows of a table: name -> text."""
    if not lines:
        return {}
    last = lines[-1]
    tail = [line["loss"] for line in lines[-max(1, len(lines) // 20) :]]
    rows = {
        "Steps": f"{last['step']:,}",
        "Tokens (batch positions)": f"{last['tokens']:,}",
        "Time": human_duration(last["seconds"]),
        "First loss": f"{lines[0]['loss']:.4f} (step {lines[0]['step']})",
        "Final loss": f"{sum(tail) / len(tail):.4f} (mean of the last {len(tail)} logged steps)",
    }
    for name in dict.fromkeys(name for line in lines for name in line if name.startswith("heldout")):
        values = [(line[name], line["step"]) for line in lines if name in line]
        rows[name.replace("_", " ").capitalize()] = (
            f"{values[-1][0]:.4f} (lowest {min(values)[0]:.4f} at step {min(values)[1]})"
        )
    timed = [line for line in lines if line["tokens_per_s"]]
    if timed:
        rates = sorted(line["tokens_per_s"] for line in timed)
        shares = sorted(line["mfu"] for line in timed)
        rows["Speed"] = f"{rates[len(rates) // 2]:,.0f} tokens/s (median), MFU {shares[len(shares) // 2]:.1%}"
        rows["Peak memory"] = f"{max(line['memory_mb'] for line in lines):,.0f} MB"
    return rows


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def _loss_plot(lines: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """PNG of the training loss, its running mean and the held-out loss over steps."""
    from matplotlib.figure import Figure  # the object interface: it opens no window and needs no back end

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, marker="." if len(steps) < 3 else None)
    axes.plot(steps, _running_mean(losses), color="tab:blue", label="training")
    for name in dict.fromkeys(name for line in lines for name in line if name.startswith("heldout")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), marker="o", label=name.replace("_loss", "").replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a target)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a twentieth of the run, unbiased at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth
