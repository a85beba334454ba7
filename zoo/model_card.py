"""README.md beside exported weights: what they are, where they come from, what was measured.

Published figures are the authors' own, from the registry, and stand only in the card of a model that was loaded from
published files of exactly that size; a model that zoo trained has its run's figures.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from zoo import registry
from zoo.util import atomic_write

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
PLAIN = ("loss", "perplexity", "accuracy")  # metrics that an evaluation gives as bare numbers
PROGRAMS = {
    "hf": "`transformers.AutoModelForCausalLM.from_pretrained`",
    "gguf": "llama.cpp, Ollama (with the Modelfile, where there is one) and what builds on them",
    "mlx": "mlx-lm",
    "cronica": "cronica-jax",
    "bwetaf": "BwETAF 0.6",
    "nanochat": "flaxchat",
    "koda": "Koda-v0.1",
    "tiny": "any program that reads NumPy's npz",
}


def write(directory: Path, model: Any, format: str) -> None:
    """Write README.md for a `zoo.export.Exported`, as the Hugging Face hub reads it."""
    run = _run_result(model.path)
    published = run is None and model.path is not None and model.config == model.spec.make_config()
    head: dict[str, Any] = {
        "library_name": "transformers" if format == "hf" else format,
        "pipeline_tag": "text-generation",
    }
    if published and model.spec.licence != registry.NOT_STATED:
        head["license"] = model.spec.licence.lower()
    results = _published_results(model.spec) if published else _run_results(run)
    if results:
        head["model-index"] = [{"name": model.name, "results": results}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    atomic_write(directory / "README.md", f"---\n{front}---\n\n{_text(model, format, run, published)}")


def _text(model: Any, format: str, run: dict[str, Any] | None, published: bool) -> str:
    import jax

    spec, count = model.spec, sum(leaf.size for leaf in jax.tree.leaves(model.params))
    lines = [f"# {model.name}", "", f"{spec.name}: {spec.summary}.", ""]
    facts = [("parameters", f"{count:,}"), ("step", "not stated" if model.step is None else str(model.step))]
    if published:
        given = {"source": spec.source, "licence": spec.licence, "dataset": spec.dataset, "tokenizer": spec.tokenizer}
        facts += [*given.items(), *((label, text) for label, text in spec.facts.items() if label != "parameters")]
    elif run is not None:
        facts.append(("trained by", "zoo; the figures are those of its run"))
    else:
        facts.append(("origin", "not stated" if model.path is not None else "random weights, not trained"))
    lines += ["| | |", "|---|---|", *(f"| {label} | {_cell(text)} |" for label, text in facts), ""]
    lines += ["## Config", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in model.config.to_dict().items()]
    lines += ["", "## Use", "", f"These files are for {PROGRAMS[format]}.", ""]
    if format == "hf":
        remote = ", trust_remote_code=True" if (type(model.config).__name__ == "NanochatConfig") else ""
        lines += [
            "```python",
            "from transformers import AutoModelForCausalLM",
            f'model = AutoModelForCausalLM.from_pretrained("."{remote})',
            "```",
            "",
        ]
    sample = (run or {}).get("sample")
    if sample:
        lines += ["## Sample", "", "```", *sample.get("stats_block", "").splitlines(), "```", "", sample["cronica"], ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _run_result(path: Path | None) -> dict[str, Any] | None:
    """result.json of a run directory; {} for a run that is not finished, None where `path` is no run."""
    if path is None or not (path / "recipe.yaml").is_file():
        return None
    file = path / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _published_results(spec: registry.ModelSpec) -> list[dict[str, Any]]:
    found = []
    for label, (dataset, metric) in PUBLISHED.items():
        number = re.search(r"\d+(\.\d+)?", spec.facts.get(label, ""))
        if number:
            found.append(_result(dataset, metric, float(number[0]), f"{label}, as its authors publish it"))
    return found


def _run_results(run: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rates, losses and perplexities of the run's evaluation on each of its sets."""
    found = []
    for dataset, content in (((run or {}).get("evaluation") or {}).get("sets") or {}).items():
        for metric, value in content.get("generated", content).items():
            value = value.get("value") if isinstance(value, dict) else value if metric in PLAIN else None
            if isinstance(value, int | float):
                found.append(_result(dataset, metric, value, f"{metric}, measured by zoo at the end of the run"))
    return found


def _result(dataset: str, metric: str, value: float, name: str) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": re.sub(r"[^\w.-]+", "-", dataset.lower())},
        "metrics": [{"type": metric, "value": value, "name": name}],
    }
