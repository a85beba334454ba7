"""Records of chat data as conversations: lists of {"role", "content"} in which user and assistant take turns.

Sources: `messages` (the usual column of such dicts; `weight: 0` in one takes its loss away), `dolly`
(databricks/databricks-dolly-15k) and `oasst1` (OpenAssistant/oasst1, a table of messages that form trees).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zoo.errors import UserError
from zoo.tokenizers import chat

Conversation = list[dict[str, Any]]

FIELDS = {
    "messages": ("messages",),
    "dolly": ("instruction", "context", "response"),
    "oasst1": ("message_id", "parent_id", "role", "text", "lang"),
}


def from_record(record: Mapping[str, Any], layout: str) -> Conversation:
    """Returns the conversation in a record of layout `messages` or `dolly`. Raises UserError if there is none in it."""
    return _dolly(record) if layout == "dolly" else _messages(record)


def _messages(record: Mapping[str, Any]) -> Conversation:
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        fields = ", ".join(map(str, record)) or "none"
        hint = "" if "conversations" not in record else " (ShareGPT's are not read: write messages of role and content)"
        raise UserError(f"field 'messages' is missing or not a list of messages; its fields: {fields}{hint}")
    conversation = [
        {"role": message.get("role"), "content": message.get("content")}
        | ({"weight": message["weight"]} if "weight" in message else {})
        for message in messages
    ]
    chat.check(conversation, last="assistant")
    chat.check_weights(conversation)
    return conversation


def _dolly(record: Mapping[str, Any]) -> Conversation:
    """Returns a conversation with the context behind the instruction, as KodaLite was tuned."""
    instruction, response = record.get("instruction"), record.get("response")
    if not isinstance(instruction, str) or not isinstance(response, str):
        fields = ", ".join(map(str, record)) or "none"
        raise UserError(f"field 'instruction' or 'response' is missing; its fields: {fields}")
    context = record.get("context") or ""
    if not isinstance(context, str):
        raise UserError("field 'context' is not text")
    context = context.strip()
    text = f"{instruction}\n\nContext:\n{context}" if context else instruction
    conversation = [{"role": "user", "content": text}, {"role": "assistant", "content": response}]
    chat.check(conversation, last="assistant")
    return conversation


def _is_text(message: Mapping[str, Any]) -> bool:
    """Returns whether a message's fields are text; that of its parent may be None, which is so of a root."""
    return isinstance(message["parent_id"], str | None) and all(
        isinstance(message[name], str) for name in ("message_id", "role", "text", "lang")
    )


def from_trees(messages: Iterable[Mapping[str, Any]]) -> Iterator[Conversation]:
    """Yields, for every English message of an assistant, the path to it from the root, in the order of those messages.

    Paths that do not begin with a user or have fewer than two messages are left out, and so are messages whose fields
    are not text, with all that follows them. All messages are held in memory.
    KodaLite was tuned on oasst1 in this way.
    """
    table = {message["message_id"]: message for message in messages if _is_text(message)}
    for message in table.values():
        if message["role"] != "assistant" or message["lang"] != "en":
            continue
        path, at = [], message
        while at is not None and len(path) <= len(table):  # a circle in damaged data must not loop for ever
            path.append(at)
            at = table.get(at["parent_id"])
        conversation = [
            {"role": "user" if part["role"] == "prompter" else part["role"], "content": part["text"]}
            for part in reversed(path)
        ]
        if len(conversation) >= 2 and conversation[0]["role"] == "user":
            yield conversation
