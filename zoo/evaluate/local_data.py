"""Records of the public data sets that suites use, from files that the user has or from the Hugging Face hub."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data import source_files, unpack
from zoo.data.formats import jsonl, parquet
from zoo.data.readers import to_keep, without_faults
from zoo.errors import UserError
from zoo.tokenizers.hub import unreachable

_SUFFIXES = (*(f".jsonl{packed}" for packed in unpack.SUFFIXES), ".parquet")


@dataclass(frozen=True)
class HubData:
    """A data set on the Hugging Face hub: its repository, its configuration (None: the only one) and the split."""

    repository: str
    config: str | None
    split: str


def records(name: str, hub: HubData, directory: Path | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Returns the first `limit` records of a data set; None: all of them.

    Args:
        name: the data set's name, and that of its file.
        hub: where it lies on the hub.
        directory: a directory with `name`.jsonl (plain or compressed) or `name`.parquet to read instead; None: the
            hub is asked.
        limit: how many records.

    Raises:
        UserError: they cannot be had, or there are none.
    """
    rows = _from_hub(name, hub)[:limit] if directory is None else _from_files(name, directory, limit)
    if not rows:
        raise UserError(f"{name}: there are no records")
    return rows


def _from_files(name: str, directory: Path, limit: int | None) -> list[dict[str, Any]]:
    if not directory.is_dir():
        raise UserError(f"--data: there is no directory {directory}")
    path = next((path for suffix in _SUFFIXES if (path := directory / (name + suffix)).exists()), None)
    if path is None:
        raise UserError(f"--data: {directory} holds no {name}{_SUFFIXES[0]} (nor {', '.join(_SUFFIXES[1:])})")
    form = parquet if path.suffix == ".parquet" else jsonl
    files = source_files.find(path, form.SUFFIXES).files  # a directory of Spark's bears the name of a file
    found = itertools.islice(without_faults(form.read(files, whole=True)), limit)
    return [record.values for record in to_keep(found, files)]


def _from_hub(name: str, hub: HubData) -> list[dict[str, Any]]:
    import datasets

    if (reason := unreachable()) is not None:
        raise UserError(
            f"{name}: the Hugging Face hub does not answer ({reason}), so {hub.repository} cannot be fetched; put its "
            f"records into {name}.jsonl and name the directory by --data, or set HF_HUB_OFFLINE=1 if the cache has it"
        )
    try:
        return datasets.load_dataset(hub.repository, hub.config, split=hub.split).to_list()
    except Exception as error:  # the library raises its own, the hub's, the network's and ValueError alike
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name}: {hub.repository} (split {hub.split}) cannot be read from the Hugging Face hub ({reason}); put "
            f"its records into {name}.jsonl and name the directory by --data"
        ) from None
