"""Conversations as tokens: text markers, each piece tokenised on its own, and which tokens have a loss.

KodaLite's markers are plain text (no special tokens). A conversation of two turns each is the pieces

    <|user|>\\n{u1}   \\n<|assistant|>\\n   {a1}   \\n   <|user|>\\n{u2}   \\n<|assistant|>\\n   {a2}   \\n<|end|>

and the loss lies on a1, a2 and the closing piece; a turn of the assistant with `weight: 0` has none, and where it is
the last turn the closing piece has none either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError
from zoo.util import is_utf8, nearest


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces around the texts of a conversation.

    Attributes:
        user: the marker before a user's text, tokenised together with it.
        assistant: the piece before an assistant's text.
        between: the piece between an assistant's text and the next user's.
        end: the piece that closes a conversation; its tokens have a loss.
        eos: whether the tokenizer's EOS follows the end, with a loss.
    """

    user: str
    assistant: str
    between: str
    end: str
    eos: bool = False


TEMPLATES = {
    "kodalite": ChatTemplate("<|user|>\n", "\n<|assistant|>\n", "\n", "\n<|end|>"),
    "kodalite_eos": ChatTemplate("<|user|>\n", "\n<|assistant|>\n", "\n", "\n<|end|>", eos=True),
}

# A turn: its `role`, "user" or "assistant", and its `content`, the text; an assistant's turn of `weight` 0 has no loss.
Message = Mapping[str, Any]
# Texts -> the token ids of each: a tokenizer's `encode_batch`.
EncodeBatch = Callable[[Sequence[str]], list[list[int]]]


def encode_prompt(encode_batch: EncodeBatch, messages: Sequence[Message], template: str = "kodalite") -> list[int]:
    """Returns the token ids of a conversation up to where the assistant's next text begins.

    Raises UserError unless user and assistant take turns and the last message is the user's.
    """
    check(messages, last="user")
    chosen = find(template)
    pieces = [*_pieces(chosen, messages), (chosen.assistant, False)]
    return [i for ids in encode_batch([text for text, _ in pieces]) for i in ids]


def encode_conversations(
    encode_batch: EncodeBatch,
    conversations: Sequence[Sequence[Message]],
    template: str = "kodalite",
    *,
    eos_id: int | None = None,
) -> list[tuple[list[int], list[bool]]]:
    """Returns the token ids of each closed conversation, and for each id whether it has a loss.

    All texts are tokenised in one call, several times faster than one conversation after the other. `eos_id` is the
    tokenizer's, for templates that end with it.

    Raises UserError for a conversation that does not end with the assistant or whose roles do not take turns, for a
    weight that is neither 0 nor 1, and for a template that needs an EOS where there is none.
    """
    chosen = find(template)
    if chosen.eos and eos_id is None:
        raise UserError(f"data.chat_template {template} closes with the tokenizer's EOS, and it has none")
    for messages in conversations:
        check(messages, last="assistant")
        check_weights(messages)
    # What closes a conversation is learnt as a part of its last turn.
    parts = [[*_pieces(chosen, messages), (chosen.end, _bears_loss(messages[-1]))] for messages in conversations]
    encoded = iter(encode_batch([text for pieces in parts for text, _ in pieces]))
    rows = []
    for pieces in parts:
        ids: list[int] = []
        mask: list[bool] = []
        for _, learnt in pieces:
            piece_ids = next(encoded)
            ids += piece_ids
            mask += [learnt] * len(piece_ids)
        if chosen.eos:
            ids.append(eos_id)
            mask.append(learnt)
        rows.append((ids, mask))
    return rows


def check(messages: Sequence[Message], *, last: str) -> None:
    """Raises UserError unless user and assistant take turns, the user first and `last` last, all with text."""
    if not messages:
        raise UserError("a conversation of no messages")
    for number, message in enumerate(messages):
        wanted = ("user", "assistant")[number % 2]
        if message.get("role") != wanted:
            raise UserError(f"message {number + 1} is of role {message.get('role')!r}, a turn of the {wanted} was due")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise UserError(f"message {number + 1} has no text")
        if not is_utf8(message["content"]):
            raise UserError(f"message {number + 1} is not UTF-8 text (half of a surrogate pair, or a stray byte)")
    if messages[-1]["role"] != last:
        raise UserError(f"the last message is of role {messages[-1]['role']!r}; it must be one of the {last}")


def check_weights(messages: Sequence[Message]) -> None:
    """Raises UserError where the weight of an assistant's turn is neither 0 (no loss) nor 1 (or None)."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight") not in (None, 0, 1):
            raise UserError(f"message {number + 1} has weight {message['weight']!r}; it must be 0 (no loss) or 1")


def find(name: str) -> ChatTemplate:
    """Returns the template of that name. Raises UserError if there is none."""
    if name not in TEMPLATES:
        guess = nearest(name, TEMPLATES)
        hint = f"did you mean {guess}? " if guess else ""
        raise UserError(f"unknown chat template {name!r}; {hint}known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _pieces(template: ChatTemplate, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    for number, message in enumerate(messages):
        if message["role"] == "user":
            pieces += [(template.between, False)] if number else []
            pieces.append((template.user + message["content"], False))
        else:
            pieces += [(template.assistant, False), (message["content"], _bears_loss(message))]
    return pieces


def _bears_loss(message: Message) -> bool:
    return message.get("weight") != 0
