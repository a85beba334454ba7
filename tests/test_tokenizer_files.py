"""Special tokens in texts of every kind of tokenizer, and the files that lie beside a tokenizer."""

import io
import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import zoo
import zoo.tokenizers
from zoo.errors import UserError
from zoo.language_model import LanguageModel
from zoo.tokenizers import hub, token_files
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer
from zoo.tokenizers.tiktoken_bpe import GPT2_PATTERN, TiktokenTokenizer
from zoo.weights.hub import ALWAYS

CONTROL = ["<s>", "</s>", "[SEP]", "PAD"]
# The spellings are words of the corpus too, so that every trainer would learn them.
TEXTS = ["a small red fox runs over the green hill . </s> [SEP] <s> PAD how are you"] * 30
SPELT = "a red</s> fox </s> [SEP] over <s> PAD hill PAD"


def wordlike(model, trainer, pre_tokenizer, **options):
    backend = tokenizers.Tokenizer(model(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizer
    backend.train_from_iterator(
        TEXTS, trainer(special_tokens=["[UNK]", *CONTROL], show_progress=False, min_frequency=1, **options)
    )
    return backend


def unigram():
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def byte_pairs(*, ignore_merges=False, learnt=(), **byte_level):
    """Byte-level BPE; `learnt` are tokens made by merges, and special all the same."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **byte_level)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[text for text in CONTROL if text not in learnt],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    content = json.loads(backend.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert all(backend.token_to_id(text) is not None for text in learnt)
    backend.add_special_tokens(list(learnt))
    return backend


JSON_KINDS = {
    "WordLevel": lambda: wordlike(models.WordLevel, trainers.WordLevelTrainer, pre_tokenizers.WhitespaceSplit()),
    "WordPiece": lambda: wordlike(
        models.WordPiece, trainers.WordPieceTrainer, pre_tokenizers.WhitespaceSplit(), vocab_size=90
    ),
    "WordPiece, BERT": lambda: wordlike(
        models.WordPiece, trainers.WordPieceTrainer, pre_tokenizers.BertPreTokenizer(), vocab_size=90
    ),
    "Unigram": unigram,
    "byte-level BPE": byte_pairs,
    "byte-level BPE, whole words": lambda: byte_pairs(ignore_merges=True),
    "byte-level BPE, merged": lambda: byte_pairs(learnt=["PAD"]),
    "byte-level BPE, one piece": lambda: byte_pairs(ignore_merges=True, use_regex=False),
    "BPE of characters": lambda: wordlike(
        models.BPE, trainers.BpeTrainer, pre_tokenizers.WhitespaceSplit(), vocab_size=90
    ),
}


def sentencepieces(model_type="bpe", **options):
    """The bytes of a sentencepiece model."""
    out = io.BytesIO()
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        vocab_size=320,
        model_type=model_type,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return out.getvalue()


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_the_spelling_of_a_special_token_is_data(kind):
    backend = JSON_KINDS[kind]()
    tokenizer = HFTokenizer(backend.to_str())
    control = {tokenizer.special_tokens[text] for text in CONTROL}
    for text in (SPELT, *CONTROL):
        assert not control & set(tokenizer.encode(text)), text
    assert control & set(backend.encode(SPELT).ids)  # so that there was something to find
    # What is no special token stays what the library says; each id means the same piece.
    plain = "a small red fox runs over the green hill"
    assert tokenizer.encode(plain) == backend.encode(plain).ids
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(SPELT) == tokenizer.encode(SPELT)
    if "BPE" in kind and "byte" in kind:
        assert tokenizer.decode(tokenizer.encode(SPELT)) == SPELT


def test_control_tokens_are_data_in_the_other_libraries(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"</": 256, b"</s": 257, b"</s>": 258}
    tokenizer = TiktokenTokenizer(ranks, GPT2_PATTERN, {"<|endoftext|>": 259, "PAD": 260})
    assert not {259, 260} & set(tokenizer.encode("PAD <|endoftext|>"))
    for model_type in ("bpe", "unigram"):
        # `user_defined_symbols` are read out of texts, unless the files beside the model call them special.
        content = sentencepieces(model_type, user_defined_symbols=["[SEP]", "PAD"])
        plain = SentencePieceTokenizer(content)
        ids = {text: plain._backend.piece_to_id(text) for text in CONTROL}
        assert {ids["[SEP]"], ids["PAD"]} <= set(plain.encode(SPELT))
        assert not {ids["<s>"], ids["</s>"]} & set(plain.encode(SPELT))
        (tmp_path / "tokenizer.model").write_bytes(content)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["[SEP]", "PAD"]}))
        named = zoo.tokenizers.load(tmp_path)
        assert named.special_tokens == dict(sorted(ids.items(), key=lambda item: item[1]))
        assert not set(ids.values()) & set(named.encode(SPELT))
        assert named.decode(named.encode(SPELT)) == SPELT
        assert named.fingerprint != plain.fingerprint


def test_a_letter_that_is_special_can_still_be_spelt(tmp_path):
    """Models of 2023 pad with "!"; a text may hold one."""
    byte_pairs(ignore_merges=True).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!", "eos_token": "</s>"}))
    tokenizer = zoo.tokenizers.load(tmp_path)
    assert tokenizer.special_tokens["!"] == tokenizer.pad_id
    assert tokenizer.encode("fox!")[-1] == tokenizer.pad_id and tokenizer.eos_id not in tokenizer.encode("</s>")


# The files beside


def described(content, **flags):
    return {"content": content, "special": True, "lstrip": False, "rstrip": False, "normalized": False} | flags


def chatml(directory, content, where):
    """A sentencepiece model extended by two tokens, as the files of different years say it."""
    size = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size()
    (directory / "tokenizer.model").write_bytes(content)
    added, named = {"<|im_start|>": size, "<|im_end|>": size + 1}, {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    config = {"tokenizer_class": "LlamaTokenizer"}
    if where == "config":
        decoder = {str(i): described(text) for text, i in added.items()}
        config |= {"added_tokens_decoder": decoder, **named}
    else:
        (directory / "added_tokens.json").write_text(json.dumps(added))
        more = {"additional_special_tokens": ["<|im_start|>"]}
        (directory / "special_tokens_map.json").write_text(json.dumps(named | more))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return size


@pytest.mark.parametrize("where", ["config", "older files"])
def test_tokens_added_beside_a_sentencepiece_model(tmp_path, where):
    size = chatml(tmp_path, sentencepieces(), where)
    tokenizer = zoo.tokenizers.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (size + 2, 1, size + 1, None)
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2, "<|im_start|>": size, "<|im_end|>": size + 1}
    text = "how are<|im_end|> you"
    ids = tokenizer.encode(text)
    assert max(ids) < size and tokenizer.decode(ids) == text
    marked = [size, *tokenizer.encode("a fox"), size + 1]
    assert tokenizer.decode(marked) == "a fox"
    assert tokenizer.decode(marked, skip_special=False) == "<|im_start|> a fox<|im_end|>"
    with pytest.raises(ValueError, match=f"{size + 2} is outside the vocabulary of {size + 2}"):
        tokenizer.decode([size + 2])
    tokenizer.save(tmp_path / "again")
    for other in (zoo.tokenizers.load(tmp_path / "again"), pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint and other.special_tokens == tokenizer.special_tokens
        assert (other.eos_id, other.vocab_size, other.prefix_ids) == (size + 1, size + 2, [1])


def test_plain_added_tokens_are_read_out_of_texts(tmp_path):
    content = sentencepieces()
    size = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size()
    added = {str(size): described("<fim>", special=False), str(size + 1): described("<fim><", special=False)}
    added[str(size + 2)] = described("<wide>", special=False, lstrip=True, rstrip=True)
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "add_bos_token": False}))
    tokenizer = zoo.tokenizers.load(tmp_path)
    ids = {text: tokenizer._backend.piece_to_id(text) for text in ("\u2581a", "a")}
    assert tokenizer.encode("a<fim>a") == [ids["\u2581a"], size, ids["a"]]
    assert tokenizer.encode("a<fim><a") == [ids["\u2581a"], size + 1, ids["a"]]
    assert tokenizer.encode("a <wide> a") == [ids["\u2581a"], size + 2, ids["a"]]
    assert tokenizer.decode(tokenizer.encode("a<fim> a red<fim>")) == "a<fim> a red<fim>"
    assert tokenizer.prefix_ids == [] and tokenizer.bos_id == 1


def test_a_piece_with_another_name(tmp_path):
    """Fine-tunes name the pieces that a model keeps unused."""
    content = sentencepieces(user_defined_symbols=["<unused1>"])
    (tmp_path / "tokenizer.model").write_bytes(content)
    i = sentencepiece.SentencePieceProcessor(model_proto=content).piece_to_id("<unused1>")
    config = {"added_tokens_decoder": {str(i): described("<|im_end|>")}, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = zoo.tokenizers.load(tmp_path)
    assert tokenizer.eos_id == i and tokenizer.decode([i], skip_special=False) == "<|im_end|>"
    assert i not in tokenizer.encode("<unused1> <|im_end|>")


def test_a_plain_model_file_is_known_as_before(tmp_path):
    """What lies beside it and says nothing else changes no fingerprint: data prepared with it stay."""
    content = sentencepieces()
    (tmp_path / "tokenizer.model").write_bytes(content)
    bare = zoo.tokenizers.load(tmp_path)
    decoder = {"0": described("<unk>"), "1": described("<s>"), "2": described("</s>")}
    config = {"added_tokens_decoder": decoder, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert zoo.tokenizers.load(tmp_path).fingerprint == bare.fingerprint
    bare.save(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["tokenizer.model"]


def test_tokens_added_beside_a_tokenizer_json(tmp_path):
    backend = byte_pairs()
    size = backend.get_vocab_size()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size, "<tool>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = zoo.tokenizers.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (size + 2, size)
    assert size not in tokenizer.encode("a<|im_end|>") and size + 1 in tokenizer.encode("a<tool>")
    tokenizer.save(tmp_path / "again")
    assert zoo.tokenizers.load(tmp_path / "again").fingerprint == tokenizer.fingerprint
    assert zoo.tokenizers.load(tmp_path / "again").encode("a<tool>") == tokenizer.encode("a<tool>")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 7}))
    with pytest.raises(UserError, match=rf"'<\|im_end\|>' is to have the id {size + 7} .* gets {size};"):
        zoo.tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("added_tokens.json", {"<x>": "many"}, "'many' is not the id of a token"),
        ("added_tokens.json", [], "no object with fields"),
        ("special_tokens_map.json", None, "cannot be read as the settings"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "no object of ids and tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {}}}, "no content for the token 7"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": "<x>"}}, "'-1' is not the id of a token"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, words):
    (tmp_path / "tokenizer.model").write_bytes(sentencepieces())
    (tmp_path / name).write_text("{" if content is None else json.dumps(content))
    with pytest.raises(UserError) as caught:
        zoo.tokenizers.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name)) and words in str(caught.value)


def test_what_stands_before_a_text_is_what_the_post_processor_says():
    def prefix(processor):
        backend = byte_pairs()
        if processor is not None:
            backend.post_processor = processor
        tokenizer = HFTokenizer(backend.to_str())
        found = tokenizer.prefix_ids
        assert backend.encode("a fox").ids[: len(found) + 2] == [*found, *tokenizer.encode("a fox")][: len(found) + 2]
        return found

    parts = [("<s>", 0), ("</s>", 1), ("[SEP]", 2)]
    assert prefix(None) == []  # there is a <s>, which nothing puts before a text
    assert prefix(processors.ByteLevel()) == []
    begins = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=parts)
    assert prefix(begins) == [0]
    assert prefix(processors.TemplateProcessing(single="$A </s>", special_tokens=parts)) == []
    assert prefix(processors.TemplateProcessing(single="<s> [SEP] $A", special_tokens=parts)) == [0, 2]
    assert prefix(processors.Sequence([processors.ByteLevel(), begins])) == [0]
    assert prefix(processors.RobertaProcessing(("</s>", 1), ("[SEP]", 2))) == [2]
    assert HFTokenizer(byte_pairs().to_str()).encode("a", add_special=True)[0] == 0  # asked for by name


def test_a_normalised_special_token_is_data_too(tmp_path):
    """A token named by the config alone is no entry of `added_tokens`, only of the vocabulary."""
    backend = wordlike(models.WordLevel, trainers.WordLevelTrainer, pre_tokenizers.WhitespaceSplit())
    backend.normalizer = normalizers.Lowercase()
    content = json.loads(backend.to_str()) | {"added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "[UNK]"}))
    tokenizer = zoo.tokenizers.load(tmp_path)
    assert tokenizer.special_tokens == {"</s>": tokenizer.eos_id}
    assert tokenizer.eos_id not in tokenizer.encode("A Red Fox </S>")
    assert tokenizer.decode([*tokenizer.encode("red fox"), tokenizer.eos_id]) == "red fox"


def test_the_files_beside_a_named_tokenizer_come_with_it(monkeypatch, tmp_path):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--someone--thing" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    chatml(snapshot, sentencepieces(), "older files")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    assert "<|im_end|>" in zoo.tokenizers.named("someone/thing").special_tokens
    assert {*token_files.NAMES, "generation_config.json"} <= {*ALWAYS}


def test_data_of_the_tests_has_no_files_beside():
    """Else the small tokenizers of `tests/data` would change with them."""
    assert not [
        name
        for name in ("tokenizer_config.json", "added_tokens.json")
        if (Path(__file__).parent / "data" / name).exists()
    ]


def test_every_end_that_the_files_of_a_model_name_ends_a_text(tmp_path):
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
    tokenizer = HFTokenizer(byte_pairs().to_str(), parts={"eos": "</s>"})
    bare = zoo.create("kodalite-1.3b", vocab_size=tokenizer.vocab_size, max_seq_len=32, **sizes)
    LanguageModel(bare.module, tokenizer, bare.spec, bare.config).export(tmp_path / "hf")

    def eos_of(directory) -> list[int] | int:
        return json.loads((directory / "generation_config.json").read_text())["eos_token_id"]

    assert eos_of(tmp_path / "hf") == tokenizer.eos_id == 1
    greedy = {"temperature": 0.0, "max_new_tokens": 8}
    written = zoo.load(tmp_path / "hf").generate([5], **greedy)
    first = written.tokens[0]
    assert written.finish == "length" and first != 1
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, first]}))
    lm = zoo.load(tmp_path / "hf")
    assert lm.eos_ids == (1, first)
    lm.save(tmp_path / "saved")
    lm.export(tmp_path / "again")
    assert eos_of(tmp_path / "again") == [1, first]
    for place in ("hf", "saved", "again"):
        model = zoo.load(tmp_path / place)
        assert model.generate([5], **greedy).finish == "stop" and not model.generate([5], **greedy).tokens
        assert "".join(model.stream([5], **greedy)) == ""
        assert len(model.generate([5], ignore_eos=True, **greedy).tokens) == 8
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is"):
        zoo.load(tmp_path / "hf")


def test_an_expression_without_end_is_refused_by_name(tmp_path):
    """The library panics, which is no Exception."""
    backend = byte_pairs()
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("^(a+)+$"), "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = zoo.tokenizers.load(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer fails on this text \(.*retry-limit"):
        tokenizer.encode("a" * 40 + "b")
