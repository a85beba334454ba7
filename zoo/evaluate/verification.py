"""Checks of weights: written files against the model they were made of, published ones against their card."""

import copy
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
from zoo.models.spec import ModelSpec
from zoo.weights import resolve, sources

LONGEST = 256  # tokens of a row that logits are compared on
CHUNKS = (7, 1, 1, 16, 1)  # lengths in which a row is fed to a cache, repeated
TOLERANCE = 0.01  # of a published loss in nats a token; originals compute partly in bfloat16


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        what: what was checked.
        found: what was measured, in words.
        ok: whether it is as it should be.
    """

    what: str
    found: str
    ok: bool = True


def written(
    lm: LanguageModel, directory: str | os.PathLike, format: str, *, bound: float, dtype: str | None = None
) -> Iterator[Check]:
    """Reads an export back and compares it with the model it was made of.

    A Hugging Face directory is also run by transformers, where that is installed: whole rows and through its cache,
    and a Llama in float64 as well, against which zoo and transformers are both held.

    Args:
        lm: the model that was exported.
        directory: the export.
        format: the format it was written in, such as "hf".
        bound: how far logits may differ, see `bound_for`. Rounding grows with the logits, so where they are not capped
            the bound is multiplied by the largest of them, if that is above 1.
        dtype: what the tensors were written in; every parameter, rounded to it, must come back to the bit. None: a
            format with types of its own.
    """
    again = load(directory)
    yield _same_parameters(lm if format == "peft" else lm.merge(), again, dtype)
    tokens = sample_tokens(lm)
    logits = np.asarray(lm.logits(tokens))
    if not _caps_logits(lm):
        bound *= max(1.0, float(np.abs(logits).max()))
    yield _difference("max |delta logits|, zoo on the written files", logits, np.asarray(again.logits(tokens)), bound)
    if format == "hf":
        yield from _transformers(Path(directory), tokens, logits, bound)


def hashes(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """Yields the name and the SHA-256 of the content of every tensor in published files, as they are stored."""
    source = resolve.find(path)
    if isinstance(source, sources.AdapterWeights):
        arrays = source.adapter.arrays.items()
    else:
        arrays = ((name, tensor.read()) for name, tensor in source.published.tensors.items())
    for name, array in arrays:
        yield name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def sample_tokens(lm: LanguageModel) -> np.ndarray:
    """Returns int32 [2, T]: random ids, the same every time; T is max_seq_len, at most LONGEST."""
    length = min(lm.config.max_seq_len, LONGEST)
    return np.random.default_rng(0).integers(0, lm.config.vocab_size, (2, length)).astype(np.int32)


def published(name: str, *, wikitext: Path | None = None) -> Iterator[Check]:
    """Compares the published weights of a registry name with what its spec states of them.

    These are the number of parameters, and where the spec has them, greedy completions and figures.

    Args:
        name: a name in the registry.
        wikitext: wikitext-103-raw-v1's test split, as text, .jsonl or .parquet; without it that figure is left out.
    """
    spec = registry.describe(name)
    lm = load(name)
    stated = int(re.sub(r"\D", "", spec.facts.get("parameters", "")) or 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(_params(lm)))
    yield Check("parameters", f"{count:,}; the card says {stated:,}", count == stated)
    texts = [*(["completions"] if spec.completions else []), *spec.figures]
    if texts and lm.tokenizer is None:
        yield Check(" and ".join(texts), "left out: the tokenizer could not be had")
        return
    for prompt, completion in spec.completions.items():
        length = len(lm.tokenizer.encode(completion))
        text = lm.generate(prompt, temperature=0, max_new_tokens=length).text.strip()
        yield Check(f"greedy after {prompt!r}", repr(text), text.startswith(completion))
    for protocol in spec.figures:
        if protocol != perplexity.WIKITEXT_TASK:
            yield Check(protocol, "left out: zoo does not compute it")
        elif wikitext is None:
            yield Check(protocol, "left out: give its test split with --wikitext FILE")
        else:
            yield wikitext_check(lm, spec, wikitext)


def wikitext_check(lm: LanguageModel, spec: ModelSpec, file: Path) -> Check:
    """Compares the loss on the file, see `zoo.evaluate.perplexity.wikitext`, with the figure in the spec."""
    name = perplexity.WIKITEXT_TASK
    loss = perplexity.wikitext(lm, data=file)["tasks"][name]["metrics"]["nats_per_token"]["value"]
    stated = spec.figures[name]["nats_per_token"]
    return Check(f"{name} test loss", f"{loss:.3f}; the card says {stated:.3f}", abs(loss - stated) < TOLERANCE)


def bound_for(lm: LanguageModel, *, exact: bool) -> float:
    """Returns how far logits of an export may differ: times the largest logit, or for capped logits as it is.

    If `exact`, that is float32 rounding alone: what zoo and transformers were seen to be away from the float64
    evaluation, 0.3e-5 to 1.5e-5 of the largest logit for 1 to 12 layers, twice over. Else it is what half precision
    does.
    """
    if not exact:
        return 0.5 if _caps_logits(lm) else 0.15
    return 3e-5


def _caps_logits(lm: LanguageModel) -> bool:
    *_, softcap = lm.module.head()
    return softcap is not None


def _params(lm: LanguageModel) -> build.Params:
    return nnx.to_pure_dict(nnx.state(lm.module))


def _same_parameters(lm: LanguageModel, again: LanguageModel, dtype: str | None) -> Check:
    if type(lm.config) is not type(again.config):
        return Check("parameters", f"{type(again.config).__name__.removesuffix('Config')} when read back")
    params, read_back = build.flatten(_params(lm)), build.flatten(_params(again))
    if params.keys() != read_back.keys():
        return Check("parameters", "others when read back", ok=False)
    same, ok = 0, True
    for path, leaf in params.items():
        leaf, back = np.asarray(leaf), np.asarray(read_back[path])
        same += np.array_equal(leaf, back)
        ok = ok and (dtype is None or np.array_equal(leaf.astype(jnp.dtype(dtype)).astype(leaf.dtype), back))
    return Check("parameters", f"{same} of {len(params)} are bit-identical when read back", bool(ok))


def _difference(what: str, one: np.ndarray, other: np.ndarray, bound: float) -> Check:
    worst = float(np.abs(one - other).max())
    return Check(what, f"{worst:.2e} (at most {bound:.1e})", worst <= bound)


def _transformers(directory: Path, tokens: np.ndarray, logits: np.ndarray, bound: float) -> Iterator[Check]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast
    except ImportError:
        yield Check("transformers", "left out: torch and transformers are not installed")
        return
    own_code = any(directory.glob("modeling_*.py"))  # zoo has just written it, so it may run
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=own_code, dtype=torch.float32).eval()
    rows = torch.tensor(tokens, dtype=torch.long)
    # The cache's argument is called as the output's field is: past_key_values until transformers 5.23, cache since.
    name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
    with torch.no_grad():
        full = model(rows).logits.numpy()
        # Code of the directory's own keeps parts in float32.
        reference = full if own_code else copy.deepcopy(model).double()(rows).logits.numpy()
        cache, parts, at = DynamicCache(config=model.config), [], 0
        while at < rows.shape[1]:
            step = CHUNKS[len(parts) % len(CHUNKS)]
            parts.append(model(rows[:, at : at + step], **{name: cache}).logits.numpy())
            at += step
    if own_code:
        yield _difference("max |delta logits|, transformers against zoo", logits, full, bound)
    else:
        yield _difference("max |delta logits|, zoo against transformers in float64", logits, reference, bound)
        yield _difference("max |delta logits|, transformers in float32 against float64", full, reference, bound)
    cached, what = np.concatenate(parts, axis=1), "max |delta logits|, transformers through its cache against "
    yield _difference(what + ("whole rows" if own_code else "float64"), cached, reference, bound)
