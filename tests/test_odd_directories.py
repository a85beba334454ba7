"""Directories of models as people have them: a file in place of its directory, missing parts, pointers, pickles."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import zoo
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.language_model import LanguageModel
from zoo.tokenizers import bpe
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer
from zoo.tokenizers.token_files import AddedToken, TokenFiles

GOLDEN = Path(__file__).parent / "golden"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
TEXTS = ["The small red fox runs over the green hill; how are you?"] * 30


def llama(tokenizer, rows) -> LanguageModel:
    bare = zoo.create("kodalite-1.3b", vocab_size=rows, max_seq_len=32, **SIZES)
    return LanguageModel(bare.module, tokenizer, bare.spec, bare.config)


@pytest.fixture
def directory(tmp_path):
    shutil.copytree(GOLDEN / "kodalite", tmp_path / "model")
    return tmp_path / "model"


def test_a_weight_file_stands_for_its_directory(directory, capsys):
    right = zoo.load(directory)
    again = zoo.load(directory / "model.safetensors")
    np.testing.assert_array_equal(again.logits([1, 2, 3]), right.logits([1, 2, 3]))
    assert again.origin.path == directory
    assert main(["inspect", str(directory / "model.safetensors")]) == 0
    assert "would load as kodalite-1.3b" in capsys.readouterr().out
    tensors = ["a", "b"]
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(directory / "model-00001-of-00001.safetensors", "np") as file:
        tensors = list(file.keys())
    shard = "model-00001-of-00001.safetensors"
    with pytest.raises(UserError, match=rf"{shard} is a part of a model, and model\.safetensors\.index\.json"):
        zoo.load(directory)
    index = {"weight_map": dict.fromkeys(tensors, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in (shard, "model.safetensors.index.json"):
        np.testing.assert_array_equal(zoo.load(directory / name).logits([1, 2, 3]), right.logits([1, 2, 3]))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_a_pointer_of_git_lfs_is_called_one(directory, name):
    (directory / name).write_text(POINTER)
    with pytest.raises(
        UserError, match=rf"{name}.* is a pointer of Git LFS, not the file; fetch it with `git lfs pull`"
    ):
        zoo.load(directory)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pytorch_model.bin", "config.json"], r"pytorch_model\.bin is a pickle of PyTorch.*fetch the same model as"),
        (["weights.safetensors", "config.json"], r"weights\.safetensors is not called model\.safetensors"),
        (["model-00001-of-00002.safetensors", "config.json"], r"index\.json, which lists the parts, is missing"),
        (["weights.safetensors"], r"weights\.safetensors has no config\.json beside it"),
    ],
)
def test_what_looks_like_a_model_is_refused_by_what_it_is(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("{}")
    for path in (tmp_path, tmp_path / names[0]):
        with pytest.raises(UserError, match=words):
            zoo.load(path)


def test_a_padding_token_beyond_the_rows_does_no_harm(tmp_path, capsys):
    learnt = bpe.train(TEXTS, 270, eos_token="<|endoftext|>")
    learnt.save(tmp_path / "tok")
    content = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())
    pad = {**content["added_tokens"][0], "id": 270, "content": "[PAD]"}
    content["added_tokens"].append(pad)
    tokenizer = HFTokenizer(json.dumps(content), parts={"eos": "<|endoftext|>", "pad": "[PAD]"})
    assert tokenizer.vocab_size == 271 and tokenizer.pad_id == 270
    lm = llama(tokenizer, rows=270)
    found = lm.generate("The fox", max_new_tokens=20, temperature=5.0, ignore_eos=True)
    assert len(found.tokens) == 20 and max(found.tokens) < 270
    assert lm.score("The fox [PAD]").tokens == lm.tokenizer.encode("The fox [PAD]")
    lm.export(tmp_path / "hf")
    assert main(["inspect", str(tmp_path / "hf")]) == 0 and "would load" in capsys.readouterr().out
    assert zoo.load(tmp_path / "hf").tokenizer.pad_id == 270
    pytest.importorskip("gguf")
    lm.export(tmp_path / "gguf", "gguf")
    zoo.load(tmp_path / "gguf")
    # An entry that texts hold is another matter, and inspect knows it as well as load.
    with pytest.raises(UserError, match="the tokenizer has 271 entries, the model only 269"):
        llama(tokenizer, rows=269)
    content["added_tokens"][-1]["special"] = False
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    assert main(["inspect", str(tmp_path / "hf")]) == 1
    assert "they do not belong together" in capsys.readouterr().err
    with pytest.raises(UserError, match="they do not belong together"):
        zoo.load(tmp_path / "hf")


@pytest.mark.parametrize("format", ["hf", "mlx"])
def test_a_sentencepiece_model_goes_out_as_it_came(tmp_path, format):
    transformers = pytest.importorskip("transformers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    added = {300: AddedToken("<|im_start|>", special=True), 301: AddedToken("<|tool|>")}
    tokenizer = SentencePieceTokenizer(model.getvalue(), TokenFiles(added=added))
    llama(tokenizer, rows=302).export(tmp_path / "out", format)
    again = zoo.load(tmp_path / "out").tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("The fox runs", "a new word: zoology", "the<|tool|>fox <|tool|> you"):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert theirs(text).input_ids == [tokenizer.bos_id, *ids]
    assert theirs.convert_tokens_to_ids("<|im_start|>") == again.special_tokens["<|im_start|>"] == 300
    assert theirs.eos_token_id == again.eos_id == tokenizer.eos_id
