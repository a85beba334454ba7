"""Tasks of the harness on zoo's models, held against the harness's own `hf` model; and what holds for every model."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import TINY, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import zoo
from zoo import registry
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.language_model import LanguageModel
from zoo.models import build
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.tokenizers.hf import HFTokenizer

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager  # noqa: E402

from zoo.evaluate.cache import ResultCache, identity_of  # noqa: E402
from zoo.evaluate.harness_model import HarnessModel  # noqa: E402
from zoo.evaluate.lm_eval import evaluate  # noqa: E402
from zoo.evaluate.tables import markdown  # noqa: E402

ROOT = Path(__file__).parent.parent
TASK_FILES = ROOT / "tests" / "data" / "tasks"
TASKS = ("zoo_choice", "zoo_letters", "zoo_cloze", "zoo_rolling", "zoo_writes")
TEXT = "The model writes on from what it has read, one token after the other, and it's the same text every time."
HELD = 48  # tokens a row of the models here


@pytest.fixture(autouse=True)
def data_at_hand(monkeypatch, tmp_path_factory):
    """The task files name their data from the repository's root; what the library converts goes away after."""
    import datasets

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def byte_pairs(*special, begins_with=None):
    """Byte-level BPE; `begins_with`: the special token that its post-processor puts before a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT] * 5, trainer)
    backend.add_special_tokens(list(special))
    if begins_with:
        pair = (begins_with, backend.token_to_id(begins_with))
        backend.post_processor = processors.TemplateProcessing(single=f"{begins_with} $A", special_tokens=[pair])
    return HFTokenizer(backend.to_str())


def livened(lm, factor=1.5):
    """Norms away from 1, and matrices times `factor`, so that no two answers are nearly as good."""
    graphdef, state = nnx.split(lm.module)
    flat = build.flatten(nnx.to_pure_dict(state))
    keys = jax.random.split(jax.random.key(0), len(flat))
    flat = {
        path: leaf + 0.3 * jax.random.normal(key, leaf.shape) if leaf.ndim == 1 else leaf * factor
        for (path, leaf), key in zip(flat.items(), keys, strict=True)
    }
    return nnx.merge(graphdef, build.unflatten(flat))


def koda(tokenizer, seed=1):
    sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64}
    bare = zoo.create("kodalite-1.3b", seed=seed, vocab_size=tokenizer.vocab_size + 7, max_seq_len=HELD, **sizes)
    return LanguageModel(livened(bare), tokenizer, bare.spec, bare.config)


@pytest.fixture(scope="module")
def lm():
    return koda(byte_pairs("<|endoftext|>"))


@pytest.fixture(scope="module")
def with_bos():
    return koda(byte_pairs("<s>", "</s>", begins_with="<s>"))


def asked(*args):
    return [SimpleNamespace(args=one) for one in args]


def from_transformers(lm, directory, tasks, **settings):
    """The harness's result of the exported model under its `hf` class."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    lm.export(directory, format="hf")
    model = huggingface.HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=2)
    # The export's own are those of chats: the harness gives `generate` no tokenizer, and counts in max_length.
    model.model.generation_config.stop_strings = model.model.generation_config.max_new_tokens = None
    return lm_eval.simple_evaluate(
        model,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(TASK_FILES), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )


def held_against(ours, theirs, tasks):
    """All answers to all requests, and all metrics."""
    for name in tasks:
        samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
        items = ours["tasks"][name]["items"]
        assert [item["hash"] for item in items] == [sample["doc_hash"] for sample in samples]
        for item, sample in zip(items, samples, strict=True):
            wanted = [one for repeats in sample["resps"] for one in repeats]
            for got, want in zip(item["responses"], wanted, strict=True):
                if isinstance(want, str):
                    assert got == want, (name, item["id"])
                elif isinstance(want, tuple):
                    assert abs(got[0] - want[0]) < 1e-4 and got[1] == want[1], (name, item["id"], got, want)
                else:
                    assert abs(got - want) < 1e-4, (name, item["id"], got, want)
        metrics = ours["tasks"][name]["metrics"]
        assert metrics, name
        for metric, found in metrics.items():
            tolerance = 0 if metric.startswith(("acc", "exact")) else 1e-5 * theirs["results"][name][f"{metric},none"]
            assert abs(found["value"] - theirs["results"][name][f"{metric},none"]) <= tolerance, (name, metric)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["lm", "with_bos"])
def test_agrees_with_the_harness_hf_model(which, request, tmp_path):
    lm = request.getfixturevalue(which)
    theirs = from_transformers(lm, tmp_path / "hf", TASKS)
    ours = evaluate(lm, TASKS, include_path=TASK_FILES, batch_size=4)
    assert ours["settings"]["add_bos"] == (which == "with_bos")
    assert ours["settings"]["max_length"] == HELD
    held_against(ours, theirs, TASKS)
    # Rows longer than the model, texts cut in windows and answers of one token were all among them.
    lengths = [len(lm.tokenizer.encode(json.loads(line)["text"])) for line in (TASK_FILES / "zoo_rolling.jsonl").open()]
    assert max(lengths) > 2 * HELD


@pytest.mark.slow
def test_examples_before_the_question_agree_too(lm, tmp_path):
    theirs = from_transformers(lm, tmp_path / "hf", ["zoo_letters"], num_fewshot=2, limit=4)
    ours = evaluate(lm, ["zoo_letters"], include_path=TASK_FILES, num_fewshot=2, limit=4)
    assert ours["tasks"]["zoo_letters"]["num_fewshot"] == 2 and ours["tasks"]["zoo_letters"]["n"] == 4
    held_against(ours, theirs, ["zoo_letters"])


def test_standard_errors(lm):
    result = evaluate(lm, ["zoo_group", "zoo_cloze", "zoo_rolling"], include_path=TASK_FILES)
    tasks, group = result["tasks"], result["groups"]["zoo_group"]["metrics"]["acc"]
    accuracies = [item["acc"] for name in ("zoo_choice", "zoo_letters") for item in tasks[name]["items"]]
    assert group["value"] == pytest.approx(np.mean(accuracies)) and group["stderr"] > 0
    assert "| zoo_group (group) |  |  | acc |" in markdown(result)
    for task in tasks.values():
        for metric, found in task["metrics"].items():  # nothing is right of one task: no spread
            assert found["stderr"] > 0 or (metric == "acc" and found["value"] == found["stderr"] == 0), metric
    accuracies = [item["acc_norm"] for item in tasks["zoo_choice"]["items"]]
    assert tasks["zoo_choice"]["metrics"]["acc_norm"]["stderr"] == pytest.approx(
        np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    )
    # Of a ratio, by linearisation: here written out.
    bits, sizes = np.array([item["bits_per_byte"] for item in tasks["zoo_rolling"]["items"]]).T
    rate, n = bits.sum() / sizes.sum(), len(bits)
    found = tasks["zoo_rolling"]["metrics"]["bits_per_byte"]
    assert found["value"] == pytest.approx(rate)
    assert found["stderr"] == pytest.approx((n / (n - 1) * ((bits - rate * sizes) ** 2).sum()) ** 0.5 / sizes.sum())


def test_a_continuation_is_scored_as_the_model_says(lm):
    context, continuation = "The model writes on from", " what it has read"
    ids = lm.tokenizer.encode(context + continuation)
    first = len(lm.tokenizer.encode(context))
    logprobs = np.asarray(jax.nn.log_softmax(lm.logits(ids[:-1])))
    wanted = sum(logprobs[at - 1, ids[at]] for at in range(first, len(ids)))
    model = HarnessModel(lm, batch_size=1)
    ((found, greedy),) = model.loglikelihood(asked((context, continuation)))
    assert found == pytest.approx(wanted, abs=1e-4) and not greedy
    before = lm.tokenizer.encode(context)
    best = int(np.asarray(lm.logits(before))[-1].argmax())
    rows = [(None, before, [best]), (None, before, [best ^ 1]), (None, before, [best, best ^ 1])]
    assert [greedy for _, greedy in model._loglikelihood_tokens(rows)] == [True, False, False]


def test_what_the_hf_model_asserts_away(lm):
    model = HarnessModel(lm)
    long = TEXT * 3
    (nothing, _), (windowed, _), (alone, _) = model.loglikelihood(
        asked(("The model", ""), ("The model", long), ("", long))
    )
    assert nothing == 0.0
    # White space goes over to the continuation; when nothing is left, EOS stands before it.
    white, after_eos = model.loglikelihood(asked(("\n", "The model"), ("", "\nThe model")))
    assert white == after_eos and white[0] < 0
    # A continuation longer than the rows: window by window, each token once.
    ids = [
        lm.tokenizer.encode("The model")[-1],
        *lm.tokenizer.encode("The model" + long)[len(lm.tokenizer.encode("The model")) :],
    ]
    total = 0.0
    for begin in range(0, len(ids) - 1, HELD):
        end = min(begin + HELD, len(ids) - 1)
        row = ids[max(0, end - HELD) : end + 1]
        logprobs = np.asarray(jax.nn.log_softmax(lm.logits(row[:-1])))
        total += sum(logprobs[at - 1, row[at]] for at in range(len(row) - (end - begin), len(row)))
    assert windowed == pytest.approx(total, rel=1e-5)
    assert model.loglikelihood_rolling(asked((long,))) == [pytest.approx(alone, rel=1e-6)]
    assert model.loglikelihood_rolling(asked(("",))) == [0.0]


def test_a_continuation_that_merges_into_its_context():
    """Where the last bytes of context and continuation are one token, the two are tokenised apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)} | {"ab": len(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    lm = koda(HFTokenizer(backend.to_str()))
    a, b = lm.tokenizer.encode("a")[0], lm.tokenizer.encode("b")[0]
    assert len(lm.tokenizer.encode("ab")) == 1
    ((found, _),) = HarnessModel(lm).loglikelihood(asked(("a", "b")))
    assert found == pytest.approx(float(jax.nn.log_softmax(lm.logits([a]))[0, b]), abs=1e-5)


def test_bos_rules(with_bos, lm):
    tokenizer = with_bos.tokenizer
    assert with_bos.prefix_ids == [tokenizer.bos_id] and lm.prefix_ids == []
    assert byte_pairs("<s>", "</s>").prefix_ids == []  # there is one, but the file does not put it before texts
    model, without = HarnessModel(with_bos), HarnessModel(with_bos, add_bos=False)
    ids = tokenizer.encode("a text")
    assert model.tok_encode("a text") == [tokenizer.bos_id, *ids]
    assert model.tok_encode("a text", add_special_tokens=False) == without.tok_encode("a text") == ids
    assert model.tok_encode("<s>a text") == without.tok_encode("<s>a text") == [tokenizer.bos_id, *ids]
    assert model.prefix_token_id == tokenizer.bos_id and HarnessModel(lm).prefix_token_id == lm.tokenizer.eos_id
    with pytest.raises(UserError, match="--add-bos"):
        HarnessModel(lm, add_bos=True)


def test_rows_that_share_their_inputs_are_computed_once(lm):
    calls = []
    model = HarnessModel(lm, batch_size=8, on_progress=lambda *call: calls.append(call))
    ids = lm.tokenizer.encode("The model writes")
    every = model._loglikelihood_tokens([(None, ids, [token]) for token in range(lm.tokenizer.vocab_size)])
    assert calls == [("log-likelihoods", done, len(every)) for done in (0, len(every))]  # one batch for them all
    assert math.fsum(math.exp(one) for one, _ in every) < 1
    wanted = np.asarray(jax.nn.log_softmax(lm.logits(ids)))[-1, : lm.tokenizer.vocab_size]
    np.testing.assert_allclose([one for one, _ in every], wanted, atol=1e-4)
    assert [greedy for _, greedy in every].index(True) == wanted.argmax()


def test_a_cache_goes_on_and_knows_its_model(lm, tmp_path, monkeypatch):
    file = tmp_path / "results.sqlite"
    tasks = ["zoo_choice", "zoo_writes"]
    first = evaluate(lm, tasks, include_path=TASK_FILES, cache=ResultCache(file, identity_of(lm)))
    with monkeypatch.context() as closed:
        closed.setattr("zoo.evaluate.scoring._logprobs", None)
        closed.setattr("zoo.evaluate.harness_model.continue_all", None)
        again = evaluate(lm, tasks, include_path=TASK_FILES, cache=ResultCache(file, identity_of(lm)))
    assert again["tasks"] == first["tasks"]
    other = koda(lm.tokenizer, seed=2)
    assert identity_of(other) != identity_of(lm)
    bare = evaluate(other, tasks, include_path=TASK_FILES)
    found = evaluate(other, tasks, include_path=TASK_FILES, cache=ResultCache(file, identity_of(other)))
    assert found["tasks"] == bare["tasks"] != first["tasks"]
    (tmp_path / "text").write_text("no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(UserError, match="--cache"):
        ResultCache(tmp_path / "text", "")


@pytest.mark.parametrize("name", [name for name in TINY if name != "llama"])
def test_every_model_answers(name):
    graphdef, params, config = tiny(name)
    spec = registry.describe(TINY[name][0])
    tokenizer = CharacterTokenizer("\n" + "abcdefghijklmnopqrstuvwxyz .,?")
    lm = LanguageModel(nnx.merge(graphdef, params), tokenizer, spec, config)
    model = HarnessModel(lm, batch_size=4)
    pairs = [("the sea", " and the ship"), ("", "a"), ("what is it?", " it is a cat"), ("the sea", " and the shop")]
    found = model.loglikelihood(asked(*pairs))
    assert all(-1000 < one < 0 for one, _ in found) and len({one for one, _ in found}) == 4
    newline, a = tokenizer.encode("\na")
    assert found[1][0] == pytest.approx(float(jax.nn.log_softmax(lm.logits([newline]))[0, a]), abs=1e-5)
    rolled = model.loglikelihood_rolling(asked(("a ship on the sea, a",), ("it is a cat and a",), ("a",), ("",)))
    assert -1000 < rolled[0] < 0 and rolled[2] == pytest.approx(found[1][0], abs=1e-4) and rolled[3] == 0
    if name == "tiny":  # writes on past its rows, where others have no room for so much
        (text,) = model.generate_until(asked(("the sea", {"until": ["."], "max_gen_toks": 40})))
        assert len(text) <= 40 and "." not in text


def test_generation_kwargs(lm):
    model = HarnessModel(lm)
    sampled = {"do_sample": True, "temperature": 0.9, "top_k": 5, "max_gen_toks": 8, "until": []}
    one, other = model.generate_until(asked(("The model", sampled), ("The model", sampled)))
    assert one != other  # repeats are other samples
    assert model.generate_until(asked(("The model", sampled), ("The model", sampled))) == [one, other]
    with pytest.raises(UserError, match="num_beams"):
        model.generate_until(asked(("The model", {"num_beams": 4, "max_gen_toks": 4})))
    with pytest.raises(UserError, match="max_gen_toks"):
        model.generate_until(asked(("The model", {})))  # 256 by default, more than the model holds


def test_on_a_mesh(lm):
    """A batch size that the devices do not divide is rounded up: results stay."""
    wanted = HarnessModel(lm, batch_size=3).loglikelihood(asked(("The model", " writes"), ("One", " token")))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    graphdef, state = nnx.split(lm.module)
    there = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    other = LanguageModel(nnx.merge(graphdef, there), lm.tokenizer, lm.spec, lm.config)
    assert HarnessModel(other, batch_size=3).loglikelihood(asked(("The model", " writes"), ("One", " token"))) == wanted


def test_command(lm, tmp_path, capsys):
    lm.save(tmp_path / "model")
    out = tmp_path / "result.json"
    command = ["eval", str(tmp_path / "model"), "--tasks", "zoo_choice,zoo_rolling", "--include-path", str(TASK_FILES)]
    assert main([*command, "--batch-size", "4", "--cache", str(tmp_path / "cache"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| task | shots | n | metric | value | standard error |")
    assert "| zoo_choice | 0 | 8 | acc_norm |" in printed and "| zoo_rolling | 0 | 4 | bits_per_byte |" in printed
    assert out.with_suffix(".md").read_text() == printed
    result = json.loads(out.read_text())
    assert len(result["tasks"]["zoo_choice"]["items"]) == 8 and result["model"] == str(tmp_path / "model")
    assert main([*command, "--limit", "2", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["tasks"]["zoo_choice"]["n"] == 2 and "items" not in line["tasks"]["zoo_choice"]


@pytest.mark.parametrize(
    "options, said",
    [
        # It reads the harness's whole index of tasks.
        pytest.param(
            ["--tasks", "zoo_choise", "--include-path", str(TASK_FILES)],
            "did you mean zoo_choice",
            marks=pytest.mark.slow,
        ),
        (["--tasks", ",", "--include-path", str(TASK_FILES)], "names no task"),
        (["--tasks", "zoo_choice", "--include-path", "/none/there"], "--include-path"),
        (["--tasks", "zoo_choice", "--suite", "wikitext"], "give one of them"),
        (["--tasks", "zoo_choice", "--data", "here"], "--data has no meaning with --tasks"),
        (["--suite", "wikitext", "--num-fewshot", "2"], "--num-fewshot has no meaning with --suite wikitext"),
        (["--tasks", "zoo_choice", "--include-path", str(TASK_FILES), "--max-length", "49"], "--max-length"),
        (["--tasks", "zoo_choice", "--include-path", str(TASK_FILES), "--limit", "0"], "--limit"),
        (["--tasks", "zoo_choice", "--include-path", str(TASK_FILES), "--batch-size", "0"], "--batch-size"),
        (["--tasks", "zoo_choice", "--include-path", str(TASK_FILES), "--dtype", "int8"], "--dtype"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(lm, options, said, tmp_path, capsys):
    lm.save(tmp_path / "model")
    assert main(["eval", str(tmp_path / "model"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_data_that_cannot_be_had(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"--tasks: the Hugging Face hub does not answer .* data of hellaswag"):
        evaluate(lm, ["hellaswag"])
    text = (TASK_FILES / "zoo_choice.yaml").read_text()
    lost = text.replace("zoo_choice.jsonl", "nowhere.jsonl").replace("task: zoo_choice", "task: lost")
    (tmp_path / "lost.yaml").write_text(lost)
    with pytest.raises(UserError, match=r"--tasks: lost cannot be loaded .*nowhere.*--include-path"):
        evaluate(lm, ["lost"], include_path=tmp_path)
