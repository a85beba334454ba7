"""Sources, tokenised pairs and batches."""

import dataclasses
import gzip
import itertools
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zoo.errors import UserError
from zoo.recipe.data import DataSection
from zoo.tasks.cronica import tokens
from zoo.tasks.cronica.pairs import heldout_batches, measure_fit, tokenise, training_batches
from zoo.tasks.cronica.records import load_records

NAMES = ["Ñañez", "Pérez", "Acuña", "Zubeldía", "Ibáñez", "Roldán", "Güemes", "Solís"]


def make_records(count):
    rng = random.Random(5)
    records = []
    for i in range(count):
        home, away, scorer = rng.sample(NAMES, 3)
        goals = rng.randint(0, 9)
        block = f"<STATS>\nlocal: {home}\nvisitante: {away}\nresultado: {goals}-0\n</STATS>"
        words = " ".join(rng.choices(NAMES, k=rng.randint(1, 30)))
        style = list(tokens.STYLES)[i % 8]
        records.append(
            {
                "match_id": f"m{i:03d}",
                "stats_block": block,
                "style_label": style,
                "style_token": f"<style:{style}>",
                "cronica": f"Crónica {i}: {scorer} marcó para {home} ante {away}. {words}",
                "model": "test",
            }
        )
    return records


RECORDS = make_records(37)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train(map(tokens.training_text, RECORDS), vocab_size=330)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return tokenise(RECORDS, tokenizer)


def data(**changes):
    return DataSection(**{"source": "jsonl", **changes})


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# Sources


@pytest.fixture
def written(tmp_path):
    lines = "".join(json.dumps(record, ensure_ascii=i % 2 == 0) + "\n" for i, record in enumerate(RECORDS))
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=10)
    (tmp_path / "parts").mkdir()
    for start in reversed(range(0, 37, 4)):
        part = pyarrow.Table.from_pylist(RECORDS[start : start + 4])
        pyarrow.parquet.write_table(part, tmp_path / "parts" / f"{start:02d}.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "name"),
    [("jsonl", "a.jsonl"), ("jsonl", "a.jsonl.gz"), ("parquet", "a.parquet"), ("parquet", "parts")],
)
def test_every_format_gives_the_same_records(written, source, name):
    path = str(written / name)
    assert load_records(data(source=source, path=path)) == RECORDS
    assert load_records(data(source=source, path=path, num_pairs=12)) == RECORDS[:12]


def test_the_hub_gives_the_same_records(written, monkeypatch):
    import datasets

    asked = []

    def load_dataset(repository, config, *, split, revision, streaming):
        asked.append((repository, config, split, revision, streaming))
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_records(data(source="hub", path="a/b", revision="v1")) == RECORDS
    assert asked == [("a/b", None, "train", "v1", False)]


def test_an_unreachable_hub_is_told_in_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^data\.path: the data set a/b \(config default, split train.*no route"):
        load_records(data(source="hub", path="a/b"))


GOOD = json.dumps(RECORDS[0])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{bad", "not valid JSON"),
        (GOOD[:-4], "not valid JSON"),
        ("[1, 2]", "a JSON object was expected, this is a list"),
        (json.dumps({**RECORDS[0], "cronica": "  "}), "field 'cronica' is empty"),
        (json.dumps({**RECORDS[0], "stats_block": 3}), "field 'stats_block' is not text"),
        (json.dumps({**RECORDS[0], "cronica": "a\ud800"}), "half of a surrogate pair"),
        (json.dumps({"stats_block": "a", "cronica": "b"}), "field 'style_label' is missing"),
        (
            json.dumps({**RECORDS[0], "style_label": "x"}),
            "field 'style_label' is 'x'; the styles are rioplatense_apa",
        ),
    ],
)
@pytest.mark.parametrize("write", [lambda p, b: p.write_bytes(b), lambda p, b: p.write_bytes(gzip.compress(b))])
def test_a_malformed_line_is_named(tmp_path, line, fault, write):
    path = tmp_path / "bad.jsonl"
    write(path, f"{GOOD}\n\n{line}\n{GOOD}\n".encode())
    with pytest.raises(UserError) as caught:
        load_records(data(path=str(path)))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unusable_files_are_named(tmp_path):
    def message(**changes):
        with pytest.raises(UserError) as caught:
            load_records(data(**changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    bad = tmp_path / "bad"
    for source in ("jsonl", "parquet"):
        assert message(source=source, path=str(bad)) == f"data.path: {bad} does not exist"
        assert message(source=source, path=str(tmp_path)).startswith("data.path: ")
    bad.write_bytes(b"")
    assert message(path=str(bad)) == f"{bad}: holds no records"
    bad.write_bytes(f"{GOOD}\n".encode() + b'{"cronica": "\xff"}\n')
    assert message(path=str(bad)).startswith(f"{bad}, line 2: not UTF-8 (byte 14")
    zipped = gzip.compress("".join(f"{json.dumps(record)}\n" for record in RECORDS).encode())
    bad.write_bytes(zipped[:-20])
    assert message(path=str(bad)).startswith(f"{bad}, after line ")
    bad.write_bytes(zipped[:100] + bytes([zipped[100] ^ 255]) + zipped[101:])
    assert str(bad) in message(path=str(bad))
    assert message(source="parquet", path=str(bad)).startswith(f"{bad}: cannot be read as Parquet")
    pyarrow.parquet.write_table(pyarrow.table({"cronica": ["a"]}), bad)
    assert "no column 'stats_block'" in message(source="parquet", path=str(bad))
    rows = [RECORDS[0], {**RECORDS[1], "cronica": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), bad)
    assert message(source="parquet", path=str(bad)).startswith(f"{bad}, row 2: field 'cronica' is missing")


# Pairs


def test_pairs_are_the_rows_of_the_records(pairs, tokenizer):
    assert len(pairs) == len(RECORDS)
    assert pairs.tokens.dtype == np.uint16
    for index, record in enumerate(RECORDS):
        row, start = pairs.row(index), pairs.loss_starts[index]
        ids, first = tokens.encode_pair(tokenizer, record["stats_block"], record["style_label"], record["cronica"])
        assert row.tolist() == ids
        assert start == first


def test_pairs_do_not_depend_on_how_many_are_encoded_at_once(pairs, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr("zoo.tasks.cronica.pairs._AT_ONCE", 10)
    again = tokenise(RECORDS, tokenizer, progress=lambda done, total: seen.append((done, total)))
    assert again.fingerprint == pairs.fingerprint
    assert seen == [(10, 37), (20, 37), (30, 37), (37, 37)]


def test_fingerprint_sees_every_change(pairs, tokenizer):
    fingerprints = {pairs.fingerprint, tokenise(RECORDS[::-1], tokenizer).fingerprint}
    for field, value in (("stats_block", "a"), ("style_label", "comentario_tecnico"), ("cronica", "b")):
        changed = [*RECORDS[:-1], {**RECORDS[-1], field: value}]
        fingerprints.add(tokenise(changed, tokenizer).fingerprint)
    loss_starts = np.append(pairs.loss_starts[:-1], pairs.loss_starts[-1] + 1)
    fingerprints.add(dataclasses.replace(pairs, loss_starts=loss_starts).fingerprint)
    assert len(fingerprints) == 6


def test_no_records_are_refused(tokenizer):
    with pytest.raises(UserError, match="no records"):
        tokenise([], tokenizer)


def test_fit_counts_what_is_cut(pairs):
    lengths = np.array([len(pairs.row(i)) for i in range(len(pairs))])
    roomy = measure_fit(pairs, int(lengths.max()) - 1)
    assert (roomy.truncated, roomy.without_text, roomy.pairs) == (0, 0, 37)
    assert roomy.filled == pytest.approx(lengths.mean() / lengths.max())
    assert "truncated" not in str(roomy)
    assert measure_fit(pairs, int(lengths.max()) - 2).truncated == (lengths == lengths.max()).sum()
    middle = int(np.median(pairs.loss_starts))
    tight = measure_fit(pairs, middle)
    assert tight.without_text == (pairs.loss_starts > middle).sum() > 0
    assert f"{tight.truncated} truncated" in str(tight)
    with pytest.raises(UserError, match=r"data\.seq_len: 8 is too short"):
        measure_fit(pairs, 8)


# Batches


def loader(pairs, start_example=0, share=(0, 1), **changes):
    options = {"batch_size": 4, "seq_len": 200, "seed": 1}
    return training_batches(pairs, DataSection(**{**options, **changes}), start_example, share)


def test_batches_have_the_declared_shapes_and_types(pairs):
    batch = next(loader(pairs))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((4, 200), "int32"),
        "targets": ((4, 200), "int32"),
        "loss_mask": ((4, 200), "float32"),
    }
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


def test_the_mask_is_exactly_the_cronica_and_its_closing(pairs, tokenizer):
    texts = set()
    for batch in take(loader(pairs, seq_len=400), 10):
        for targets, mask in zip(batch["targets"], batch["loss_mask"], strict=True):
            learnt = targets[mask == 1].tolist()
            assert set(np.unique(mask)) == {0, 1}
            assert learnt[-2:] == [7, 2]
            texts.add(tokenizer.decode(learnt[:-2], skip_special=False))
    assert texts == {record["cronica"].strip() for record in RECORDS}


def test_rows_are_cut_and_padded_to_the_row_length(pairs):
    shortest, longest = int(pairs.lengths.min()), int(pairs.lengths.max())
    seq_len = (shortest + longest) // 2
    batches = take(loader(pairs, seq_len=seq_len, shuffle=False, batch_size=37), 1)
    cut = 0
    for index in range(len(pairs)):
        row = pairs.row(index)[: seq_len + 1].astype(int).tolist()
        cut += len(row) < len(pairs.row(index))
        length, start = len(row), pairs.loss_starts[index]
        row += [0] * (seq_len + 1 - length)
        assert batches[0]["tokens"][index].tolist() == row[:-1]
        assert batches[0]["targets"][index].tolist() == row[1:]
        expected = [float(start <= position < length) for position in range(1, seq_len + 1)]
        assert batches[0]["loss_mask"][index].tolist() == expected
    assert 0 < cut < len(pairs)


def row_ids(batches, pairs, seq_len):
    """Which pair each row is."""
    known = {}
    for index in range(len(pairs)):
        row = np.zeros(seq_len, np.int32)
        ids = pairs.row(index)[:seq_len]
        row[: len(ids)] = ids
        known[row.tobytes()] = index
    assert len(known) == len(pairs)
    return [known[np.ascontiguousarray(row).tobytes()] for batch in batches for row in batch["tokens"]]


def test_every_pair_once_an_epoch_in_a_new_order(pairs):
    # 37 pairs in batches of 5: batches reach over the border of epochs.
    order = row_ids(take(loader(pairs, batch_size=5, seq_len=300), 37), pairs, 300)
    epochs = [order[start : start + 37] for start in range(0, len(order), 37)]
    assert len(epochs) == 5
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 5
    other_seed = row_ids(take(loader(pairs, batch_size=37, seq_len=300, seed=2), 1), pairs, 300)
    assert sorted(other_seed) == list(range(37)) and other_seed not in epochs


def test_without_shuffling_the_order_is_that_of_the_records(pairs):
    order = row_ids(take(loader(pairs, batch_size=5, seq_len=300, shuffle=False), 15), pairs, 300)
    assert order == [*range(37), *range(37), 0]


@pytest.mark.parametrize("trim_to", [0, 16])
def test_going_on_from_any_example_gives_the_rest(pairs, trim_to):
    whole = take(loader(pairs, trim_to=trim_to), 24)  # more than two epochs
    for steps in (0, 1, 9, 10, 23):
        rest = take(loader(pairs, trim_to=trim_to, start_example=steps * 4), 24 - steps)
        assert_equal(rest, whole[steps:])
    far = next(loader(pairs, start_example=10**12))
    assert far["tokens"].shape == (4, 200)


def test_another_batch_size_goes_on_in_the_same_order(pairs):
    by_four = row_ids(take(loader(pairs, seq_len=300), 12), pairs, 300)
    by_three = row_ids(take(loader(pairs, seq_len=300, batch_size=3, start_example=12), 12), pairs, 300)
    assert by_three == by_four[12:]


@pytest.mark.parametrize("trim_to", [0, 16])
def test_two_processes_see_the_rows_of_one(pairs, trim_to):
    whole = take(loader(pairs, trim_to=trim_to), 12)
    shares = [take(loader(pairs, trim_to=trim_to, share=(i, 2)), 12) for i in (0, 1)]
    joined = [
        {name: np.concatenate([first[name], second[name]]) for name in first}
        for first, second in zip(*shares, strict=True)
    ]
    assert_equal(joined, whole)
    assert shares[0][0]["tokens"].shape[0] == 2
    with pytest.raises(UserError, match=r"data\.batch_size: 4 is not a multiple of the 3 processes"):
        loader(pairs, share=(0, 3))


@pytest.mark.parametrize("seq_len", [60, 200, 203])
def test_trimming_drops_nothing_that_bears_loss(pairs, seq_len):
    widths = set()
    for full, trimmed in zip(
        take(loader(pairs, seq_len=seq_len), 20),
        take(loader(pairs, seq_len=seq_len, trim_to=16), 20),
        strict=True,
    ):
        width = trimmed["tokens"].shape[1]
        widths.add(width)
        needed = np.flatnonzero(full["loss_mask"].any(axis=0)).max() + 1
        assert width == min(seq_len, -(-needed // 16) * 16)
        for name in full:
            np.testing.assert_array_equal(trimmed[name], full[name][:, :width])
        assert not full["loss_mask"][:, width:].any()
    assert len(widths) > 1 or seq_len == 60


def test_a_row_without_loss_does_not_widen_its_batch(tokenizer):
    long_block = {**RECORDS[0], "stats_block": "Pérez " * 900}
    pairs = tokenise([RECORDS[0], long_block], tokenizer)
    batch = next(loader(pairs, batch_size=2, seq_len=400, trim_to=1, shuffle=False))
    assert pairs.loss_starts[1] > 400
    assert batch["tokens"].shape == (2, len(pairs.row(0)) - 1)
    assert batch["loss_mask"].sum(axis=1).tolist() == [pairs.lengths[0] - pairs.loss_starts[0], 0]


def test_evaluation_takes_every_pair_once(pairs):
    batches = list(heldout_batches(pairs, DataSection(seq_len=300), 5))
    assert [batch["tokens"].shape for batch in batches] == [(5, 300)] * 8
    whole = take(loader(pairs, batch_size=37, seq_len=300, shuffle=False), 1)[0]
    for name, array in whole.items():
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined[:37], array)
        assert not joined[37:].any()
        assert joined.dtype == array.dtype
