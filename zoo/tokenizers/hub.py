"""Files from the Hugging Face hub, with one short request first: its library would retry half a minute offline."""

import contextlib
from pathlib import Path

from zoo.errors import UserError
from zoo.util import first_line

_TIMEOUT = 10.0  # seconds


def unreachable() -> str | None:
    """Returns why the hub does not answer, in a few words; None when it does, or when HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return None  # the library then reads its cache alone, at once
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as error:  # the http library's own kinds
        return first_line(error)
    return None


def fetch(repository: str, files: tuple[str, ...], *, beside: tuple[str, ...] = ()) -> Path:
    """Returns the path of the first of `files` that a model repository has, from the hub or its local cache.

    Those of `beside` that the repository has are put into the same directory.

    Raises UserError, which says where to put the file by hand, when none can be fetched.
    """
    import huggingface_hub

    cached = (huggingface_hub.try_to_load_from_cache(repository, name) for name in files)
    path = next((Path(file) for file in cached if isinstance(file, str)), None)
    # None: not known. Of a file that the repository does not have, the cache knows just that.
    unknown = [name for name in beside if huggingface_hub.try_to_load_from_cache(repository, name) is None]
    if path is not None and not unknown:
        return path
    reason = unreachable()
    if reason is None:
        for name in files if path is None else (path.name,):
            try:
                path = Path(huggingface_hub.hf_hub_download(repository, name))
                for other in unknown:
                    with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):
                        huggingface_hub.hf_hub_download(repository, other)
                return path
            except huggingface_hub.errors.EntryNotFoundError as error:
                reason = first_line(error)
            except Exception as error:  # not there, gated, no network: the remedy is the same
                reason = first_line(error)
                break
    if path is not None:
        return path  # from the cache alone, as without a network
    raise UserError(
        f"tokenizer.name: {repository} cannot be fetched from the hub ({reason}); get its {' or '.join(files)} on a "
        f"machine that can, and put the file's path into tokenizer.path"
    )
