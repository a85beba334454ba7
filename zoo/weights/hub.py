"""Names on the Hugging Face hub: which repository, and which of its files a model needs.

Downloads go through huggingface_hub: its cache, its tokens, HF_HUB_OFFLINE and HF_ENDPOINT hold here too.
"""

import fnmatch
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from zoo import registry
from zoo.convert import gguf, peft
from zoo.errors import UserError
from zoo.tokenizers.hub import fetch as fetch_files
from zoo.tokenizers.hub import first_line, unreachable

logger = logging.getLogger(__name__)

PREFIX = "https://huggingface.co/"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# What lies beside the weights and is small.
ALWAYS = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
BWETAF = ("good_stuff.pkl", "understanding_good_stuff.json", "stats.json", "tokenizer/*.json")

# Repositories of weights whose tokenizer is published in another.
TOKENIZERS = {
    "mlnomad/gelu-d12-chinchilla-261M-pytorch": "mistralai/Mistral-7B-v0.1",
    "mlnomad/gelu-d12-chinchilla-261M": "mistralai/Mistral-7B-v0.1",
}


def is_hub_name(name: str) -> bool:
    """Whether `name` reads as owner/repository."""
    return HUB_NAME.fullmatch(name) is not None


def repository(spec: registry.ModelSpec) -> str | None:
    """The hub repository with the model's weights, None where its authors publish none there."""
    return spec.source.removeprefix(PREFIX) if spec.source.startswith(PREFIX) else None


def repositories(spec: registry.ModelSpec) -> list[str]:
    """All hub repositories in which the model's authors publish these weights."""
    links = [spec.source, *spec.facts.values()]
    return [link.removeprefix(PREFIX) for link in links if link.startswith(PREFIX)]


def needed(names: Iterable[str]) -> list[str]:
    """The files that hold a model, out of all of a repository: of several checkpoints the last, no optimizer.

    [] where there is none that zoo reads.
    """
    names = [name for name in names if not name.startswith("/") and ".." not in Path(name).parts]
    beside = [name for name in names if name in ALWAYS]
    for pick in (_zoo, _bwetaf, _cronica, _safetensors, _gguf, _adapters, _orbax_steps, _orbax_states, _torch):
        found = pick(names)
        if found:
            if pick is _adapters:  # a config.json beside adapters would be that of a whole model, which is not there
                beside = [name for name in beside if name != "config.json"]
            return sorted({*found, *beside})
    return []


def fetch(repo: str, revision: str | None, *, what: str) -> Path:
    """The directory with the needed files of a repository, out of the cache or downloaded.

    Raises:
        UserError: no network and not in the cache, no such repository or revision, nothing there that zoo
            reads. `what` begins its text.
    """
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        reason = unreachable()
        try:
            names = None if reason else huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
        except OfflineModeIsEnabled as error:
            names, reason = None, first_line(error)
        if names is None:
            logger.info("%s: the hub is not asked (%s); looking in the cache", repo, reason)
            return Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
        wanted = needed(names)
        if wanted:
            return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except Exception as error:  # no network, no such repository, no right to it, no space: the remedy is the same
        raise UserError(
            f"{what}, which could not be had ({first_line(error)}); download the files and load their directory"
        ) from None
    raise UserError(f"{what}: holds no weights that zoo reads (but {', '.join(sorted(names)[:5]) or 'no files'})")


def fetch_tokenizer(repo: str) -> Path | None:
    """The tokenizer of a repository that has none itself; None, with a warning, where it cannot be had."""
    other = TOKENIZERS.get(repo)
    if other is None:
        return None
    try:
        return fetch_files(other, ("tokenizer.json", "tokenizer.model"))
    except UserError as error:
        logger.warning("%s: its tokenizer is that of %s: %s. Prompts are token ids", repo, other, error)
        return None


def _match(names: list[str], *patterns: str) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _zoo(names):
    return _match(names, "zoo.json", "model.safetensors", "tokenizer/*") if "zoo.json" in names else []


def _bwetaf(names):
    return _match(names, *BWETAF) if "good_stuff.pkl" in names else []


def _cronica(names):
    found = [name for name in names if re.fullmatch(r"ckpt_\d+\.pkl", name)]
    return [max(found, key=lambda name: int(name[5:-4]))] if found else []


def _safetensors(names):
    if "model.safetensors" in names:
        return ["model.safetensors"]
    index = "model.safetensors.index.json"
    return [index, *_match(names, "model-*-of-*.safetensors")] if index in names else []


def _gguf(names):
    chosen = gguf.choose(name for name in names if "/" not in name)
    return [] if chosen is None else [chosen]


def _adapters(names):
    wanted = {peft.CONFIG, peft.WEIGHTS}
    return sorted(wanted) if wanted <= set(names) else []


def _orbax_steps(names):
    found = {}
    for name in names:
        match = re.match(r"((?:[^/]+/)?)(\d+)/(model|metadata)/", name)
        if match:
            found.setdefault((int(match[2]), match[1]), []).append(name)
    if not found:
        return []
    step = max(found)
    return [*found[step], *_match(names, f"{step[1]}{step[0]}/_CHECKPOINT_METADATA", f"{step[1]}config.json")]


def _orbax_states(names):
    steps = {int(match[1]) for match in (re.match(r"step_(\d+)\.orbax/", name) for name in names) if match}
    return [n for n in names if steps and re.match(rf"step_0*{max(steps)}\.orbax/", n)]


def _torch(names):
    found = _match(names, "*.pt")
    return found if len(found) == 1 else []
