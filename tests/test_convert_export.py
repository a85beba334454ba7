"""Models out: Hugging Face, GGUF and MLX directories, native formats, cards; what other programs compute from them."""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import zoo
from zoo.cli.main import main
from zoo.convert import bwetaf, chat_templates, gguf, mlx, nanochat_hf
from zoo.errors import UserError
from zoo.evaluate import verification
from zoo.language_model import LanguageModel
from zoo.models import build
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica import tokens as cronica_tokens
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.tiktoken_bpe import GPT2_PATTERN, TiktokenTokenizer

GOLDEN = Path(__file__).parent / "golden"
TEXT = "The model writes on from what it has read, one token after the other, and it's the same text every time."


@pytest.fixture(scope="module")
def gpt2_like():
    """Byte-level BPE whose one special token is <|endoftext|>, as KodaLite's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT] * 5, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    return HFTokenizer(backend.to_str())


@pytest.fixture(scope="module")
def koda(gpt2_like):
    """A Llama of two layers with that tokenizer, and rows of the table that it does not use."""
    sizes = {"num_layers": 2, "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "mlp_dim": 128}
    bare = zoo.create("kodalite-1.3b", seed=1, vocab_size=gpt2_like.vocab_size + 7, max_seq_len=64, **sizes)
    return LanguageModel(livened(bare, 1), gpt2_like, bare.spec, bare.config)


@pytest.fixture(scope="module")
def cronica():
    records = corpus.generate(40)
    tokenizer = cronica_tokens.train((cronica_tokens.training_text(record) for record in records), 600)
    sizes = {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "head_dim": 32, "mlp_dim": 96}
    bare = zoo.create("cronica-5m", seed=1, vocab_size=600, max_seq_len=96, **sizes)
    return LanguageModel(livened(bare, 4), tokenizer, bare.spec, bare.config)


def livened(lm, factor):
    """Norms away from 1, and matrices times `factor`: at their beginning, errors hide."""
    graphdef, state = nnx.split(lm.module)
    flat = build.flatten(nnx.to_pure_dict(state))
    keys = jax.random.split(jax.random.key(0), len(flat))
    flat = {
        path: leaf + 0.3 * jax.random.normal(key, leaf.shape) if leaf.ndim == 1 else leaf * factor
        for (path, leaf), key in zip(flat.items(), keys, strict=True)
    }
    return nnx.merge(graphdef, build.unflatten(flat))


def checks(lm, directory, format, exact=True):
    found = list(verification.written(lm, directory, format, bound=verification.bound_for(lm, exact=exact)))
    assert all(check.ok for check in found), found
    return found


def torch_logits(directory, tokens, **settings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **settings).eval()
    with torch.no_grad():
        return model, model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.float().numpy()


# Hugging Face


@pytest.mark.parametrize("place", ["kodalite", "kodalite_native", "cronica", "gelu", "gelu/orbax"])
def test_golden_models_come_back_and_transformers_agrees(tmp_path, place):
    pytest.importorskip("transformers")
    lm = zoo.load(GOLDEN / place)
    assert lm.export(tmp_path / "out") == tmp_path / "out"
    found = checks(lm, tmp_path / "out", "hf")
    assert len(found) == (4 if "gelu" in place else 5)
    if "cronica" not in place:
        number = len(jax.tree.leaves(nnx.state(lm.module)))
        assert found[0].found == f"{number} of {number} are bit-identical when read back"


def test_gelu_directory_has_the_tensors_of_the_published_one(tmp_path):
    from safetensors.numpy import load_file

    zoo.load(GOLDEN / "gelu").export(tmp_path / "out")
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "out", GOLDEN / "gelu"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        tables = "rope" in name
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4 if tables else 0, rtol=0)


def test_gelu_generates_with_its_cache_as_without(tmp_path):
    torch = pytest.importorskip("torch")
    zoo.load(GOLDEN / "gelu").export(tmp_path / "out")
    tokens = np.load(GOLDEN / "gelu" / "tokens.npy")
    model, full = torch_logits(tmp_path / "out", tokens, trust_remote_code=True)
    np.testing.assert_allclose(full, np.load(GOLDEN / "gelu" / "logits.npy"), atol=3e-5)
    rows = torch.tensor(tokens, dtype=torch.long)
    greedy = model.generate(rows[:1, :8], max_new_tokens=16, do_sample=False)
    assert greedy[0, 8:].tolist() == np.load(GOLDEN / "gelu" / "greedy_tokens.npy").tolist()
    # Beyond the short window of 128, and searching with several beams, which reorder the cache.
    for prompt, settings in ((rows[:1, :140], {}), (rows[:1, :8], {"num_beams": 3})):
        settings = {"max_new_tokens": 6, "do_sample": False, **settings}
        cached, plain = (model.generate(prompt, use_cache=use, **settings).tolist() for use in (True, False))
        assert cached == plain
    # Rows of different lengths, padded on the left.
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), rows[1:, :10]], dim=1)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, :3] = 0
    both = model.generate(torch.cat([rows[:1, :13], padded]), attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = model.generate(rows[1:, :10], max_new_tokens=8, do_sample=False)
    assert both[1, 13:].tolist() == alone[0, 10:].tolist()


def test_gelu_takes_a_cache_by_either_name_and_refuses_what_it_does_not_know(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    zoo.load(GOLDEN / "gelu").export(tmp_path / "out")
    tokens = np.load(GOLDEN / "gelu" / "tokens.npy")
    model, full = torch_logits(tmp_path / "out", tokens, trust_remote_code=True)
    rows = torch.tensor(tokens, dtype=torch.long)
    positions = torch.arange(rows.shape[1]).expand_as(rows)
    with torch.no_grad():
        for name in ("cache", "past_key_values"):  # transformers renamed it in 5.24
            cache, parts = transformers.DynamicCache(config=model.config), []
            for at in range(0, rows.shape[1], 50):
                parts.append(model(rows[:, at : at + 50], **{name: cache}).logits.numpy())
            assert cache.get_seq_length() == rows.shape[1]
            np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=3e-5)
        output = model(rows, position_ids=positions, token_type_ids=torch.zeros_like(rows), use_cache=True)
        # Whatever the version calls the cache, its own `generate` finds it there.
        assert isinstance(output.get("cache", output.get("past_key_values")), transformers.Cache)
        np.testing.assert_array_equal(output.logits.numpy(), full)
        for unknown in ({"kv_cache": transformers.DynamicCache()}, {"state": [0]}, {"inputs_embeds": rows.float()}):
            with pytest.raises(TypeError, match=next(iter(unknown))):
                model(rows, **unknown)
        with pytest.raises(TypeError, match="two names"):
            model(rows, cache=transformers.DynamicCache(), past_key_values=transformers.DynamicCache())
        with pytest.raises(ValueError, match="position_ids"):
            model(rows, position_ids=torch.zeros_like(rows))
        with pytest.raises(ValueError, match="DynamicCache"):
            model.generate(rows[:1, :8], cache_implementation="static", max_new_tokens=4)
        with pytest.raises(ValueError, match="attention_mask"):
            model(rows, attention_mask=torch.ones(2, 1, rows.shape[1], rows.shape[1]))


@pytest.mark.slow
def test_untied_gelu_with_relu_squared(tmp_path):
    config = {**zoo.load(GOLDEN / "gelu").config.to_dict(), "num_layers": 4, "num_kv_heads": 2}
    bare = zoo.create(
        "gelu-d12", **{**config, "activation": "relu_squared", "tie_embeddings": False, "vocab_size": 100}
    )
    graphdef, state = nnx.split(bare.module)
    noise = iter(jax.random.split(jax.random.key(3), 100))
    state = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(next(noise), leaf.shape), state)
    lm = LanguageModel(nnx.merge(graphdef, state), None, bare.spec, bare.config)
    lm.export(tmp_path / "out")
    checks(lm, tmp_path / "out", "hf")


def test_kodalite_directory_keeps_the_chat_template_and_stop_string(tmp_path, koda):
    transformers = pytest.importorskip("transformers")
    koda.export(tmp_path / "out")
    checks(koda, tmp_path / "out", "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXT)["input_ids"] == koda.tokenizer.encode(TEXT)
    assert tokenizer.eos_token_id == koda.tokenizer.eos_id == tokenizer.pad_token_id
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    text = "<|user|>\nHi\n<|assistant|>\nYes?<|endoftext|><|user|>\nGo\n<|assistant|>\n"
    for prompt in (False, True):
        assert tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt) == text
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.stop_strings == ["<|end|>"] and generation.temperature == 0.7 and generation.top_k == 40


def test_cronica_stops_at_its_closing_tag(tmp_path, cronica):
    transformers = pytest.importorskip("transformers")
    cronica.export(tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokens = cronica.tokenizer.special_tokens
    assert config["eos_token_id"] == [tokens["<eos>"], tokens["</cronica>"]] and config["torch_dtype"] == "bfloat16"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.bos_token_id == tokens["<bos>"] and tokenizer.pad_token_id == tokens["<pad>"]
    assert tokenizer("¡Qué partido!")["input_ids"] == cronica.tokenizer.encode("¡Qué partido!")
    checks(cronica, tmp_path / "out", "hf", exact=False)


def test_tiktoken_becomes_a_tokenizer_json(gpt2_like):
    from zoo.convert.tokenizer_files import _byte_letters, tokenizer_json

    bytes_of = {letter: byte for byte, letter in _byte_letters().items()}
    vocab = json.loads(tokenizer_json(gpt2_like))["model"]["vocab"]
    ranks = {bytes(bytes_of[letter] for letter in token): rank for token, rank in vocab.items()}
    tiktoken = TiktokenTokenizer(ranks, GPT2_PATTERN, {"<|endoftext|>": len(ranks)})
    again = HFTokenizer(tokenizer_json(tiktoken))
    for text in (TEXT, "It's 12 o'clock…  ¡Sí!\n\n"):
        assert again.encode(text) == tiktoken.encode(text) == gpt2_like.encode(text)
    assert again.eos_id == tiktoken.eos_id


# GGUF


def test_gguf_says_what_llama_cpp_asks_for(tmp_path, koda):
    package = pytest.importorskip("gguf")
    koda.export(tmp_path / "out", "gguf", name="small")
    reader = package.GGUFReader(tmp_path / "out" / "small-F16.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == 2
    assert (
        fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.chat_template"] == chat_templates.KODALITE_RELEASE
    )
    assert len(fields["tokenizer.ggml.tokens"]) == koda.config.vocab_size
    assert fields["tokenizer.ggml.eos_token_id"] == koda.tokenizer.eos_id
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert "FROM ./small-F16.gguf" in modelfile and 'PARAMETER stop "<|end|>"' in modelfile
    assert "{{ .Content }}\n<|assistant|>\n" in modelfile
    checks(koda, tmp_path / "out", "gguf", exact=False)


def test_gguf_read_back_is_the_model_rounded(tmp_path, koda, cronica):
    pytest.importorskip("gguf")

    def half(leaf):
        return leaf if leaf.ndim == 1 else leaf.astype("float16").astype("float32")

    for number, lm in enumerate((koda, cronica)):
        lm.export(tmp_path / str(number), "gguf")
        again = zoo.load(tmp_path / str(number))
        tokens = verification.sample_tokens(lm)
        graphdef, state = nnx.split(lm.module)
        rounded = LanguageModel(nnx.merge(graphdef, jax.tree.map(half, state)), None, lm.spec, lm.config)
        np.testing.assert_allclose(again.logits(tokens), rounded.logits(tokens), atol=5e-5)
    koda.export(tmp_path / "q8", "gguf", quantization="Q8_0")
    q8 = zoo.load(tmp_path / "q8")
    tokens = verification.sample_tokens(koda)
    assert 1e-3 < np.abs(np.asarray(q8.logits(tokens) - koda.logits(tokens))).max() < 1


def test_of_several_gguf_files_in_a_directory_one_is_read(tmp_path, koda):
    package = pytest.importorskip("gguf")
    koda.export(tmp_path, "gguf", name="m")
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"GGUF, but not read")
    assert zoo.convert.detect_format(tmp_path) is gguf.FORMAT
    assert gguf.FORMAT.open(tmp_path).file == tmp_path / "m-F16.gguf"
    reader = package.GGUFReader(tmp_path / "m-F16.gguf", "r+")
    reader.fields["llama.block_count"].parts[-1][0] = 1000
    del reader
    with pytest.raises(UserError, match="the config says 1000 layers"):
        gguf.FORMAT.open(tmp_path)
    (tmp_path / "m-F16.gguf").rename(tmp_path / "m-Q5_K_M.gguf")
    with pytest.raises(UserError, match=r"holds several GGUF files; name one \(m-Q4_K_M\.gguf, m-Q5_K_M\.gguf\)"):
        zoo.convert.examine(tmp_path)


def llama_cpp(file, **settings):
    package = pytest.importorskip("llama_cpp")
    return package.Llama(str(file), n_ctx=64, logits_all=True, verbose=False, **settings)


@pytest.mark.parametrize("which", ["koda", "cronica"])
def test_llama_cpp_computes_the_same(tmp_path, which, request):
    lm = request.getfixturevalue(which)
    lm.export(tmp_path / "out", "gguf", name="m")
    program = llama_cpp(tmp_path / "out" / "m-F16.gguf")
    text = TEXT[:40] if which == "koda" else "¡Qué partido!"
    ids = program.tokenize(text.encode(), add_bos=False, special=False)
    assert ids == lm.tokenizer.encode(text)
    program.eval(ids)
    theirs = np.array(program.scores[: len(ids)])
    ours = np.asarray(zoo.load(tmp_path / "out").logits(ids))
    np.testing.assert_allclose(theirs, ours, atol=0.05)
    wanted = zoo.load(tmp_path / "out").generate(ids, temperature=0, max_new_tokens=32).tokens
    written = []
    program.reset()
    for token in program.generate(ids, temp=0.0, repeat_penalty=1.0):
        written.append(token)
        if len(written) == 32:
            break
    assert written == wanted


def test_what_gguf_cannot_say(tmp_path, koda):
    with pytest.raises(UserError, match="Q5_1"):
        koda.export(tmp_path / "out", "gguf", quantization="Q5_1")
    assert list(tmp_path.iterdir()) == []


def test_q4_k_m_by_llama_cpp_itself(tmp_path, gpt2_like):
    package = pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    # Blocks of 256 numbers: narrower rows would fall back to other types.
    sizes = {"num_layers": 1, "embed_dim": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "mlp_dim": 256}
    bare = zoo.create("kodalite-1.3b", seed=1, vocab_size=gpt2_like.vocab_size, max_seq_len=64, **sizes)
    lm = LanguageModel(livened(bare, 1), gpt2_like, bare.spec, bare.config)
    lm.export(tmp_path / "out", "gguf", name="m", quantization="Q4_K_M")
    assert [file.name for file in (tmp_path / "out").glob("*.gguf")] == ["m-Q4_K_M.gguf"]
    types = {t.name: t.tensor_type.name for t in package.GGUFReader(tmp_path / "out" / "m-Q4_K_M.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_K" and types["output.weight"] == "Q6_K"
    tokens = verification.sample_tokens(lm)
    ours, theirs = np.asarray(lm.logits(tokens)), np.asarray(zoo.load(tmp_path / "out").logits(tokens))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.97


def test_q4_k_m_without_llama_cpp(tmp_path, koda, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match=r"llama-quantize.*llama-cpp-python"):
        koda.export(tmp_path / "out", "gguf", quantization="Q4_K_M")
    assert list(tmp_path.iterdir()) == []


# MLX


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_mlx_read_back(tmp_path, koda, bits):
    koda.export(tmp_path / "out", "mlx", bits=bits)
    again = zoo.load(tmp_path / "out")
    for path, leaf in build.flatten(nnx.to_pure_dict(nnx.state(again.module))).items():
        wanted = np.asarray(build.flatten(nnx.to_pure_dict(nnx.state(koda.module)))[path])
        # Half a step of the widest range in a group, and the rounding of scale and bias to float16.
        step = 1e-3 * np.abs(wanted).max() if bits is None else 1.2 * np.ptp(wanted) / (2**bits - 1)
        assert np.abs(np.asarray(leaf) - wanted).max() <= step, path


def test_mlx_as_mlx_lm_writes_it(tmp_path, koda):
    """Its config.json has the block twice; the two may not differ."""
    koda.export(tmp_path / "out", "mlx", bits=8)
    about = tmp_path / "out" / "config.json"
    plain, content = zoo.convert.load(tmp_path / "out"), json.loads(about.read_text())
    about.write_text(json.dumps(content | {"quantization_config": content["quantization"]}))
    again = zoo.convert.load(tmp_path / "out")
    assert again.config == plain.config
    one, other = build.flatten(again.params), build.flatten(plain.params)
    assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)
    about.write_text(json.dumps(content | {"quantization_config": {"group_size": 64, "bits": 4}}))
    with pytest.raises(UserError, match="quantization_config is"):
        mlx.FORMAT.open(tmp_path / "out")


def test_mlx_matrices_that_are_none(tmp_path, koda):
    from safetensors.numpy import load_file, save_file

    koda.export(tmp_path / "out", "mlx", bits=8)
    file = tmp_path / "out" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.mlp.up_proj"
    save_file(tensors | {f"{name}.weight": tensors[f"{name}.weight"].reshape(-1)}, file)
    with pytest.raises(UserError, match=r"model\.safetensors: model\.layers\.0\.mlp\.up_proj has not the weight"):
        mlx.FORMAT.open(tmp_path / "out")
    parts = {f"{name}.{part}": np.ones((5, 1), np.float16) for part in ("scales", "biases")}
    save_file(tensors | parts, file)
    with pytest.raises(UserError, match=r"model\.safetensors: model\.layers\.0\.mlp\.up_proj: a quantised matrix"):
        mlx.FORMAT.open(tmp_path / "out")


def test_quantised_numbers_are_those_of_mlx():
    """To one step: MLX rounds with the scale before it is rounded to float16 itself."""
    core = pytest.importorskip("mlx.core")
    weight = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float16)
    for bits in (4, 8):
        ours = [core.array(part) for part in mlx.quantise(weight, bits)]
        theirs = core.quantize(core.array(weight), group_size=64, bits=bits)
        one, other = (np.array(core.dequantize(*parts, group_size=64, bits=bits)) for parts in (ours, theirs))
        step = np.array(ours[1]).astype(np.float32).__abs__().max()
        assert np.abs(one - other).max() <= 1.1 * step
        assert np.abs(one - weight).mean() <= 1.02 * np.abs(other - weight).mean() < 0.3 * step


@pytest.mark.parametrize("bits", [None, 8])
def test_mlx_lm_opens_it(tmp_path, koda, bits):
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as core

    koda.export(tmp_path / "out", "mlx", bits=bits)
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    ids = koda.tokenizer.encode(TEXT[:40])
    assert tokenizer.encode(TEXT[:40]) == ids
    theirs = np.array(model(core.array([ids])).astype(core.float32))[0]
    again = zoo.load(tmp_path / "out")
    np.testing.assert_allclose(theirs, again.logits(ids), atol=0.05)
    # Through its cache, one token after the other.
    from mlx_lm.models.cache import make_prompt_cache

    cache, row, written = make_prompt_cache(model), ids, []
    for _ in range(12):
        logits = np.array(model(core.array([row]), cache=cache).astype(core.float32))[0, -1]
        written.append(int(logits[: koda.tokenizer.vocab_size].argmax()))
        row = written[-1:]
    found = again.generate(ids, temperature=0, max_new_tokens=12, ignore_eos=True)
    assert len(found.tokens) == 12 and sum(a == b for a, b in zip(found.tokens, written, strict=True)) >= 10


# Refusals, cards, the command


@pytest.mark.parametrize(
    ("place", "format", "named"),
    [
        ("bwetaf", "hf", "turns the embedding"),
        ("bwetaf", "gguf", "turns the embedding"),
        ("tiny", "hf", "learned positions"),
        ("tiny", "mlx", "learned positions"),
        ("gelu", "gguf", "smear, value embeddings"),
        ("gelu", "mlx", "smear, value embeddings"),
        ("gelu", "koda", "gelu-d12 is no Llama"),
        ("kodalite", "cronica", "is no Cronica"),
        ("kodalite", "hff", "did you mean 'hf'"),
    ],
)
def test_what_a_format_cannot_express_is_refused_with_the_reason(tmp_path, place, format, named):
    lm = zoo.load(GOLDEN / place)
    with pytest.raises(UserError, match=named):
        lm.export(tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_options_and_directories_are_checked(tmp_path, koda):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for arguments, named in (
        ({"format": "hf", "bits": 8}, "bits is an option of the format mlx"),
        ({"format": "mlx", "quantization": "F16"}, "quantization is an option of the format gguf"),
        ({"format": "gguf", "dtype": "float32"}, "dtype is no option"),
        ({"format": "mlx", "bits": 3}, "bits is 3"),
    ):
        with pytest.raises(UserError, match=named):
            koda.export(tmp_path / "out", **arguments)
    with pytest.raises(UserError, match="not empty"):
        koda.export(tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def front_matter(directory):
    text = (directory / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_cards_claim_only_what_is_known(tmp_path, koda):
    from zoo import registry
    from zoo.weights import model_card
    from zoo.weights.export import Exported

    koda.export(tmp_path / "random", name="mine")
    head, text = front_matter(tmp_path / "random")
    assert "model-index" not in head and "license" not in head and "random weights" in text and "# mine" in text
    zoo.load(GOLDEN / "kodalite").export(tmp_path / "other")  # a Llama, but not that one
    assert "HellaSwag" not in (tmp_path / "other" / "README.md").read_text()
    spec = registry.describe("gelu-d12")
    (tmp_path / "published").mkdir()
    arguments = {"params": {"x": np.zeros(3)}, "tokenizer": None, "step": 19920}
    card = Exported("gelu-d12", spec, spec.make_config(), path=tmp_path, **arguments)
    model_card.write(tmp_path / "published", card, "hf")
    head, text = front_matter(tmp_path / "published")
    assert "license" not in head and "model-index" not in head and "31.4" not in text  # of that size, and not theirs
    card = Exported("gelu-d12", spec, spec.make_config(), path=tmp_path, official=True, **arguments)
    model_card.write(tmp_path / "published", card, "hf")
    head, text = front_matter(tmp_path / "published")
    assert head["license"] == "apache-2.0" and "trust_remote_code=True" in text
    results = {item["dataset"]["name"]: item["metrics"][0]["value"] for item in head["model-index"][0]["results"]}
    assert results == {"wikitext-103-raw-v1": 3.840, "LAMBADA": 18.4, "HellaSwag": 31.4, "ARC-Easy": 34.5}
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: r")
    measured = {"n": 200, "home": {"value": 0.9, "hits": 180, "total": 200}, "words": 127.1}
    sets = {"held out": {"about": "new", "generated": measured, "texts": ["a"]}, "tales": {"loss": 2.5, "n": 3}}
    evaluation = {"sets": sets}
    sample = {"stats_block": "<STATS>", "cronica": "Gol."}
    (run / "result.json").write_text(json.dumps({"format": 1, "evaluation": evaluation, "sample": sample}))
    model_card.write(tmp_path / "published", Exported("r", spec, spec.make_config(), path=run, **arguments), "hf")
    head, text = front_matter(tmp_path / "published")
    assert "LAMBADA" not in text and "Gol." in text and "license" not in head
    metrics = [item["metrics"][0] for item in head["model-index"][0]["results"]]
    assert [(item["type"], item["value"]) for item in metrics] == [("home", 0.9), ("loss", 2.5)]


def test_only_the_authors_own_files_count_as_published(tmp_path):
    """Random weights of a registered size, by every way back in; the last way is what published files look like."""
    lm = zoo.create("tiny-lm")
    lm.save(tmp_path / "portable")
    lm.export(tmp_path / "own", "tiny")
    for way in ("portable", "own"):
        found = zoo.load(tmp_path / way)
        assert not found.origin.official
        found.export(tmp_path / f"{way} again", "tiny")
        head, text = front_matter(tmp_path / f"{way} again")
        assert "license" not in head and "GPL" not in text and "| origin | not stated |" in text
    (tmp_path / "own" / "README.md").unlink()
    found = zoo.load(tmp_path / "own")
    assert found.origin.official
    found.export(tmp_path / "published", "tiny")
    assert front_matter(tmp_path / "published")[0]["license"] == "gpl-3.0"


def test_somebodys_llama_is_not_kodalite(tmp_path, koda):
    shutil.copytree(GOLDEN / "kodalite", tmp_path / "some-llama")
    bare = zoo.load(tmp_path / "some-llama")  # may well be KodaLite's, in another size
    assert not bare.is_community_model and bare.chat_template == "kodalite"
    (tmp_path / "some-llama" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    lm = zoo.load(tmp_path / "some-llama")
    lm.save(tmp_path / "saved")
    for found in (lm, zoo.load(tmp_path / "saved")):
        assert found.is_community_model and not found.origin.official
        with pytest.raises(UserError, match="has no chat template"):
            _ = found.chat_template
        with pytest.raises(UserError, match="publishes no settings"):
            found.generate([1, 2], preset="original", max_new_tokens=1)
    lm.export(tmp_path / "out", "hf")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# some-llama\n" in text and "kodalite" not in text.split("## Config")[0]
    LanguageModel(lm.module, None, lm.spec, lm.config, origin=lm.origin).export(tmp_path / "gguf", "gguf")
    assert (tmp_path / "gguf" / "some-llama-F16.gguf").is_file()
    # What zoo trained as one keeps its name and template, through a directory of transformers too.
    koda.export(tmp_path / "koda", "hf")
    for own in (koda, zoo.load(tmp_path / "koda")):
        assert not own.is_community_model and own.name == "kodalite-1.3b" and own.chat_template == "kodalite"


def test_weights_are_floats(tmp_path, capsys):
    source = str(GOLDEN / "tiny")
    for dtype in ("int8", "float7", "float64"):
        for command in (
            ["convert", source, str(tmp_path / "out"), "--to", "tiny", "--dtype", dtype],
            ["merge", source, "--out", str(tmp_path / "out"), "--dtype", dtype],
            ["generate", source, "a", "--dtype", dtype],
        ):
            assert main(command) == 2
            assert f"--dtype is '{dtype}'; give float32, bfloat16 or float16" in capsys.readouterr().err
        for name in ("dtype", "compute_dtype"):
            with pytest.raises(UserError, match=f"{name} is '{dtype}'; give float32, bfloat16 or float16"):
                zoo.load(source, **{name: dtype})
    lm = zoo.load(source)
    for wrong in (lm.save, lambda path, dtype: lm.export(path, "tiny", dtype=dtype)):
        with pytest.raises(UserError, match="dtype is int8; give float32"):
            wrong(tmp_path / "out", dtype=np.int8)
    assert not (tmp_path / "out").exists()
    lm.save(tmp_path / "half", dtype="bf16")
    assert {tensor.dtype.name for tensor in zoo.weights.resolve.find(tmp_path / "half").tensors()} == {"bfloat16"}


def test_convert_verifies_and_says_so(tmp_path, capsys):
    code = main(["convert", str(GOLDEN / "bwetaf"), str(tmp_path / "out"), "--to", "bwetaf", "--verify"])
    out = capsys.readouterr().out
    assert code == 0 and "23 of 23 are bit-identical" in out and "0.00e+00" in out
    array = bwetaf.FORMAT.open(GOLDEN / "bwetaf").tensors["emb.embedding"].read()
    assert f"{hashlib.sha256(array.tobytes()).hexdigest()[:16]}  emb.embedding" in out
    assert main(["convert", str(GOLDEN / "bwetaf"), str(tmp_path / "o"), "--to", "hf"]) == 2
    assert "turns the embedding" in capsys.readouterr().err
    code = main(
        ["convert", str(GOLDEN / "kodalite"), str(tmp_path / "h"), "--to", "koda", "--dtype", "bf16", "--verify"]
    )
    assert code == 0 and (tmp_path / "h" / "model.safetensors").stat().st_size < 200_000


def test_a_wrong_export_is_found(tmp_path):
    from safetensors.numpy import load_file, save_file

    lm = zoo.load(GOLDEN / "kodalite")
    lm.export(tmp_path / "out", "koda")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "['blocks'][1]['attention']['q_proj']['kernel'].value"
    tensors[name] = tensors[name] * 1.001
    save_file(tensors, file)
    found = list(verification.written(lm, tmp_path / "out", "koda", bound=1e-5))
    assert [check.ok for check in found] == [True, False] and "20 of 21" in found[0].found
    found = list(verification.written(lm, tmp_path / "out", "koda", bound=1e9, dtype="float32"))
    assert [check.ok for check in found] == [False, True]  # logits may hide what parameters show
    lm.export(tmp_path / "half", "koda", dtype="bfloat16")
    found = list(verification.written(lm, tmp_path / "half", "koda", bound=1e9, dtype="bfloat16"))
    assert [check.ok for check in found] == [True, True]  # rounded, as asked for


def test_the_code_for_torch_imports_nothing_of_zoo():
    for name in nanochat_hf.CODE:
        tree = ast.parse((Path(gguf.__file__).parent / "gelu_gpt" / name).read_text())
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert imported and not any(module.startswith("zoo") for module in imported)
