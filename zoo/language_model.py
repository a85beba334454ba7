"""LanguageModel: a module, its tokenizer and its spec, with the calls a notebook makes.

`zoo.load` reads one from a run directory, a portable directory, a published checkpoint or the hub;
`zoo.create` makes one with random weights.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zoo import convert, registry, tokenizers
from zoo.checkpoints import Checkpoints
from zoo.data.match import Match, parse_block, to_block
from zoo.errors import UserError
from zoo.generate.sampling import Sampling
from zoo.generate.text import Generation, TextRun, TextStream
from zoo.models import build
from zoo.models.config import ModelConfig
from zoo.recipe import load_recipe
from zoo.tokenizers import cronica as cronica_tokens
from zoo.util import atomic_write, nearest

if TYPE_CHECKING:
    from zoo.tokenizers.base import Tokenizer

FORMAT = 1  # of portable directories
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_DIR = "zoo.json", "model.safetensors", "tokenizer"

# The published card's settings, with room for the longest texts.
CRONICA_SETTINGS = {"temperature": 0.85, "top_k": 50, "top_p": 0.9, "max_new_tokens": 400}

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
        module: the nnx.Module; it computes in the dtype of its parameters.
        tokenizer: see `zoo.tokenizers.base.Tokenizer`; None after `zoo.create`: then prompts are token ids.
        spec: the registry's entry.
        config: the module's config, a frozen dataclass.
    """

    def __init__(
        self, module: nnx.Module, tokenizer: "Tokenizer | None", spec: registry.ModelSpec, config: ModelConfig
    ):
        """Raises UserError if the tokenizer has more entries than the model has rows."""
        self.module, self.tokenizer, self.spec, self.config = module, tokenizer, spec, config
        if tokenizer is not None and tokenizer.vocab_size > self.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} entries, the model only {self.config.vocab_size}; "
                f"they do not belong together"
            )

    def __repr__(self) -> str:
        return f"LanguageModel({self.spec.name}, {self.config})"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: int | str | Sequence[int | str] | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of a list of prompts.

        Args:
            prompts: text, token ids, or a list of such. Text begins with the tokenizer's BOS if it has one.
            max_new_tokens: at most that many, and never past the model's max_seq_len.
            temperature, top_k, top_p: see `zoo.generate.sampling.Sampling`; temperature 0 is greedy.
            stop: ids or strings that end a text, besides the tokenizer's EOS. They are not part of it.
            seed: of every prompt, or one each. A prompt with its seed gives the same text alone and in a list
                (to float rounding): for several samples of one prompt, repeat it with several seeds.
            batch_size: prompts decoded at a time.
            on_progress: called with prompts done and their number, at the start and after each batch.

        Raises:
            UserError: an empty or too long prompt, an impossible setting.
        """
        single = _is_single(prompts)
        rows = [self._encode(prompt) for prompt in ([prompts] if single else prompts)]
        sampling = Sampling(temperature, top_k, top_p)
        seeds = [seed] * len(rows) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(rows):
            raise UserError(f"{len(seeds)} seeds for {len(rows)} prompts; give one seed, or one for each prompt")
        found: list[Generation | None] = [None] * len(rows)
        # Rows of like length share a batch; sizes are chosen for the longest, so one program serves them all.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        longest = max(map(len, rows), default=0)
        if on_progress:
            on_progress(0, len(order))
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            run = self._run(
                [rows[i] for i in batch], sampling, [seeds[i] for i in batch], stop, max_new_tokens, longest
            )
            for i, generation in zip(batch, run.finish(), strict=True):
                found[i] = generation
            if on_progress:
                on_progress(min(at + batch_size, len(order)), len(order))
        return found[0] if single else found

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: int | str | Sequence[int | str] | None = None,
        seed: int = 0,
    ) -> TextStream:
        """The text that `generate` would give, in pieces of whole characters as they come.

        An iterator of str; its `generation` is what has come so far, and at the end what `generate` returns.
        """
        sampling = Sampling(temperature, top_k, top_p)
        self._need_tokenizer()
        ids = self._encode(prompt)
        return TextStream(self._run([ids], sampling, [seed], stop, max_new_tokens, len(ids)))

    def cronica(
        self,
        stats: str | Match,
        style: str,
        *,
        temperature: float = CRONICA_SETTINGS["temperature"],
        top_k: int = CRONICA_SETTINGS["top_k"],
        top_p: float = CRONICA_SETTINGS["top_p"],
        max_new_tokens: int = CRONICA_SETTINGS["max_new_tokens"],
        seed: int = 0,
    ) -> Generation:
        """Write the chronicle of a match.

        Args:
            stats: the facts, as a block (with or without its `<STATS>` lines) or as a `Match`.
            style: one of the 8 style labels.

        Raises:
            UserError: an unknown style (the text lists the 8 with their regions), a block without clubs or
                result, or a model whose tokenizer is not one for crónicas.
        """
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings |= {"max_new_tokens": max_new_tokens, "seed": seed}
        return self.cronicas([(stats, style)], **settings)[0]

    def cronicas(self, pairs: Sequence[tuple[str | Match, str]], **settings: Any) -> list[Generation]:
        """`cronica` for many (stats, style) at once, several times quicker than one by one.

        `settings` are those of `cronica` (the same defaults; `seed` may be one a pair) and the `batch_size`
        and `on_progress` of `generate`.
        """
        prompts = [self.cronica_prompt(stats, style) for stats, style in pairs]
        return self.generate(prompts, stop=self._end_of_cronica(), **(CRONICA_SETTINGS | settings))

    def stream_cronica(self, stats: str | Match, style: str, **settings: Any) -> TextStream:
        """The text of `cronica` in pieces as they come; `settings` are those of `cronica`."""
        prompt = self.cronica_prompt(stats, style)
        return self.stream(prompt, stop=self._end_of_cronica(), **(CRONICA_SETTINGS | settings))

    def cronica_prompt(self, stats: str | Match, style: str) -> list[int]:
        """Token ids of the prompt of a crónica; errors as in `cronica`."""
        self._need_tokenizer()
        return cronica_tokens.encode_prompt(self.tokenizer, _block(stats), style)

    def _end_of_cronica(self) -> int:
        return cronica_tokens.special_id(self.tokenizer, "</cronica>")

    def logits(self, tokens: Any) -> jax.Array:
        """Float32 logits [T, V] or [B, T, V] of token ids [T] or [B, T]."""
        tokens = np.asarray(tokens, np.int32)
        graphdef, params = nnx.split(self.module)
        logits = _logits(params, jnp.atleast_2d(tokens), graphdef=graphdef)
        return logits[0] if tokens.ndim == 1 else logits

    def score(self, text: Prompt) -> Score:
        """Log probabilities of a text's tokens (text begins with BOS if the tokenizer has one)."""
        ids = self._encode(text)
        if len(ids) < 2:
            raise UserError("the text to score has fewer than 2 tokens; nothing can be predicted")
        logprobs = jax.nn.log_softmax(self.logits(ids[:-1]), axis=-1)
        chosen = np.take_along_axis(np.asarray(logprobs), np.asarray(ids[1:])[:, None], axis=-1)[:, 0]
        return Score(ids, chosen.tolist())

    def save(self, directory: str | os.PathLike) -> None:
        """Write a portable directory: `zoo.json`, `model.safetensors`, `tokenizer/`; `zoo.load` reads it.

        Raises UserError if `directory` already holds something else.
        """
        from safetensors.flax import save_file

        directory = Path(directory)
        if directory.exists() and not (directory / CONFIG_FILE).is_file() and any(directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no {CONFIG_FILE}; choose another directory")
        directory.mkdir(parents=True, exist_ok=True)
        flat = build.flatten(nnx.to_pure_dict(nnx.state(self.module)))
        temporary = directory / f"{WEIGHTS_FILE}.tmp"
        save_file(flat, temporary)
        temporary.replace(directory / WEIGHTS_FILE)
        if self.tokenizer is not None:
            self.tokenizer.save(directory / TOKENIZER_DIR)
        content = {
            "format": FORMAT,
            "model": self.spec.name,
            "config": self.config.to_dict(),
            "tokenizer": None if self.tokenizer is None else TOKENIZER_DIR,
        }
        atomic_write(directory / CONFIG_FILE, json.dumps(content, indent=2) + "\n")

    def _run(self, rows, sampling, seeds, stop, max_new_tokens, longest) -> TextRun:
        return TextRun(
            self.module,
            self.tokenizer,
            rows,
            sampling=sampling,
            seeds=seeds,
            stop=stop,
            max_new_tokens=max_new_tokens,
            longest_prompt=longest,
        )

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            self._need_tokenizer()
            return self.tokenizer.encode(prompt, add_special=True)
        return [int(token) for token in prompt]

    def _need_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise UserError(f"this {self.spec.name} has no tokenizer; give token ids, or load trained weights")


def create(name: str, *, seed: int = 0, dtype: DTypeLike | None = None, **config_overrides: Any) -> LanguageModel:
    """A registered model with random weights and no tokenizer: prompts are token ids.

    Args:
        name: see `zoo.list_models`.
        seed: of the weights.
        dtype: of parameters and computation; None is float32.
        config_overrides: fields of the model's config.

    Raises:
        UserError: an unknown name or field, with the nearest known one.
    """
    spec = registry.describe(name)
    config = spec.make_config(**config_overrides)
    graphdef, params = build.create_params(spec.model_class(), config, seed, dtype=_dtype(dtype))
    return LanguageModel(nnx.merge(graphdef, params), None, spec, config)


def load(name_or_path: str | os.PathLike, *, dtype: DTypeLike | None = None) -> LanguageModel:
    """Load trained weights with their tokenizer.

    Args:
        name_or_path: a run directory (its newest good checkpoint, weights alone), a directory that `save`
            wrote, a published crónica checkpoint or the directory it lies in, or a registry name: then the
            published files are fetched from the hub or its cache. What a path is, its files tell.
        dtype: of parameters and computation; None is float32.

    Raises:
        UserError: nothing there, nothing that zoo reads, or files that do not fit together.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _load_path(path, _dtype(dtype))
    name = str(name_or_path)
    if name not in registry.list_models():
        near = nearest(name, registry.list_models())
        hint = f"did you mean {near!r}?" if near else f"models are: {', '.join(registry.list_models())}"
        raise UserError(f"{name}: no such file or directory, and no model of that name; {hint}")
    return _load_path(_download(registry.describe(name)), _dtype(dtype))


def _load_path(path: Path, dtype: DTypeLike) -> LanguageModel:
    if (path / CONFIG_FILE).is_file():
        return _load_portable(path, dtype)
    if (path / "recipe.yaml").is_file():
        return _load_run(path, dtype)
    if convert.detect_format(path) is not None:
        loaded = convert.load(path)
        tokenizer = None if loaded.tokenizer_path is None else tokenizers.load(loaded.tokenizer_path)
        return _assemble(loaded.model_name, loaded.config, build.flatten(loaded.params), tokenizer, dtype, path)
    raise UserError(
        f"{path} is no run directory (recipe.yaml), no portable one ({CONFIG_FILE}) and in no published "
        f"format that zoo reads ({', '.join(convert.FORMATS)})"
    )


def _load_run(path: Path, dtype: DTypeLike) -> LanguageModel:
    section = load_recipe(path / "recipe.yaml", check_files=False).model
    spec, config = registry.describe(section.name), section.make_config()
    graphdef, abstract = build.abstract_params(spec.model_class(), config, dtype=dtype)
    found = Checkpoints(path / "checkpoints").restore_params(abstract)
    if found is None:
        raise UserError(f"{path} has no checkpoint yet; go on training it with zoo-train")
    return LanguageModel(nnx.merge(graphdef, found.params), tokenizers.load(path / TOKENIZER_DIR), spec, config)


def _load_portable(path: Path, dtype: DTypeLike) -> LanguageModel:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    file = path / CONFIG_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, name, values = content["format"], content["model"], content["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as a portable model's description ({error!r})") from None
    if version != FORMAT:
        raise UserError(f"{file}: format {version!r}; this version reads {FORMAT}: install the zoo that wrote it")
    try:
        flat = load_file(path / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS_FILE}: cannot be read ({error})") from None
    tokenizer = tokenizers.load(path / content["tokenizer"]) if content.get("tokenizer") else None
    return _assemble(name, values, flat, tokenizer, dtype, path)


def _assemble(
    name: str,
    values: dict[str, Any],
    flat: dict[str, Any],
    tokenizer: "Tokenizer | None",
    dtype: DTypeLike,
    path: Path,
) -> LanguageModel:
    """The model `name` with the parameters `flat` (path -> array), held against its shapes."""
    spec = registry.describe(name)
    config = spec.config_class().from_dict(values)
    graphdef, abstract = build.abstract_params(spec.model_class(), config, dtype=dtype)
    wanted = build.flatten(abstract)
    for parameter in sorted({*wanted, *flat}):
        here = flat[parameter].shape if parameter in flat else "missing"
        there = wanted[parameter].shape if parameter in wanted else "no such parameter"
        if here != there:
            raise UserError(f"{path}: {parameter} is {here} in the weights, but {there} in {name} of that config")
    params = build.unflatten({parameter: jnp.asarray(flat[parameter], dtype) for parameter in wanted})
    return LanguageModel(nnx.merge(graphdef, params), tokenizer, spec, config)


def _download(spec: registry.ModelSpec) -> Path:
    """The directory of the published files of `spec`, fetched from the hub or found in its cache."""
    import huggingface_hub

    repository = spec.source.removeprefix("https://huggingface.co/")
    files = spec.facts.get("files", registry.NOT_STATED)
    wanted = f"{spec.name}: its weights are in {spec.source} (files: {files})"
    if repository == spec.source:
        raise UserError(f"{wanted}; fetch them and load the directory; zoo.create({spec.name!r}) has random weights")
    try:
        return Path(huggingface_hub.snapshot_download(repository))
    except Exception as error:  # no network, no such repository, no right to it: the remedy is the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{wanted}, which could not be reached ({reason}); download them and load their directory, "
            f"or take zoo.create({spec.name!r}) for random weights"
        ) from None


def _dtype(dtype: DTypeLike | None) -> DTypeLike:
    return jnp.float32 if dtype is None else jnp.dtype(dtype)


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, tokens, *, graphdef):
    return nnx.merge(graphdef, params)(tokens)


def _is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer))


def _block(stats: str | Match) -> str:
    """The block as the training data have it: between `<STATS>` lines, no white space at line ends."""
    text = to_block(stats) if isinstance(stats, Match) else stats
    parse_block(text)  # a text that is no block at all must not give a chronicle of nothing
    lines = [line.rstrip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and line.strip().upper() not in ("<STATS>", "</STATS>")]
    return "\n".join(["<STATS>", *lines, "</STATS>"])
