"""Generated tokens as text: whole characters, stop strings, streaming."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from flax import nnx

from zoo.errors import UserError
from zoo.generate import engine
from zoo.generate.settings import Settings
from zoo.generate.stopping import StopText, split_stop
from zoo.models.config import ModelConfig

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

# Steps between two transfers from the device: often enough for a steady stream, rarely enough to cost little.
STREAM_STEPS, STOP_STRING_STEPS = 4, 16


@dataclasses.dataclass(frozen=True)
class Generation:
    """The text that a model wrote after one prompt; `str()` of it is the text.

    Attributes:
        text: the new text, special tokens left out and cut before a stop string.
        tokens: the new token ids, without a stop id, but with those that spell a stop string.
        logprobs: the natural log probability of each, under the model's own softmax (temperature 1, no filters).
        finish: "stop" after a stop id or string, "length" when no more tokens were allowed.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str

    def __str__(self) -> str:
        return self.text


def continue_all(
    module: nnx.Module,
    tokenizer: "Tokenizer | None",
    rows: Sequence[Sequence[int]],
    settings: Settings,
    *,
    seeds: Sequence[int],
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Returns what the model writes after each of `rows` (token ids), in their order, `batch_size` at a time.

    Args:
        tokenizer: makes text of the tokens; without one the texts are empty and stop strings are impossible.
        seeds: a seed for each row.
        on_progress: called with the number of rows done and of all rows, at the start and after each batch.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; give a whole number of at least 1")
    generations: list[Generation | None] = [None] * len(rows)
    # Rows of similar length share a batch; sizes are chosen for the longest, so that one program serves all batches.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    longest = max(map(len, rows), default=0)
    warn_of_length(module.config, longest, settings.max_new_tokens)
    if on_progress:
        on_progress(0, len(order))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        prompts, batch_seeds = [rows[i] for i in batch], [seeds[i] for i in batch]
        run = TextRun(module, tokenizer, prompts, settings, batch_seeds, longest_prompt=longest)
        for i, generation in zip(batch, run.finish(), strict=True):
            generations[i] = generation
        if on_progress:
            on_progress(min(at + batch_size, len(order)), len(order))
    return generations


def stream_text(
    module: nnx.Module, tokenizer: "Tokenizer", row: Sequence[int], settings: Settings, seed: int
) -> "TextStream":
    """Returns an iterator over the text that `continue_all` gives for `row`, in pieces as they are generated."""
    warn_of_length(module.config, len(row), settings.max_new_tokens)
    return TextStream(TextRun(module, tokenizer, [row], settings, [seed]))


def warn_of_length(config: ModelConfig, longest_prompt: int, max_new_tokens: int) -> None:
    """Logs a warning if rows may become longer than those the model was trained on, where its config allows that."""
    limit = config.generation_limit
    total = longest_prompt + max_new_tokens
    if limit is not None and longest_prompt < limit and min(total, limit) > config.max_seq_len:
        logger.warning(
            "prompt and text may reach %d tokens; the model was trained on max_seq_len %d and writes worse beyond",
            min(total, limit),
            config.max_seq_len,
        )


class TextRun:
    """One batch of prompts (token ids) while it is continued, up to the `generation_limit` of the model's config.

    Without a tokenizer the texts stay empty and stop strings are impossible. With one, its EOS ends a row too, unless
    the settings ignore it. `seeds` and `longest_prompt` are those of `zoo.generate.engine.start`.
    """

    def __init__(
        self,
        module: nnx.Module,
        tokenizer: "Tokenizer | None",
        rows: Sequence[Sequence[int]],
        settings: Settings,
        seeds: Sequence[int],
        *,
        longest_prompt: int = 0,
    ):
        ids, strings = split_stop(settings.stop)
        if strings and tokenizer is None:
            raise UserError("stop strings need a tokenizer, and there is none; give token ids")
        # The text has no special tokens in it, so these are looked for by id.
        special = {} if tokenizer is None else tokenizer.special_tokens
        ids += [special[string] for string in strings if string in special]
        self._strings = [string for string in strings if string not in special]
        if not settings.ignore_eos:
            ids += settings.eos_ids
            ids += [] if tokenizer is None or tokenizer.eos_id is None else [tokenizer.eos_id]
        limit, trained = module.config.generation_limit, module.config.max_seq_len
        self._decoding = engine.start(
            module,
            rows,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            seeds=seeds,
            stop_ids=sorted(set(ids)),
            num_ids=None if tokenizer is None else min(tokenizer.vocab_size, module.config.vocab_size),
            max_len=limit,
            window=trained if limit is None else None,
            longest_prompt=longest_prompt,
        )
        self._texts = [] if tokenizer is None else [_RowText(tokenizer, self._strings) for _ in rows]
        self._read()

    def finish(self) -> list[Generation]:
        """Decodes to the end and returns every row's generation."""
        while self._decoding.running:
            self._decoding.advance(STOP_STRING_STEPS if self._strings else None)
            self._read()
        return self.so_far()

    def compile(self) -> None:
        """Compiles the decode program without decoding."""
        self._decoding.advance(0)

    def advance(self) -> bool:
        """Decodes a few more tokens of each row; returns False if all rows had ended."""
        if not self._decoding.running:
            return False
        self._decoding.advance(STREAM_STEPS)
        self._read()
        return True

    def so_far(self) -> list[Generation]:
        """Returns what every row holds by now; a row that has not ended has the finish "running"."""
        texts = [row.text for row in self._texts] or [""] * len(self._decoding.tokens)
        finished = [reason or "running" for reason in self._decoding.finished]
        parts = zip(texts, self._decoding.tokens, self._decoding.logprobs, finished, strict=True)
        return [Generation(text, list(tokens), list(logprobs), reason) for text, tokens, logprobs, reason in parts]

    def _read(self) -> None:
        """Makes text of the tokens that came since the last call; ends rows in which a stop string is complete."""
        for number, row in enumerate(self._texts):
            keep = row.read(self._decoding.tokens[number], ended=self._decoding.finished[number] is not None)
            if keep is not None:
                self._decoding.stop(number, keep=keep)


class TextStream(Iterator[str]):
    """Iterator over the text of a run's only row, in pieces of whole characters as they are generated."""

    def __init__(self, run: TextRun):
        run.compile()  # here, so that there is no pause after the first piece
        self._run, self._shown = run, 0

    def __next__(self) -> str:
        while True:
            piece = self.generation.text[self._shown :]
            if piece:
                self._shown += len(piece)
                return piece
            if not self._run.advance():
                raise StopIteration

    @property
    def generation(self) -> Generation:
        """What is generated so far; all of it once the stream has ended."""
        return self._run.so_far()[0]


class _RowText:
    """The text of one row so far."""

    def __init__(self, tokenizer: "Tokenizer", strings: Sequence[str]):
        self.text = ""
        self._decoder, self._stop = tokenizer.stream_decoder(), StopText(strings)
        self._read, self._closed = 0, False

    def read(self, tokens: Sequence[int], *, ended: bool) -> int | None:
        """Reads the tokens not read before; returns the number of tokens to keep if a stop string is complete."""
        if self._closed:
            return None
        while self._read < len(tokens):
            self._read += 1
            if self._add(self._decoder.push(tokens[self._read - 1])):
                return self._read
        if ended:
            if not self._add(self._decoder.flush()):
                self.text += self._stop.flush()
            self._closed = True
        return None

    def _add(self, piece: str) -> bool:
        text, stopped = self._stop.push(piece)
        self.text += text
        self._closed = self._closed or stopped
        return stopped
