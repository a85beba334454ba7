"""Records from wherever they lie: the built-in corpus, JSON lines, Parquet or the Hugging Face hub.

A record is a dict with at least `stats_block`, `style_label` and `cronica`, columns of the published dataset
(DanielRegaladoCardoso/cronicas-d2t on the hub), so that one recipe line changes the source.
"""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from zoo.errors import UserError
from zoo.tasks.cronica.tokens import STYLES
from zoo.util import first_line

FIELDS = ("stats_block", "style_label", "cronica")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_GZIP_MAGIC = b"\x1f\x8b"


def load_records(data) -> list[dict]:
    """The first `data.num_pairs` records of a source, or all if that is None, in its order.

    Args:
        data: the recipe's data section. `source` is "cronicas" (built in; `split` and `seed` choose the
            matches), "jsonl" (plain or gzip; `path` a file), "parquet" (`path` a file or a directory of them)
            or "hub" (`path` a dataset repository, with `split` and `revision`).

    Raises UserError that names file, line or row, and field for anything missing or malformed.
    """
    if data.source == "cronicas":
        from zoo.tasks.cronica import corpus

        return corpus.generate(data.num_pairs, seed=data.seed, split=data.split)
    if not data.path:
        what = "a dataset repository on the hub" if data.source == "hub" else "a file"
        raise UserError(f"data.path: is missing; with data.source={data.source} give {what}")
    if data.source == "jsonl":
        numbered, place = read_jsonl(data.path), f"{data.path}, line"
    elif data.source == "parquet":
        numbered, place = enumerate(read_parquet(data.path), 1), f"{data.path}, row"
    elif data.source == "hub":
        rows = _read_hub(data.path, split=data.split, revision=data.revision)
        numbered, place = enumerate(rows, 1), f"{data.path} ({data.split}), row"
    else:
        raise UserError(f"data.source: unknown {data.source!r}; use cronicas, jsonl, parquet or hub")
    records = []
    for number, record in itertools.islice(numbered, data.num_pairs):
        _check_record(record, f"{place} {number}")
        records.append(record)
    if not records:
        raise UserError(f"{data.path}: holds no records")
    return records


def _check_record(record: dict, place: str) -> None:
    for field in FIELDS:
        value = record.get(field)
        if value is None:
            fault = "is missing"
        elif not isinstance(value, str):
            fault = "is not text"
        elif not value.strip():
            fault = "is empty"
        elif _LONE_SURROGATE.search(value):  # JSON can spell one, UTF-8 and the tokenizer cannot
            fault = "has half of a surrogate pair (\\ud800 to \\udfff)"
        else:
            continue
        raise UserError(f"{place}: field {field!r} {fault}; every record needs {', '.join(FIELDS)}")
    if record["style_label"] not in STYLES:
        raise UserError(
            f"{place}: field 'style_label' is {record['style_label']!r}; the styles are {', '.join(STYLES)}"
        )


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of each line of a JSONL file, gzip or not; empty lines are passed over.

    Raises UserError that names file and line for anything but one JSON object in UTF-8.
    """
    path = Path(path)
    number = 0
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path) if zipped else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _parse_line(line, f"{path}, line {number}")
    except FileNotFoundError:
        raise UserError(f"data.path: {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"data.path: {path} is a directory; give a file of JSON lines") from None
    except (EOFError, OSError, zlib.error) as error:  # the first and the last from a damaged gzip file
        raise UserError(f"{path}, after line {number}: cannot be read ({error})") from None


def _parse_line(line: bytes, place: str) -> dict:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: a JSON object was expected, this is a {type(record).__name__}")
    return record


def read_parquet(path: str | Path) -> Iterator[dict]:
    """The rows of a Parquet file, or of the files in a directory in the order of their names.

    Raises UserError when the file is missing, is not Parquet or lacks a needed column.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.exists():
        raise UserError(f"data.path: {path} does not exist")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"data.path: no .parquet file in the directory {path}")
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                missing = [field for field in FIELDS if field not in table.schema_arrow.names]
                if missing:
                    raise UserError(f"{file}: no column {missing[0]!r}; its columns: {table.schema_arrow.names}")
                for batch in table.iter_batches():
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file}: cannot be read as Parquet ({first_line(error)})") from None


def _read_hub(repository: str, *, split: str, revision: str | None) -> Iterable[dict]:
    import datasets

    try:
        return datasets.load_dataset(repository, split=split, revision=revision)
    except Exception as error:  # the library raises its own, the hub's, the network's and ValueError alike
        raise UserError(
            f"data.path: the dataset {repository} (split {split}, revision {revision or 'newest'}) cannot "
            f"be read from the Hugging Face hub ({first_line(error)}); download its files and use data.source=parquet"
        ) from None
