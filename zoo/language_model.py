"""LanguageModel: a module, its tokenizer and its spec, with the calls a notebook makes.

`zoo.load` reads one from a run directory, a portable directory, a published checkpoint or the hub;
`zoo.create` makes one with random weights.
"""

import dataclasses
import functools
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import registry
from zoo.convert import peft, portable
from zoo.convert.base import storage_dtype
from zoo.errors import UserError
from zoo.generate import chat as conversations
from zoo.generate.engine import check_prompts
from zoo.generate.settings import Settings, resolve_settings
from zoo.generate.text import Generation, TextStream, continue_all, stream_text
from zoo.layers import lora
from zoo.models import build
from zoo.models.casting import Casting
from zoo.models.config import ModelConfig
from zoo.weights import resolve

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a text is: the natural log probability of each token after the first, given those before."""

    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log probability."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


class LanguageModel:
    """A model ready to be used.

    Attributes:
        module: the nnx.Module; by itself it computes in the dtype of its parameters.
        tokenizer: see `zoo.tokenizers.base.Tokenizer`; None after `zoo.create`: then prompts are token ids.
        spec: the registry's entry.
        config: the module's config, a frozen dataclass.
        origin: the files it was loaded from, None for random weights.
    """

    def __init__(
        self,
        module: nnx.Module,
        tokenizer: "Tokenizer | None",
        spec: registry.ModelSpec,
        config: ModelConfig,
        *,
        compute_dtype: DTypeLike | None = None,
        origin: "resolve.Weights | None" = None,
    ):
        """`compute_dtype`: of the calls here, None is that of the parameters. `origin`: what was loaded.

        Raises UserError if the tokenizer has more entries than the model has rows.
        """
        self.module, self.tokenizer, self.spec, self.config = module, tokenizer, spec, config
        self.origin, self._merged = origin, False
        self._computing = module if compute_dtype is None else Casting(module, jnp.dtype(compute_dtype))
        if tokenizer is not None and tokenizer.vocab_size > self.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} entries, the model only {self.config.vocab_size}; "
                f"they do not belong together"
            )

    @property
    def foreign(self) -> bool:
        """Whether it is somebody's Llama, which has the class alone from its spec: no template, settings or card."""
        return self.origin is not None and self.origin.foreign

    @property
    def name(self) -> str:
        """The registry's name of the model; of a foreign one that of its directory, file or repository."""
        return self.origin.title if self.foreign else self.spec.name

    @property
    def computing(self) -> nnx.Module:
        """The module as the calls here use it: computing in `compute_dtype`."""
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
        lines = [
            f"{self.name}: {'a Llama' if self.foreign else self.spec.summary}",
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
        """Continue a prompt, or each of a list of prompts.

        Args:
            prompts: text, token ids, or a list of such. Text begins with the tokenizer's BOS if it has one.
            max_new_tokens: at most that many (default 128), and never past what the model can hold.
            temperature, top_k, top_p, min_p, repetition_penalty, logit_bias: see
                `zoo.generate.sampling.Sampling`, also for the defaults (plain sampling) and the order in which
                they count; temperature 0 is greedy.
            stop: ids or strings that end a text, besides the tokenizer's EOS. They are not part of it.
            ignore_eos: whether a text goes on after the tokenizer's EOS (default: no).
            preset: "original" takes the settings of the model's card where none is given here.
            n: if given, that many texts a prompt, and the result of each prompt is a list of them.
            seed: of every prompt, or one each. A prompt with its seed gives the same text alone and in a list
                (to float rounding); of several texts, number i is what seed + i gives.
            batch_size: texts decoded at a time.
            on_progress: called with texts done and their number, at the start and after each batch.

        Raises:
            UserError: an empty or too long prompt, an impossible setting.
        """
        single = _is_single(prompts)
        rows = [self._encode(prompt) for prompt in ([prompts] if single else prompts)]
        seeds = _seeds(seed, len(rows))
        if len(seeds) != len(rows):
            raise UserError(f"{len(seeds)} seeds for {len(rows)} prompts; give one seed, or one for each prompt")
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
        found = continue_all(
            self._computing,
            self.tokenizer,
            [row for row in rows for _ in range(count)],
            settings,
            seeds=[first + i for first in seeds for i in range(count)],
            batch_size=batch_size,
            on_progress=on_progress,
        )
        if n is not None:
            found = [found[at : at + n] for at in range(0, len(found), n)]
        return found[0] if single else found

    def stream(self, prompt: Prompt, *, preset: str | None = None, seed: int = 0, **settings: Any) -> TextStream:
        """The text that `generate` would give, in pieces of whole characters as they come.

        An iterator of str; its `generation` is what has come so far, and at the end what `generate` returns.
        `settings` are those of `generate`, from `max_new_tokens` to `ignore_eos`.
        """
        self._need_tokenizer()
        return stream_text(
            self._computing, self.tokenizer, self._encode(prompt), self._settings(preset, **settings), _seed(seed)
        )

    @property
    def chat_template(self) -> str:
        """How the model's conversations are marked. Raises UserError for a model that saw none."""
        return conversations.template_of(self._known, None if self.origin is None else Path(self.origin.path))

    def reply_settings(self, template: str, given: Mapping[str, Any]) -> Settings:
        """Those of a reply: `given`, and what is not as on the card of a model made for chats."""
        return conversations.settings(self._known, template, given)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        template: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Generation:
        """The assistant's reply to a conversation.

        Args:
            messages: dicts of `role` ("user" and "assistant" by turns, the last one the user's, before them
                perhaps one "system") and `content`; or the user's only message as text.
            template: how turns are marked, see `zoo.tokenizers.chat.TEMPLATES`; None is the model's own.
            seed, settings: as in `stream`; what is not given is as on the card of a model made for chats.
                A reply ends where the template ends it, besides `stop`.

        Raises:
            UserError: a model without a template, other roles, a conversation that is too long.
        """
        ids, resolved = self._conversation(messages, template, settings)
        return continue_all(self._computing, self.tokenizer, [ids], resolved, seeds=[_seed(seed)])[0]

    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        template: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> TextStream:
        """The text of `chat` in pieces as they come; the arguments are the same."""
        ids, resolved = self._conversation(messages, template, settings)
        return stream_text(self._computing, self.tokenizer, ids, resolved, _seed(seed))

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
        """Float32 logits [T, V] or [B, T, V] of token ids [T] or [B, T]. UserError for what is no id of the model's."""
        tokens = _ids(tokens, (1, 2), self.config.vocab_size)
        graphdef, params = nnx.split(self._computing)
        logits = _logits(params, jnp.atleast_2d(tokens), graphdef=graphdef)
        return logits[0] if tokens.ndim == 1 else logits

    def score(self, text: Prompt) -> Score:
        """Log probabilities of a text's tokens (text begins with BOS if the tokenizer has one)."""
        ids = self._encode(text)
        if len(ids) < 2:
            raise UserError("the text to score has fewer than 2 tokens; nothing can be predicted")
        _ids(ids, (1,), self.config.vocab_size)  # the last one too, which is only looked up
        logprobs = jax.nn.log_softmax(self.logits(ids[:-1]), axis=-1)
        chosen = np.take_along_axis(np.asarray(logprobs), np.asarray(ids[1:])[:, None], axis=-1)[:, 0]
        return Score(ids, chosen.tolist())

    def merge(self) -> "LanguageModel":
        """The same model with its adapters added to its weights; itself where it has none."""
        if not lora.adapters(self.module):
            return self
        dtype = None if self._computing is self.module else self._computing.compute_dtype
        module = lora.merge(self.module)
        merged = LanguageModel(module, self.tokenizer, self.spec, self.config, compute_dtype=dtype, origin=self.origin)
        merged._merged = True
        return merged

    def save(self, directory: str | os.PathLike, *, dtype: DTypeLike | None = None) -> None:
        """Write a portable directory: `zoo.json`, `model.safetensors`, `tokenizer/`; `zoo.load` reads it.

        Adapters are merged. `dtype` is that of the tensors written, None: as they are. Raises UserError if `directory`
        is a file or already holds something else.
        """
        stored = None if dtype is None else storage_dtype(dtype)
        params = nnx.to_pure_dict(nnx.state(self.merge().module))
        if stored is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(stored), params)
        portable.save(
            directory,
            name=self.spec.name,
            config=self.config,
            params=params,
            tokenizer=self.tokenizer,
            foreign=self.foreign,
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
        """Write what other programs open, with a model card; returns the directory.

        Args:
            directory: created; must hold nothing yet.
            format: hf, gguf, mlx, or an original program's own: cronica, bwetaf, nanochat, koda, tiny; adapters are
                merged. peft: the adapters alone, of a Llama, with the name of what they are for; no other argument
                applies.
            name: in the card and of a GGUF file; None is the registry's, or of a foreign Llama its directory's.
            dtype, quantization, bits: see `zoo.weights.export.export`.

        Raises:
            UserError: the format cannot express the model; the text says why. Nothing has been written then.
        """
        from zoo.weights.export import Exported, export

        if format == "peft":
            return self._export_adapters(directory, name, dtype, quantization, bits)
        params = nnx.to_pure_dict(nnx.state(self.merge().module))
        path, step = (None, None) if self.origin is None else (self.origin.path, self.origin.step)
        model = Exported(
            name or self.name,
            self.spec,
            self.config,
            params,
            self.tokenizer,
            path,
            step,
            official=self.origin is not None and self.origin.official,
            foreign=self.foreign,
        )
        return export(model, directory, format, dtype=dtype, quantization=quantization, bits=bits)

    def _export_adapters(self, directory: str | os.PathLike, *options: Any) -> Path:
        taken = [n for n, o in zip(("name", "dtype", "quantization", "bits"), options, strict=True) if o is not None]
        if taken:
            raise UserError(f"format peft takes no {' or '.join(taken)}: adapters are float32, and have no card")
        found = lora.adapters(self.module)
        kinds = {(adapter.rank, adapter.alpha, adapter.dropout) for adapter in found.values()}
        if len(kinds) != 1:
            raise UserError("format peft: " + ("adapters of several ranks" if kinds else "this model has no adapters"))
        rank, alpha, dropout = kinds.pop()
        arrays = {
            f"{path}/lora/{factor}": np.asarray(getattr(adapter, factor)[...])
            for path, adapter in found.items()
            for factor in ("a", "b")
        }
        base = self._adapted()
        name, revision = (None, None) if base is None else (base.name, base.revision)
        adapter = peft.Adapter(arrays, rank, alpha, dropout, base=name, revision=revision)
        peft.save(directory, adapter, num_layers=self.config.num_layers)
        return Path(directory)

    def _adapted(self) -> "resolve.Weights | None":
        """What the adapters are for, None where no file holds it. UserError where both together are another model."""
        if self.origin is None:
            return None
        if self._merged:
            raise UserError(
                "format peft: the adapters are for weights that others were merged into; save that model, load it and "
                "adapt it then"
            )
        remedy = "and adapters alone cannot say it; take another format (hf, gguf, mlx), which has them merged"
        other = self.origin.beside_adapters
        if other:
            more = f" and {len(other) - 1} more" if other[1:] else ""
            raise UserError(
                f"format peft: {other[0]}{more} are not the base's (train.trainable, from.partial), {remedy}"
            )
        base = self.origin.adapted
        if base is None:
            return None
        # Found anew: as the files have it, without what `zoo.load` was told to change. max_seq_len computes nothing.
        theirs = resolve.find(base.name, revision=base.revision).config.to_dict()
        for name, value in self.config.to_dict().items():
            if name != "max_seq_len" and value != theirs.get(name):
                raise UserError(
                    f"format peft: model.{name} is {value} here, {theirs.get(name)} in the base {base.name}, {remedy}"
                )
        return base

    def _settings(self, preset: str | None, **given: Any) -> Settings:
        return resolve_settings(self._known, preset, given)

    @property
    def _known(self) -> str:
        """By which templates and published settings are looked up: no registered name where the model is foreign."""
        return f"the Llama {self.name}" if self.foreign else self.spec.name

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
            return self.tokenizer.encode(prompt, add_special=True)
        return _ids(prompt, (1,)).tolist()

    def _need_tokenizer(self) -> None:
        if self.tokenizer is not None:
            return
        if self.origin is None or self.origin.published is None:
            raise UserError(f"this {self.name} has no tokenizer; give token ids, or load trained weights")
        raise UserError(
            f"{self.origin.path} has no tokenizer; put {self.origin.tokenizer_place}, or give token ids from Python"
        )


def create(
    name: str,
    *,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **config_overrides: Any,
) -> LanguageModel:
    """A registered model with random weights and no tokenizer: prompts are token ids.

    Args:
        name: see `zoo.list_models`.
        seed: of the weights.
        dtype, compute_dtype, mesh: as in `load`.
        config_overrides: fields of the model's config.

    Raises:
        UserError: an unknown name or field, with the nearest known one.
    """
    spec = registry.describe(name)
    config = spec.make_config(**config_overrides)
    stored, compute_dtype = _dtypes(dtype, compute_dtype)
    graphdef, params = build.create_params(spec.model_class(), config, seed, mesh=mesh, dtype=stored)
    return LanguageModel(nnx.merge(graphdef, params), None, spec, config, compute_dtype=compute_dtype)


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> LanguageModel:
    """Load trained weights with their tokenizer.

    Args:
        name_or_path: a run directory (its newest good checkpoint, or that of step 500 of runs/x@500; weights
            alone, with adapters on what the run began from), a directory that `save` wrote, adapters in PEFT's
            format, published files or the directory they lie in (docs/checkpoints.md lists the formats), a
            registry name, or owner/repository on the hub. What a path is, its files tell; of a repository only
            the files needed are fetched, once.
        dtype: parameters are stored in it: float32 (also None), bfloat16 or float16.
        compute_dtype: calls compute in it; None is `dtype`.
        mesh: parameters are laid on it, each as soon as it is read; None is the default device.
        revision: branch, tag or commit on the hub.
        config_overrides: config fields to change, such as rope_dtype; shapes must stay.

    Raises:
        UserError: nothing there, nothing that zoo reads, or files that do not fit together or are damaged.
    """
    stored, compute_dtype = _dtypes(dtype, compute_dtype)
    found = resolve.find(name_or_path, revision=revision, overrides=config_overrides)
    tokenizer = found.tokenizer()
    graphdef, params = found.read(dtype=stored, mesh=mesh)
    module = nnx.merge(graphdef, params)
    return LanguageModel(module, tokenizer, found.spec, found.config, compute_dtype=compute_dtype, origin=found)


def _dtypes(dtype: DTypeLike | None, compute_dtype: DTypeLike | None) -> tuple[DTypeLike, DTypeLike | None]:
    """What parameters are stored in, and what calls compute in (None: the same)."""
    stored = jnp.float32 if dtype is None else storage_dtype(dtype)
    return stored, None if compute_dtype is None else storage_dtype(compute_dtype, "compute_dtype")


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, tokens, *, graphdef):
    return nnx.merge(graphdef, params)(tokens)


def _is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    if isinstance(prompts, np.ndarray | jax.Array):
        return prompts.ndim == 1
    if isinstance(prompts, str) or len(prompts) == 0:
        return isinstance(prompts, str)
    return not isinstance(prompts[0], str) and np.ndim(prompts[0]) == 0


def _ids(tokens: Any, ranks: tuple[int, ...], vocab_size: int | None = None) -> np.ndarray:
    """Token ids as an array. UserError unless they are whole numbers, of the vocabulary if given, in equal rows."""
    try:
        found = np.asarray(tokens)
    except ValueError:  # rows of several lengths
        found = np.asarray(None)
    if found.ndim not in ranks:
        raise UserError(f"token ids of shape {found.shape}; give a row of them" + (", or equal rows" * (2 in ranks)))
    if found.size == 0:
        return found.astype(np.int32)
    if found.dtype.kind not in "iu":
        raise UserError(f"token ids are whole numbers; these are {found.dtype.name}")
    low, high = int(found.min()), int(found.max())
    if vocab_size is not None and (low < 0 or high >= vocab_size):
        raise UserError(f"the token id {low if low < 0 else high} is none; ids go from 0 to {vocab_size - 1}")
    return found.astype(np.int32) if vocab_size is not None else found


def _seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """The seed of each row."""
    return [_seed(seed)] * rows if np.ndim(seed) == 0 else [_seed(one) for one in seed]


def _seed(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise UserError(f"seed is {seed!r}; give a whole number") from None
