"""`LanguageModel`: a module with its tokenizer and spec, and the calls that a notebook makes."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import convert, registry
from zoo.convert import base, portable
from zoo.convert.base import storage_dtype
from zoo.convert.format import describe
from zoo.errors import UserError
from zoo.generate import chat as conversations
from zoo.generate.engine import check_prompts
from zoo.generate.inputs import Prompt, as_seed, as_seeds, as_token_ids, is_single_prompt
from zoo.generate.settings import Settings, resolve_settings
from zoo.generate.text import Generation, TextStream, continue_all, stream_text
from zoo.layers import lora
from zoo.models import build
from zoo.models.casting import Casting
from zoo.models.config import ModelConfig
from zoo.tokenizers.chat import TEMPLATES
from zoo.weights import adapters

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer
    from zoo.weights.sources import Weights


@dataclasses.dataclass(frozen=True)
class Score:
    """The natural log probability of each token of a text after the first, given those before it."""

    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """Returns exp of the mean negative log probability."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


class LanguageModel:
    """A model ready to be used.

    Attributes:
        module: the nnx.Module; called by itself it computes in the dtype of its parameters.
        tokenizer: a `zoo.tokenizers.base.Tokenizer`; None after `zoo.create`, when prompts must be token ids.
        spec: the registry's entry.
        config: the module's config, a frozen dataclass.
        origin: the files it was loaded from; None for random weights.
    """

    def __init__(
        self,
        module: nnx.Module,
        tokenizer: "Tokenizer | None",
        spec: registry.ModelSpec,
        config: ModelConfig,
        *,
        compute_dtype: DTypeLike | None = None,
        origin: "Weights | None" = None,
        prefix_ids: Sequence[int] | None = None,
    ):
        """Wraps a module whose parameters are in place.

        `compute_dtype` is that of the methods here, None: of the parameters. `prefix_ids`: see the property; None: by
        `origin` and the tokenizer. Raises UserError if the tokenizer has more entries than the model has rows.
        """
        self.module, self.tokenizer, self.spec, self.config = module, tokenizer, spec, config
        self.origin, self._merged, self._prefix_ids = origin, False, prefix_ids
        self._computing = module if compute_dtype is None else Casting(module, jnp.dtype(compute_dtype))
        if tokenizer is not None:
            check_belongs(tokenizer, config)

    @property
    def is_community_model(self) -> bool:
        """Returns whether it is a Llama of other authors: it shares the spec's class, but not its template or card."""
        return self.origin is not None and self.origin.is_community_model

    @property
    def name(self) -> str:
        """Returns the registry's name; of a community model that of its directory, file or repository."""
        return self.origin.display_name if self.is_community_model else self.spec.name

    @property
    def prefix_ids(self) -> list[int]:
        """Returns the ids that stand before a prompt that is given as text.

        Of a run on documents, those that it put before each of them: BOS, or else the EOS of the document before. Of
        other models what the files of their tokenizer say, and of the registry's models BOS where these say nothing.
        [] without a tokenizer.
        """
        if self.tokenizer is None or self._prefix_ids is not None:
            return list(self._prefix_ids or ())
        of_files = self.tokenizer.prefix_ids if self.origin is None else self.origin.prefix_ids(self.tokenizer)
        if of_files or self.is_community_model or self.tokenizer.bos_id is None:
            return of_files
        return [self.tokenizer.bos_id]

    @property
    def _outgoing_tokenizer(self) -> "Tokenizer | None":
        """Returns the tokenizer for files: those of a run say what it put before each document."""
        if self.tokenizer is None or self.origin is None:
            return self.tokenizer
        return self.tokenizer.with_prefix(self.origin.prefix_ids(self.tokenizer))

    @property
    def computing(self) -> nnx.Module:
        """Returns the module as the methods here use it: it computes in `compute_dtype`."""
        return self._computing

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(nnx.state(self.module, nnx.Param))
        dtypes = " and ".join(sorted({jnp.dtype(leaf.dtype).name for leaf in leaves}))
        size = sum(leaf.nbytes for leaf in leaves) / 1e6
        usual = dataclasses.asdict(self.spec.make_config())
        config = {
            name: f"{value} (instead of {usual[name]})" if value != usual[name] else str(value)
            for name, value in dataclasses.asdict(self.config).items()
        }
        entries = f"{self.tokenizer.vocab_size:,} entries" if self.tokenizer else "none: prompts are token ids"
        official, community = self.origin is not None and self.origin.official, self.is_community_model
        lines = [
            f"{self.name}: {describe(self.spec, self.config, official=official, is_community_model=community)}",
            f"  parameters  {sum(leaf.size for leaf in leaves):,} in {dtypes}, {size:,.1f} MB",
            f"  weights     {f'{self.origin.path} ({self.origin.kind})' if self.origin else 'of no file'}",
            f"  tokenizer   {entries}",
            *(f"  {name} = {value}" for name, value in config.items()),
        ]
        return "\n".join(lines)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: int | str | Sequence[int | str] | None = None,
        ignore_eos: bool | None = None,
        preset: str | None = None,
        n: int | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """Continues a prompt, or each of a list of prompts.

        Args:
            prompts: text, token ids, or a list of such. Before text stand `prefix_ids`, such as BOS.
            max_new_tokens: the largest number of tokens to write (default 128); never more than the model can hold.
            temperature, top_k, top_p, min_p, repetition_penalty, logit_bias: see
                `zoo.generate.sampling.Sampling`, also for the defaults (plain sampling) and the order in which
                they apply; temperature 0 is greedy.
            stop: ids or strings that end a text, besides EOS. They are not part of it.
            ignore_eos: whether a text goes on after EOS, which is the tokenizer's and `eos_ids` (default: no).
            preset: "original" takes the settings of the model's card where none is given here.
            n: the number of texts for each prompt; the result of each prompt is then a list of them.
            seed: one for all prompts, or one each. A prompt with its seed gives the same text alone and in a list
                (to float rounding); of several texts, number i is what seed + i gives.
            batch_size: the number of texts decoded at a time.
            on_progress: called with the number of texts done and of all, at the start and after each batch.

        Raises:
            UserError: an empty or too long prompt, an impossible setting.
        """
        single = is_single_prompt(prompts)
        rows = [self._encode(prompt) for prompt in ([prompts] if single else prompts)]
        seeds = as_seeds(seed, len(rows))
        if n is not None and (not isinstance(n, int | np.integer) or n < 1):
            raise UserError(f"n is {n}; it must be a whole number of at least 1")
        count = n or 1
        # Here, where they still have the caller's order, and before any text is written.
        check_prompts(rows, self.config.vocab_size, self.config.generation_limit)
        settings = self._settings(
            preset,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            logit_bias=logit_bias,
            stop=stop,
            ignore_eos=ignore_eos,
        )
        texts = continue_all(
            self._computing,
            self.tokenizer,
            [row for row in rows for _ in range(count)],
            settings,
            seeds=[first + i for first in seeds for i in range(count)],
            batch_size=batch_size,
            on_progress=on_progress,
        )
        if n is not None:
            texts = [texts[at : at + n] for at in range(0, len(texts), n)]
        return texts[0] if single else texts

    def stream(self, prompt: Prompt, *, preset: str | None = None, seed: int = 0, **settings: Any) -> TextStream:
        """Returns an iterator over the text that `generate` would give, in pieces of whole characters as they come.

        Its `generation` holds what has come so far, and at the end what `generate` returns. `settings` are those of
        `generate`, from `max_new_tokens` to `ignore_eos`.
        """
        self._need_tokenizer()
        return stream_text(
            self._computing, self.tokenizer, self._encode(prompt), self._settings(preset, **settings), as_seed(seed)
        )

    @property
    def chat_template(self) -> str:
        """Returns the name of the template that the model's conversations were written in.

        Raises UserError for a model that was trained on none.
        """
        template = self.spec.chat_template if self.origin is None else self.origin.chat_template
        if template is None:
            raise UserError(
                f"{self._label} has no chat template that zoo knows; give template= (--template) one of "
                f"{', '.join(TEMPLATES)} if it learnt conversations written so"
            )
        return template

    def reply_settings(self, template: str, given: Mapping[str, Any]) -> Settings:
        """Returns the settings of a reply: those `given`, else, for a model made for chats, those of its card."""
        made_for_chats = self.spec.chat_template is not None and not self.is_community_model
        preset = {"preset": "original" if made_for_chats else None}
        return self._settings(**(preset | conversations.with_stops(given, template)))

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        template: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Generation:
        """Returns the assistant's reply to a conversation.

        Args:
            messages: dicts of `role` and `content`; or the user's only message as text. Roles are "user" and
                "assistant" by turns, the last one "user"; one "system" may stand before them.
            template: the name of the template that marks turns, see `zoo.tokenizers.chat.TEMPLATES`; None is the
                model's own.
            seed, settings: as in `stream`; for a model made for chats, what is not given is as on its card. The
                template's end ends a reply, besides `stop`.

        Raises:
            UserError: a model without a template, other roles, a conversation that is too long.
        """
        ids, resolved = self._conversation(messages, template, settings)
        return continue_all(self._computing, self.tokenizer, [ids], resolved, seeds=[as_seed(seed)])[0]

    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        template: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> TextStream:
        """Returns an iterator over the text of `chat`, in pieces as they come; the arguments are the same."""
        ids, resolved = self._conversation(messages, template, settings)
        return stream_text(self._computing, self.tokenizer, ids, resolved, as_seed(seed))

    def cronica(
        self,
        stats: Any,
        style: str,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Generation:
        """Writes the crónica of a match.

        Args:
            stats: the facts, as a block (with or without its `<STATS>` lines) or as a
                `zoo.tasks.cronica.match.Match`.
            style: one of the 8 style labels.
            temperature, top_k, top_p, max_new_tokens: None is the default of `zoo.tasks.cronica.writing.SETTINGS`:
                the sampling of the published card, with room for the longest texts.
            seed: another seed gives another text.

        Raises:
            UserError: an unknown style (the message lists the 8 with their regions), a block without clubs or
                result, or a model whose tokenizer is not one for crónicas.
        """
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
        settings = {name: value for name, value in settings.items() if value is not None}
        return self.cronicas([(stats, style)], seed=seed, **settings)[0]

    def cronicas(self, pairs: Sequence[tuple[Any, str]], **settings: Any) -> list[Generation]:
        """Writes the crónicas of many (stats, style) at once, several times quicker than one by one.

        `settings` are those of `cronica` (the same defaults; `seed` may be one a pair) and the `batch_size`
        and `on_progress` of `generate`; with a `preset`, its own are the defaults.
        """
        return self._cronica_writer.write(pairs, **settings)

    def stream_cronica(self, stats: Any, style: str, **settings: Any) -> TextStream:
        """Returns the text of `cronica` in pieces as they come; `settings` are those of `cronica`."""
        return self._cronica_writer.stream(stats, style, **settings)

    def cronica_prompt(self, stats: Any, style: str) -> list[int]:
        """Returns the token ids of a crónica's prompt. Raises UserError as `cronica` does."""
        return self._cronica_writer.prompt(stats, style)

    def check_cronica(self) -> None:
        """Raises UserError unless the model's tokenizer is one for crónicas."""
        self._need_tokenizer()
        self._cronica_writer.check()

    @property
    def _cronica_writer(self) -> Any:
        return registry.task_class("cronicas").writer(self)

    def logits(self, tokens: Any) -> jax.Array:
        """Returns float32 logits [T, V] or [B, T, V] of token ids [T] or [B, T]; raises UserError for an unknown id."""
        tokens = as_token_ids(tokens, (1, 2), self.config.vocab_size)
        if not tokens.size:
            raise UserError("there are no token ids; give at least one")
        graphdef, params = nnx.split(self._computing)
        logits = _logits(params, jnp.atleast_2d(tokens), graphdef=graphdef)
        return logits[0] if tokens.ndim == 1 else logits

    def score(self, text: Prompt) -> Score:
        """Returns the log probabilities of a text's tokens (before text stand `prefix_ids`)."""
        ids = self._encode(text)
        if len(ids) < 2:
            raise UserError("the text to score has fewer than 2 tokens; nothing can be predicted")
        as_token_ids(ids, (1,), self.config.vocab_size)  # the last one too, which is only looked up
        logprobs = jax.nn.log_softmax(self.logits(ids[:-1]), axis=-1)
        chosen = np.take_along_axis(np.asarray(logprobs), np.asarray(ids[1:])[:, None], axis=-1)[:, 0]
        return Score(ids, chosen.tolist())

    def merge(self) -> "LanguageModel":
        """Returns the same model with its adapters added to its weights; itself where it has none."""
        if not lora.adapters(self.module):
            return self
        dtype = None if self._computing is self.module else self._computing.compute_dtype
        module = lora.merge(self.module)
        kept = {"compute_dtype": dtype, "origin": self.origin, "prefix_ids": self._prefix_ids}
        merged = LanguageModel(module, self.tokenizer, self.spec, self.config, **kept)
        merged._merged = True
        return merged

    def save(self, directory: str | os.PathLike, *, dtype: DTypeLike | None = None) -> None:
        """Writes a portable directory, `zoo.json`, `model.safetensors` and `tokenizer/`, which `zoo.load` reads.

        Adapters are merged. `dtype` is that of the tensors written; None leaves them as they are. Raises UserError if
        `directory` is a file or already holds something else.
        """
        stored = None if dtype is None else storage_dtype(dtype)
        params = nnx.to_pure_dict(nnx.state(self.merge().module))
        if stored is not None:
            params = build.unflatten(base.cast(build.flatten(params), stored))
        portable.save(
            directory,
            name=self.spec.name,
            config=self.config,
            params=params,
            tokenizer=self._outgoing_tokenizer,
            foreign=self.is_community_model,
            eos_ids=self.eos_ids,
        )

    def export(
        self,
        directory: str | os.PathLike,
        format: str = "hf",
        *,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        quantization: str | None = None,
        bits: int | None = None,
    ) -> Path:
        """Writes files that other programs open, with a model card; returns the directory.

        Args:
            directory: is created; must hold nothing yet.
            format: hf, gguf, mlx, or an original program's own: cronica, bwetaf, nanochat, koda, tiny; adapters are
                merged. peft writes the adapters alone, of a Llama, with the name of the weights they are for; it
                takes no other argument.
            name: the model's name in the card and in a GGUF file; None is `self.name`.
            dtype, quantization, bits: see `zoo.weights.export.export`.

        Raises:
            UserError: the format cannot express the model; the message says why. Nothing has been written then.
        """
        from zoo.weights.export import Exported, export

        if convert.find_format(format).adapters:
            options = {"name": name, "dtype": dtype, "quantization": quantization, "bits": bits}
            return adapters.export(directory, self.module, self.config, self.origin, merged=self._merged, **options)
        params = nnx.to_pure_dict(nnx.state(self.merge().module))
        path, step = (None, None) if self.origin is None else (self.origin.path, self.origin.step)
        model = Exported(
            name or self.name,
            self.spec,
            self.config,
            params,
            self._outgoing_tokenizer,
            path,
            step,
            official=self.origin is not None and self.origin.official,
            is_community_model=self.is_community_model,
            ema=self.origin is not None and self.origin.ema,
            eos_ids=self.eos_ids,
            of_run=self.origin is not None and self.origin.of_run,
            chat_template=None if self.origin is None else self.origin.trained_template,
        )
        return export(model, directory, format, dtype=dtype, quantization=quantization, bits=bits)

    def _settings(self, preset: str | None, **given: Any) -> Settings:
        published = None if self.is_community_model else self.spec.sampling
        return resolve_settings(self._label, published, preset, {"eos_ids": self.eos_ids} | given)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Returns the ids that end a text by the model's files, the tokenizer's EOS or others; () where none say so."""
        return () if self.origin is None else self.origin.eos_ids

    @property
    def _label(self) -> str:
        """Returns what messages call the model."""
        return f"the Llama {self.name}" if self.is_community_model else self.spec.name

    def _conversation(self, messages, template, settings) -> tuple[list[int], Settings]:
        self._need_tokenizer()
        template = template or self.chat_template
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = conversations.encode(self.tokenizer, messages, template)
        return ids, self.reply_settings(template, settings)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            self._need_tokenizer()
            return self.prefix_ids + self.tokenizer.encode(prompt)
        return as_token_ids(prompt, (1,)).tolist()

    def _need_tokenizer(self) -> None:
        if self.tokenizer is not None:
            return
        if self.origin is None or self.origin.published is None:
            raise UserError(f"this {self.name} has no tokenizer; give token ids, or load trained weights")
        raise UserError(
            f"{self.origin.path} has no tokenizer; put {self.origin.tokenizer_place}, or give token ids from Python"
        )


def check_belongs(tokenizer: "Tokenizer", config: ModelConfig) -> None:
    """Raises UserError where texts may become ids that the model has no rows for.

    Special tokens beyond the rows are none of these: fine-tuning often adds one for padding, and no text spells it.
    """
    beyond = tokenizer.vocab_size - config.vocab_size
    if beyond > 0 and sum(i >= config.vocab_size for i in tokenizer.special_tokens.values()) < beyond:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {config.vocab_size}; "
            f"they do not belong together"
        )


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, tokens, *, graphdef):
    return nnx.merge(graphdef, params)(tokens)
