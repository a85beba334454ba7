"""Tasks of the LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness) on a zoo model.

Importing this module needs the package lm-eval.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from zoo.errors import UserError
from zoo.evaluate import measures
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.harness_model import HarnessModel
from zoo.evaluate.protocol import Progress, make_result
from zoo.language_model import LanguageModel
from zoo.tokenizers.hub import unreachable
from zoo.util import nearest

RESAMPLES = 1000  # of a bootstrap, where the harness makes one
FEWSHOT_SEED = 1234  # the harness's own


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    include_path: str | os.PathLike | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    add_bos: bool | None = None,
    cache: ResultCache | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs tasks of the harness, or tasks written for it.

    Args:
        lm: the model, with its tokenizer.
        tasks: names of tasks, groups or tags.
        include_path: a directory with task files (YAML), besides the harness's own.
        limit: documents of each task; below 1, the share of them. For trying things out.
        num_fewshot: examples before each question; None: as the task says, which is 0 for most.
        batch_size, max_length, add_bos, cache, on_progress: see `HarnessModel`.

    Returns:
        A JSON-serialisable dict, see docs/evaluation.md: "tasks" with "metrics" (value and standard error) and
        "items" (the same by document, to be compared), "groups" with their metrics.

    Raises:
        UserError: an unknown task, data that cannot be had, or a model that the task is not for.
    """
    started = time.perf_counter()
    if limit is not None and limit <= 0:
        raise UserError(f"--limit is {limit:g}; it must be positive")
    model = HarnessModel(
        lm, batch_size=batch_size, max_length=max_length, add_bos=add_bos, cache=cache, on_progress=on_progress
    )
    loaded = _load(tasks, include_path)
    for task in loaded["tasks"].values():
        # As the harness does: a task that fixes 0 keeps it.
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    limit = int(limit) if limit is not None and limit >= 1 else limit
    with _without_processes_and_stdout():
        output = evaluator.evaluate(
            lm=model, task_dict=loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=True
        )
    settings = {
        "lm_eval": lm_eval.__version__,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "max_length": model.max_length,
        "add_bos": model.add_bos,
        "dtype": str(lm.computing.dtype),
    }
    results = {name: _task(name, output) for name in loaded["tasks"]}
    groups = {
        name: {"metrics": _metrics(values, output["higher_is_better"].get(name, {}))}
        for name, values in output.get("groups", {}).items()
    }
    return make_result(lm, "lm-eval", results, settings, started) | {"groups": groups}


def _load(names: Sequence[str], include_path: str | os.PathLike | None) -> dict[str, Any]:
    """Loads the tasks and groups of these names, as the harness's `evaluate` takes them."""
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path: there is no directory {include_path}")
    if not names:
        raise UserError("--tasks names no task; give names with commas between them")
    own = None if include_path is None else TaskManager(include_path=str(include_path), include_defaults=False)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        manager = _manager_of(name, own, include_path)
        file = manager.task_index[name].yaml_path
        of_the_harness = file is not None and Path(file).is_relative_to(Path(lm_eval.__file__).parent)
        if of_the_harness and (reason := unreachable()) is not None:  # the library would try again and again
            raise UserError(
                f"--tasks: the Hugging Face hub does not answer ({reason}), so the data of {name} cannot be fetched; "
                f"set HF_HUB_OFFLINE=1 if the cache has them, or give a task file over local data by --include-path"
            )
        try:
            parts = manager.load([name])
        except Exception as error:  # the libraries of data, of the hub and of the network raise their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--tasks: {name} cannot be loaded ({reason}); with no network, give a task file over local data by "
                f"--include-path"
            ) from None
        for part, values in parts.items():
            loaded[part] |= values
    return loaded


def _manager_of(name: str, own: TaskManager | None, include_path: str | os.PathLike | None) -> TaskManager:
    """Returns the manager that knows a task; `own` knows those of `include_path` alone. UserError if none does."""
    manager = own if own is not None and name in own.all_tasks else _harness_tasks()
    if name not in manager.all_tasks:
        near = nearest(name, [*manager.all_tasks, *(own.all_tasks if own else [])])
        hint = f"did you mean {near}?" if near else "see `lm-eval ls tasks`"
        raise UserError(f"--tasks: lm-eval {lm_eval.__version__} has no task {name!r}; {hint}")
    if manager is own and name not in own.all_subtasks and not _complete(own, name):
        return TaskManager(include_path=str(include_path))
    return manager


@functools.cache
def _harness_tasks() -> TaskManager:
    """Returns the manager of the harness's own tasks; it reads some ten thousand files, so once a process."""
    return TaskManager()


def _complete(manager: TaskManager, name: str) -> bool:
    """Returns whether `manager` knows all that a group or tag is made of."""
    try:
        manager.load([name])
    except Exception:  # for a name it does not know; anything else is raised again in `_load`
        return False
    return True


@contextlib.contextmanager
def _without_processes_and_stdout() -> Iterator[None]:
    """Keeps the harness from forking processes (JAX has threads by now) and from writing to stdout."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _task(name: str, output: dict[str, Any]) -> dict[str, Any]:
    """Returns one task of the harness's output as results hold it."""
    items: dict[int, dict[str, Any]] = {}
    for sample in output["samples"][name]:
        item = items.setdefault(
            sample["doc_id"],
            {"id": sample["doc_id"], "hash": sample["doc_hash"], "responses": _responses(sample["resps"])},
        )
        for metric in sample["metrics"]:
            value = measures.item_value(metric, sample[metric])
            if value is not None:
                item[_name(metric, sample["filter"])] = value
    metrics = _metrics(output["results"][name], output["higher_is_better"][name])
    for metric, measured in metrics.items():
        if measured["stderr"] is None:
            values = [item[metric] for item in items.values() if metric in item]
            measured["stderr"] = measures.weighted_stderr(metric, values)
    return {
        "version": output["versions"][name],
        "num_fewshot": output["n-shot"][name],
        "n": len(items),
        "metrics": metrics,
        "items": list(items.values()),
    }


def _metrics(values: dict[str, Any], higher_is_better: dict[str, Any]) -> dict[str, Any]:
    """Returns metric -> value, standard error (None: unknown) and direction, from keys "metric,filter"."""
    metrics = {}
    for key, value in values.items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_}")
        metrics[_name(metric, filter_)] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": higher_is_better.get(metric),
        }
    return metrics


def _name(metric: str, filter_: str) -> str:
    return metric if filter_ == "none" else f"{metric},{filter_}"


def _responses(responses: list) -> list:
    """Returns the answers to a document's requests: [log-likelihood, greedy], a log-likelihood, or a text."""
    return [list(one) if isinstance(one, tuple) else one for repeats in responses for one in repeats]
