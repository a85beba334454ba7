"""LanguageModel and `zoo.load`: what a notebook does, and what goes wrong there."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.checkpoints.manager import Checkpoints
from zoo.errors import UserError
from zoo.language_model import LanguageModel, create, load
from zoo.models import build
from zoo.recipe import make_recipe
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica import tokens as cronica_tokens
from zoo.tasks.cronica.match import parse_block

GOLDEN = Path(__file__).parent / "golden" / "cronica"
TINY = {"num_layers": 1, "embed_dim": 16, "num_heads": 1, "head_dim": 16, "mlp_dim": 24, "init_std": 0.2}
SHORT = {"max_new_tokens": 40}
RECORDS = corpus.generate(40)
BLOCK = RECORDS[0]["stats_block"]


@pytest.fixture(scope="module")
def tokenizer():
    return cronica_tokens.train((cronica_tokens.training_text(record) for record in RECORDS), 600)


@pytest.fixture(scope="module")
def lm(tokenizer):
    bare = create("cronica-5m", vocab_size=640, max_seq_len=400, **TINY)
    return LanguageModel(bare.module, tokenizer, bare.spec, bare.config)


def test_numbers_of_every_library_and_nothing_else(lm, tmp_path):
    ids = [1, 2, 3]
    expected = lm.generate(ids, seed=3, max_new_tokens=3)
    for prompt, seed in ((ids, np.int64(3)), (jnp.array(ids), 3), (np.array(ids), jnp.int32(3)), (ids, 3 + 2**70)):
        assert lm.generate(prompt, seed=seed, max_new_tokens=3).tokens == expected.tokens
    assert [one.tokens for one in lm.generate(np.array([ids, ids]), seed=3, max_new_tokens=3)] == [expected.tokens] * 2
    vocab = lm.config.vocab_size
    for wrong, named in (
        (lambda: lm.generate(ids, max_new_tokens=2.5), "max_new_tokens"),
        (lambda: lm.generate(ids, top_k=2.5), "top_k"),
        (lambda: lm.generate(ids, seed=2.5), "seed"),
        (lambda: lm.generate([1.5, 2]), "whole numbers"),
        (lambda: lm.logits([1, vocab]), f"the token id {vocab} is none"),
        (lambda: lm.logits([[1, -1]]), "the token id -1 is none"),
        (lambda: lm.logits([1.0]), "whole numbers"),
        (lambda: lm.score([1, vocab]), f"ids go from 0 to {vocab - 1}"),
        (lambda: lm.score([-1, 1]), "the token id -1"),
    ):
        with pytest.raises(UserError, match=named):
            wrong()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md is a file"):
        lm.save(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "mine"


def same(one, other):
    """Equal but for the rounding of another batch size."""
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    return (one.text, one.tokens, one.finish) == (other.text, other.tokens, other.finish)


@pytest.fixture(scope="module")
def portable(lm, tmp_path_factory):
    directory = tmp_path_factory.mktemp("portable")
    lm.save(directory)
    return directory


def test_generate_one_and_many(lm):
    one = lm.generate("El partido", seed=3, **SHORT)
    assert str(one) == one.text == lm.tokenizer.decode(one.tokens)
    assert len(one.logprobs) == len(one.tokens) <= 40 and all(value < 0 for value in one.logprobs)
    ids = lm.tokenizer.encode("El partido", add_special=True)
    assert ids[0] == lm.tokenizer.bos_id
    calls = []
    many = lm.generate(
        [ids, "Y", "El partido"], seed=[3, 4, 5], batch_size=2, on_progress=lambda *at: calls.append(at), **SHORT
    )
    assert same(many[0], one) and many[2].tokens != one.tokens
    assert calls == [(0, 3), (2, 3), (3, 3)]
    assert lm.generate(ids, seed=3, **SHORT) == one
    with pytest.raises(UserError, match="2 seeds for 1 prompts"):
        lm.generate(["a"], seed=[1, 2])
    assert lm.generate([]) == []


def test_the_models_length_bounds_prompt_and_text(lm):
    room = lm.config.max_seq_len
    assert len(lm.generate([20] * (room - 3), max_new_tokens=10, temperature=0).tokens) <= 3
    with pytest.raises(UserError, match=f"{room} tokens.*takes {room}"):
        lm.generate([20] * room)


def test_stream_is_the_same_text_in_whole_characters(lm):
    for seed in range(3):
        stream = lm.stream("¡Gooool", seed=seed, temperature=1.5, max_new_tokens=40)
        pieces = list(stream)
        assert len(pieces) > 1
        whole = lm.generate("¡Gooool", seed=seed, temperature=1.5, max_new_tokens=40)
        assert "".join(pieces) == whole.text and stream.generation == whole


def test_a_prompt_that_is_not_possible_has_its_number_and_costs_no_text(lm):
    done = []
    for prompts, options, named in (
        (["El", []], {}, "prompt 2 is empty"),
        ([[20] * 500, "El", "La"], {"batch_size": 1}, "prompt 1 has 500 tokens"),
        (["El", [20] * 500], {"n": 3}, "prompt 2 has 500"),
        (["El", "a\ud800"], {}, "not UTF-8"),
    ):
        with pytest.raises(UserError, match=named):
            lm.generate(prompts, on_progress=lambda *at: done.append(at), **options)
    assert not done


def test_a_special_token_stops_by_its_name(lm):
    name, id = next(item for item in lm.tokenizer.special_tokens.items() if item[1] != lm.tokenizer.eos_id)
    settings = dict(logit_bias={id: 1e9}, max_new_tokens=5, ignore_eos=True)
    assert lm.generate("El", **settings).tokens == [id] * 5
    stopped = lm.generate("El", stop=name, **settings)
    assert (stopped.tokens, stopped.finish) == ([], "stop")


def test_stop_strings_and_ids_end_a_text(lm):
    free = lm.generate("El", seed=1, max_new_tokens=40, temperature=1.2)
    string = free.text[10:13]
    cut = lm.generate("El", seed=1, max_new_tokens=40, temperature=1.2, stop=string)
    assert cut.text == free.text[: free.text.index(string)] and cut.finish == "stop"
    assert cut.tokens == free.tokens[: len(cut.tokens)] and len(cut.logprobs) == len(cut.tokens)
    stream = lm.stream("El", seed=1, max_new_tokens=40, temperature=1.2, stop=[string])
    assert "".join(stream) == cut.text
    at = free.tokens.index(free.tokens[5])
    stopped = lm.generate("El", seed=1, max_new_tokens=40, temperature=1.2, stop=free.tokens[5])
    assert stopped.tokens == free.tokens[:at] and stopped.finish == "stop"


def test_the_start_of_a_stop_string_at_the_end_is_text(lm):
    free = lm.generate("El", seed=1, max_new_tokens=40, temperature=1.2)
    open_end = lm.generate("El", seed=1, max_new_tokens=40, temperature=1.2, stop=free.text[-2:] + "#")
    assert open_end == free


def test_the_end_token_ends_a_text(lm):
    wild = lm.generate(["El"] * 128, seed=range(128), temperature=5.0, max_new_tokens=40, batch_size=128)
    assert any(item.finish == "stop" for item in wild)
    assert all(lm.tokenizer.eos_id not in item.tokens for item in wild)


def test_cronica_takes_a_block_in_any_dress(lm):
    bare = "\n".join(line + "  " for line in BLOCK.splitlines()[1:-1])
    assert BLOCK.startswith("<STATS>") and "STATS" not in bare
    prompts = [lm.cronica_prompt(stats, "mexicano_clasico") for stats in (BLOCK, bare, parse_block(BLOCK))]
    assert prompts[0] == prompts[1] == prompts[2]
    assert prompts[0] == cronica_tokens.encode_prompt(lm.tokenizer, BLOCK, "mexicano_clasico")
    text = lm.cronica(BLOCK, style="mexicano_clasico", seed=2, **SHORT)
    pairs = [(BLOCK, "comentario_tecnico"), (BLOCK, "mexicano_clasico")]
    assert same(lm.cronicas(pairs, seed=[0, 2], **SHORT)[1], text)
    assert "".join(lm.stream_cronica(BLOCK, "mexicano_clasico", seed=2, **SHORT)) == text.text


def test_cronica_ends_at_its_closing_token(lm):
    closing = lm.tokenizer.special_tokens["</cronica>"]
    pairs = [(BLOCK, "mexicano_clasico")] * 128
    wild = lm.cronicas(pairs, seed=range(128), temperature=5.0, top_k=0, top_p=1.0, batch_size=128, **SHORT)
    assert any(item.finish == "stop" for item in wild)
    assert all(closing not in item.tokens for item in wild)


def test_unknown_style_lists_the_eight_with_their_regions(lm):
    with pytest.raises(UserError) as caught:
        lm.cronica(BLOCK, style="mexicano")
    for label, (region, _) in cronica_tokens.STYLES.items():
        assert label in str(caught.value) and region in str(caught.value)


def test_a_text_that_is_no_block_is_refused(lm):
    with pytest.raises(UserError, match="local"):
        lm.cronica("Rayo gana", style="mexicano_clasico")


def test_score_is_the_sum_of_the_logits_log_softmax(lm):
    score = lm.score("¡Qué partido!")
    logits = np.asarray(lm.logits(score.tokens), np.float64)
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [exact[at, token] for at, token in enumerate(score.tokens[1:])]
    np.testing.assert_allclose(score.logprobs, wanted, atol=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(wanted)), rel=1e-4)
    assert lm.logits([score.tokens, score.tokens]).shape == (2, len(score.tokens), 640)


def test_a_model_prints_what_it_is(tmp_path):
    lm = zoo.create("tiny-lm", num_layers=2, dtype="bfloat16")
    assert "parameters  114,660 in bfloat16, 0.2 MB" in repr(lm) and "of no file" in repr(lm)
    assert "num_layers = 2 (instead of 4)" in repr(lm) and "embed_dim = 64\n" in repr(lm)
    lm.save(tmp_path / "saved")
    assert f"weights     {tmp_path / 'saved'} (" in repr(zoo.load(tmp_path / "saved"))


def test_create_is_seeded_and_checks_names():
    one, same, other = (create("cronica-5m", seed=seed, vocab_size=32, **TINY) for seed in (1, 1, 2))
    tokens = [1, 2, 3]
    np.testing.assert_array_equal(one.logits(tokens), same.logits(tokens))
    assert np.abs(one.logits(tokens) - other.logits(tokens)).max() > 1e-3
    with pytest.raises(UserError, match="cronica-5m"):
        create("cronica5m")
    with pytest.raises(UserError, match="num_layers"):
        create("cronica-5m", num_layer=3)
    with pytest.raises(UserError, match="no tokenizer"):
        one.generate("text")
    assert len(one.generate([1, 2], max_new_tokens=4).tokens) == 4


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    bare = create("cronica-5m", vocab_size=599, **TINY)
    with pytest.raises(UserError, match="600 entries, the model only 599"):
        LanguageModel(bare.module, tokenizer, bare.spec, bare.config)


def test_portable_directory_round_trip(lm, portable):
    assert {path.name for path in portable.iterdir()} == {"zoo.json", "model.safetensors", "tokenizer"}
    again = zoo.load(portable)
    assert again.config == lm.config and again.tokenizer.fingerprint == lm.tokenizer.fingerprint
    np.testing.assert_array_equal(again.logits([1, 2, 3]), lm.logits([1, 2, 3]))
    half = load(str(portable), dtype="bfloat16")
    assert half.module.embed.embedding.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.logits([1, 2, 3]), lm.logits([1, 2, 3]), atol=0.3)
    lm.save(portable)  # over itself is fine


def test_save_leaves_other_directories_alone(lm, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        lm.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def edit(directory, source, change):
    shutil.copytree(source, directory, dirs_exist_ok=True)
    content = json.loads((directory / "zoo.json").read_text())
    change(content)
    (directory / "zoo.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.update(format=99), "format 99"),
        (lambda content: content.pop("model"), "model"),
        (lambda content: content.update(model="cronica"), "cronica-5m"),
        (lambda content: content["config"].update(embed_dim=32), "embed/embedding"),
        (lambda content: content["config"].update(num_layers=2), "layers/1"),
        (lambda content: content["config"].update(layers=2), "layers"),
    ],
)
def test_a_portable_directory_that_does_not_fit_is_refused(portable, tmp_path, change, named):
    with pytest.raises(UserError, match=named) as caught:
        load(edit(tmp_path, portable, change))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_clear_error(portable, tmp_path):
    edit(tmp_path, portable, lambda content: None)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(tmp_path)


def test_run_directory_gives_its_newest_checkpoint(lm, tokenizer, tmp_path):
    recipe = make_recipe(
        {
            "name": "r",
            "model": {"name": "cronica-5m", "vocab_size": 640, **TINY},
            "data": {"source": "jsonl", "path": str(tmp_path / "gone.jsonl")},
        },
        check_files=False,
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="no checkpoint"):
        load(tmp_path)
    spec, config = zoo.describe("cronica-5m"), recipe.model.make_config()
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2):
            _, params = build.create_params(spec.model_class(), config, step)
            checkpoints.save(step, params, {"count": jnp.zeros(())}, {"examples_seen": 0})
    loaded = zoo.load(tmp_path)
    newest = create("cronica-5m", seed=2, vocab_size=640, **TINY)
    np.testing.assert_array_equal(loaded.logits([5, 6]), newest.logits([5, 6]))
    assert loaded.cronica(BLOCK, style="mexicano_clasico", **SHORT).tokens


def test_published_checkpoint():
    for path in (GOLDEN, next(GOLDEN.glob("*.pkl"))):
        published = zoo.load(path)
        tokens, logits = (np.load(GOLDEN / f"{name}.npy") for name in ("tokens", "logits"))
        np.testing.assert_allclose(published.logits(tokens), logits, atol=1e-4)


def test_what_is_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cronica-5m'"):
        load("cronica-5")
    with pytest.raises(UserError, match=r"recipe\.yaml.*zoo\.json"):
        load(tmp_path)


@pytest.mark.parametrize("prompt", [123, None, 1.5, True, {"a": 1}, {1, 2}, np.array(5), object()])
def test_a_prompt_of_another_type_is_refused(lm, prompt):
    with pytest.raises(UserError, match="a prompt is text or a list of token ids, and this is"):
        lm.generate(prompt)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", "hot"),
        ("min_p", "x"),
        ("top_p", "y"),
        ("repetition_penalty", "z"),
        ("logit_bias", [1]),
        ("batch_size", "q"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(lm, setting, value):
    with pytest.raises(UserError, match=f"{setting} is .*give a"):
        lm.generate([1, 2], **{setting: value})


def test_names_and_ids_of_other_types_are_refused(lm):
    for call in (zoo.load, zoo.create, zoo.describe):
        for name in (5, None, ["a"], 1.5):
            with pytest.raises(UserError, match="name of a model"):
                call(name)
    with pytest.raises(UserError, match="there are no token ids"):
        lm.logits([])
