"""The Hugging Face hub, asked once and briefly: its library alone would retry for half a minute without a network."""

from pathlib import Path

from zoo.errors import UserError
from zoo.util import first_line

_PATIENCE = 10.0  # seconds


def unreachable() -> str | None:
    """Why the hub does not answer, in a few words; None when it does (or when HF_HUB_OFFLINE says not to ask)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return None  # the library then reads its cache alone, at once
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # the http library's own kinds
        return first_line(error)
    return None


def fetch(repository: str, files: tuple[str, ...]) -> Path:
    """The first of `files` that a model repository has, from the hub or its cache.

    Raises UserError that says where else to put the file.
    """
    import huggingface_hub

    for name in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = unreachable()
    if reason is None:
        for name in files:
            try:
                return Path(huggingface_hub.hf_hub_download(repository, name))
            except huggingface_hub.errors.EntryNotFoundError as error:
                reason = first_line(error)
            except Exception as error:  # not there, gated, no network: the remedy is the same
                reason = first_line(error)
                break
    raise UserError(
        f"tokenizer.name: {repository} cannot be fetched from the hub ({reason}); get its {' or '.join(files)} on a "
        f"machine that can, and put the file's path into tokenizer.path"
    )
