"""Loss on texts, the card's own protocol and paired comparison: against sums written out by hand."""

import gzip
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import TINY, tiny

from zoo import registry
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.evaluate import kodalite_card as card
from zoo.evaluate import measures, tables, verification
from zoo.evaluate.compare import compare, read
from zoo.evaluate.local_data import HubData, records
from zoo.evaluate.perplexity import of_texts, wikitext
from zoo.evaluate.scoring import Row, Scored, Scorer, windows
from zoo.language_model import LanguageModel
from zoo.tokenizers.characters import CharacterTokenizer

LETTERS = "\nabcdefghijklmnopqrstuvwxyz .,?:QA_="
HELD = 16  # tokens a row of the model here


class Beginning(CharacterTokenizer):
    """Characters, with a BOS and an EOS that no text holds."""

    def __init__(self):
        super().__init__(LETTERS)
        self.bos_id, self.eos_id = len(LETTERS), len(LETTERS) + 1

    @property
    def vocab_size(self):
        return len(LETTERS) + 2

    def encode_batch(self, texts, *, add_special=False):
        start = [self.bos_id] if add_special else []
        return [start + ids for ids in super().encode_batch(texts)]


def model_of(tokenizer, seed=0, held=HELD):
    graphdef, params, config = tiny("llama", seed, max_seq_len=held, num_layers=1)
    return LanguageModel(nnx.merge(graphdef, params), tokenizer, registry.describe(TINY["llama"][0]), config)


@pytest.fixture(scope="module")
def lm():
    return model_of(CharacterTokenizer(LETTERS))


def logits_of(lm, ids):
    """Of the model's plain call; rows are filled up (the model is causal) to one length, that compiles once."""
    filled = [*ids, *[0] * (lm.config.max_seq_len - len(ids))]
    return np.asarray(lm.logits(filled), np.float64)[: len(ids)]


def logprobs_of(lm, ids):
    """Of each of `ids` after the first."""
    logits = logits_of(lm, ids[:-1])
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(ids) - 1), ids[1:]]


def test_rows_are_scored_as_the_model_says(lm):
    rng = np.random.default_rng(0)
    rows = [
        Row(tuple(rng.integers(0, 40, length).tolist()), int(scored))
        for length, scored in [(2, 1), (17, 16), (9, 3), (9, 8), (17, 1), (5, 0), (1, 0), (12, 4)]
    ]
    rows += [Row((*rows[2].tokens[:-1], 7), 2), Row((*rows[2].tokens[:-1], 8), 1)]  # equal inputs, another end
    seen = []
    found = Scorer(lm.computing, batch_size=3).score(rows, on_progress=lambda *at: seen.append(at))
    for row, scored in zip(rows, found, strict=True):
        wanted = logprobs_of(lm, row.tokens)[len(row.tokens) - 1 - row.scored :] if row.scored else []
        assert scored.logprob == pytest.approx(sum(wanted), abs=1e-4)
        best = logits_of(lm, row.tokens[:-1]).argmax(-1) if row.scored else None
        assert scored.greedy == (not row.scored or bool((best[-row.scored :] == row.tokens[-row.scored :]).all()))
    assert seen[0] == (2, len(rows)) and seen[-1] == (len(rows), len(rows))
    assert Scorer(lm.computing).score([]) == []
    alone = np.asarray(jax.nn.log_softmax(lm.logits(rows[3].tokens[:-1])))  # not filled up
    assert found[3].logprob == pytest.approx(alone[np.arange(8), rows[3].tokens[1:]].sum(), abs=1e-4)
    with pytest.raises(UserError, match="17 tokens"):
        Scorer(lm.computing).score([Row((1,) * 18, 1)])
    with pytest.raises(UserError, match="vocabulary"):
        Scorer(lm.computing).score([Row((1, 40), 1)])


def test_few_programs_are_compiled(lm):
    from zoo.evaluate import scoring

    rng = np.random.default_rng(1)
    scorer = Scorer(lm.computing, batch_size=4)
    scorer.score([Row(tuple(rng.integers(0, 40, 17).tolist()), 1) for _ in range(4)])
    before = scoring._logprobs._cache_size()
    # 40 rows of many lengths and counts: all of one width here, as are batches that are not full.
    rows = [Row(tuple(rng.integers(0, 40, length).tolist()), length // 2) for length in range(2, 18) for _ in range(3)]
    scorer.score(rows)
    assert scoring._logprobs._cache_size() == before


def test_windows_are_the_harness_ones():
    utils = pytest.importorskip("lm_eval.utils")
    for length in (0, 1, 5, 6, 7, 12, 13, 29):
        tokens = list(range(100, 100 + length))
        wanted = [
            (tuple([*inputs, targets[-1]]), len(targets))
            for inputs, targets in utils.get_rolling_token_windows(tokens, 7, 6, 1)
        ]
        assert [(row.tokens, row.scored) for row in windows(tokens, 7, 6)] == wanted


def test_loss_on_texts_by_hand():
    lm = model_of(Beginning())
    texts = ["the sea", "a ship on the sea, and a cat on the ship", "x"]
    result = of_texts(lm, texts, batch_size=2)
    task = result["tasks"]["texts"]
    nats = []
    for text in texts:
        ids = lm.tokenizer.encode(text, add_special=True)
        total = 0.0
        for begin in range(0, len(ids) - 1, HELD):  # the last window reaches back
            end = min(begin + HELD, len(ids) - 1)
            row = ids[max(0, end - HELD) : end + 1]
            total -= logprobs_of(lm, row)[-(end - begin) :].sum()
        nats.append(total)
    sizes = [len(text) for text in texts]
    found = {name: one["value"] for name, one in task["metrics"].items()}
    assert found["nats_per_token"] == pytest.approx(sum(nats) / sum(sizes), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    assert (task["tokens"], task["bytes"], task["texts"], task["tokens_left_out"]) == (sum(sizes), sum(sizes), 3, 0)
    rate = found["nats_per_token"]
    spread = sum((nat - rate * size) ** 2 for nat, size in zip(nats, sizes, strict=True))
    assert task["metrics"]["nats_per_token"]["stderr"] == pytest.approx((spread * 3 / 2) ** 0.5 / sum(sizes), rel=1e-4)
    assert result["settings"]["begins_with"] == lm.tokenizer.bos_id


def test_loss_on_one_text_and_on_none(lm):
    one = of_texts(lm, ["the sea and the ship and the cat and the shore of it all"])["tasks"]["texts"]
    assert (
        one["n"] == 4 and one["texts"] == 1 and set(one["metrics"]) == {"nats_per_token", "bits_per_byte", "perplexity"}
    )
    loss, bits = one["metrics"]["nats_per_token"], one["metrics"]["bits_per_byte"]
    assert bits["value"] == pytest.approx(loss["value"] / math.log(2))
    assert loss["stderr"] > 0 and bits["stderr"] == pytest.approx(loss["stderr"] / math.log(2))
    with pytest.raises(UserError, match="no text"):
        of_texts(lm, [""])
    # Without anything to stand before a text its first token is not predicted.
    bare = model_of(CharacterTokenizer(LETTERS.replace("\n", "")))
    task = of_texts(bare, ["the sea", "a"])["tasks"]["texts"]
    assert (task["tokens"], task["texts"], task["tokens_left_out"]) == (6, 1, 1)
    ids = bare.tokenizer.encode("the sea")
    assert task["metrics"]["nats_per_token"]["value"] == pytest.approx(-logprobs_of(bare, ids).mean(), rel=1e-5)


def test_a_byte_is_a_byte_of_utf8():
    lm = model_of(CharacterTokenizer("\nñaé"))
    task = of_texts(lm, ["ñañé", "aé"])["tasks"]["texts"]
    assert (task["tokens"], task["bytes"]) == (6, 10)


def test_wikitext_protocol_by_hand(tmp_path):
    lm = model_of(Beginning())
    lines = ["", " = sea = ", "   ", "the ship is on the sea and the cat is on the ship", "", "and so on, and so on"]
    (tmp_path / "wiki.txt").write_text("\n".join(lines) + "\n")
    result = wikitext(lm, data=tmp_path / "wiki.txt")
    text = " = sea = \n\n\nthe ship is on the sea and the cat is on the ship\n\n\nand so on, and so on\n"
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(text)]
    number = (len(ids) - 1) // HELD
    nats = [-logprobs_of(lm, ids[at * HELD : at * HELD + HELD + 1]).sum() for at in range(number)]
    task = result["tasks"]["wikitext-103"]
    assert number == task["n"] == 5 and task["tokens"] == number * HELD
    assert task["tokens_left_out"] == len(ids) - 1 - number * HELD
    assert task["metrics"]["nats_per_token"]["value"] == pytest.approx(sum(nats) / task["tokens"], rel=1e-5)
    check = verification.wikitext_check(lm, registry.describe("gelu-d12"), tmp_path / "wiki.txt")
    assert check.found == f"{sum(nats) / task['tokens']:.3f}; the card says 3.840" and not check.ok
    spread = np.std(nats, ddof=1) / HELD / number**0.5
    assert task["metrics"]["nats_per_token"]["stderr"] == pytest.approx(spread, rel=1e-4)
    # The rows of the hub have their line ends, and say the same.
    rows = "\n".join(json.dumps({"text": f"{line}\n" if line.strip() else ""}) for line in lines)
    (tmp_path / "wiki.jsonl").write_text(rows)
    assert wikitext(lm, data=tmp_path / "wiki.jsonl")["tasks"] == result["tasks"]
    assert wikitext(lm, data=tmp_path / "wiki.txt", limit=2)["tasks"]["wikitext-103"]["n"] == 2
    (tmp_path / "short.txt").write_text("the sea")
    with pytest.raises(UserError, match="a window of this model takes 17"):
        wikitext(lm, data=tmp_path / "short.txt")


# ------------------------------------------------------------------------------------------- the card's protocol

RECORDS = {
    "hellaswag": {"ctx": "a cat sits on", "endings": ["the mat.", "a sea", "it", "so"], "label": "2"},
    "arc_easy": {
        "question": "what is a ship?",
        "choices": {"text": ["a cat", "it"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "arc_challenge": {"question": "is it?", "choices": {"text": ["a", "b"], "label": ["a", "b"]}, "answerKey": "a"},
    "winogrande": {
        "sentence": "the cat saw the ship, so _ was seen.",
        "option1": "it",
        "option2": "the cat",
        "answer": "1",
    },
    "piqa": {"goal": "to sail", "sol1": "take a ship", "sol2": "take a cat", "label": 0},
    "boolq": {"passage": "a ship sails.", "question": "does it sail", "answer": True},
    "openbookqa": {
        "question_stem": "the sea is",
        "choices": {"text": ["big", "a cat"], "label": ["A", "B"]},
        "answerKey": "A",
    },
    "lambada_openai": {"text": "the cat saw a ship"},
}
# (context, continuations, right one) of each, as the protocol asks them.
ASKED = {
    "hellaswag": ("a cat sits on ", ["the mat.", "a sea", "it", "so"], 2),
    "arc_easy": ("Question: what is a ship?\nAnswer:", [" a cat", " it"], 1),
    "arc_challenge": ("Question: is it?\nAnswer:", [" a", " b"], 0),
    "winogrande": ("the cat saw the ship, so ", ["it was seen.", "the cat was seen."], 0),
    "piqa": ("Question: to sail\nAnswer:", [" take a ship", " take a cat"], 0),
    "boolq": ("a ship sails.\nQuestion: does it sail?\nAnswer:", [" no", " yes"], 1),
    "openbookqa": ("the sea is", [" big", " a cat"], 0),
    "lambada_openai": ("the cat saw a", [" ship"], 0),
}


@pytest.fixture
def card_data(tmp_path):
    """Two records a task; the second is the first with its beginning doubled, where there is room to lose it."""
    for name, record in RECORDS.items():
        field = next(iter(record))
        other = {**record, field: f"and so, {record[field]}"}
        lines = [json.dumps(one) for one in (record, other)]
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    return tmp_path


def test_the_cards_protocol_by_hand(card_data):
    lm = model_of(CharacterTokenizer(LETTERS), held=40)
    result = card.evaluate(lm, data=card_data, batch_size=4)
    cut = 0
    for name, (context, choices, gold) in ASKED.items():
        if name == "winogrande" or name in ("hellaswag", "openbookqa", "boolq", "lambada_openai"):
            contexts = [context, f"and so, {context}"]
        else:
            contexts = [context, context.replace("Question: ", "Question: and so, ")]
        accuracies, losses, sizes = [], [], []
        for text in contexts:
            means = []
            for choice in choices:
                before, after = lm.tokenizer.encode(text), lm.tokenizer.encode(choice)
                cut += len(before) + len(after) > 40
                row = (before + after)[-40:]
                logprobs = logprobs_of(lm, row)[-len(after) :]
                means.append(logprobs.mean())
                best = logits_of(lm, row[:-1]).argmax(-1)[-len(after) :]
            if name == "lambada_openai":
                accuracies.append(float((best == after).all()))
                losses.append(-logprobs.sum())
                sizes.append(len(after))
            else:
                accuracies.append(float(np.argmax(means) == gold))
        task = result["tasks"][name]
        assert [item["acc"] for item in task["items"]] == accuracies, name
        assert task["metrics"]["acc"]["value"] == np.mean(accuracies)
        if name == "lambada_openai":
            assert task["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / sum(sizes)), rel=1e-4)
        else:
            np.testing.assert_allclose(task["items"][1]["scores"], means, atol=1e-5)
    assert cut  # contexts that lost their beginning were among them
    seven = [result["tasks"][name]["metrics"]["acc"] for name in card.CHOICE_TASKS]
    assert len(seven) == 7 and "lambada_openai" not in card.CHOICE_TASKS
    assert result["average"]["value"] == pytest.approx(np.mean([one["value"] for one in seven]))
    error = np.sqrt(sum(one["stderr"] ** 2 for one in seven)) / 7
    assert result["average"]["stderr"] == pytest.approx(error)


def test_the_cards_table_stands_beside_the_cards_protocol(card_data, lm):
    few = card.evaluate(lm, ["piqa", "boolq"], data=card_data, limit=1)
    assert few["average"] is None and few["tasks"]["piqa"]["n"] == 1
    text = card.markdown(few)
    assert "| KodaLite-1.3B | 1.27B | 1.64B | 36.8 | 25.65 | 32.79 | 21.5 | 49.57 | 58.92 | 44.34 | 25.0 |" in text
    assert text.count("\n| ") == 12  # a line under the header, this model, the card's nine and chance
    # The averages that the card gives are those of its seven columns.
    for row in card.CARD_TABLE:
        if row.average is not None and None not in row.choices:
            assert np.mean(row.choices) == pytest.approx(row.average, abs=0.06), row.model
    other = of_texts(lm, ["the sea", "a ship"])
    assert "KodaLite" not in tables.markdown({**other, "model": "m"})


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_record_of_another_shape_is_refused(name, tmp_path, lm):
    record = dict(RECORDS[name])
    record.pop(next(iter(record)))
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"{name}, record 1: .*fields"):
        card.evaluate(lm, [name], data=tmp_path)


def test_data_that_cannot_be_had(lm, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no hellaswag\.jsonl"):
        card.evaluate(lm, data=tmp_path)
    with pytest.raises(UserError, match="no directory"):
        card.evaluate(lm, data=tmp_path / "none")
    with pytest.raises(UserError, match="no task 'mmlu'"):
        card.evaluate(lm, ["mmlu"], data=tmp_path)
    # A local directory stands for the repository, and holds nothing.
    with pytest.raises(UserError, match=r"piqa: .*cannot be read from the Hugging Face hub .*--data"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        records("piqa", HubData(str(tmp_path), None, "validation"), None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"piqa: the Hugging Face hub does not answer .*--data"):
        card.evaluate(lm, ["piqa"])


# --------------------------------------------------------------------------------------------------- comparisons


def result_of(accuracies, **more):
    items = [{"id": number, "hash": str(number), "acc": float(acc)} for number, acc in enumerate(accuracies)]
    metrics = {"acc": measures.measured(*measures.mean(accuracies), True)}
    task = {"n": len(items), "metrics": metrics, "items": items}
    return {"format": 1, "suite": "lm-eval", "model": "m", "settings": {}, "tasks": {"t": task}} | more


def test_paired_comparison_by_hand():
    first, second = [1, 1, 0, 0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1, 0, 1]
    found = compare(result_of(first), result_of(second))["tasks"]["t"]["metrics"]["acc"]
    apart = np.array(second) - np.array(first)
    assert (found["first"], found["second"], found["difference"]) == (0.4, 0.8, pytest.approx(0.4))
    assert found["stderr"] == pytest.approx(apart.std(ddof=1) / 10**0.5)
    assert found["low"] == pytest.approx(0.4 - 1.959964 * found["stderr"])
    assert (found["only_first"], found["only_second"], found["n"]) == (1, 5, 10)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # 0 or 1 of 6, two-sided
    same = compare(result_of(first), result_of(first))["tasks"]["t"]["metrics"]["acc"]
    assert same["difference"] == 0 and same["p"] == 1


def test_sign_test():
    assert measures.sign_test(0, 0) == 1 and measures.sign_test(5, 5) == 1
    assert measures.sign_test(0, 5) == measures.sign_test(5, 0) == pytest.approx(2 / 32)
    assert measures.sign_test(4000, 4400) == pytest.approx(measures.normal_p(399 / 8400**0.5), rel=3e-2)


def test_only_equal_items_are_compared():
    first, second = result_of([1, 0, 1, 1]), result_of([0, 0, 1, 0, 1])
    second["tasks"]["t"]["items"][1]["hash"] = "another question"
    found = compare(first, second)
    assert found["tasks"]["t"]["metrics"]["acc"]["n"] == 3
    assert any("2 items are not in both" in note for note in found["notes"])
    with pytest.raises(UserError, match="different suites"):
        compare(first, {**second, "suite": "wikitext"})
    with pytest.raises(UserError, match="no items in common"):
        compare(first, result_of([1], tasks={"u": second["tasks"]["t"]}))


def test_losses_are_compared_by_their_weights():
    lm, other = model_of(Beginning()), model_of(Beginning(), seed=1)
    texts = ["the sea", "a ship on the sea", "x and so on", "it is"]
    first, second = of_texts(lm, texts), of_texts(other, texts)
    found = compare(first, second)["tasks"]["texts"]["metrics"]
    one, two = (result["tasks"]["texts"]["metrics"]["bits_per_byte"]["value"] for result in (first, second))
    assert found["bits_per_byte"]["difference"] == pytest.approx(two - one)
    # Paired, by leaving one text out at a time.
    sums = [np.array([item["bits_per_byte"] for item in r["tasks"]["texts"]["items"]]) for r in (first, second)]
    left = []
    for out in range(len(texts)):
        a, b = (np.delete(rows, out, axis=0).sum(0) for rows in sums)
        left.append(b[0] / b[1] - a[0] / a[1])
    jackknife = ((len(texts) - 1) / len(texts) * ((np.array(left) - np.mean(left)) ** 2).sum()) ** 0.5
    assert found["bits_per_byte"]["stderr"] == pytest.approx(jackknife, rel=0.5)
    assert set(found) == {"nats_per_token", "bits_per_byte"}


def test_commands(card_data, tmp_path, capsys):
    lm, other = model_of(CharacterTokenizer(LETTERS)), model_of(CharacterTokenizer(LETTERS), seed=1)
    outs = []
    for name, one in (("one", lm), ("other", other)):
        one.save(tmp_path / name)
        outs.append(str(tmp_path / f"{name}.json"))
        command = ["eval", str(tmp_path / name), "--suite", "kodalite-card", "--data", str(card_data)]
        assert main([*command, "--dtype", "float32", "--out", outs[-1]]) == 0
        assert "| OPT-1.3B | 1.32B | 180B | 49.1 |" in capsys.readouterr().out
    assert main(["eval", "--compare", *outs, "--out", str(tmp_path / "both.json")]) == 0
    printed = capsys.readouterr().out
    assert "| average | acc | 14 |" in printed and "| lambada_openai | log perplexity | 2 |" in printed
    assert (tmp_path / "both.md").read_text() == printed
    both = json.loads((tmp_path / "both.json").read_text())
    averages = [read(out)["average"]["value"] for out in outs]
    assert both["average"]["difference"] == pytest.approx(averages[1] - averages[0])
    (tmp_path / "texts.jsonl").write_text('{"text": "the sea"}\n{"text": "a ship"}\n')
    assert main(["eval", str(tmp_path / "one"), "--perplexity", str(tmp_path / "texts.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["texts.jsonl"]
    assert found["tokens"] == 13 and found["metrics"]["bits_per_byte"]["stderr"] > 0
    (tmp_path / "wiki.txt").write_text("the ship is on the sea and\n\nthe cat is on the ship\n")
    assert main(["eval", str(tmp_path / "one"), "--suite", "wikitext", "--data", str(tmp_path / "wiki.txt")]) == 0
    assert "gelu-d12 as published: 3.840 nats a token, perplexity 46.52." in capsys.readouterr().out


def test_computing_in_bfloat16_is_the_cards_way(card_data, tmp_path, capsys):
    model_of(CharacterTokenizer(LETTERS)).save(tmp_path / "one")
    command = ["eval", str(tmp_path / "one"), "--suite", "kodalite-card", "--tasks", "piqa", "--data", str(card_data)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--compare", "A", "NONE"], "no file"),
        (["--compare", "A", "BROKEN"], "cannot be read as JSON"),
        (["--compare", "A", "OTHER"], "no result of tasks"),
        (["MODEL", "--compare", "A", "A"], "leave"),
        ([], "MODEL is missing"),
        (["MODEL", "--perplexity", "NONE"], "no file"),
        (["MODEL", "--perplexity", "BROKEN"], "no field 'text'"),
        (["MODEL", "--suite", "wikitext", "--limit", "0.5"], "--limit"),
        (["MODEL", "--suite", "wikitext", "--out", "B.md"], "--out"),
        (["MODEL", "--suite", "wikitext", "--out", "MODEL"], "is a directory"),
        (["MODEL", "--suite", "wikitext", "--limit", "inf"], "--limit is inf"),
        (["MODEL", "--suite", "wikitext", "--limit", "nan"], "--limit is nan"),
        (["--compare", "A", "A", "--limit", "3"], "--limit has no meaning with --compare"),
        (["--compare", "A", "A", "--batch-size", "3"], "--batch-size has no meaning with --compare"),
        (["MODEL", "--suite", "wikitext", "--temperature", "0.5"], "--temperature has no meaning"),
        (["MODEL", "--perplexity", "A", "--seed", "0"], "--seed has no meaning with --perplexity"),
        (["MODEL", "--tasks", "piqa", "--cronicas", "200"], "--cronicas has no meaning with --tasks"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, said, lm, tmp_path, capsys):
    lm.save(tmp_path / "MODEL")
    (tmp_path / "A").write_text(json.dumps(result_of([1, 0])))
    (tmp_path / "BROKEN.jsonl").write_text('{"words": "the sea"}')
    (tmp_path / "BROKEN").write_text('{"tasks": ')
    (tmp_path / "OTHER").write_text('{"format": 1, "suite": "cronica", "sets": {}}')
    named = {"A", "NONE", "BROKEN", "OTHER", "MODEL", "B.md"}
    paths = [str(tmp_path / one) if one in named else one for one in arguments]
    if "--perplexity" in paths and paths[-1].endswith("BROKEN"):
        paths[-1] += ".jsonl"
    assert main(["eval", *paths]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_read_keeps_the_result(tmp_path):
    result = result_of([1, 0])
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert read(tmp_path / "a.json") == result


def test_a_row_with_nothing_to_score_says_so(lm):
    assert Scorer(lm.computing).score([Row((3,), 0), Row((), 0)]) == [Scored(0.0, True)] * 2
    with pytest.raises(ValueError, match="cannot be scored"):
        Scorer(lm.computing).score([Row((3,), 1)])
