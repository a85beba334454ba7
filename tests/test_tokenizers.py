"""Tokenizers of tiktoken, sentencepiece, characters and trained BPE; conversations as tokens."""

import json
import pickle
import unicodedata
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.tokenizers
from zoo.data import stories
from zoo.errors import UserError
from zoo.tokenizers import bpe, chat, hub
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.tokenizers.hf import HFTokenizer
from zoo.tokenizers.tiktoken_bpe import EOS, GPT2_PATTERN, TiktokenTokenizer

DATA = Path(__file__).parent / "data"
TEXTS = stories.generate(300, seed=3)
ODD = "Ñandú 🔥\n\n  «a»\t<|endoftext|> </s> e\u0301"


def make(kind):
    if kind == "characters":
        return CharacterTokenizer.train([*TEXTS, ODD])
    if kind == "bpe":
        return bpe.train(TEXTS, 400, eos_token=EOS)
    if kind == "stripping":
        return bpe.train(TEXTS, 400, eos_token="<|EOS|>", special_tokens=["<|UK|>"], strip_accents=True)
    return zoo.tokenizers.load(DATA / f"small.{kind}")


KINDS = ["tiktoken", "model", "characters", "bpe", "stripping"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return make(request.param)


@pytest.fixture(scope="module")
def small():
    return make("tiktoken")


def expected(tokenizer, text):
    """What decoding gives back: the text, but for BwETAF's stripped accents."""
    if tokenizer.special_tokens.get("<|UK|>") is None:
        return text
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def test_texts_come_back(tokenizer):
    for text in [*TEXTS[:20], ODD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == expected(tokenizer, text)
        assert max(ids) < tokenizer.vocab_size
        assert not set(ids) & set(tokenizer.special_tokens.values())  # spelt out, special tokens are text


def test_many_texts_equal_one_by_one(tokenizer):
    assert tokenizer.encode_batch(TEXTS[:50]) == [tokenizer.encode(text) for text in TEXTS[:50]]
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    for other in (zoo.tokenizers.load(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.encode(ODD) == tokenizer.encode(ODD)
        assert (other.bos_id, other.eos_id, other.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        assert other.special_tokens == tokenizer.special_tokens


def test_fingerprints_tell_tokenizers_apart():
    assert len({make(kind).fingerprint for kind in KINDS}) == len(KINDS)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_streams_never_give_half_a_character(tokenizer, data, skip_special):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = tokenizer.stream_decoder(skip_special=skip_special)
    pieces = [stream.push(i) for i in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special=skip_special)


def test_a_piece_without_a_text_of_its_own_still_counts():
    tokenizer = make("model")
    space = tokenizer.encode("a  b")[1]
    assert tokenizer.decode([space]) == "" and tokenizer.decode([space, space]) == " "
    stream = tokenizer.stream_decoder()
    assert [stream.push(space), stream.push(space), stream.flush()] == ["", " ", ""]


def test_half_a_character_takes_no_whole_one_with_it():
    """Byte fallback gives a sign for each byte of a run that is no text, whole characters in it included."""
    bytes_ = {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({"<unk>": 0, **bytes_}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    tokenizer = HFTokenizer(backend.to_str())
    ids = tokenizer.encode("😀😀")[:-2]
    assert tokenizer.decode(ids) == "\ufffd" * 6
    stream = tokenizer.stream_decoder()
    assert "".join(map(stream.push, ids)) + stream.flush() == "😀\ufffd\ufffd"


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for bad in (-1, tokenizer.vocab_size, 10**9):
        with pytest.raises(ValueError, match=f"{bad} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([0, bad])


def test_each_library_gives_its_own_ids(small):
    encoding = tiktoken.Encoding(
        "x", pat_str=GPT2_PATTERN, mergeable_ranks=small._ranks, special_tokens={EOS: len(small._ranks)}
    )
    assert small.encode_batch(TEXTS) == encoding.encode_ordinary_batch(TEXTS)
    import sentencepiece

    backend = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "small.model"))
    ours = make("model")
    assert ours.encode_batch(TEXTS) == backend.encode(TEXTS)
    assert ours.encode("a", add_special=True) == [backend.bos_id(), *backend.encode("a")]


def test_parts_of_each_kind():
    def parts(tokenizer):
        return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id

    assert parts(make("tiktoken")) == (None, 399, None)
    assert parts(make("model")) == (1, 2, None)
    assert parts(make("bpe")) == (None, 0, None)
    assert parts(make("stripping")) == (None, 0, None)
    assert make("stripping").special_tokens == {"<|EOS|>": 0, "<|UK|>": 1}
    characters = make("characters")
    assert parts(characters) == (None, None, None)
    assert characters.decode(characters.separator_ids) == "\n\n"


def test_accents_are_stripped_as_bwetaf_does():
    tokenizer = make("stripping")
    assert tokenizer.decode(tokenizer.encode("Crónica del ñandú, Å")) == "Cronica del nandu, A"
    assert make("bpe").decode(make("bpe").encode("Crónica e\u0301")) == "Crónica e\u0301"


def test_bwetafs_own_file_is_read(tmp_path):
    tokenizer = make("stripping")
    (tmp_path / "yap.json").write_text(tokenizer._content, encoding="utf-8")
    (tmp_path / "understanding_yap.json").write_text(json.dumps({"eos_token": "<|EOS|>", "uk_token": "<|UK|>"}))
    loaded = zoo.tokenizers.load(tmp_path)
    assert loaded.eos_id == 0
    assert loaded.encode("Ñandú") == tokenizer.encode("Ñandú")


def test_a_config_beside_the_file_says_which_token_is_which(tmp_path):
    content = json.loads(make("bpe")._content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = {"bos_token": {"content": EOS, "lstrip": False}, "eos_token": EOS, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = zoo.tokenizers.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (0, 0, None)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: cannot be read"):
        zoo.tokenizers.load(tmp_path)


def test_gpt2s_own_files_are_read(tmp_path):
    """vocab.bpe and encoder.json as OpenAI published GPT-2's, here of the small vocabulary."""
    content = json.loads(make("bpe")._content)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"encoder\.json: no such file"):
        zoo.tokenizers.load(tmp_path)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer of tiktoken"):
        zoo.tokenizers.load(tmp_path)
    to_unicode = {byte: char for char, byte in unicode_bytes().items()}
    ranks: dict[bytes, int] = {}
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    for byte in [*printable, *(b for b in range(256) if b not in printable)]:
        ranks[bytes([byte])] = len(ranks)
    for merge in merges:
        first, second = (bytes(unicode_bytes()[c] for c in part) for part in merge.split(" "))
        ranks[first + second] = len(ranks)
    encoder = {"".join(to_unicode[b] for b in token): rank for token, rank in ranks.items()}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    loaded = zoo.tokenizers.load(tmp_path)
    assert loaded._ranks == ranks
    assert loaded.vocab_size == len(ranks) + 1
    assert loaded.decode(loaded.encode(ODD)) == ODD


def unicode_bytes() -> dict[str, int]:
    """GPT-2's letters for bytes."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def test_the_alphabet_is_the_distinct_characters():
    tokenizer = CharacterTokenizer.train(["cab", "ña"])
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("\nabcñ") == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="the character 'z' is not in the tokenizer's alphabet of 5"):
        tokenizer.encode("abz")
    with pytest.raises(UserError, match="no alphabet"):
        CharacterTokenizer([])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("characters.json", b"{", "cannot be read as an alphabet"),
        ("characters.json", b'{"format": 9, "characters": "a"}', "format 9"),
        ("x.model", b"nothing", "not a sentencepiece model"),
        ("x.model", b"", "not a sentencepiece model"),
        ("x.tiktoken", b"!!! 3\n", "cannot be read as a tokenizer of tiktoken"),
        ("x.tiktoken", b"YQ== 0\nYg==\n", "cannot be read as a tokenizer of tiktoken"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        zoo.tokenizers.load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_directory_with_two_tokenizers_is_not_guessed_at(tmp_path):
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes((DATA / "small.model").read_bytes())
    with pytest.raises(UserError, match=r"several tokenizers \(a\.model, b\.model\)"):
        zoo.tokenizers.load(tmp_path)
    (tmp_path / "b.model").unlink()
    assert zoo.tokenizers.load(tmp_path).vocab_size == 400


def test_a_name_that_cannot_be_fetched_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # The library reads the cache before the network; this address answers to nobody.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^tokenizer\.name: gpt2 .*vocab\.bpe and encoder\.json.*tokenizer\.path$"):
        zoo.tokenizers.named("gpt2")
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    with pytest.raises(
        UserError, match=r"someone/thing .*no route.*tokenizer\.json or tokenizer\.model.*tokenizer\.path"
    ):
        zoo.tokenizers.named("someone/thing")
    with pytest.raises(UserError, match="did you mean gpt2"):
        zoo.tokenizers.named("gpt-2")


def test_a_name_in_the_cache_needs_no_network(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: str(DATA / "small.model"))
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    assert zoo.tokenizers.named("someone/thing").vocab_size == 400


# Training


def test_training_gives_exactly_what_was_asked_for():
    tokenizer = make("bpe")
    assert tokenizer.vocab_size == 400
    assert bpe.train(reversed(TEXTS), 400, eos_token=EOS).fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="256 bytes alone need 257"):
        bpe.train(TEXTS, 256, eos_token=EOS)
    with pytest.raises(UserError, match="too small for 50,000"):
        bpe.train(TEXTS, 50_000, eos_token=EOS)


# Conversations

TALK = [
    {"role": "user", "content": "Hi <|end|>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "Yes, ñ."},
]


def encode_conversation(tokenizer, messages, template="kodalite"):
    return chat.encode_conversations(tokenizer.encode_batch, [messages], template, eos_id=tokenizer.eos_id)[0]


def test_a_conversation_is_its_pieces(small):
    ids, mask = encode_conversation(small, TALK)
    pieces = [
        "<|user|>\nHi <|end|>",
        "\n<|assistant|>\n",
        "Hello.",
        "\n",
        "<|user|>\nMore?",
        "\n<|assistant|>\n",
        "Yes, ñ.",
    ]
    pieces.append("\n<|end|>")
    assert ids == [i for piece in pieces for i in small.encode(piece)]
    learnt = [
        small.decode([i for i, m in zip(ids[a:b], mask[a:b], strict=True) if m])
        for a, b in [(0, len(ids) // 2), (len(ids) // 2, len(ids))]
    ]
    assert "".join(learnt) == "Hello.Yes, ñ.\n<|end|>"
    assert small.decode(ids).count("\n<|end|>") == 1  # one a conversation, not one a turn


def test_the_second_template_ends_with_eos(small):
    ids, mask = encode_conversation(small, TALK, "kodalite_eos")
    plain, plain_mask = encode_conversation(small, TALK)
    assert (ids, mask) == ([*plain, small.eos_id], [*plain_mask, True])
    with pytest.raises(UserError, match="has none"):
        encode_conversation(make("characters"), TALK, "kodalite_eos")


def test_a_prompt_is_the_beginning_of_the_conversation(small):
    whole, _ = encode_conversation(small, TALK)
    for turns in (1, 3):
        prompt = small.apply_chat_template(TALK[:turns])
        assert whole[: len(prompt)] == prompt
    assert small.apply_chat_template(TALK, add_generation_prompt=False) == whole


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        (TALK[1:], "a turn of the user was due"),
        ([TALK[0], TALK[0]], "a turn of the assistant was due"),
        ([{"role": "system", "content": "x"}, *TALK], "role 'system'"),
        ([{"role": "user", "content": " "}], "has no text"),
        ([{"role": "user"}], "has no text"),
        (TALK, "must be one of the user"),
    ],
)
def test_conversations_of_another_kind_are_refused(small, messages, words):
    with pytest.raises(UserError, match=words):
        small.apply_chat_template(messages)


def test_an_unknown_template_is_named(small):
    with pytest.raises(UserError, match="did you mean kodalite"):
        small.apply_chat_template(TALK[:1], template="kodalit")


def test_many_conversations_equal_one_by_one(small):
    talks = [TALK, TALK[:2], TALK[2:]]
    assert chat.encode_conversations(small.encode_batch, talks) == [encode_conversation(small, talk) for talk in talks]


def test_tiktoken_of_special_tokens_round_trips(small, tmp_path):
    other = TiktokenTokenizer(small._ranks, GPT2_PATTERN, {EOS: 399, "<|pad|>": 400})
    other.save(tmp_path)
    assert zoo.tokenizers.load(tmp_path).special_tokens == {EOS: 399, "<|pad|>": 400}
    assert other.decode([399, 400], skip_special=False) == f"{EOS}<|pad|>"
    assert other.decode([399, 400]) == ""
