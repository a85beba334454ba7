"""tokenizer.json contents in which no text spells a special token, and which hold the tokens of the files beside them.

The library's own switch (`encode_special_tokens`) keeps special tokens from being looked for in a text before the model
sees it. Where such a token is an entry of the model's own vocabulary, the model may still find it in the text: Unigram
and WordLevel do, WordPiece does where words are split at white space, and BPE where merges lead to it or whole words
are looked up (`ignore_merges`).
"""

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from zoo.tokenizers.token_files import AddedToken, TokenFiles
from zoo.util import parse_json


def with_added(content: str, files: TokenFiles) -> str:
    """Returns a tokenizer.json with the tokens that the files beside it add, and those that they name special as such.

    The very same text where nothing has to change, or where it is no tokenizer.json at all.
    """
    if not files.added and not files.special:
        return content
    try:
        tokenizer = parse_json(content)
        vocabulary = _vocabulary(tokenizer["model"])
        listed = {token["content"]: token for token in tokenizer.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content  # the library says what is wrong with it
    changed = False
    for i, token in sorted((files.added or {}).items()):
        if token.content not in listed:
            listed[token.content] = _entry(vocabulary.get(token.content, i), token)
            changed = True
    for text in files.special:
        if text in listed:
            changed |= not listed[text].get("special")
            listed[text]["special"] = True
        elif text in vocabulary:
            listed[text] = _entry(vocabulary[text], AddedToken(text, special=True))
            changed = True
    if not changed:
        return content
    tokenizer["added_tokens"] = sorted(listed.values(), key=lambda token: token["id"])
    return json.dumps(tokenizer, ensure_ascii=False)


def without_special(content: str, special: Collection[str], vocabulary: Mapping[str, int]) -> str | None:
    """Returns a tokenizer.json that gives the same ids and in which no text spells the `special` tokens.

    Their entries get spellings that nobody can know, so every id stays. A single character that is special stays an
    entry as well where texts are made of characters (BPE, Unigram): without it they could not be spelt.

    Args:
        content: a tokenizer.json.
        special: the spellings of its special tokens.
        vocabulary: spelling -> id of all entries of its model.

    Returns:
        None where `content` itself is such a file.
    """
    inside = {text for text in special if text in vocabulary}
    if not inside:
        return None
    tokenizer = parse_json(content)
    model = tokenizer["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else None)
    if kind in ("BPE", "Unigram"):
        inside = {text for text in inside if len(text) > 1}
    if kind == "BPE" and not model.get("ignore_merges") and not _merged(model, inside):
        return None
    key = secrets.token_hex(16)
    names = {text: f"\0{key}\0{number}" for number, text in enumerate(sorted(inside))}
    _rename(model, names)
    for token in tokenizer.get("added_tokens") or []:
        token["content"] = names.get(token["content"], token["content"])
    return json.dumps(tokenizer | {"post_processor": None, "padding": None, "truncation": None}, ensure_ascii=False)


def ids_in_front(post_processor: Mapping[str, Any] | None) -> list[int]:
    """Returns the ids that a tokenizer.json's `post_processor` puts before a single text."""
    about = post_processor or {}
    match about.get("type"):
        case "TemplateProcessing":
            ids: list[int] = []
            for piece in about["single"]:
                if "SpecialToken" not in piece:
                    break
                ids += about["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            return ids
        case "BertProcessing" | "RobertaProcessing":
            return [about["cls"][1]]
        case "Sequence":  # each goes on with what the one before it made
            return [i for one in reversed(about["processors"]) for i in ids_in_front(one)]
    return []


def with_prefix(content: str, ids: Sequence[int], names: Mapping[int, str]) -> str:
    """Returns a tokenizer.json that puts `ids` before a text, and nothing else around it; `names` has their spellings.

    What its post-processor says of offsets (byte-level tokenizers trim them) stays.
    """
    tokenizer = parse_json(content)
    processor = tokenizer.get("post_processor") or {}
    parts = processor.get("processors") or [processor]
    kept = [part for part in parts if part.get("type") == "ByteLevel"]
    if ids:
        special = {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in ids}

        def pieces(*texts: str) -> list[dict[str, Any]]:
            before = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in ids]
            return [piece for text in texts for piece in [*before, {"Sequence": {"id": text, "type_id": 0}}]]

        kept.append(
            {
                "type": "TemplateProcessing",
                "single": pieces("A"),
                "pair": pieces("A", "B"),
                "special_tokens": special,
            }
        )
    tokenizer["post_processor"] = {"type": "Sequence", "processors": kept} if len(kept) > 1 else (kept or [None])[0]
    return json.dumps(tokenizer, ensure_ascii=False)


def _entry(i: int, token: AddedToken) -> dict[str, Any]:
    return {"id": i, **asdict(token)}


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Returns spelling -> id of a model's entries."""
    entries = model["vocab"]
    return dict(entries) if isinstance(entries, dict) else {entry[0]: i for i, entry in enumerate(entries)}


def _merged(model: Mapping[str, Any], texts: Collection[str]) -> bool:
    """Returns whether the merges of a BPE make one of the tokens."""
    return any(_product(model, pair) in texts for pair in model["merges"])


def _product(model: Mapping[str, Any], pair: str | list[str]) -> str:
    first, second = _pair(pair)
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def _pair(pair: str | list[str]) -> list[str]:
    return pair.split(" ") if isinstance(pair, str) else pair


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Gives entries of a model other spellings; merges that make one of them, or are made of one, go."""
    entries = model["vocab"]
    if isinstance(entries, dict):
        model["vocab"] = {names.get(text, text): i for text, i in entries.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in entries]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            pair
            for pair in model["merges"]
            if _product(model, pair) not in names and not any(part in names for part in _pair(pair))
        ]
