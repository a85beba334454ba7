"""Tasks of the LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness) on a zoo model.

Texts become tokens as in the harness's own `hf` model, so that results can be compared with those in the literature.
Importing this module needs the package lm-eval.
"""

import contextlib
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import tokenizers
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from zoo.convert.tokenizer_files import spelling, tokenizer_json
from zoo.errors import UserError
from zoo.evaluate import measures
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.scoring import Row, Scored, Scorer, check_max_length, windows
from zoo.generate.settings import Settings
from zoo.generate.text import continue_all
from zoo.language_model import LanguageModel
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.hub import unreachable
from zoo.util import nearest

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # the harness's own default
RESAMPLES = 1000  # of a bootstrap, where the harness makes one
FEWSHOT_SEED = 1234  # the harness's own
# Fields of generation_kwargs that change nothing here at these values.
_NEUTRAL = {"num_beams": (1,), "num_return_sequences": (1,), "early_stopping": (False,), "use_cache": (True, False)}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Progress = Callable[[str, int, int], None]


class HarnessModel(TemplateLM):
    """A LanguageModel as the harness calls one.

    Where the `hf` model stops with an assertion, this one goes on: a continuation of no tokens has log-likelihood 0,
    one that has no tokens of its own once merged with its context is tokenised apart from it, and one longer than
    the model's rows is scored window by window.
    """

    backend = "causal"

    def __init__(
        self,
        lm: LanguageModel,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        add_bos: bool | None = None,
        cache: ResultCache | None = None,
        on_progress: Progress | None = None,
    ):
        """Args:
            max_length: tokens that the model sees at once at most; longer contexts lose their beginning. None: the
                config's max_seq_len.
            add_bos: whether texts begin with BOS; None: as in transformers with the same tokenizer files.
            cache: results found there are not computed again.
            on_progress: called with the kind of request, requests done and their number.

        Raises UserError for a model without a tokenizer, or a length it does not take.
        """
        super().__init__()
        if lm.tokenizer is None:
            raise UserError(f"this {lm.spec.name} has no tokenizer; load trained weights to evaluate it")
        self.lm, self.add_bos = lm, adds_bos(lm.tokenizer) if add_bos is None else add_bos
        if self.add_bos and lm.tokenizer.bos_id is None:
            raise UserError("--add-bos: the model's tokenizer has no BOS; leave it out")
        self._batch_size, self._cache, self._on_progress = batch_size, cache, on_progress
        self._scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
        self._max_length = check_max_length(lm.config, max_length)
        prefixes = [*lm.tokenizer.separator_ids, lm.tokenizer.eos_id, lm.tokenizer.bos_id]
        self._prefix = next((i for i in reversed(prefixes) if i is not None), None)
        parts = ("bos", "eos") if lm.tokenizer.bos_id is not None else ("eos",)
        self._prefix_text = next((text for part in parts if (text := spelling(lm.tokenizer, part))), None)

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens at most, where the task does not say."""
        return MAX_NEW_TOKENS

    @property
    def batch_size(self) -> int:
        """Rows computed at a time."""
        return self._batch_size

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's EOS."""
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, else EOS, else what parts documents; UserError if none is."""
        if self._prefix is None:
            raise UserError(
                "a text without context is to be scored, but the model's tokenizer has neither BOS nor EOS nor a line "
                "break to stand before it; leave out tasks with empty contexts"
            )
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; with BOS if `add_special_tokens`, which by default is `add_bos`.

        A text that begins with the spelling of BOS (of EOS, where there is no BOS) begins with that token, once.
        """
        tokenizer = self.lm.tokenizer
        if self._prefix_text and string.startswith(self._prefix_text):
            return [self._prefix, *tokenizer.encode(string[len(self._prefix_text) :])]
        ids = tokenizer.encode(string)
        return [tokenizer.bos_id, *ids] if (self.add_bos if add_special_tokens is None else add_special_tokens) else ids

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, whether it is what greedy decoding gives) of each request."""
        pairs = []
        for context, continuation in (request.args for request in requests):
            if not continuation:
                before, after = [], []
            elif context:
                before, after = self._encode_pair(context, continuation)
            else:
                before, after = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
                if after[:1] == before:  # the text brings the token along
                    after = after[1:]
            pairs.append(((context, continuation), before, after))
        return self._loglikelihood_tokens(pairs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        if not after:
            before, after = self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        return before or [self.prefix_token_id], after

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """As `loglikelihood`, of (anything, context, continuation) in token ids."""
        rows, long = [], 0
        for _, before, after in requests:
            if len(after) > self.max_length:
                rows.append(windows(after, before[-1], self.max_length))
                long += 1
            else:
                rows.append([Row(tuple([*before, *after][-(self.max_length + 1) :]), len(after))])
        if long:
            logger.warning(
                "%d continuations have more than %d tokens; they are scored in windows", long, self.max_length
            )
        return [(found.logprob, found.greedy) for found in self._sums("log-likelihoods", rows)]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text as a whole, in windows of `max_length`."""
        texts = [self.tok_encode(text) for (text,) in (request.args for request in requests)]
        rows = [windows(ids, self.prefix_token_id, self.max_length) for ids in texts]
        return [found.logprob for found in self._sums("rolling log-likelihoods", rows)]

    def _sums(self, what: str, rows: Sequence[Sequence[Row]]) -> list[Scored]:
        """The rows of each request scored and summed."""
        on_progress = None if self._on_progress is None else lambda *at: self._on_progress(what, *at)
        scored = iter(self._scorer.score([row for some in rows for row in some], on_progress=on_progress))
        results = []
        for some in rows:
            mine = [next(scored) for _ in some]
            results.append(Scored(sum(one.logprob for one in mine), all(one.greedy for one in mine)))
        return results

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the request's stop strings.

        Raises UserError for generation_kwargs that zoo does not know, and more new tokens than the model holds.
        """
        found: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        done = 0
        for key, numbers in groups.items():
            settings = self._settings(json.loads(key))
            rows = [self._prompt(requests[number].args[0], settings.max_new_tokens) for number in numbers]
            # Repeats of one request are other samples of it.
            asked = [
                [row, number if settings.temperature else 0, key] for number, row in zip(numbers, rows, strict=True)
            ]
            for number, question in zip(numbers, asked, strict=True):
                found[number] = None if self._cache is None else self._cache.get("generate", question)
            left = [at for at, number in enumerate(numbers) if found[number] is None]
            before = done + len(numbers) - len(left)
            texts = left and continue_all(
                self.lm.computing,
                self.lm.tokenizer,
                [rows[at] for at in left],
                settings,
                seeds=[numbers[at] for at in left],
                batch_size=self._batch_size,
                on_progress=self._generated(before, len(requests)),
            )
            for at, text in zip(left, texts, strict=True):
                found[numbers[at]] = text.text
                if self._cache is not None:
                    self._cache.put("generate", asked[at], text.text)
            if self._cache is not None:
                self._cache.commit()
            done += len(numbers)
        return found

    def _generated(self, before: int, total: int) -> Callable[[int, int], None] | None:
        if self._on_progress is None:
            return None
        return lambda done, _: self._on_progress("texts", before + done, total)

    def _settings(self, given: dict[str, Any]) -> Settings:
        """What a request's generation_kwargs ask for; UserError for what zoo does not do."""
        kwargs = dict(normalize_gen_kwargs(given, MAX_NEW_TOKENS))
        until = handle_stop_sequences(kwargs.pop("until"), eos=spelling(self.lm.tokenizer, "eos"))
        max_new_tokens, sample = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
        chosen = {name: kwargs.pop(name) for name in _SAMPLING if kwargs.get(name) is not None}
        chosen["temperature"] = float(chosen.get("temperature", 1.0)) if sample else 0.0
        for name, value in kwargs.items():
            if value not in (None, *_NEUTRAL.get(name, ())):
                raise UserError(f"generation_kwargs.{name}: {value!r} is not supported; leave it out of the task")
        return Settings(max_new_tokens=max_new_tokens, stop=[text for text in until if text], **chosen)

    def _prompt(self, context: str, max_new_tokens: int) -> list[int]:
        """Token ids of a context, cut at its beginning so that there is room for the new tokens."""
        ids = self.tok_encode(context) or [self.prefix_token_id]
        if self.lm.config.generation_limit is None:  # the model itself looks at the last tokens alone
            return ids
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"the task asks for {max_new_tokens} new tokens, the model holds {self.max_length} in all; lower "
                f"max_gen_toks in the task's generation_kwargs"
            )
        return ids[-room:]


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether transformers begins a text with BOS, given the same tokenizer files.

    A tokenizer.json says so itself (its post-processor); Llama's sentencepiece models have it done.
    """
    if tokenizer.bos_id is None:
        return False
    if not isinstance(tokenizer, HFTokenizer):
        return True
    return tokenizer.bos_id in tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer)).encode("").ids


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
    """Run tasks of the harness, or tasks written for it, and return what came out.

    Args:
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
        # As the harness: a task that fixes 0 keeps it.
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    limit = int(limit) if limit is not None and limit >= 1 else limit
    with _harness_manners():
        found = evaluator.evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=True)
    return {
        "format": measures.FORMAT,
        "suite": "lm-eval",
        "model": lm.spec.name,
        "settings": {
            "lm_eval": lm_eval.__version__,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "max_length": model.max_length,
            "add_bos": model.add_bos,
            "dtype": str(lm.computing.dtype),
        },
        "seconds": time.perf_counter() - started,
        "tasks": {name: _task(name, found) for name in loaded["tasks"]},
        "groups": {
            name: {"metrics": _metrics(values, found["higher_is_better"].get(name, {}))}
            for name, values in found.get("groups", {}).items()
        },
    }


def _load(names: Sequence[str], include_path: str | os.PathLike | None) -> dict[str, Any]:
    """The tasks and groups of these names, as the harness's `evaluate` takes them."""
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path: there is no directory {include_path}")
    if not names:
        raise UserError("--tasks names no task; give names with commas between them")
    own = None if include_path is None else TaskManager(include_path=str(include_path), include_defaults=False)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        manager = own if own is not None and name in own.all_tasks else _harness_tasks()
        if name not in manager.all_tasks:
            known = [*manager.all_tasks, *(own.all_tasks if own else [])]
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else "see `lm-eval ls tasks`"
            raise UserError(f"--tasks: lm-eval {lm_eval.__version__} has no task {name!r}; {hint}")
        if manager is own and name not in own.all_subtasks and not _complete(own, name):
            manager = TaskManager(include_path=str(include_path))
        file = manager.task_index[name].yaml_path
        of_the_harness = file is not None and Path(file).is_relative_to(Path(lm_eval.__file__).parent)
        if of_the_harness and (reason := unreachable()) is not None:  # the library would try again and again
            raise UserError(
                f"--tasks: the Hugging Face hub does not answer ({reason}), so the data of {name} cannot be fetched; "
                f"set HF_HUB_OFFLINE=1 if the cache has them, or give a task file over local data by --include-path"
            )
        try:
            some = manager.load([name])
        except Exception as error:  # the libraries of data, of the hub and of the network raise their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--tasks: {name} cannot be loaded ({reason}); with no network, give a task file over local data by "
                f"--include-path"
            ) from None
        for part, values in some.items():
            loaded[part] |= values
    return loaded


@functools.cache
def _harness_tasks() -> TaskManager:
    """The harness's own tasks: to find them it reads some ten thousand files, so once a process."""
    return TaskManager()


def _complete(manager: TaskManager, name: str) -> bool:
    """Whether a group or tag is made of nothing that `manager` does not know."""
    try:
        manager.load([name])
    except Exception:  # the factory's, of a name it does not know; anything else comes again in `_load`
        return False
    return True


@contextlib.contextmanager
def _harness_manners() -> Iterator[None]:
    """Keep the harness from forking processes (JAX has threads by now) and from writing on stdout."""
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


def _task(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One task of the harness's result."""
    items: dict[int, dict[str, Any]] = {}
    for sample in found["samples"][name]:
        item = items.setdefault(
            sample["doc_id"],
            {"id": sample["doc_id"], "hash": sample["doc_hash"], "responses": _responses(sample["resps"])},
        )
        for metric in sample["metrics"]:
            value = measures.item_value(metric, sample[metric])
            if value is not None:
                item[_name(metric, sample["filter"])] = value
    metrics = _metrics(found["results"][name], found["higher_is_better"][name])
    for metric, measured in metrics.items():
        if measured["stderr"] is None:
            values = [item[metric] for item in items.values() if metric in item]
            measured["stderr"] = measures.weighted_stderr(metric, values)
    return {
        "version": found["versions"][name],
        "num_fewshot": found["n-shot"][name],
        "n": len(items),
        "metrics": metrics,
        "items": list(items.values()),
    }


def _metrics(values: dict[str, Any], higher_is_better: dict[str, Any]) -> dict[str, Any]:
    """metric -> value, standard error (None: unknown) and direction, from the harness's "metric,filter" keys."""
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
    """The model's answers to a document's requests: [log-likelihood, greedy], a log-likelihood, or a text."""
    return [list(one) if isinstance(one, tuple) else one for repeats in responses for one in repeats]
