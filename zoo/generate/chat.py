"""Conversations: their token ids, what ends a reply, and what is left out when one grows too long."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.generate.stopping import split_stop
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.chat import Message
from zoo.util import atomic_write, first_line, parse_json


def encode(tokenizer: Tokenizer, messages: Sequence[Message], template: str) -> list[int]:
    """Returns the token ids of a conversation whose last message is the user's, ready for the reply.

    A first message of role "system" is put before the first user's text, with an empty line between them, since no
    template has a turn for it.
    """
    return tokenizer.apply_chat_template(_without_system(messages), template=template)


def stops(template: str) -> list[str]:
    """Returns the strings that end a reply: the template's end, and the beginning of another user's turn."""
    marks = chat.find(template)
    ends = [marks.end, marks.between + marks.user.rstrip("\n"), marks.user.rstrip("\n")]
    # Both with the line break that stands before them, which is no part of a reply, and without it.
    return list(dict.fromkeys([*ends, marks.end.lstrip("\n")]))


def with_stops(given: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Returns the settings `given` with the strings that end a reply added to `stop`."""
    ids, strings = split_stop(given.get("stop"))
    return {**given, "stop": [*ids, *strings, *stops(template)]}


def fit(tokenizer: Tokenizer, messages: Sequence[Message], template: str, room: int) -> tuple[list[Message], int]:
    """Returns the latest whole turns whose prompt takes at most `room` tokens, and how many messages were left out.

    A system message stays, and so does the last message, however long it is.
    """
    latest = list(messages)
    first = 1 if latest and latest[0].get("role") == "system" else 0
    while len(latest) - first > 2 and len(encode(tokenizer, latest, template)) > room:
        del latest[first : first + 2]
    return latest, len(messages) - len(latest)


def save(path: str | os.PathLike, messages: Sequence[Message]) -> None:
    """Writes a conversation as JSON, a list of messages with role and content. Raises UserError if it cannot."""
    content = json.dumps([dict(message) for message in messages], ensure_ascii=False, indent=1)
    try:
        atomic_write(Path(path), content + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """Returns the messages that `save` wrote. Raises UserError for a file that is no closed conversation."""
    try:
        messages = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {first_line(error)}") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{path} is no conversation; it must be a list of messages with role and content")
    turns = _without_system([*messages, {"role": "user", "content": "x"}])[:-1]
    if turns:
        chat.check(turns, last="assistant")
    return messages


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with a leading system message put into the first user's turn."""
    if not messages or messages[0].get("role") != "system":
        return list(messages)
    system, *turns = messages
    texts = [message.get("content") for message in (system, *turns[:1])]
    if not turns or turns[0].get("role") != "user" or not all(isinstance(text, str) for text in texts):
        raise UserError("a message of role 'system' must have text and be followed by one of the user")
    first = {**turns[0], "content": "\n\n".join(texts)}
    return [first, *turns[1:]]
