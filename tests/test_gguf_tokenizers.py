"""What a GGUF file says of a tokenizer: the names, scores and flags that llama.cpp goes by, or a refusal by name."""

import io

import pytest
import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import zoo
from zoo.convert import gguf_tokenizer
from zoo.errors import UserError
from zoo.language_model import LanguageModel
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer
from zoo.tokenizers.token_files import AddedToken, TokenFiles

gguf = pytest.importorskip("gguf")

TEXTS = ["The small red fox runs over 2,048 green hills; how are you?"] * 30
SIZES = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "mlp_dim": 32}
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
INNER = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(pre_tokenizer=BYTE_LEVEL, normalizer=None, processor=None, **options) -> HFTokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if processor is not None:
        backend.post_processor = processor
    return HFTokenizer(backend.to_str())


def fields(directory, tokenizer) -> dict:
    """Exports a tiny Llama with the tokenizer and returns the file's fields about it."""
    bare = zoo.create("kodalite-1.3b", vocab_size=tokenizer.vocab_size + 3, max_seq_len=16, **SIZES)
    lm = LanguageModel(bare.module, tokenizer, bare.spec, bare.config)
    (file,) = lm.export(directory, "gguf").glob("*.gguf")
    read = gguf.GGUFReader(file).fields
    prefix = "tokenizer.ggml."
    return {name.removeprefix(prefix): read[name].contents() for name in read if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt-2", {}),
        ("gpt-2", {"normalizer": normalizers.NFC()}),
        ("smollm", {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL])}),
        (
            "llama-bpe",
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(Regex(gguf_tokenizer._LLAMA3), "isolated"), INNER]
                ),
                "ignore_merges": True,
            },
        ),
    ],
)
def test_known_ways_of_taking_texts_apart(tmp_path, name, options):
    tokenizer = byte_level(**options)
    written = fields(tmp_path / "out", tokenizer)
    assert (written["model"], written["pre"]) == ("gpt2", name)
    assert written["tokens"][:2] == ["<s>", "</s>"] and written["token_type"][:2] == [gguf.TokenType.CONTROL] * 2
    assert written["tokens"][-1] == f"[PAD{len(written['tokens']) - 1}]"
    # The file's merges, run by the tokenizers library, give the tokens of the original.
    again = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(written["tokens"])},
            merges=[tuple(pair.split(" ")) for pair in written["merges"]],
            ignore_merges=options.get("ignore_merges", False),
        )
    )
    again.pre_tokenizer = options.get("pre_tokenizer", BYTE_LEVEL)
    assert again.encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("Lowercase", {"normalizer": normalizers.Lowercase()}),
        (r"NFD \+ StripAccents", {"normalizer": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])}),
        ('"use_regex": false', {"pre_tokenizer": INNER}),
        ('"add_prefix_space": true', {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}),
        ("ignore_merges", {"ignore_merges": True}),
        ("Digits", {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(False), BYTE_LEVEL])}),
        ("dropout is 0.1", {"dropout": 0.1}),
        ("BPE after Whitespace", {"pre_tokenizer": pre_tokenizers.Whitespace()}),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(tmp_path, words, options):
    with pytest.raises(UserError, match=words):
        fields(tmp_path / "out", byte_level(**options))
    assert not list(tmp_path.iterdir())


def test_bos_is_added_where_the_tokenizer_adds_it(tmp_path):
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    written = fields(tmp_path / "with", byte_level(processor=begins))
    assert written["add_bos_token"] and written["bos_token_id"] == 0 and written["eos_token_id"] == 1
    double = processors.TemplateProcessing(single="<s> </s> $A", special_tokens=[("<s>", 0), ("</s>", 1)])
    with pytest.raises(UserError, match="puts 2 tokens before a text"):
        fields(tmp_path / "two", byte_level(processor=double))


def sentencepieces(files=None, **options) -> SentencePieceTokenizer:
    """A model with the settings of Llama 2's, on a few words."""
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"} | options
    settings = {"vocab_size": 310, "remove_extra_whitespaces": False} | settings
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, **settings
    )
    return SentencePieceTokenizer(model.getvalue(), files)


def test_sentencepiece_of_llama_2(tmp_path):
    added = {310: AddedToken("<|im_start|>", special=True), 311: AddedToken("fox hill")}
    tokenizer = sentencepieces(TokenFiles(added=added))
    written = fields(tmp_path / "out", tokenizer)
    assert written["model"] == "llama" and written["add_bos_token"] and written["add_space_prefix"]
    assert written["bos_token_id"] == tokenizer.bos_id and written["unknown_token_id"] == 0
    pieces = tokenizer.model.pieces
    assert written["tokens"][:310] == [piece.text for piece in pieces]
    assert written["scores"][:310] == [piece.score for piece in pieces]
    kinds = gguf.TokenType
    assert written["token_type"][:3] == [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
    assert written["token_type"][3] == kinds.BYTE and written["token_type"][309] == kinds.NORMAL
    assert written["tokens"][310:312] == ["<|im_start|>", "fox hill"]
    assert written["token_type"][310:312] == [kinds.CONTROL, kinds.USER_DEFINED]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("is no BPE", {"model_type": "unigram", "hard_vocab_limit": False}),
        ("byte_fallback", {"byte_fallback": False, "vocab_size": 50}),
        ("normalises characters", {"normalization_rule_name": "nmt_nfkc"}),
        ("drops extra spaces", {"remove_extra_whitespaces": True}),
        ("marks spaces in another way", {"treat_whitespace_as_suffix": True}),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused(tmp_path, words, options):
    with pytest.raises(UserError, match=words):
        fields(tmp_path / "out", sentencepieces(**options))
