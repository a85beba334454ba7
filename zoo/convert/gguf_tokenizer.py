"""Tokenizers in GGUF files: what llama.cpp (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp) can be told of one.

A GGUF file names one of llama.cpp's ways of taking a text apart; it has no words for others. A tokenizer that none of
them describes is refused, since the model would silently be given other tokens.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from zoo.convert.llama_shaped import LlamaShaped
from zoo.convert.tokenizer_files import tokenizer_json
from zoo.errors import UserError
from zoo.tokenizers import sentencepiece_proto as proto
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer

logger = logging.getLogger(__name__)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's name -> the pre-tokenizer of a tokenizer.json, and whether whole words are looked up before merging.
_PRE_TOKENIZERS: dict[str, tuple[list[Mapping[str, Any]], bool]] = {
    "gpt-2": ([_BYTE_LEVEL], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL], False),
    "llama-bpe": (
        [
            {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
            _BYTE_LEVEL | {"use_regex": False},
        ],
        True,
    ),
}
_ENDS = ("eos", "eot", "eom")  # llama.cpp ends a text at each of these


def write(gguf: Any, writer: Any, tokenizer: Tokenizer, model: LlamaShaped) -> None:
    """Writes the tokenizer's fields. Raises UserError for one that llama.cpp would read otherwise.

    Args:
        gguf: the package.
        writer: its GGUFWriter.
        tokenizer: of its entries, only special ones may lie beyond the model's rows; these are left out.
        model: gives the number of rows, the template, and the tokens that end a text.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        _write_sentencepiece(gguf, writer, tokenizer, model.config.vocab_size)
    else:
        _write_byte_level(gguf, writer, json.loads(tokenizer_json(tokenizer)), model.config.vocab_size)
    ids, prefix = model.token_ids(), tokenizer.prefix_ids
    if len(prefix) > 1:
        raise UserError(f"gguf: the tokenizer puts {len(prefix)} tokens before a text; llama.cpp puts one there, BOS")
    if prefix or "bos_token_id" in ids:
        writer.add_bos_token_id(prefix[0] if prefix else ids["bos_token_id"])
    eos = ids.get("eos_token_id", [])
    ends = eos if isinstance(eos, list) else [eos]
    if len(ends) > len(_ENDS):
        raise UserError(f"gguf: {len(ends)} tokens end a text of this model; llama.cpp takes {len(_ENDS)}")
    for part, i in zip(_ENDS, ends, strict=False):
        getattr(writer, f"add_{part}_token_id")(i)
    if "pad_token_id" in ids:
        writer.add_pad_token_id(ids["pad_token_id"])
    writer.add_add_bos_token(bool(prefix))
    if model.chat_template is not None:
        writer.add_chat_template(model.chat_template)


def _write_byte_level(gguf: Any, writer: Any, content: Mapping[str, Any], rows: int) -> None:
    bpe = content["model"]
    pre = _pre_tokenizer(content)
    tokens, kinds = _padding(gguf, rows)
    for token, i in bpe["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for token in (token for token in content.get("added_tokens") or () if token["id"] < rows):
        kind = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]])


def _pre_tokenizer(content: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name for how a tokenizer.json takes texts apart; UserError, naming the part, for others."""
    bpe, before = content["model"], content.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    kinds = " and ".join(str(part.get("type")) for part in parts)
    if bpe.get("type") != "BPE" or parts[-1:] == [] or parts[-1].get("type") != "ByteLevel":
        raise UserError(
            f"gguf: the tokenizer is {bpe.get('type')} after {kinds}; of these zoo writes byte-level BPE and "
            f"tokenizer.model files alone"
        )
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise UserError(
            f"gguf: the tokenizer's normalizer {_name(normalizer)} changes texts, which llama.cpp cannot be told; it "
            f"would give the model other tokens"
        )
    if normalizer is not None:
        logger.warning("gguf: llama.cpp does not bring texts into NFC, as the tokenizer does; give it texts in NFC")
    for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if bpe.get(field):
            raise UserError(f"gguf: the tokenizer's {field} is {bpe[field]!r}, which llama.cpp cannot be told")
    for token in content.get("added_tokens") or ():
        flag = next((name for name in ("lstrip", "rstrip", "single_word") if token.get(name)), None)
        if flag is not None and not token.get("special"):
            raise UserError(f"gguf: the added token {token['content']!r} is {flag}, which llama.cpp cannot be told")
    for name, (known, whole_words) in _PRE_TOKENIZERS.items():
        if len(parts) == len(known) and all(map(_same, parts, known)) and bool(bpe.get("ignore_merges")) == whole_words:
            return name
    wanted = [{name: part[name] for name in part if name != "trim_offsets"} for part in parts]
    whole = ", ignore_merges" if bpe.get("ignore_merges") else ""
    raise UserError(
        f"gguf: the tokenizer takes texts apart by {json.dumps(wanted, ensure_ascii=False)[:300]}{whole}; zoo knows "
        f"llama.cpp's names for those of {', '.join(_PRE_TOKENIZERS)} alone"
    )


def _same(part: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    defaults = {"add_prefix_space": True, "use_regex": True, "individual_digits": False, "invert": False}
    return all(part.get(name, defaults.get(name)) == value for name, value in known.items())


def _name(normalizer: Mapping[str, Any]) -> str:
    parts = normalizer.get("normalizers")
    return " + ".join(map(_name, parts)) if parts else str(normalizer.get("type"))


def _write_sentencepiece(gguf: Any, writer: Any, tokenizer: SentencePieceTokenizer, rows: int) -> None:
    model = tokenizer.model
    for wrong, reason in (
        (model.model_type != proto.BPE, "is no BPE"),
        (not model.byte_fallback, "has no bytes for unknown characters (byte_fallback)"),
        (bool(model.charsmap), "normalises characters (nmt_nfkc or rules of its own)"),
        (model.remove_extra_whitespaces, "drops extra spaces (remove_extra_whitespaces)"),
        (not model.escape_whitespaces or model.suffix, "marks spaces in another way"),
    ):
        if wrong:
            raise UserError(
                f"gguf: the tokenizer.model {reason}, unlike Llama's; llama.cpp would give the model other tokens"
            )
    tokens, kinds = _padding(gguf, rows)
    scores = [0.0] * rows
    for i, piece in enumerate(model.pieces):
        tokens[i], scores[i], kinds[i] = piece.text, piece.score, gguf.TokenType(piece.type)
        if piece.type == proto.UNKNOWN:
            writer.add_unk_token_id(i)
    for i, token in ((i, token) for i, token in tokenizer.added.items() if i < rows):
        kind = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
        tokens[i], scores[i], kinds[i] = token.content, 0.0, kind
    for i in (i for i in tokenizer.special_tokens.values() if i < rows):
        kinds[i] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(model.add_dummy_prefix)


def _padding(gguf: Any, rows: int) -> tuple[list[str], list[Any]]:
    """Returns names and kinds of the entries of a vocabulary; the model may have more rows than the tokenizer."""
    return [f"[PAD{i}]" for i in range(rows)], [gguf.TokenType.UNUSED] * rows
