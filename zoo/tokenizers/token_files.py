"""The files beside a tokenizer: tokenizer_config.json, special_tokens_map.json and added_tokens.json.

They are read as transformers reads them: where the config lists the added tokens itself (`added_tokens_decoder`),
the other two files, which older versions wrote, say nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.util import is_utf8, parse_json

CONFIG_NAME, MAP_NAME, ADDED_NAME = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = (CONFIG_NAME, MAP_NAME, ADDED_NAME)
PARTS = ("bos", "eos", "pad")


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a trained vocabulary.

    Attributes:
        content: its spelling.
        special: whether it is given by id alone, so that a text never spells it.
        lstrip, rstrip: whether the white space before or behind it belongs to it.
        single_word: whether it is looked for between words alone.
        normalized: whether it is looked for in the normalised text.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenFiles:
    """What the files beside a tokenizer say.

    Attributes:
        parts: the spelling of the tokens that are BOS, EOS and padding, by "bos", "eos" and "pad"; None where no file
            names any of them.
        special: the spellings of all tokens that a file names for a part of their own; the unknown token is none.
        added: id -> added token.
        add_bos: whether BOS stands before a text; None where no file says so.
        legacy: whether each piece of text between added tokens begins as a text does; None where no file says so.
    """

    parts: Mapping[str, str] | None = None
    special: tuple[str, ...] = ()
    added: Mapping[int, AddedToken] | None = None
    add_bos: bool | None = None
    legacy: bool | None = None


def read(directory: Path, config_name: str = CONFIG_NAME) -> TokenFiles:
    """Reads the files in a directory that are there; raises UserError, naming the file, for one that cannot be used."""
    config = _read(directory / config_name)
    named = dict(config)
    added = _described(config.get("added_tokens_decoder"), directory / config_name)
    if config_name == CONFIG_NAME and "added_tokens_decoder" not in config:
        named |= _read(directory / MAP_NAME)
        listed = _read(directory / ADDED_NAME)
        special = _special(named)
        added = {
            _as_id(i, directory / ADDED_NAME): AddedToken(text, special=text in special, normalized=text not in special)
            for text, i in listed.items()
        }
    parts = {part: text for part in PARTS if (text := _spelling(named.get(f"{part}_token"))) is not None}
    broken = [part for part, text in parts.items() if not is_utf8(text)]
    if broken:
        path = directory / config_name
        raise UserError(f"{path}: {broken[0]}_token is {parts[broken[0]]!r}, which is not UTF-8; get the file again")
    flags = (config.get(name) for name in ("add_bos_token", "legacy"))
    add_bos, legacy = (flag if isinstance(flag, bool) else None for flag in flags)
    return TokenFiles(parts or None, _special(named), added, add_bos, legacy)


def as_config(files: TokenFiles) -> dict[str, Any]:
    """Returns the content of a tokenizer_config.json that `read` reads as `files`; {} where there is nothing to say."""
    content: dict[str, Any] = {f"{part}_token": token for part, token in (files.parts or {}).items()}
    if files.added:
        content["added_tokens_decoder"] = {str(i): asdict(token) for i, token in sorted(files.added.items())}
    others = [text for text in files.special if text not in content.values()]
    if others:
        content["additional_special_tokens"] = others
    flags = {"add_bos_token": files.add_bos, "legacy": files.legacy}
    return content | {name: flag for name, flag in flags.items() if flag is not None}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as the settings of a tokenizer ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: cannot be read as the settings of a tokenizer (it is no object with fields)")
    return content


def _described(listed: Any, path: Path) -> dict[int, AddedToken]:
    """Returns the tokens of an `added_tokens_decoder`."""
    if listed is None:
        return {}
    if not isinstance(listed, dict):
        raise UserError(f"{path}: added_tokens_decoder is no object of ids and tokens")
    tokens = {}
    for key, about in listed.items():
        text = _spelling(about)
        if text is None:
            raise UserError(f"{path}: added_tokens_decoder has no content for the token {key}")
        names = ("special", "lstrip", "rstrip", "single_word", "normalized")
        flags = {name: bool(about.get(name)) for name in names} if isinstance(about, dict) else {}
        tokens[_as_id(key, path)] = AddedToken(text, **flags)
    return tokens


def _as_id(value: Any, path: Path) -> int:
    """Returns an id given as a whole number or its digits."""
    digits = str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise UserError(f"{path}: {digits[:40]!r} is not the id of a token")
    return int(digits)


def _special(named: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the spellings that the fields `..._token` and the lists of further special tokens name."""
    values = [value for name, value in named.items() if name.endswith("_token") and name != "unk_token"]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = named.get(name)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    return tuple(dict.fromkeys(_spellings(values)))


def _spellings(values: Iterable[Any]) -> Iterable[str]:
    return (text for value in values if (text := _spelling(value)))


def _spelling(token: Any) -> str | None:
    """Returns the text of a token that is given as its text, or as an object that describes it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
