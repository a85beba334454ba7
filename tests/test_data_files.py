"""Which files a source has, what is left out of them, and that no file unpacks to more than memory holds."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zoo.data import documents, readers, source_files, stories, unpack
from zoo.data.budget import TokenBudget
from zoo.data.formats import jsonl, parquet
from zoo.data.prepare import files_identity, prepare
from zoo.data.readers import Fault
from zoo.errors import UserError
from zoo.evaluate import local_data
from zoo.evaluate.perplexity import read_texts
from zoo.recipe import make_recipe
from zoo.recipe.data import DataSection, SourceSection
from zoo.tasks.cronica import records
from zoo.tokenizers.characters import CharacterTokenizer

TEXTS = stories.generate(12, seed=7)


def source(path, kind="jsonl", **fields):
    return SourceSection(source=kind, path=str(path), **fields)


def read(path, kind="jsonl", **fields):
    return list(documents.read(source(path, kind, **fields), "text"))


def write(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# Which files


def test_all_that_lies_below_a_directory_is_read_once_and_the_rest_is_named(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write(data / "b.jsonl", "b")
    write(data / "deep" / "er" / "c.jsonl", "c")
    write(elsewhere / "linked.jsonl", "linked")
    write(elsewhere / "hidden" / "h.jsonl", "h")
    write(data / ".ipynb_checkpoints" / "b-checkpoint.jsonl", "b")
    write(data / "_temporary" / "0" / "half.jsonl", "half")
    write(data / ".store" / "v1" / "d.jsonl", "d")
    (data / "README.md").write_text("no")
    (data / "gone.jsonl").symlink_to("nowhere.jsonl")
    (data / "a_link").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere)
    (data / "circle").symlink_to(data)
    (data / "deep" / "up").symlink_to("..")
    (elsewhere / "back").symlink_to(data)
    (data / "current").symlink_to(".store/v1")
    found = source_files.find(data, jsonl.SUFFIXES)
    assert [str(file.relative_to(data)) for file in found.files] in (
        ["a_link/hidden/h.jsonl", "a_link/linked.jsonl", "b.jsonl", "current/d.jsonl", "deep/er/c.jsonl"],
        ["again/hidden/h.jsonl", "again/linked.jsonl", "b.jsonl", "current/d.jsonl", "deep/er/c.jsonl"],
    )
    assert sorted(read(data)) == ["b", "c", "d", "h", "linked"]
    reasons = {reason.split(" (")[0]: reason.split(" (")[1].rstrip(")") for reason in found.left_out}
    assert reasons.pop("README.md") == "no .jsonl"
    assert reasons.pop("gone.jsonl") == "a link to nothing"
    assert reasons.pop("_temporary") == "no finished data"
    assert {reasons.pop(name) for name in (".ipynb_checkpoints", ".store")} == {"hidden"}
    assert set(reasons.values()) == {"a link to a directory that is read already"} and len(reasons) == 4
    # The identity of prepared data knows every file, those behind links too.
    assert set(source_files.all_files(str(data))) > set(found.files)


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / "lost+found" / "b.jsonl", "b")
    entries = source_files._entries

    def refuse(directory):
        if directory.name in closed:
            raise PermissionError(13, "Permission denied", str(directory))
        return entries(directory)

    monkeypatch.setattr(source_files, "_entries", refuse)
    closed = ["lost+found"]
    found = source_files.find(tmp_path, jsonl.SUFFIXES)
    assert found.files == [tmp_path / "a.jsonl"] and found.summary() == "lost+found (cannot be read: Permission denied)"
    closed = [tmp_path.name]
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)$"):
        read(tmp_path)


def test_what_is_left_out_is_said_when_it_is_prepared(tmp_path):
    write(tmp_path / "set" / "a.jsonl", "abc")
    write(tmp_path / "set" / ".cache" / "a.jsonl", "abc")
    for name in "wxyz":
        (tmp_path / "set" / f"{name}.jsonl.lz4").write_bytes(b"")
    section = DataSection(
        kind="text", source="jsonl", path=str(tmp_path / "set"), prepared_dir=str(tmp_path / "p"), workers=1
    )
    said = []
    prepare(section.document_sources[0], section, CharacterTokenizer("abc"), TokenBudget(), say=said.append)
    words = ".cache (hidden), w.jsonl.lz4 (no .jsonl), x.jsonl.lz4 (no .jsonl) and 2 more"
    assert said[0] == f"data: of {tmp_path / 'set'} these are left out: {words}"


def test_patterns_may_stand_in_every_part_of_a_path(tmp_path):
    write(tmp_path / "deep" / "one" / "train.jsonl", "1")
    write(tmp_path / "deep" / "two" / "train.jsonl", "2")
    write(tmp_path / "deep" / "two" / "more" / "train.jsonl", "3")
    write(tmp_path / "deep" / ".old" / "train.jsonl", "0")
    write(tmp_path / "deep" / "two" / "test.jsonl", "4")
    (tmp_path / "deep" / "three").symlink_to(write(tmp_path / "far" / "train.jsonl", "5").parent)
    (tmp_path / "deep" / "four.jsonl").symlink_to("nowhere")
    assert read(tmp_path / "deep" / "*" / "train.jsonl") == ["1", "5", "2"]
    assert sorted(read(tmp_path / "d*" / "**" / "train.jsonl")) == ["1", "2", "3", "5"]
    assert sorted(read(tmp_path / "deep" / "**")) == ["1", "2", "3", "4", "5"]
    assert read(tmp_path / "deep" / "t?o" / "t[er]*.jsonl") == ["4", "2"]
    assert sorted(read(tmp_path / "d*")) == ["1", "2", "3", "4", "5"]  # a directory that matches is read
    # One file to which two paths lead is read once.
    (tmp_path / "deep" / "latest").symlink_to("two")
    (tmp_path / "dlink").symlink_to("deep/one")
    assert read(tmp_path / "deep" / "*" / "train.jsonl") == ["1", "5", "2"]
    assert sorted(read(tmp_path / "d*")) == ["1", "2", "3", "4", "5"]
    found = source_files.find(tmp_path / "deep" / "*" / "train.jsonl", jsonl.SUFFIXES)
    assert found.left_out == [f"{tmp_path / 'deep/latest/train.jsonl'} (read already by another path)"]
    # What looks like a pattern and is there as it is spelt is no pattern.
    write(tmp_path / "x[1]" / "a.jsonl", "6")
    assert read(tmp_path / "x[1]" / "*.jsonl") == ["6"]
    with pytest.raises(UserError, match=r"deep/\*\.jsonl: it does not exist; left out: .*four\.jsonl \(a link to noth"):
        read(tmp_path / "deep" / "*.jsonl")
    with pytest.raises(UserError, match=r"four\.jsonl is a link to nowhere, which does not exist"):
        read(tmp_path / "deep" / "four.jsonl")


@pytest.mark.parametrize("pattern", ["deep/*/train.jsonl", "**/train.jsonl", "deep/o[mn]*/*"])
def test_recipes_take_such_patterns(tmp_path, pattern):
    write(tmp_path / "deep" / "one" / "train.jsonl", "1")

    def recipe(path):
        content = {"name": "x", "model": {"name": "cronica-5m"}, "data": {"kind": "text", "source": "jsonl"}}
        content["data"]["path"] = str(path)
        return make_recipe(content, check_files=True)

    assert recipe(tmp_path / pattern).data.path == str(tmp_path / pattern)
    with pytest.raises(UserError, match=r"data\.path: there is no file"):
        recipe(tmp_path / "shallow" / pattern)


def test_a_directory_in_the_place_of_a_file_stands_for_its_files(tmp_path):
    """As Spark writes `train.parquet/`."""
    folder = tmp_path / "set" / "train.parquet"
    folder.mkdir(parents=True)
    for number, part in enumerate((TEXTS[:5], TEXTS[5:])):
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), folder / f"part-{number:05d}.snappy.parquet")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part-00000.snappy.parquet.crc").write_bytes(b"crc")
    for path in (folder, folder.parent, folder.parent / "*.parquet", folder.parent / "*"):
        assert read(path, "parquet") == TEXTS
    assert list(documents.read(source(folder, "parquet"), "text", start=7)) == TEXTS[7:]
    assert [record["text"] for record in local_data.records("train", None, folder.parent)] == TEXTS


def test_a_local_data_set_of_the_hub_is_known_by_files_behind_links(tmp_path):
    outside = write(tmp_path / "store" / "train.jsonl", "old")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(outside.parent)
    before = files_identity(source_files.all_files(str(tmp_path / "set")))
    assert [place for place, *_ in before] == ["train.jsonl"]
    write(outside, "new")
    assert files_identity(source_files.all_files(str(tmp_path / "set"))) != before


# Compressed files


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACKERS)
def test_compressed_files_are_read_as_plain_ones(tmp_path, packed):
    def save(name, content):
        # Parts that were compressed apart stand one behind the other.
        half = len(content) // 2
        (tmp_path / f"{name}{packed}").write_bytes(PACKERS[packed](content[:half]) + PACKERS[packed](content[half:]))

    save("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    save("a.txt", "<sep>".join(TEXTS).encode())
    assert read(tmp_path) == read(tmp_path / f"a.jsonl{packed}") == TEXTS
    assert read(tmp_path, "text", separator="<sep>") == TEXTS
    assert read(tmp_path, "text") == ["<sep>".join(TEXTS)]
    assert list(documents.read(source(tmp_path), "text", start=7)) == TEXTS[7:]
    assert read_texts(tmp_path / f"a.jsonl{packed}") == TEXTS
    assert [record["text"] for record in local_data.records("a", None, tmp_path)] == TEXTS
    if packed:
        whole = (tmp_path / f"a.jsonl{packed}").read_bytes()
        for content in (whole[:-20], whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]):
            (tmp_path / f"a.jsonl{packed}").write_bytes(content)
            with pytest.raises(UserError, match=rf"a\.jsonl{packed}, after line \d+: cannot be read \(.+\)$"):
                read(tmp_path)


def test_what_only_looks_compressed_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("BZh9 is how such files begin")
    assert read(tmp_path, "text") == ["BZh9 is how such files begin"]
    (tmp_path / "a.txt").write_bytes(b"")
    assert read(tmp_path, "text") == [""]


def test_a_file_of_xz_may_not_ask_for_any_memory(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a"}\n', filters=filters))
    with pytest.raises(UserError, match=r"a\.jsonl\.xz, after line 0: cannot be read \(Memory usage limit"):
        read(tmp_path)


class Chunks:
    """A stream that gives what it holds in pieces of any size."""

    def __init__(self, content, sizes):
        self._content, self._sizes, self._at = content, sizes, 0

    def read(self, size):
        start = self._at
        self._at += self._sizes[start % len(self._sizes)]
        return self._content[start : self._at]


@pytest.mark.parametrize("separator", [b"\n", b"<>", b"<<>"])
def test_a_text_is_split_wherever_blocks_end(separator):
    content = separator.join([b"one", b"", b"<<", b"three" * 4, b"<<<", b"four"])
    for sizes in ([1], [2], [3, 1], [7], [1000]):
        assert list(unpack.split(Chunks(content, sizes), separator, 100)) == content.split(separator)
        # Too long are all parts of more than 5 bytes, at whatever place.
        wanted = [None if len(part) > 5 else part for part in content.split(separator)]
        assert list(unpack.split(Chunks(content, sizes), separator, 5)) == wanted
        assert list(unpack.split(Chunks(content + b"y" * 9, sizes), separator, 5))[-1] is None
    assert list(unpack.split(Chunks(b"a\n \n", [2]), b"\n", 5)) == [b"a", b" "]


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_a_line_that_unpacks_to_too_much_is_a_fault_in_bounded_memory(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(unpack, "LONGEST", 1 << 22)
    size = 1 << 26
    lines = [b'{"text": "one"}', b'{"text": "' + b"a" * size + b'"}', b'{"text": "two"}']
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACKERS[packed](b"\n".join(lines)))
    tracemalloc.start()
    try:
        one, fault, two = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (one, two) == ("one", "two") and fault == Fault(f"{path}, line 2: longer than 4,194,304 bytes")
    assert peak < 6 * unpack.LONGEST < size
    text = tmp_path / f"a.txt{packed}"
    text.write_bytes(path.read_bytes())
    assert read(text, "text") == [Fault(f"{text}: longer than 4,194,304 bytes")]
    assert [isinstance(item, Fault) for item in read(text, "text", separator="\n")] == [False, True, False]


def test_what_a_line_may_hold_grows_with_the_file_but_not_with_its_holes(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "LONGEST", 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 100_000)
    assert unpack.longest(path) == 2_000_000
    assert read(path, "text") == ["a" * 100_000]
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert unpack.longest(path) < 1_000_000
    assert read(path, "text") == [Fault(f"{path}: longer than {unpack.longest(path):,} bytes")]


TREE = dict.fromkeys(("message_id", "parent_id", "role", "lang"), "x")


def test_what_is_kept_in_memory_whole_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_KEPT", 2000)
    number = 100_000
    lines = (
        json.dumps({"text": "a" * 90, "stats_block": "b", "style_label": ["c"], "cronica": {"d": "e"}, **TREE}) + "\n"
    ).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines * number))
    limit = 20 * path.stat().st_blocks * 512
    assert limit < number * 90
    for read_whole in (
        lambda: read_texts(path),
        lambda: local_data.records("a", None, tmp_path),
        lambda: list(documents.read(source(path, format="oasst1"), "chat")),
        lambda: list(
            readers.to_keep(records._read(DataSection(kind="cronicas", source="jsonl", path=str(path))), [path])
        ),
    ):
        with pytest.raises(
            UserError, match=r"a\.jsonl\.gz: holds more than [\d,]+ characters, which would all be kept"
        ):
            read_whole()
    # Of what is not kept there may be as much as there is; and the first ones are read alone.
    assert sum(1 for _ in documents.read(source(path), "text")) == number
    assert len(local_data.records("a", None, tmp_path, limit=10)) == 10
    plain = write(tmp_path / "b.jsonl", *["b" * 90] * 1000)
    assert len(read_texts(plain)) == 1000


# Parquet


def dictionary(indices, values):
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(indices, pyarrow.int32()), pyarrow.array(values))


def test_a_value_that_stands_once_for_many_rows_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    path, number = tmp_path / "a.parquet", 20_000
    text = "a" * 1_000_000
    pyarrow.parquet.write_table(
        pyarrow.table({"text": dictionary(np.zeros(number), [text])}), path, compression="zstd", row_group_size=number
    )
    assert path.stat().st_size < 1000 < 20_000_000_000 == number * len(text)
    before = pyarrow.total_allocated_bytes()
    rows = parquet.read([path], ["text"], start=number - 3)
    taken = [(record.place, len(record.values["text"])) for record in rows]
    assert taken == [(f"{path}, row {row}", len(text)) for row in range(number - 2, number + 1)]
    items = documents.read(source(path, "parquet"), "text")
    for _ in range(200):
        assert next(items) == text
        assert pyarrow.total_allocated_bytes() - before < 4 * parquet._BATCH_BYTES
    table = pyarrow.parquet.ParquetFile(path)
    assert parquet._batch_rows(path, table, 0, ["text"]) == 67
    # Even where the file does not admit that there is a dictionary.
    column = {"physical_type": "BYTE_ARRAY", "has_dictionary_page": False, "total_uncompressed_size": 7}
    assert parquet._dictionary_bytes(path, SimpleNamespace(**column, data_page_offset=4)) == 1_000_004
    assert parquet._dictionary_bytes(path, SimpleNamespace(**column, data_page_offset=0)) == 7
    # Rows of honest files come many at a time.
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    table = pyarrow.parquet.ParquetFile(path)
    assert parquet._batch_rows(path, table, 0, ["text"]) == parquet._BATCH_ROWS


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}])
def test_rows_come_in_order_however_few_are_read_at_a_time(tmp_path, monkeypatch, options):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "n": range(12)}), path, row_group_size=5, **options)
    for size in (1, 200, 1000, 1 << 26):
        monkeypatch.setattr(parquet, "_BATCH_BYTES", size)
        for start in (0, 1, 4, 5, 6, 11, 12):
            rows = list(parquet.read([path, path], ["text"], start=start))
            assert [record.values["text"] for record in rows] == [*TEXTS, *TEXTS][start:]
            assert [record.place.split()[-1] for record in rows] == [str(n % 12 + 1) for n in range(start, 24)]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_texts_that_stand_once_for_many_elements_of_lists_are_kept_once(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpack, "LONGEST", 5_000_000)
    monkeypatch.setattr(parquet, "_LIST_BYTES", 1000)
    path, text = tmp_path / "a.parquet", "a" * 1_000_000
    talk = [{"role": "user", "content": "b" * 7}, {"role": "assistant", "content": "c"}]
    sizes = [2, 2, 4000, 2, 0, 2]  # messages of the rows; those of the third would take 4 GB

    def written(roles, contents):
        columns = [
            pyarrow.DictionaryArray.from_arrays(pyarrow.array(indices, pyarrow.int32()), pyarrow.array(values, kind))
            for indices, values in (roles, contents)
        ]
        offsets = pyarrow.array(np.cumsum([0, *sizes]), pyarrow.int32())
        rows = pyarrow.ListArray.from_arrays(offsets, pyarrow.StructArray.from_arrays(columns, ["role", "content"]))
        pyarrow.parquet.write_table(pyarrow.table({"messages": rows, "id": list(range(6))}), path, compression="zstd")

    places = [0, 1, 0, 1, *[2] * 4000, 0, 1, 0, 1]
    written(([number % 2 for number in range(4008)], ["user", "assistant"]), (places, ["b" * 7, "c", text]))
    assert path.stat().st_size < 5000
    before = pyarrow.total_allocated_bytes()
    found = list(parquet.read([path], ["messages"]))
    assert pyarrow.total_allocated_bytes() - before < 10_000_000
    assert [getattr(row, "values", row) for row in found] == [
        *[{"messages": talk}] * 2,
        Fault(f"{path}, row 3: longer than 5,000,000 bytes"),
        *[{"messages": part} for part in (talk, [], talk)],
    ]
    items = list(documents.read(source(path, "parquet"), "chat", start=1))
    assert items[0] == talk and items[1].reason.endswith("row 3: longer than 5,000,000 bytes") and len(items) == 5
    with pytest.raises(UserError, match="row 3: longer than 5,000,000 bytes"):
        local_data.records("a", None, tmp_path)


def test_files_of_parquet_that_unpack_to_too_much_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"

    def refused(columns, words, **options):
        pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", **options)
        with pytest.raises(UserError, match=words) as caught:
            next(parquet.read([path], [next(iter(columns))]))
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

    monkeypatch.setattr(parquet, "_COLUMN_BYTES", 1 << 20)
    long = pyarrow.array(["a" * (1 << 22)])
    for options in ({}, {"use_dictionary": False}):
        refused(
            {"text": long},
            r"row group 0, column text: unpacks to 4,19\d,\d+ bytes, of which zoo reads 1,048,576",
            **options,
        )
    monkeypatch.setattr(parquet, "_MOST_ROWS", 1000)
    refused(
        {"text": dictionary(np.zeros(10**6), [""])}, r"1,000,000 rows in \d,?\d+ bytes, of which zoo reads \d+,?\d+$"
    )
    monkeypatch.setattr(parquet, "_MOST_ELEMENTS", 1000)
    messages = pyarrow.array([[{"role": "user", "content": "x"}] * 10**5])
    refused({"messages": messages}, r"column messages\.list\.element\.(role|content): has 100,000 elements")
    # A column that is not asked for may be as it likes.
    pyarrow.parquet.write_table(pyarrow.table({"text": ["b"], "other": long}), path, compression="zstd")
    assert [record.values for record in parquet.read([path], ["text"])] == [{"text": "b"}]
    with pytest.raises(UserError, match="column other"):
        next(parquet.read([path], ["text"], whole=True))
