"""Reading the records of a recipe: the built-in corpus, JSON lines, Parquet or the Hugging Face hub.

A record is a dict with at least `stats_block`, `style_label` and `cronica`, columns of the published dataset
(DanielRegaladoCardoso/cronicas-d2t on the hub), so that one recipe line changes the source.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from zoo import registry
from zoo.data import readers, source_files
from zoo.data.readers import LONE_SURROGATE, Fault, Record
from zoo.errors import UserError
from zoo.recipe.data import DataSection
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica.tokens import STYLES

FIELDS = ("stats_block", "style_label", "cronica")


def load_records(data: DataSection) -> list[dict]:
    """Returns the first `data.num_pairs` records of a source in its order; all records where that is None.

    Raises:
        UserError: a file, line or row is missing or malformed; the message names it.
    """
    if data.built_in:
        return corpus.generate(data.num_pairs, seed=data.seed, split=data.split)
    records = []
    for record in itertools.islice(readers.without_faults(_read(data)), data.num_pairs):
        _check(record)
        records.append(record.values)
    if not records:
        raise UserError(f"{data.path}: holds no records")
    return records


def _read(data: DataSection) -> Iterator[Record | Fault]:
    if data.source == "hub":  # fetched whole: the library then finds it in its cache, with or without a network
        return readers.read_dataset(readers.load_dataset(data, streaming=False), data)
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"data.path: {path} does not exist")
    form = registry.file_format(data.source)
    # Of JSON lines it must be one file.
    files = [path] if data.source == "jsonl" else source_files.find(path, form.SUFFIXES).files
    return readers.to_keep(form.read(files, FIELDS, whole=True), files)


def _check(record: Record) -> None:
    for field in FIELDS:
        value = record.values.get(field)
        if value is None:
            fault = "is missing"
        elif not isinstance(value, str):
            fault = "is not text"
        elif not value.strip():
            fault = "is empty"
        elif LONE_SURROGATE.search(value):
            fault = "has half of a surrogate pair (\\ud800 to \\udfff)"
        else:
            continue
        raise UserError(f"{record.place}: field {field!r} {fault}; every record needs {', '.join(FIELDS)}")
    style = record.values["style_label"]
    if style not in STYLES:
        raise UserError(f"{record.place}: field 'style_label' is {style!r}; the styles are {', '.join(STYLES)}")
