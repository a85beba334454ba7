"""Proof that weights are what they should be: written files against the model, published ones against their card."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import registry
from zoo.evaluate import perplexity
from zoo.language_model import LanguageModel, load
from zoo.models import build
from zoo.models.nanochat import NanochatConfig
from zoo.weights import resolve, sources

LONGEST = 256  # tokens of a row that logits are compared on
CHUNKS = (7, 1, 1, 16, 1)  # what a cached row is fed in, repeated

# The two greedy completions on the card of gelu-d12.
GELU_COMPLETIONS = {
    "The meaning of life is": "to live in a place where you can live. The meaning of life is to live in a",
    "Once upon a time,": "the first thing I would do was to make a list of all the things I would like to do",
}
TOLERANCE = 0.01  # of the loss on wikitext-103; the original computes partly in bfloat16


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, what was found, and whether it is well."""

    what: str
    found: str
    ok: bool = True


def written(
    lm: LanguageModel, directory: str | os.PathLike, format: str, *, bound: float, dtype: str | None = None
) -> Iterator[Check]:
    """Read an export back and hold it against the model it was made of.

    `dtype`: what the tensors were written in; every parameter, rounded to it, must come back to the bit. None: a
    format with types of its own.
    `bound`: how far logits may differ, see `bound_for`; rounding grows with them, so where their standard deviation
    is above 1, it is multiplied by that. A Hugging Face directory is also run by transformers, where that is
    installed: whole rows and through its cache.
    """
    again = load(directory)
    yield _same_parameters(lm if format == "peft" else lm.merge(), again, dtype)
    tokens = sample_tokens(lm)
    ours = np.asarray(lm.logits(tokens))
    if not isinstance(lm.config, NanochatConfig):  # whose logits are capped
        bound *= max(1.0, float(ours.std()))
    yield _difference("max |delta logits|, zoo on the written files", ours, np.asarray(again.logits(tokens)), bound)
    if format == "hf":
        yield from _transformers(Path(directory), tokens, ours, bound)


def hashes(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """The name and the SHA-256 of the content of every tensor in published files, as they are stored."""
    found = resolve.find(path)
    if isinstance(found, sources.AdapterWeights):
        for name, array in found.adapter.arrays.items():
            yield name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return
    for name, tensor in found.published.tensors.items():
        yield name, hashlib.sha256(np.ascontiguousarray(tensor.read()).tobytes()).hexdigest()


def sample_tokens(lm: LanguageModel) -> np.ndarray:
    """int32 [2, T]: random ids, the same every time; T is max_seq_len, at most LONGEST."""
    length = min(lm.config.max_seq_len, LONGEST)
    return np.random.default_rng(0).integers(0, lm.config.vocab_size, (2, length)).astype(np.int32)


def published(name: str, *, wikitext: Path | None = None) -> Iterator[Check]:
    """Hold the published weights of a registry name against their card.

    `wikitext`: wikitext-103-raw-v1's test split, as text, .jsonl or .parquet; without it the figure is left out.
    """
    spec = registry.describe(name)
    lm = load(name)
    stated = int(re.sub(r"\D", "", spec.facts.get("parameters", "")) or 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(_params(lm)))
    yield Check("parameters", f"{count:,}; the card says {stated:,}", count == stated)
    if name != "gelu-d12":
        return
    if lm.tokenizer is None:
        yield Check("completions and wikitext-103", "left out: the tokenizer could not be had")
        return
    for prompt, wanted in GELU_COMPLETIONS.items():
        text = lm.generate(prompt, temperature=0, max_new_tokens=len(lm.tokenizer.encode(wanted))).text.strip()
        yield Check(f"greedy after {prompt!r}", repr(text), text.startswith(wanted))
    if wikitext is None:
        yield Check("wikitext-103", "left out: give its test split with --wikitext FILE")
    else:
        yield wikitext_check(lm, wikitext)


def wikitext_check(lm: LanguageModel, file: Path) -> Check:
    """The loss of a gelu-d12 on the file, see `zoo.evaluate.perplexity.wikitext`, beside the one on its card."""
    loss = perplexity.wikitext(lm, data=file)["tasks"]["wikitext-103"]["metrics"]["nats_per_token"]["value"]
    stated = perplexity.PUBLISHED["nats_per_token"]
    return Check("wikitext-103 test loss", f"{loss:.3f}; the card says {stated:.3f}", abs(loss - stated) < TOLERANCE)


def _params(lm: LanguageModel) -> build.Params:
    return nnx.to_pure_dict(nnx.state(lm.module))


def _same_parameters(lm: LanguageModel, again: LanguageModel, dtype: str | None) -> Check:
    if type(lm.config) is not type(again.config):
        return Check("parameters", f"{type(again.config).__name__.removesuffix('Config')} when read back")
    one, other = build.flatten(_params(lm)), build.flatten(_params(again))
    if one.keys() != other.keys():
        return Check("parameters", "others when read back", ok=False)
    same, well = 0, True
    for path, leaf in one.items():
        leaf, back = np.asarray(leaf), np.asarray(other[path])
        same += np.array_equal(leaf, back)
        well = well and (dtype is None or np.array_equal(leaf.astype(jnp.dtype(dtype)).astype(leaf.dtype), back))
    return Check("parameters", f"{same} of {len(one)} are bit-identical when read back", bool(well))


def _difference(what: str, one: np.ndarray, other: np.ndarray, bound: float) -> Check:
    worst = float(np.abs(one - other).max())
    return Check(what, f"{worst:.2e} (at most {bound:.1e})", worst <= bound)


def _transformers(directory: Path, tokens: np.ndarray, ours: np.ndarray, bound: float) -> Iterator[Check]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast
    except ImportError:
        yield Check("transformers", "left out: torch and transformers are not installed")
        return
    own_code = (directory / "modeling_gelu_gpt.py").is_file()  # written by zoo a moment ago
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=own_code, dtype=torch.float32).eval()
    rows = torch.tensor(tokens, dtype=torch.long)
    # The cache's argument is called as the output's field is: past_key_values until transformers 5.23, cache since.
    name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
    with torch.no_grad():
        full = model(rows).logits.numpy()
        cache, parts, at = DynamicCache(config=model.config), [], 0
        while at < rows.shape[1]:
            step = CHUNKS[len(parts) % len(CHUNKS)]
            parts.append(model(rows[:, at : at + step], **{name: cache}).logits.numpy())
            at += step
    yield _difference("max |delta logits|, transformers against zoo", ours, full, bound)
    cached = np.concatenate(parts, axis=1)
    yield _difference("max |delta logits|, transformers through its cache against whole rows", full, cached, 3e-5)


def bound_for(lm: LanguageModel, *, exact: bool) -> float:
    """How far logits of an export may differ, for logits of a standard deviation up to 1.

    If `exact`, float32 rounding alone: 3e-5 for gelu-d12, 1e-5 for the others; else what half precision does.
    """
    if not exact:
        return 0.5
    return 3e-5 if isinstance(lm.config, NanochatConfig) else 1e-5
