"""Conversations as tokens: text markers, each piece tokenised on its own, and which tokens bear loss.

KodaLite's markers are plain text (no special tokens). A conversation of two turns each is the pieces

    <|user|>\\n{u1}   \\n<|assistant|>\\n   {a1}   \\n   <|user|>\\n{u2}   \\n<|assistant|>\\n   {a2}   \\n<|end|>

and the loss lies on a1, a2 and the closing piece.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.errors import UserError
from zoo.tokenizers.base import Tokenizer
from zoo.util import is_utf8, nearest


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces around the texts of a conversation.

    Attributes:
        user: goes before a user's text, as one piece with it.
        assistant: a piece before an assistant's text.
        between: a piece between an assistant's text and the next user's.
        end: the piece that closes a conversation; it bears loss.
        eos: whether the tokenizer's EOS follows, with loss.
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

Message = Mapping[str, str]


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], template: str = "kodalite") -> list[int]:
    """Token ids of a conversation that the assistant is to go on with. UserError unless a user's turn is the last."""
    check(messages, last="user")
    chosen = find(template)
    pieces = [*_pieces(chosen, messages), (chosen.assistant, False)]
    return [i for ids in tokenizer.encode_batch([text for text, _ in pieces]) for i in ids]


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], template: str = "kodalite"
) -> tuple[list[int], list[bool]]:
    """Token ids of a closed conversation, and for each whether it bears loss."""
    return encode_conversations(tokenizer, [messages], template)[0]


def encode_conversations(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], template: str = "kodalite"
) -> list[tuple[list[int], list[bool]]]:
    """`encode_conversation` for many at once, several times quicker than one by one.

    Raises UserError for a conversation that does not end with the assistant, or whose roles do not take turns.
    """
    chosen = find(template)
    if chosen.eos and tokenizer.eos_id is None:
        raise UserError(f"data.chat_template {template} closes with the tokenizer's EOS, and it has none")
    for messages in conversations:
        check(messages, last="assistant")
    parts = [[*_pieces(chosen, messages), (chosen.end, True)] for messages in conversations]
    encoded = iter(tokenizer.encode_batch([text for pieces in parts for text, _ in pieces]))
    rows = []
    for pieces in parts:
        ids: list[int] = []
        mask: list[bool] = []
        for _, learnt in pieces:
            some = next(encoded)
            ids += some
            mask += [learnt] * len(some)
        if chosen.eos:
            ids.append(tokenizer.eos_id)
            mask.append(True)
        rows.append((ids, mask))
    return rows


def check(messages: Sequence[Message], *, last: str) -> None:
    """Raises UserError unless user and assistant take turns, the user first and `last` last."""
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


def find(name: str) -> ChatTemplate:
    """The template of that name. Raises UserError if there is none."""
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
            pieces += [(template.assistant, False), (message["content"], True)]
    return pieces
