"""Names on the Hugging Face hub: which repository, and which of its files a model needs.

Downloads go through huggingface_hub: its cache, its tokens, HF_HUB_OFFLINE and HF_ENDPOINT hold here too.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from zoo import convert
from zoo.errors import UserError
from zoo.models.spec import ModelSpec
from zoo.tokenizers import token_files
from zoo.tokenizers.hub import fetch as fetch_files
from zoo.tokenizers.hub import unreachable
from zoo.util import first_line

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# What lies beside the weights and is small.
ALWAYS = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    *token_files.NAMES,
    "vocab.json",
    "merges.txt",
)


def is_hub_name(name: str) -> bool:
    """Returns whether `name` reads as owner/repository."""
    return HUB_NAME.fullmatch(name) is not None


def needed(names: Iterable[str]) -> list[str]:
    """Returns the files that hold a model, out of all of a repository's: of several checkpoints the last, no optimizer.

    Of several formats the one of the lowest `HubFiles.rank` is chosen; [] where there is none that zoo reads.
    """
    names = [name for name in names if not name.startswith("/") and ".." not in Path(name).parts]
    forms = [(form, known) for known in convert.FORMATS.values() for form in known.hub_files]
    for form, known in sorted(forms, key=lambda pair: pair[0].rank):
        picked = form.pick(names)
        if picked:
            # A config.json beside adapters would be that of a whole model, which is not there.
            beside = [name for name in names if name in ALWAYS and not (known.adapters and name == "config.json")]
            return sorted({*picked, *beside})
    return []


def fetch(repo: str, revision: str | None, *, what: str) -> Path:
    """Returns the directory with the needed files of a repository, out of the cache or downloaded.

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


def fetch_tokenizer(spec: ModelSpec, repo: str) -> Path | None:
    """Returns the tokenizer for weights in `repo`, one of the spec's, which has none itself.

    None where the spec names no other repository for it, and, with a warning, where that cannot be had.
    """
    other = spec.tokenizer_repo if repo in spec.repositories else None
    if other is None:
        return None
    try:
        return fetch_files(other, ("tokenizer.json", "tokenizer.model"), beside=token_files.NAMES)
    except UserError as error:
        logger.warning("%s: its tokenizer is that of %s: %s. Prompts are token ids", repo, other, error)
        return None
