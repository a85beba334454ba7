"""Conversations: the template of each model, what ends a reply, and what to leave out when one grows too long."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.generate.settings import Settings, resolve_settings
from zoo.generate.stopping import split_stop
from zoo.recipe import load_recipe
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.chat import Message
from zoo.util import atomic_write

# The models that were trained on conversations, and how theirs were written.
TEMPLATES = {"kodalite-1.3b": "kodalite"}


def template_of(model_name: str, directory: Path | None = None) -> str:
    """The template of a model: that of the run whose directory it came from, if one, else the registered model's.

    Raises UserError for a model that saw no conversations.
    """
    recipe = None if directory is None else directory / "recipe.yaml"
    if recipe is not None and recipe.is_file():
        data = load_recipe(recipe, check_files=False).data
        if data.kind == "chat":
            return data.chat_template
    if model_name not in TEMPLATES:
        raise UserError(
            f"{model_name} has no chat template that zoo knows; give template= (--template) one of "
            f"{', '.join(chat.TEMPLATES)} if it learnt conversations written so"
        )
    return TEMPLATES[model_name]


def encode(tokenizer: Tokenizer, messages: Sequence[Message], template: str) -> list[int]:
    """Token ids of a conversation whose last message is the user's, ready for the reply.

    A first message of role "system" is put before the first user's text, an empty line between them: no
    template has a turn for it.
    """
    return tokenizer.apply_chat_template(_without_system(messages), template=template)


def stops(template: str) -> list[str]:
    """The strings that end a reply: the template's end, or the beginning of another user's turn."""
    marks = chat.find(template)
    ends = [marks.end, marks.between + marks.user.rstrip("\n"), marks.user.rstrip("\n")]
    # Both with the line break that stands before them, which is no part of a reply, and without it.
    return list(dict.fromkeys([*ends, marks.end.lstrip("\n")]))


def settings(model_name: str, template: str, given: Mapping[str, Any]) -> Settings:
    """Those of a reply: `given` as for `zoo.generate.settings.resolve_settings`, the template's ends added to `stop`.

    Without a preset among `given`, a model that was trained on conversations has its card's settings.
    """
    ids, strings = split_stop(given.get("stop"))
    merged = {**given, "stop": [*ids, *strings, *stops(template)]}
    preset = merged.pop("preset", "original" if model_name in TEMPLATES else None)
    return resolve_settings(model_name, preset, merged)


def fit(tokenizer: Tokenizer, messages: Sequence[Message], template: str, room: int) -> tuple[list[Message], int]:
    """The latest part of a conversation, whole turns, whose prompt takes at most `room` tokens.

    Returns its messages (a system message stays) and how many were left out. The last message is always there,
    whatever it takes.
    """
    kept = list(messages)
    first = 1 if kept and kept[0].get("role") == "system" else 0
    while len(kept) - first > 2 and len(encode(tokenizer, kept, template)) > room:
        del kept[first : first + 2]
    return kept, len(messages) - len(kept)


def save(path: str | os.PathLike, messages: Sequence[Message]) -> None:
    """Write a conversation as JSON: a list of messages, each with role and content."""
    content = json.dumps([dict(message) for message in messages], ensure_ascii=False, indent=1)
    try:
        atomic_write(Path(path), content + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """What `save` wrote. Raises UserError for a file that is no closed conversation."""
    try:
        messages = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{path} is no conversation; it must be a list of messages with role and content")
    turns = _without_system([*messages, {"role": "user", "content": "x"}])[:-1]
    if turns:
        chat.check(turns, last="assistant")
    return messages


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with a leading system message put into the first user's turn."""
    if not messages or messages[0].get("role") != "system":
        return list(messages)
    system, *turns = messages
    texts = [message.get("content") for message in (system, *turns[:1])]
    if not turns or turns[0].get("role") != "user" or not all(isinstance(text, str) for text in texts):
        raise UserError("a message of role 'system' must have text and be followed by one of the user")
    first = {**turns[0], "content": "\n\n".join(texts)}
    return [first, *turns[1:]]
