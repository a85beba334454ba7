"""Tokenizers as other programs read them: a tokenizer.json, and what says which token plays which part."""

import base64
import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.convert import files
from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer
from zoo.util import atomic_write

SAMPLING = ("temperature", "top_k", "top_p", "max_new_tokens")  # settings that transformers calls the same


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Returns the content of a tokenizer.json. Raises UserError for a kind of tokenizer that has no such form."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        plain, ranks = Path(directory, "tokenizer.json"), Path(directory, "tokenizer.tiktoken")
        if plain.is_file():
            return plain.read_text(encoding="utf-8")
        if ranks.is_file():
            pairs = (line.split() for line in ranks.read_bytes().splitlines())
            settings = json.loads(Path(directory, "tiktoken.json").read_text(encoding="utf-8"))
            return _of_ranks(
                {base64.b64decode(token): int(rank) for token, rank in pairs},
                settings["pattern"],
                tokenizer.special_tokens,
            )
    raise UserError(f"a {type(tokenizer).__name__} has no form as tokenizer.json, which this format needs")


def spelling(tokenizer: Tokenizer, part: str) -> str | None:
    """Returns the text of the token that plays `part` (bos, eos, pad); None where there is none."""
    wanted = getattr(tokenizer, f"{part}_id")
    return next((text for text, i in tokenizer.special_tokens.items() if i == wanted), None)


def tokenizer_config(tokenizer: Tokenizer, max_len: int, chat_template: str | None) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json for transformers."""
    parts = {f"{part}_token": spelling(tokenizer, part) for part in ("bos", "eos", "pad")}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: text for name, text in parts.items() if text is not None},
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
    }
    return content | ({"chat_template": chat_template} if chat_template else {})


def save_text_files(
    directory: Path,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    sampling: Mapping[str, Any] | None,
    generation: Mapping[str, Any],
    chat_template: str | None = None,
    only_token: str | None = None,
) -> None:
    """Writes tokenizer.json (or tokenizer.model), tokenizer_config.json and generation_config.json.

    Args:
        directory: exists.
        tokenizer: None where only the settings of generation are written.
        max_len: tokens that a row may have.
        sampling: the published settings, by the names of `zoo.generate.settings.Settings`; None where there are none.
        generation: further fields of generation_config.json.
        chat_template: in Jinja.
        only_token: a special token that plays the parts of BOS and PAD too.

    Raises:
        UserError: the tokenizer has no form as tokenizer.json.
    """
    if tokenizer is not None:
        settings = tokenizer_config(tokenizer, max_len, chat_template)
        if isinstance(tokenizer, SentencePieceTokenizer):
            tokenizer.save(directory)
            settings = {**tokenizer.settings, **settings, "tokenizer_class": "LlamaTokenizer"}
        else:
            atomic_write(directory / "tokenizer.json", tokenizer_json(tokenizer))
        if only_token is not None:
            settings = {"bos_token": only_token, "pad_token": only_token, **settings}
        files.write_json(directory / "tokenizer_config.json", settings, ascii=False)
    content = dict(generation)
    if sampling:
        content |= {"do_sample": True, **{name: sampling[name] for name in SAMPLING if name in sampling}}
    files.write_json(directory / "generation_config.json", content)


def _of_ranks(ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int]) -> str:
    """Returns the tokenizer.json of byte-level BPE whose tokens, by rank, were each merged from two of lower rank."""
    import tokenizers
    from tokenizers import Regex, decoders, pre_tokenizers

    from zoo.tokenizers.tiktoken_bpe import GPT2_PATTERN

    letters = _byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            one, other = _last_merge(token, ranks)
            merges.append(("".join(letters[byte] for byte in one), "".join(letters[byte] for byte in other)))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    if pattern == GPT2_PATTERN:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    added = sorted(special_tokens.items(), key=lambda item: item[1])
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text, _ in added])
    for text, i in added:
        if backend.token_to_id(text) != i:
            raise UserError(f"the token {text!r} has the id {i}, which no tokenizer.json can give it")
    return backend.to_str()


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Returns the two parts that `token` was merged from: what its bytes become with the ranks before its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(one + other, len(ranks)) for one, other in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[at] >= ranks[token]:
            raise UserError(f"the token {token!r} cannot be merged from tokens of lower rank")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_letters() -> dict[int, str]:
    """Returns the printable letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + number) for number, byte in enumerate(others)}
