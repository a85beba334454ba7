"""The tokenizer interface, tokenizer.json files and the crónica vocabulary."""

import json
import pickle
import unicodedata

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

import zoo.tokenizers
from zoo.errors import UserError
from zoo.tasks.cronica import tokens
from zoo.tokenizers.hf import HFTokenizer

BLOCK = """<STATS>
liga: La Liga
local: Cádiz
visitante: Málaga
resultado: 2-1
goles:
  - 23' Ñañez (Cádiz)
</STATS>"""
TEXT = "¡Goool de Ñañez! El Cádiz venció 2-1 al Málaga; qué partido, señores: «alma» y corazón."


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train([BLOCK, TEXT] * 3, vocab_size=300)


def test_special_tokens_have_the_published_ids(tokenizer):
    expected = ["<pad>", "<bos>", "<eos>", "<unk>", "<stats>", "</stats>", "<cronica>", "</cronica>"]
    expected += [
        f"<style:{label}>"
        for label in (
            "rioplatense_apasionado",
            "rioplatense_tecnico",
            "rioplatense_literario",
            "mexicano_irreverente",
            "mexicano_clasico",
            "centroamericano_espn",
            "espanol_radiofonico",
            "comentario_tecnico",
        )
    ]
    assert tokenizer.special_tokens == {token: id_ for id_, token in enumerate(expected)}
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 300


def test_structure_is_that_of_the_published_file(tokenizer):
    content = json.loads(tokenizer._content)
    assert content["normalizer"] == {"type": "NFC"}
    assert content["pre_tokenizer"]["type"] == "ByteLevel"
    assert content["pre_tokenizer"]["add_prefix_space"] is False
    assert content["model"]["type"] == "BPE"
    assert content["model"]["unk_token"] == "<unk>"
    assert len(content["model"]["merges"]) == 300 - 16 - 256


def test_pairs_seen_once_are_not_learnt():
    with pytest.raises(UserError, match="too small for 300"):
        tokens.train([TEXT], vocab_size=300)
    with pytest.raises(UserError, match="272"):
        tokens.train([TEXT] * 9, vocab_size=271)


def test_training_is_deterministic_in_any_order():
    texts = [BLOCK, TEXT, TEXT[::-1]] * 4
    assert tokens.train(texts, 320).fingerprint == tokens.train(reversed(texts), 320).fingerprint


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_round_trip_and_streaming_of_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(id_ >= 16 for id_ in ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=30), skip_special=st.booleans())
def test_stream_of_any_ids_is_their_decoding(tokenizer, ids, skip_special):
    stream = tokenizer.stream_decoder(skip_special=skip_special)
    pieces = [stream.push(id_) for id_ in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special=skip_special)


def test_stream_gives_whole_characters_only(tokenizer):
    ids = tokenizer.encode("a🔥b")  # four bytes, four tokens
    stream = tokenizer.stream_decoder()
    assert [stream.push(id_) for id_ in ids] == ["a", "", "", "", "🔥", "b"]
    assert [stream.push(id_) for id_ in ids[1:3]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_stream_keeps_spaces_between_words_of_a_metaspace_tokenizer():
    backend = tokenizers.Tokenizer(models.BPE({"<s>": 0, "▁": 1, "g": 2, "▁g": 3, "o": 4}, [("▁", "g")]))
    backend.add_special_tokens(["<s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = HFTokenizer(backend.to_str())
    ids = [0, *tokenizer.encode("go g go"), 0, *tokenizer.encode("go")]
    stream = tokenizer.stream_decoder()
    text = "".join(stream.push(id_) for id_ in ids) + stream.flush()
    assert text == tokenizer.decode(ids) == "go g go go"


def test_special_tokens_in_a_text_are_text(tokenizer):
    text = "uno<eos>dos<style:mexicano_clasico></cronica>"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("uno", add_special=True) == [1, *tokenizer.encode("uno")]
    assert tokenizer.encode_batch(["uno", text]) == [tokenizer.encode("uno"), ids]


def test_special_tokens_are_left_out_or_spelt_out(tokenizer):
    ids = [1, *tokenizer.encode("hola"), 2]
    assert tokenizer.decode(ids) == "hola"
    assert tokenizer.decode(ids, skip_special=False) == "<bos>hola<eos>"


@pytest.mark.parametrize("bad", [300, -1])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, bad):
    with pytest.raises(ValueError, match=f"{bad} is outside the vocabulary of 300"):
        tokenizer.decode([20, bad])


def test_saved_and_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "tokenizer")
    for path in (tmp_path / "new" / "tokenizer", tmp_path / "new" / "tokenizer" / "tokenizer.json"):
        loaded = zoo.tokenizers.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint


def test_a_file_is_kept_as_it_is_and_its_padding_ignored(tokenizer, tmp_path):
    content = json.loads(tokenizer._content)
    # As in the published file: a Replace of the literal backslash-s-plus, which is no regular expression.
    slip = {"type": "Replace", "pattern": {"String": "\\s+"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, slip]}
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 32},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    written = json.dumps(content, indent=1)
    (tmp_path / "tokenizer.json").write_text(written, encoding="utf-8")
    loaded = zoo.tokenizers.load(tmp_path)
    assert loaded.encode("a  b\n\nc d e f g h") == tokenizer.encode("a  b\n\nc d e f g h")
    assert loaded.fingerprint != tokenizer.fingerprint
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_text(encoding="utf-8") == written


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        zoo.tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        zoo.tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        zoo.tokenizers.load(tmp_path)


def test_prompt_and_pair_layout(tokenizer):
    body, text = tokenizer.encode(BLOCK), tokenizer.encode(TEXT)
    prompt = tokens.encode_prompt(tokenizer, BLOCK + "\n", "espanol_radiofonico")
    assert prompt == [1, 4, *body, 5, 14, 6]
    ids, first = tokens.encode_pair(tokenizer, BLOCK, "espanol_radiofonico", f" {TEXT}\n")
    assert ids == [*prompt, *text, 7, 2]
    assert first == len(prompt)


def test_records_cannot_smuggle_special_tokens(tokenizer):
    ids, first = tokens.encode_pair(tokenizer, "a</stats><eos>", "mexicano_clasico", "b<eos></cronica><bos>")
    specials = [id_ for id_ in ids if id_ < 16]
    assert specials == [1, 4, 5, 12, 6, 7, 2]
    assert tokenizer.decode(ids[first:]) == "b<eos></cronica><bos>"


def test_many_pairs_equal_one_by_one(tokenizer):
    rows = [
        (BLOCK, "mexicano_clasico", TEXT),
        (BLOCK + "\n", "comentario_tecnico", "x"),
        ("z", "mexicano_clasico", "y"),
    ]
    together = tokens.encode_pairs(tokenizer, *zip(*rows, strict=True))
    assert together == [tokens.encode_pair(tokenizer, *row) for row in rows]


def test_unknown_style_lists_all_with_their_regions(tokenizer):
    with pytest.raises(UserError) as caught:
        tokens.encode_prompt(tokenizer, BLOCK, "mexicano_clasic")
    message = str(caught.value)
    assert "did you mean mexicano_clasico?" in message
    for label, (region, _) in tokens.STYLES.items():
        assert label in message and region in message
    assert len(tokens.STYLES) == 8


def test_a_tokenizer_without_the_special_tokens_is_refused():
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    plain = HFTokenizer(backend.to_str())
    with pytest.raises(UserError, match="<pad>"):
        tokens.check_tokenizer(plain)
    with pytest.raises(UserError, match="<style:mexicano_clasico>"):
        tokens.encode_prompt(plain, "a", "mexicano_clasico")
