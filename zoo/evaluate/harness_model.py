"""A zoo model as the LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness) calls one.

Texts become tokens as in the harness's own `hf` model, so that results can be compared with those in the literature.
Importing this module needs the package lm-eval.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from zoo.convert.tokenizer_files import spelling
from zoo.errors import UserError
from zoo.evaluate.cache import ResultCache
from zoo.evaluate.protocol import Progress, check_tokenizer, progress_of
from zoo.evaluate.scoring import Row, Scored, Scorer, check_max_length, windows
from zoo.generate.settings import Settings
from zoo.generate.text import continue_all
from zoo.language_model import LanguageModel

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # the harness's own default
# Fields of generation_kwargs that change nothing here at these values.
_NEUTRAL = {"num_beams": (1,), "num_return_sequences": (1,), "early_stopping": (False,), "use_cache": (True, False)}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class HarnessModel(TemplateLM):
    """A LanguageModel as the harness calls one.

    Where the `hf` model stops with an assertion, this one goes on: a continuation of no tokens has log-likelihood 0,
    one that has no tokens of its own once merged with its context is tokenised apart from it, and one longer than
    the model's rows is scored window by window.

    Attributes:
        lm: the model that answers.
        add_bos: whether texts begin with BOS.
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
        """Makes a model for `lm_eval.evaluator.evaluate`.

        Args:
            lm: the model, with its tokenizer.
            batch_size: rows computed at a time.
            max_length: tokens that the model sees at once at most; longer contexts lose their beginning. None: the
                config's max_seq_len.
            add_bos: whether texts begin with BOS; None: they begin with `lm.prefix_ids`, as in transformers with the
                model's files.
            cache: results that it holds are not computed again.
            on_progress: called with the kind of request, requests done and their number.

        Raises:
            UserError: a model without a tokenizer, or a length it does not take.
        """
        super().__init__()
        check_tokenizer(lm)
        if add_bos and lm.tokenizer.bos_id is None:
            raise UserError("--add-bos: the model's tokenizer has no BOS; leave it out")
        with_bos = [lm.tokenizer.bos_id] if add_bos else []
        self.lm, self._start = lm, lm.prefix_ids if add_bos is None else with_bos
        self._batch_size, self._cache, self._on_progress = batch_size, cache, on_progress
        self._scorer = Scorer(lm.computing, batch_size=batch_size, cache=cache)
        self._max_length = check_max_length(lm.config, max_length)
        prefixes = [*lm.tokenizer.separator_ids, lm.tokenizer.eos_id, lm.tokenizer.bos_id]
        self._prefix = next((i for i in reversed(prefixes) if i is not None), None)
        parts = ("bos", "eos") if lm.tokenizer.bos_id is not None else ("eos",)
        self._prefix_text = next((text for part in parts if (text := spelling(lm.tokenizer, part))), None)

    @property
    def add_bos(self) -> bool:
        """Whether texts begin with a token of their own."""
        return bool(self._start)

    @property
    def max_length(self) -> int:
        """How many tokens the model sees at once."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """How many new tokens the model writes at most, where the task does not say."""
        return MAX_NEW_TOKENS

    @property
    def batch_size(self) -> int:
        """How many rows are computed at a time."""
        return self._batch_size

    @property
    def eot_token_id(self) -> int | None:
        """The id of the tokenizer's EOS."""
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without context: BOS, else EOS, else what parts documents.

        Raises UserError for a tokenizer that has none of them.
        """
        if self._prefix is None:
            raise UserError(
                "a text without context is to be scored, but the model's tokenizer has neither BOS nor EOS nor a line "
                "break to stand before it; leave out tasks with empty contexts"
            )
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns token ids, behind those that a text begins with (`add_bos`) unless `add_special_tokens` is False.

        A text that begins with the spelling of BOS (of EOS, where there is no BOS) begins with that token, once.
        """
        tokenizer = self.lm.tokenizer
        if self._prefix_text and string.startswith(self._prefix_text):
            return [self._prefix, *tokenizer.encode(string[len(self._prefix_text) :])]
        ids = tokenizer.encode(string)
        start = [tokenizer.bos_id] if add_special_tokens and tokenizer.bos_id is not None else self._start
        return ids if add_special_tokens is False else start + ids

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns, for each request, its continuation's log-likelihood in nats and whether greedy decoding gives it."""
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
        """Does what `loglikelihood` does, for (anything, context, continuation) in token ids."""
        rows, long = [], 0
        for _, before, after in requests:
            if len(after) > self.max_length:
                rows.append(windows(after, before[-1], self.max_length))
                long += 1
            else:
                rows.append([Row.of(before, after, self.max_length + 1)])
        if long:
            logger.warning(
                "%d continuations have more than %d tokens; they are scored in windows", long, self.max_length
            )
        return [(score.logprob, score.greedy) for score in self._sums("log-likelihoods", rows)]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood in nats of each text as a whole, in windows of `max_length`."""
        texts = [self.tok_encode(text) for (text,) in (request.args for request in requests)]
        rows = [windows(ids, self.prefix_token_id, self.max_length) for ids in texts]
        return [score.logprob for score in self._sums("rolling log-likelihoods", rows)]

    def _sums(self, kind: str, rows: Sequence[Sequence[Row]]) -> list[Scored]:
        """Scores the rows of each request and returns their sums."""
        on_progress = progress_of(kind, self._on_progress)
        scored = iter(self._scorer.score([row for group in rows for row in group], on_progress=on_progress))
        results = []
        for group in rows:
            scores = [next(scored) for _ in group]
            results.append(Scored(sum(score.logprob for score in scores), all(score.greedy for score in scores)))
        return results

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes after each context, up to the request's stop strings.

        Raises UserError for generation_kwargs that zoo does not know, and more new tokens than the model holds.
        """
        texts: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        done, total, on_progress = 0, len(requests), progress_of("texts", self._on_progress)
        for key, numbers in groups.items():
            settings = self._settings(json.loads(key))
            prompts = {number: self._prompt(requests[number].args[0], settings.max_new_tokens) for number in numbers}
            # Repeats of one request are other samples of it.
            questions = {number: [prompts[number], number if settings.temperature else 0, key] for number in numbers}
            if self._cache is not None:
                for number in numbers:
                    texts[number] = self._cache.get("generate", questions[number])
            left = [number for number in numbers if texts[number] is None]
            before = done + len(numbers) - len(left)
            if left:
                written = continue_all(
                    self.lm.computing,
                    self.lm.tokenizer,
                    [prompts[number] for number in left],
                    settings,
                    seeds=left,
                    batch_size=self._batch_size,
                    on_progress=on_progress and (lambda new, _, before=before: on_progress(before + new, total)),
                )
                for number, text in zip(left, written, strict=True):
                    texts[number] = text.text
                    if self._cache is not None:
                        self._cache.put("generate", questions[number], text.text)
            if self._cache is not None:
                self._cache.commit()
            done += len(numbers)
        return texts

    def _settings(self, generation_kwargs: dict[str, Any]) -> Settings:
        """Returns what a request's generation_kwargs ask for. Raises UserError for what zoo does not do."""
        kwargs = dict(normalize_gen_kwargs(generation_kwargs, MAX_NEW_TOKENS))
        until = handle_stop_sequences(kwargs.pop("until"), eos=spelling(self.lm.tokenizer, "eos"))
        max_new_tokens, sample = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
        sampling = {name: kwargs.pop(name) for name in _SAMPLING if kwargs.get(name) is not None}
        sampling["temperature"] = float(sampling.get("temperature", 1.0)) if sample else 0.0
        for name, value in kwargs.items():
            if value not in (None, *_NEUTRAL.get(name, ())):
                raise UserError(f"generation_kwargs.{name}: {value!r} is not supported; leave it out of the task")
        stop = [text for text in until if text]
        return Settings(max_new_tokens=max_new_tokens, stop=stop, eos_ids=self.lm.eos_ids, **sampling)

    def _prompt(self, context: str, max_new_tokens: int) -> list[int]:
        """Returns the token ids of a context, cut at its beginning so that there is room for the new tokens."""
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
