"""Rows, their order and batches of texts: packing, masks, mixtures, and that a position is a number."""

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import packing as packing_module
from zoo.data import shards as shards_module
from zoo.data import stories
from zoo.data.inspect import Report, filled, show_row
from zoo.data.order import Order, permute, scatter, scatter_one
from zoo.data.packing import best_fit, make_layout
from zoo.data.rows import PackedSource, Rows
from zoo.data.shards import Manifest, Shards, write_shard
from zoo.data.text import TextData
from zoo.data.tokenizer import resolve_tokenizer
from zoo.errors import UserError
from zoo.recipe import make_recipe
from zoo.tokenizers import load

DATA = Path(__file__).parent / "data"
TOKENIZER = load(DATA / "small.tiktoken")
PACKINGS = ["concat", "best_fit", "document", "windows"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 1500)


# Shards in which every token says where it stands: document * 1000 + place


def numbered(directory, lengths, loss=None):
    """Shards of documents of these lengths, three documents a shard; `loss(document, place)` says what bears loss."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for number, start in enumerate(range(0, len(lengths), 3)):
        some = list(enumerate(lengths))[start : start + 3]
        places = [(document, place) for document, length in some for place in range(length)]
        tokens = np.array([document * 1000 + place for document, place in places], np.uint32)
        mask = None if loss is None else np.array([loss(*place) for place in places], np.uint8)
        sizes = np.array([length for _, length in some])
        written.append(write_shard(directory, number, tokens, sizes, mask, 0))
    Manifest({}, "x", 10**6, loss is not None, 1, tuple(written), exhausted=True).write(directory)
    return Shards(directory)


def packed(shards, packing, seq_len, *, mask, first=0, seed=0):
    last = shards.manifest.documents
    layout = make_layout(packing, shards, first, last, seq_len, split=mask, seed=seed)
    return PackedSource("x", shards, first, last, layout, 1.0)


def one_epoch(source, rows, limit=400):
    number = min(len(source.layout), limit)
    return rows.assemble([(source, row) for row in range(number)])


lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_strategy,
    seq_len=st.integers(1, 25),
    packing=st.sampled_from(PACKINGS),
    restart=st.booleans(),
    chat=st.booleans(),
)
def test_nothing_crosses_a_document(tmp_path_factory, lengths, seq_len, packing, restart, chat):
    loss = (lambda document, place: (document + place) % 3 == 0) if chat else None
    shards = numbered(tmp_path_factory.mktemp("s"), lengths, loss)
    if packing in ("concat", "windows") and sum(lengths) <= seq_len:
        with pytest.raises(UserError, match=r"make no row of \d+"):
            packed(shards, packing, seq_len, mask=True)
        return
    source = packed(shards, packing, seq_len, mask=True)
    batch = one_epoch(source, Rows(seq_len, document_mask=True, restart_positions=restart, pad_id=999_999))
    tokens, targets, mask = batch["tokens"], batch["targets"], batch["loss_mask"] == 1
    segments, positions = batch["segment_ids"], batch["positions"]
    real = segments > 0
    assert (tokens[~real] == 999_999).all()
    for r in range(len(tokens)):
        for segment in set(segments[r][real[r]].tolist()):
            inside = segments[r] == segment
            # One document, its tokens next to each other and in their order.
            assert len(set((tokens[r][inside] // 1000).tolist())) == 1
            assert (np.diff(tokens[r][inside]) == 1).all() and (np.diff(np.flatnonzero(inside)) == 1).all()
            if restart:
                assert positions[r][inside].tolist() == list(range(inside.sum()))
        if not restart:
            assert positions[r].tolist() == list(range(seq_len))
    # A target is the next token of the same document, and bears loss unless the chat says it does not.
    assert (targets[mask] == tokens[mask] + 1).all()
    assert not mask[~real].any()
    learnable = (targets == tokens + 1) & real
    if chat:
        learnable &= ((targets // 1000 + targets % 1000) % 3) == 0
    np.testing.assert_array_equal(mask, learnable)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_strategy, seq_len=st.integers(1, 25))
def test_each_packing_holds_what_it_says(tmp_path_factory, lengths, seq_len):
    shards = numbered(tmp_path_factory.mktemp("s"), lengths)
    total = sum(lengths)
    all_tokens = [d * 1000 + p for d, length in enumerate(lengths) for p in range(length)]
    rows = Rows(seq_len, pad_id=999_999)
    if total > seq_len:
        # Joined: the whole row of tokens, each a target exactly once, but for the first and what is left over.
        number = (total - 1) // seq_len
        batch = one_epoch(packed(shards, "concat", seq_len, mask=False), rows, limit=number)
        assert batch["tokens"].ravel().tolist() == all_tokens[: number * seq_len]
        assert batch["targets"].ravel().tolist() == all_tokens[1 : number * seq_len + 1]
        assert batch["loss_mask"].all()
        # Windows: somewhere in it.
        batch = one_epoch(packed(shards, "windows", seq_len, mask=False), rows, limit=20)
        index = {token: i for i, token in enumerate(all_tokens)}
        for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            start = index[tokens[0]]
            assert [*tokens, targets[-1]] == all_tokens[start : start + seq_len + 1]
        assert batch["loss_mask"].all()
    for packing in ("document", "best_fit"):
        source = packed(shards, packing, seq_len, mask=False)
        spans = [source.layout.spans(row) for row in range(len(source.layout))]
        starts = sorted(start for row in spans for start, _ in row)
        assert starts == shards.offsets[:-1].tolist()  # every document once, from its beginning
        for row in spans:
            assert sum(stop - start for start, stop in row) <= seq_len + 1
            for start, stop in row:
                length = lengths[int(np.searchsorted(shards.offsets, start, side="right")) - 1]
                assert stop - start == min(length, seq_len + 1)
        batch = rows.assemble([(source, row) for row in range(len(spans))])
        assert (batch["tokens"][:, 0] % 1000 == 0).all()
        assert int(batch["loss_mask"].sum()) == sum(sum(b - a for a, b in row) - 1 for row in spans)


def test_best_fit_takes_the_longest_that_fits():
    order, rows = best_fit(np.array([6, 3, 4, 2, 5, 1]), 8)
    packed_rows = [order[a:b].tolist() for a, b in itertools.pairwise(rows)]
    assert packed_rows == [[0, 3], [1, 4], [2, 5]]


def test_best_fit_fills_rows_and_nothing_waits_for_ever(monkeypatch):
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1, 20_000).astype(int) + 1, 1025)
    order, rows = best_fit(lengths, 1025)
    assert sorted(order.tolist()) == list(range(20_000))
    assert lengths.sum() / ((len(rows) - 1) * 1025) > 0.97
    place = np.empty(20_000, int)
    place[order] = np.arange(20_000)
    assert (place - np.arange(20_000)).max() < 3 * packing_module._BUFFER


def test_the_index_of_rows_is_kept_and_a_damaged_one_made_anew(tmp_path, monkeypatch):
    lengths = np.random.default_rng(1).integers(1, 200, 10_000)
    made = packing_module.cached_best_fit(tmp_path, lengths, 500)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(packing_module, "best_fit", lambda *_: pytest.fail("made anew"))
    kept = packing_module.cached_best_fit(tmp_path, lengths, 500)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:1000])
    anew = packing_module.cached_best_fit(tmp_path, lengths, 500)
    for other in (kept, anew):
        for one, two in zip(made, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_rows_of_documents_are_trimmed_to_their_targets(tmp_path):
    source = packed(numbered(tmp_path, [3, 9, 30]), "document", 20, mask=False)
    rows = Rows(20, trim_to=4)
    assert rows.assemble([(source, 0)])["tokens"].shape == (1, 4)
    assert rows.assemble([(source, 0), (source, 1)])["tokens"].shape == (2, 8)
    assert rows.assemble([(source, 2)])["tokens"].shape == (1, 20)
    # A process that builds one row of a batch has the whole batch's width.
    assert rows.assemble([(source, 0), (source, 2)], slice(0, 1))["tokens"].shape == (1, 20)


# The order


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**62))
def test_a_permutation_is_one(size, key):
    keys = np.full(size, key, np.uint64)
    found = permute(np.arange(size), size, keys)
    assert sorted(found.tolist()) == list(range(size))


def test_permutations_are_shuffles():
    keys = scatter(np.arange(200), 1)
    first = np.concatenate([permute(np.array([0]), 100, keys[i : i + 1]) for i in range(200)])
    counts = np.bincount(first // 10, minlength=10)
    assert counts.min() > 5 and counts.max() < 40
    assert len({tuple(permute(np.arange(100), 100, np.full(100, k)).tolist()) for k in keys[:20]}) == 20


def test_the_order_is_the_same_for_ever():
    # Runs go on in the order they began with.
    assert scatter(np.array([1, 2, 3]), 7).tolist() == [scatter_one(i, 7) for i in (1, 2, 3)]
    assert scatter_one(1, 7) == 9648886400068060533
    source, row = Order([10, 5], [2.0, 1.0], seed=3).lookup(np.arange(9))
    assert source.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert row.tolist() == FROZEN_ROWS


FROZEN_ROWS = [8, 3, 0, 7, 2, 3, 6, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    start=st.one_of(st.integers(0, 5000), st.integers(0, 2**38)),
)
def test_mixtures_are_exact_in_proportion_from_any_number(weights, start):
    order = Order([37 + 11 * i for i in range(len(weights))], weights, seed=1)
    source, row = order.lookup(np.arange(start, start + 600))
    counts = np.bincount(source, minlength=len(weights))
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - 600 * weight / sum(weights)) <= 2 * len(weights)
    for i in range(0, 600, 97):  # an example is what it is, looked up alone or among others
        one_source, one_row = order.lookup(np.array([start + i]))
        assert (one_source[0], one_row[0]) == (source[i], row[i])


def test_every_row_once_an_epoch_over_all_indices():
    order = Order([100, 37, 8], [0.7, 0.2, 0.1], seed=5)
    source, row = order.lookup(np.arange(5000))
    for index, size in enumerate(order.rows):
        mine = row[source == index]
        epochs = [mine[start : start + size].tolist() for start in range(0, len(mine) - size + 1, size)]
        assert len(epochs) >= 4
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs)


def test_without_shuffling_rows_come_in_order():
    _, row = Order([5], [1.0], seed=0, shuffle=False).lookup(np.arange(12))
    assert row.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_epochs_are_exact():
    """Weights of rows x epochs: after the sum of them, each source was seen exactly so often."""
    rows, epochs = [100, 60], [1.0, 2.0]
    order = Order(rows, [n * e for n, e in zip(rows, epochs, strict=True)], seed=0)
    source, row = order.lookup(np.arange(220))
    assert Counter(source.tolist()) == {0: 100, 1: 120}
    assert set(Counter(row[source == 1].tolist()).values()) == {2}


# Whole recipes


def recipe(tmp_path, **changes):
    data = {
        "kind": "text",
        "sources": [
            {"source": "jsonl", "path": str(DATA / "stories.jsonl"), "weight": 0.25},
            {"source": "stories", "weight": 0.75},
        ],
        "seq_len": 24,
        "batch_size": 8,
        "prepared_dir": str(tmp_path / "prepared"),
        "workers": 1,
    }
    content = {
        "name": "x",
        "model": {"name": "cronica-5m", "vocab_size": 400},
        "tokenizer": {"path": str(DATA / "small.tiktoken")},
        "train": {"steps": 40},
        "optimizer": {"warmup_steps": 1},
        "eval": {"num_pairs": 5},
    }
    data |= changes.pop("data", {})
    return make_recipe(content | changes | {"data": {k: v for k, v in data.items() if v is not None}})


def text_data(tmp_path, config=None, **changes):
    made, tokenizer = resolve_tokenizer(recipe(tmp_path, **changes), None, say=lambda text: None)
    return TextData.load(made, tokenizer, config or SimpleNamespace(), say=lambda text: None), made


def take(batches, number):
    return list(itertools.islice(batches, number))


def digest(batches):
    """Of a global batch, put together from what each process built."""
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    state = hashlib.sha256()
    for name in sorted(joined):
        state.update(name.encode() + repr(joined[name].shape).encode() + joined[name].tobytes())
    return state.hexdigest()


def run(data, start, steps, processes, batch_size=8):
    """Digests of the global batches of some steps, built by so many processes."""
    shares = [
        take(
            data.batches(batch_size, start_example=start * batch_size, process_index=i, process_count=processes),
            steps,
        )
        for i in range(processes)
    ]
    return [digest(batches) for batches in zip(*shares, strict=True)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_stopped_on_four_processes_it_goes_on_on_two_and_on_one(tmp_path, packing):
    changes = {"data": {"packing": packing, "document_mask": True}}
    data, _ = text_data(tmp_path, **changes)
    whole = run(data, 0, 30, 1)
    assert len(set(whole)) == 30
    stopped = 13
    assert run(data, 0, stopped, 4) == whole[:stopped]
    again, _ = text_data(tmp_path, **changes)  # as a new process loads it
    assert again.fingerprint == data.fingerprint
    assert run(again, stopped, 30 - stopped, 2) == whole[stopped:]
    assert run(again, stopped, 30 - stopped, 1) == whole[stopped:]
    for step in range(30):
        assert run(again, step, 1, 8) == whole[step : step + 1]


def test_more_steps_change_nothing_of_those_before(tmp_path):
    short, made = text_data(tmp_path, train={"steps": 20})
    long_recipe = recipe(tmp_path, train={"steps": 400})
    kept = TextData.load(long_recipe.with_resolved_from(made), TOKENIZER, SimpleNamespace(), say=lambda text: None)
    assert kept.fingerprint == short.fingerprint
    fresh, _ = text_data(tmp_path, train={"steps": 400})
    assert fresh.fingerprint != short.fingerprint
    # That much more has been prepared since is nothing to a run that began with less.
    again = TextData.load(long_recipe.with_resolved_from(made), TOKENIZER, SimpleNamespace(), say=lambda text: None)
    assert again.fingerprint == short.fingerprint
    assert run(again, 0, 5, 1) == run(short, 0, 5, 1)


def test_no_document_is_skipped_or_seen_twice_in_an_epoch(tmp_path):
    data, _ = text_data(tmp_path, data={"packing": "best_fit", "sources": None, "source": "stories"})
    layout = data.sources[0].layout
    examples = data.examples(np.arange(len(layout)))
    starts = [start for source, row in examples for start, _ in source.layout.spans(row)]
    assert sorted(starts) == data.sources[0].shards.offsets[: data.sources[0].last].tolist()
    # Any stop leaves a beginning, and what comes is the rest.
    for cut in range(0, len(layout), 7):
        assert examples[:cut] + data.examples(np.arange(cut, len(layout))) == examples


def test_the_fingerprint_sees_what_decides_the_batches(tmp_path):
    base, _ = text_data(tmp_path)
    seen = {base.fingerprint}
    for change in (
        {"seed": 1},
        {"packing": "best_fit"},
        {"seq_len": 25},
        {"document_mask": True},
        {"shuffle": False},
        {"sources": [{"source": "stories"}]},
        {"max_tokens": 3000},
    ):
        seen.add(text_data(tmp_path, data=change)[0].fingerprint)
    seen.add(text_data(tmp_path, tokenizer={"path": str(DATA / "small.model")})[0].fingerprint)
    assert len(seen) == 9
    assert text_data(tmp_path, data={"workers": 2, "max_bad_records": 3})[0].fingerprint == base.fingerprint


def test_held_out_documents_are_not_trained_on(tmp_path):
    section = {"sources": None, "source": "jsonl", "path": str(DATA / "stories.jsonl")}
    data, _ = text_data(tmp_path, data=section, eval={"num_pairs": 2})
    assert data.heldout.last == data.sources[0].first > 0
    trained = {start for row in range(len(data.sources[0].layout)) for start, _ in data.sources[0].layout.spans(row)}
    assert min(trained) >= data.sources[0].shards.offsets[data.heldout.last]
    with pytest.raises(UserError, match=r"^eval\.num_pairs: 64 rows"):
        path = tmp_path / "two.jsonl"
        path.write_text('{"text": "one two three four five six seven eight nine ten"}\n')
        text_data(tmp_path, data={**section, "path": str(path), "seq_len": 4}, eval={"num_pairs": 64})


def lines(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"sources": None, "source": "jsonl", "path": str(path)}


def test_the_held_out_part_is_named_where_it_is_what_is_too_small(tmp_path):
    forty = lines(tmp_path / "forty.jsonl", *["one two three"] * 40)
    assert len(text_data(tmp_path, data={**forty, "seq_len": 50}, eval={"num_pairs": 0})[0].sources[0].layout) >= 4
    words = r"^eval\.num_pairs: 2 rows are to be held out of .*forty.*has \d+ tokens, which make no row of .*seq_len 50"
    with pytest.raises(UserError, match=words):
        text_data(tmp_path, data={**forty, "seq_len": 50}, eval={"num_pairs": 2})
    # What is too small is what is left, or a source of its own.
    two = lines(tmp_path / "two.jsonl", "one two three " * 50, "four")
    with pytest.raises(UserError, match=r"^data: \d+ tokens make no row of 50, since the first ones are held out"):
        text_data(tmp_path, data={**two, "seq_len": 50}, eval={"num_pairs": 2})
    validation = {"source": "jsonl", "path": lines(tmp_path / "one.jsonl", "one two")["path"]}
    with pytest.raises(UserError, match=r"^data\.validation: the \d+ tokens of .*one\.jsonl make no row"):
        text_data(tmp_path, data={"validation": validation}, eval={"num_pairs": 2})
    with pytest.raises(UserError, match=r"^data\.sources\.1: \d+ tokens make no row of 24; give more"):
        few = {"source": "jsonl", "path": validation["path"], "weight": 1.0}
        text_data(tmp_path, data={"sources": [{"source": "stories", "weight": 1.0}, few]}, eval={"num_pairs": 0})


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_document_is_enough_to_hold_rows_out_of(tmp_path, packing):
    section = lines(tmp_path / "a.jsonl", " ".join(stories.generate(40))) | {"packing": packing, "seq_len": 16}
    data, _ = text_data(tmp_path, data=section, eval={"num_pairs": 3})
    whole = data.heldout.shards
    assert whole.manifest.documents == 1 and data.sources[0].shards is whole
    # The document's beginning is held out, as much as the rows need; training sees the rest alone.
    (begin, cut), end = whole.offsets[:2].tolist(), int(whole.offsets[2])
    assert (begin, cut) == (
        0,
        17 if packing in ("document", "best_fit") else 3 * 17 + 1,
    ) and end == whole.manifest.tokens
    held = [data.heldout.layout.spans(row) for row in range(len(data.heldout.layout))]
    assert len(held) == (1 if packing in ("document", "best_fit") else 3)
    assert max(stop for spans in held for _, stop in spans) <= cut
    trained = [data.sources[0].layout.spans(row) for row in range(min(50, len(data.sources[0].layout)))]
    assert min(start for spans in trained for start, _ in spans) >= cut
    first = whole.document(0)
    assert [*first, *whole.document(1)] == Shards(whole.directory).document(0).tolist()
    assert data.first_tokens(5) == first[:5].tolist()
    # Where it is cut decides what is trained on.
    other, _ = text_data(tmp_path, data=section, eval={"num_pairs": 2})
    assert (other.fingerprint == data.fingerprint) == (packing in ("document", "best_fit"))
    assert data.fingerprint == text_data(tmp_path, data=section, eval={"num_pairs": 3})[0].fingerprint


def test_a_tenth_of_one_document_is_the_most_that_is_held_out(tmp_path):
    section = lines(tmp_path / "a.jsonl", " ".join(stories.generate(10)))
    data, _ = text_data(tmp_path, data=section, eval={"num_pairs": 1000})
    assert data.heldout.tokens == data.heldout.shards.manifest.tokens // 10
    section = {"kind": "chat", "sources": None, "source": "jsonl", "path": str(DATA / "chat.jsonl"), "num_documents": 1}
    with pytest.raises(UserError, match=r"^eval\.num_pairs: .* one conversation alone; set data\.validation"):
        text_data(tmp_path, data=section, eval={"num_pairs": 2})


def test_stories_are_evaluated_on_their_held_out_split(tmp_path):
    data, _ = text_data(tmp_path, data={"sources": None, "source": "stories"})
    assert data.sources[0].first == 0
    text = TOKENIZER.decode(data.heldout.shards.document(0))
    assert text == stories.story(0, split="heldout")
    batches = list(data.heldout_batches(4))
    assert [batch["tokens"].shape for batch in batches] == [(4, 24), (4, 24)]
    assert batches[1]["loss_mask"].sum(axis=1).tolist() == [24, 0, 0, 0]
    assert (tmp_path / "prepared").is_dir()


def test_a_validation_source_is_read_once_in_order(tmp_path):
    validation = {"source": "jsonl", "path": str(DATA / "stories.jsonl"), "num_documents": 3}
    data, _ = text_data(tmp_path, data={"validation": validation}, eval={"num_pairs": 1000})
    assert data.heldout.last == 3 and data.sources[0].first == 0
    tokens = np.concatenate([b["tokens"][b["loss_mask"].any(1)].ravel() for b in data.heldout_batches(8)])
    wanted = np.concatenate([data.heldout.shards.document(i) for i in range(3)])
    np.testing.assert_array_equal(tokens, wanted[: len(tokens)])


def test_no_held_out_rows_where_none_are_asked_for(tmp_path):
    data, _ = text_data(tmp_path, eval={"num_pairs": 0})
    assert data.heldout is None and list(data.heldout_batches(4)) == []
    assert data.first_tokens(3) == data.sources[0].shards.document(0)[:3].tolist()


def test_the_model_decides_whether_positions_begin_anew(tmp_path):
    changes = {"data": {"document_mask": True, "packing": "best_fit", "seq_len": 700}}
    restart = next(text_data(tmp_path, **changes)[0].batches(8))
    through = next(text_data(tmp_path, SimpleNamespace(restart_positions=False), **changes)[0].batches(8))
    assert (through["positions"] == np.arange(700)).all()
    assert not (restart["positions"] == np.arange(700)).all()
    np.testing.assert_array_equal(restart["segment_ids"], through["segment_ids"])


def test_a_budget_is_shared_out_by_weight(tmp_path):
    data, made = text_data(tmp_path, eval={"num_pairs": 0})
    budget = 40 * 8 * 24
    assert made.data.max_tokens == budget
    for source, share in zip(data.sources, (0.25, 0.75), strict=True):
        assert budget * share <= source.tokens or source.shards.manifest.exhausted
        assert source.tokens < budget * share + 400
    assert "25.0%" in str(data) and "concat" in str(data)
    assert data.epochs(320) >= 0.9


def test_chats_are_rows_with_loss_on_the_assistant_alone(tmp_path):
    section = {"kind": "chat", "sources": None, "source": "jsonl", "path": str(DATA / "chat.jsonl"), "seq_len": 120}
    data, _ = text_data(tmp_path, data=section, eval={"num_pairs": 0}, model={"name": "cronica-5m", "vocab_size": 400})
    batch = data.rows.assemble([(data.sources[0], row) for row in range(3)])
    learnt = [TOKENIZER.decode(t[m == 1]) for t, m in zip(batch["targets"], batch["loss_mask"], strict=True)]
    assert learnt[1] == "Why did the duck cross the road?To get to the other side.\n<|end|>"
    padding = filled(batch) == 0
    assert (batch["tokens"][padding] == TOKENIZER.eos_id).mean() > 0.9


def talks(path, *words):
    """Conversations whose prompts have so many words."""
    talk = [[{"role": "user", "content": "so " * n}, {"role": "assistant", "content": f"answer {n}"}] for n in words]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talk))
    return {"kind": "chat", "sources": None, "source": "jsonl", "path": str(path), "seq_len": 48}


@pytest.mark.parametrize(("packing", "mask"), [("document", False), ("best_fit", False), ("best_fit", True)])
def test_rows_without_a_target_are_left_out_and_counted(tmp_path, packing, mask):
    words = [1, 90, 2, 91, 3, 92, 4, 93, 5, 94]
    section = talks(tmp_path / "chat.jsonl", *words) | {"packing": packing, "document_mask": mask}
    made, tokenizer = resolve_tokenizer(recipe(tmp_path, data=section, eval={"num_pairs": 0}), None, say=print)
    said = []
    data = TextData.load(made, tokenizer, SimpleNamespace(), say=said.append)
    source = data.sources[0]
    batch = data.rows.assemble([(source, row) for row in range(len(source.layout))])
    assert (batch["loss_mask"].sum(1) > 0).all()
    # All that bears loss in some row is still there, once.
    learnt = " ".join(TOKENIZER.decode(t[m == 1]) for t, m in zip(batch["targets"], batch["loss_mask"], strict=True))
    assert [learnt.count(f"answer {n}") for n in words] == [1, 0] * 5
    number = len(make_layout(packing, source.shards, 0, 10, 48, split=mask, seed=0))
    assert number - len(source.layout) == 5
    assert (
        said[-1]
        == f"{section['path']}: 5 of {number} rows are left out: no token in their 48 bears loss (data.seq_len)"
    )
    # Every example is such a row, in every epoch.
    assert all(b["loss_mask"].any(1).all() for b in take(data.batches(4), 8))
    assert data.order.rows == [len(source.layout)]


def test_where_no_row_has_a_target_the_run_is_refused(tmp_path):
    full = talks(tmp_path / "full.jsonl", *range(90, 110))
    with pytest.raises(
        UserError, match=r"full\.jsonl: in none of its 20 rows of data\.seq_len 48 does a token bear loss"
    ):
        text_data(tmp_path, data=full, eval={"num_pairs": 0})
    # Of the held-out rows too: a loss over no target would be none.
    good = talks(tmp_path / "good.jsonl", *range(1, 9)) | {"validation": {"source": "jsonl", "path": full["path"]}}
    with pytest.raises(UserError, match=r"full\.jsonl \(held out\): in none of its \d+ rows"):
        text_data(tmp_path, data=good, eval={"num_pairs": 4})
    # Turns that are not to be learnt are no targets.
    path = tmp_path / "weights.jsonl"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    path.write_text(json.dumps({"messages": talk}) + "\n")
    with pytest.raises(UserError, match=r"in none of its 1 rows"):
        text_data(tmp_path, data=full | {"path": str(path)}, eval={"num_pairs": 0})


def test_texts_keep_all_their_rows(tmp_path):
    data, _ = text_data(tmp_path)
    assert all(not isinstance(source.layout, packing_module.Chosen) for source in data.sources)


def test_a_row_that_is_full_of_prompt_is_no_padding():
    batch = {"loss_mask": np.zeros((2, 6), np.float32), "tokens": np.ones((2, 6), np.int32)}
    batch["loss_mask"][1, 2:4] = 1
    assert filled(batch).tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    report, _ = Report.measure(iter([batch]), 1)
    assert report.tokens == 10 and "83.3% tokens, 16.7% padding, 16.7% with loss" in str(report)


def test_processes_must_share_the_rows_out(tmp_path):
    data, _ = text_data(tmp_path)
    with pytest.raises(UserError, match=r"data\.batch_size: 8 is not a multiple of the 3 processes"):
        data.batches(8, process_count=3)


# Looking at batches


def test_a_report_counts_what_batches_hold(tmp_path):
    data, _ = text_data(tmp_path, data={"packing": "best_fit", "document_mask": True})
    report, first = Report.measure(data.batches(8), 5)
    batches = take(data.batches(8), 5)
    assert report.positions == 5 * 8 * 24
    assert report.tokens == sum(int((b["segment_ids"] > 0).sum()) for b in batches)
    assert report.targets == sum(int(b["loss_mask"].sum()) for b in batches)
    assert report.lengths.sum() == report.tokens
    np.testing.assert_array_equal(first["tokens"], batches[0]["tokens"])
    assert "5 batches" in str(report) and "padding" in str(report) and "tokens/s" in str(report)


@pytest.mark.parametrize("mask", [True, False])
def test_a_row_is_shown_as_its_text(tmp_path, mask):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one two", "three")))
    section = {"sources": None, "source": "jsonl", "path": str(path), "packing": "best_fit", "document_mask": mask}
    data, _ = text_data(tmp_path, data=section, eval={"num_pairs": 0})
    batch = next(data.batches(1))
    plain = show_row(batch, 0, TOKENIZER, colour=False)
    text = plain.split(" (")[0].replace("[[", "").replace("]]", "").replace("|one", "one").replace("|three", "three")
    assert "one two<|endoftext|>" in text and "three<|endoftext|>" in text
    assert plain.endswith("padding)")
    assert plain.count("[[") == (2 if mask else 1)  # the first token of each document is no target
    assert "\033[" in show_row(batch, 0, TOKENIZER, colour=True)
