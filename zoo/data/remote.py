"""Prepared shards in remote storage (gs://, s3://, https://), copied once into a local cache."""

import errno
from pathlib import Path

from zoo.data.shards import MANIFEST, read_manifest
from zoo.errors import UserError
from zoo.files import replacement, safe_join
from zoo.util import cache_directory, first_line, sha256_hex


def fetch(url: str) -> Path:
    """Fetches what is missing of a local copy of a directory of shards, and returns the copy's path.

    The manifest is fetched every time, so that shards added to it are fetched too. `Shards.verify` checks the files
    against the manifest's hashes. Raises UserError when the address cannot be reached or is no such directory.
    """
    import fsspec

    url = url.rstrip("/")
    directory = cache_directory() / "shards" / f"{Path(url).name}-{sha256_hex(url.encode())[:12]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(directory, error) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
        _copy(system, f"{path}/{MANIFEST}", directory / MANIFEST)
        manifest = read_manifest(directory)
        parts = ("tokens", "lengths", "loss") if manifest.loss_masks else ("tokens", "lengths")
        for shard in manifest.shards:
            for part in parts:
                name = f"{shard.name}.{part}.npy"  # its name holds its hash: it never changes
                target = safe_join(directory, name)
                if not target.is_file():
                    _copy(system, f"{path}/{name}", target)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"data.path: {url} needs another package ({first_line(error)}); install it") from None
    except Exception as error:  # each file system has kinds of its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise _cannot_write(directory, error) from None
        raise UserError(f"data.path: {url} cannot be fetched ({first_line(error)}); check the address") from None
    return directory


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(
        f"{directory}: prepared shards cannot be copied there ({error.strerror}); free some space, or set ZOO_CACHE to "
        f"another directory"
    )


def _copy(system, source: str, target: Path) -> None:
    with replacement(target) as temporary:
        system.get_file(source, str(temporary))
