"""README.md beside exported weights: what they are, where they come from, what was measured.

Published figures are the authors' own, from the registry, and stand only in the card of a model that was loaded from
their published files; a model that zoo trained has its run's figures: recipe, data, steps, losses,
evaluation, a sample and the versions of the programs.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from zoo import registry
from zoo.convert import FORMATS
from zoo.convert.format import Exported, Format
from zoo.recipe.training import OPTIMIZERS, OptimizerSection
from zoo.recipe.yaml_layers import load_yaml
from zoo.rundir.layout import read_result
from zoo.terminal import visible
from zoo.train.logging.log import read_metrics
from zoo.train.report import read_report, summary
from zoo.util import atomic_write

PLOT = "loss.png"
REPORTED = ("Data", "Tokenizer", "Plan", "Devices", "Versions")  # facts of report.md that a card repeats

# Labels of the registry's facts that are results -> (dataset, metric).
PUBLISHED = {
    "wikitext-103 test": ("wikitext-103-raw-v1", "loss"),
    "LAMBADA": ("LAMBADA", "accuracy"),
    "HellaSwag": ("HellaSwag", "accuracy"),
    "ARC-Easy": ("ARC-Easy", "accuracy"),
    "ARC-Challenge": ("ARC-Challenge", "accuracy"),
    "WinoGrande": ("WinoGrande", "accuracy"),
    "PIQA": ("PIQA", "accuracy"),
    "BoolQ": ("BoolQ", "accuracy"),
    "OpenBookQA": ("OpenBookQA", "accuracy"),
    "validation loss": ("validation text of its training", "loss"),
}
USE = "These files are for "  # begins a line of every card, by which zoo knows its own exports again
_AVERAGE = "the moving average of the run's, of which {ema_decay} stays at each step"
PLAIN = ("loss", "perplexity", "accuracy")  # metrics that an evaluation gives as bare numbers


@dataclass(frozen=True)
class TrainingRun:
    """What a run directory holds of the training, as far as it has come.

    Attributes:
        recipe: its recipe.yaml as plain data.
        rows: a table, name -> text.
        result: of result.json, where it is of these weights; {} elsewhere.
        evaluation: in Markdown, where it is of these weights; None elsewhere.
        plot: loss.png, where there is one.
    """

    recipe: dict[str, Any]
    rows: dict[str, str]
    result: dict[str, Any]
    evaluation: str | None
    plot: Path | None


def write(directory: Path, model: Exported, format: str) -> None:
    """Writes README.md for the hub, with the loss.png of the model's run where there is one.

    `format` is a name of `zoo.convert.FORMATS`.
    """
    chosen, run = FORMATS[format], _training_run(model.path, model.step, ema=model.ema)
    published = run is None and model.official and model.config == model.spec.make_config()
    head: dict[str, Any] = {"library_name": chosen.library or chosen.name, "pipeline_tag": "text-generation"}
    if published and model.spec.licence != registry.NOT_STATED:
        head["license"] = model.spec.licence.lower()
    datasets = [] if run is None else _hub_datasets(run.recipe)
    if datasets:
        head["datasets"] = datasets
    results = _published_results(model.spec) if published else _run_results(run)
    if results:
        head["model-index"] = [{"name": model.name, "results": results}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    if run is not None and run.plot is not None:
        atomic_write(directory / PLOT, run.plot.read_bytes())
    text = visible(_text(model, chosen, run, published))
    atomic_write(directory / "README.md", f"---\n{front}---\n\n{text}")


def written_by_zoo(path: Path) -> bool:
    """Returns whether the weights at `path`, a file or a directory, are an export of zoo, with its card."""
    for directory in (path, path.parent):
        try:
            text = (directory / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if re.search(rf"^{USE}", text, flags=re.M):
            return True
    return False


def _text(model: Exported, format: Format, run: TrainingRun | None, published: bool) -> str:
    import jax

    spec, count = model.spec, sum(leaf.size for leaf in jax.tree.leaves(model.params))
    lines = [f"# {model.name}", "", f"{model.name}: {model.sentence}.", ""]
    facts = [("parameters", f"{count:,}"), ("step", "not stated" if model.step is None else str(model.step))]
    if published:
        given = {"source": spec.source, "licence": spec.licence, "dataset": spec.dataset, "tokenizer": spec.tokenizer}
        facts += [*given.items(), *((label, text) for label, text in spec.facts.items() if label != "parameters")]
    elif run is not None:
        facts.append(("trained by", "zoo; the figures are those of its run"))
    else:
        facts.append(("origin", "not stated" if model.path is not None else "random weights, not trained"))
    lines += ["| | |", "|---|---|", *(f"| {label} | {_cell(text)} |" for label, text in facts), ""]
    lines += [] if run is None else _training(run)
    lines += ["## Config", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in model.config.to_dict().items()]
    lines += ["", "## Use", "", f"{USE}{format.opened_by}.", ""]
    if format.usage is not None:
        lines += ["```python", format.usage(model.config), "```", ""]
    sample = None if run is None else run.result.get("sample")
    if sample:
        lines += ["## Sample", "", *_sample(sample, run.recipe), ""]
    return "\n".join(lines)


def _training(run: TrainingRun) -> list[str]:
    lines = ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in run.rows.items()]
    lines += ["", f"![loss]({PLOT})"] if run.plot is not None else []
    lines += ["", "## Evaluation", "", run.evaluation] if run.evaluation else []
    return [*lines, ""]


def _sample(sample: dict[str, str], recipe: dict[str, Any]) -> list[str]:
    """Returns the lines of a sample in result.json: a crónica after its match, a text or a reply after its prompt."""
    if "cronica" in sample:
        return ["```", *sample.get("stats_block", "").splitlines(), "```", "", sample["cronica"]]
    reply = recipe["data"]["kind"] == "chat" and recipe["eval"]["prompt"] is not None
    between = "\n\n" if reply else ""
    prompt, text = (str(sample.get(name, "")) for name in ("prompt", "text"))
    return [f"> {line}".rstrip() for line in f"**{prompt}**{between}{text}".splitlines()]


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _training_run(path: Path | None, step: int | None, *, ema: bool) -> TrainingRun | None:
    """Returns what the run directory `path` holds of its training up to `step`; None where `path` is no run.

    Of the moving average of the weights the run has measured the held-out loss alone.
    """
    if path is None or not (path / "recipe.yaml").is_file():
        return None
    recipe = load_yaml((path / "recipe.yaml").read_text(encoding="utf-8"))
    result, plot = read_result(path) or {}, path / PLOT
    report = read_report(path)
    if ema or result.get("step", step) != step:  # what was measured then is not of these weights
        result, report = {}, replace(report, sections={})
    lines = [line for line in read_metrics(path / "metrics.jsonl") if step is None or line["step"] <= step]
    facts = {name: text for name, text in report.facts.items() if name in REPORTED}
    weights = {"Weights": _AVERAGE.format(**recipe["optimizer"])} if ema else {}
    return TrainingRun(
        recipe,
        _recipe_rows(recipe) | weights | facts | summary(lines),
        result,
        report.sections.get("Evaluation"),
        plot if lines and plot.is_file() and not plot.is_symlink() else None,  # a link would publish what it leads to
    )


def _recipe_rows(recipe: dict[str, Any]) -> dict[str, str]:
    """Returns what a recipe says of the training, label -> text."""
    rows = {"Recipe": ": ".join(str(recipe[key]) for key in ("name", "description") if recipe.get(key))}
    start = recipe.get("from")
    if start:
        step = f", step {start['step']:,}" if start.get("step") is not None else ""
        rows["Started from"] = start["source"] + step + (", moving average" if start.get("ema") else "")
    lora = recipe.get("lora")
    if lora:
        rows["Adapters"] = "LoRA of rank {rank}, alpha {alpha:g}, on ".format(**lora) + ", ".join(lora["targets"])
    optimizer = recipe.get("optimizer")
    if optimizer:
        rows["Optimizer"] = _optimizer_row(optimizer)
    return rows


def _optimizer_row(optimizer: dict[str, Any]) -> str:
    """Returns a recipe's `optimizer` section as text; those of older runs lack the newer fields."""
    part, final = optimizer.get("warmup_fraction"), optimizer["final_lr"]
    warmup = f"{optimizer['warmup_steps']} steps" if part is None else f"{part:.3g} of the steps"
    falls = "" if final is None else f" to {final}"
    fields = OPTIMIZERS[optimizer["name"]].model_fields
    if "b1" in fields:
        own = ["betas {b1} and {b2}".format(**optimizer), f"eps {optimizer['eps']}"]
    else:
        own = [f"{name} {optimizer[name]}" for name in fields]
    shown = {"b1", "b2", "eps"} if "b1" in fields else set(fields)
    for name in [*fields, "weight_decays", "no_decay", "lr_scales", "ema_decay"]:
        default = OptimizerSection.model_fields[name].get_default(call_default_factory=True)
        if name not in shown and optimizer.get(name, default) != default:
            own.append(f"{name} {optimizer[name]}")
    return (
        f"{optimizer['name']}, learning rate {optimizer['peak_lr']} after {warmup}, then "
        f"{optimizer['schedule']}{falls}; {', '.join(own)}, weight decay {optimizer['weight_decay']}, "
        f"clip {optimizer['clip_norm'] or 'none'}"
    )


def _hub_datasets(recipe: dict[str, Any]) -> list[str]:
    """Returns the names of the hub's datasets that a recipe trains on."""
    data = recipe.get("data") or {}
    sources = data.get("sources") or [data]
    paths = (source.get("path") for source in sources if source.get("source") == "hub")
    return list(dict.fromkeys(path for path in paths if path and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path)))


def _published_results(spec: registry.ModelSpec) -> list[dict[str, Any]]:
    results = []
    for label, (dataset, metric) in PUBLISHED.items():
        number = re.search(r"\d+(\.\d+)?", spec.facts.get(label, ""))
        if number:
            results.append(_result(dataset, metric, float(number[0]), f"{label}, as its authors publish it"))
    return results


def _run_results(run: TrainingRun | None) -> list[dict[str, Any]]:
    """Returns the rates, losses and perplexities of the run's evaluation on each of its sets."""
    results = []
    evaluation = None if run is None else run.result.get("evaluation")
    for dataset, content in ((evaluation or {}).get("sets") or {}).items():
        for metric, value in content.get("generated", content).items():
            value = value.get("value") if isinstance(value, dict) else value if metric in PLAIN else None
            if isinstance(value, int | float):
                results.append(_result(dataset, metric, value, f"{metric}, measured by zoo at the end of the run"))
    return results


def _result(dataset: str, metric: str, value: float, name: str) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": re.sub(r"[^\w.-]+", "-", dataset.lower())},
        "metrics": [{"type": metric, "value": value, "name": name}],
    }
