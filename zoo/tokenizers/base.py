"""The interface of every tokenizer, whichever library it uses. Ids are plain Python ints."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from zoo.errors import UserError
from zoo.tokenizers import chat
from zoo.util import first_line, is_utf8

_REPLACEMENT = "\ufffd"  # the character that decoders put for bytes that are not (yet) a whole character


class Tokenizer(ABC):
    """Converts text to token ids and back.

    Special tokens are given by id, never by their spelling: `encode("<eos>")` returns the ids of those five
    characters, so that nothing in a text can end a document or open a section.

    Attributes:
        special_tokens: spelling -> id of every special token.
        bos_id, eos_id, pad_id: the ids that begin and end a document and that pad rows, None where there is none.
    """

    special_tokens: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of rows that an embedding table for this tokenizer needs: the largest id plus one."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The SHA-256 of the content, 64 hexadecimal digits: equal fingerprints mean equal tokens."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Returns the token ids of each text. With `add_special`, each begins with `bos_id` if there is one."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Returns the text of `ids`, with special tokens left out or spelt out.

        Bytes that form no character become U+FFFD. Raises ValueError for an id outside the vocabulary.
        """

    @abstractmethod
    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer into `directory` (created if missing), from where `zoo.tokenizers.load` reads it."""

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Returns the token ids of one text, as `encode_batch`. Raises UserError for a text that is not UTF-8."""
        if not is_utf8(text):
            raise UserError("the text is not UTF-8: it holds bytes or halves of characters that stand for nothing")
        return self.encode_batch([text], add_special=add_special)[0]

    @property
    def prefix_ids(self) -> list[int]:
        """The ids that the tokenizer's own files put before a text: BOS where they say so, which naming it does not.

        By default BOS, if there is one.
        """
        return [] if self.bos_id is None else [self.bos_id]

    def with_prefix(self, ids: Sequence[int]) -> "Tokenizer":
        """Returns a tokenizer whose files put `ids` before a text; this one where its files have no words for that."""
        return self

    @property
    def separator_ids(self) -> list[int]:
        """The ids that separate documents where the tokenizer has neither BOS nor EOS."""
        return []

    @property
    def document_ends(self) -> tuple[list[int], list[int]]:
        """The ids before and behind each document of a corpus: BOS and EOS, else `separator_ids` behind it."""
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.eos_id is None else [self.eos_id]
        return before, after or ([] if before else self.separator_ids)

    def prefix_ids_after(self, kind: str) -> list[int]:
        """Returns the ids before a text that a model goes on with after a run on data of this kind (`data.kind`).

        After documents, those that stood before each of them: BOS, or else the EOS of the document before.
        """
        if kind != "text":
            return self.prefix_ids
        before, after = self.document_ends
        return before or [i for i in after if i == self.eos_id]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, template: str = "kodalite", add_generation_prompt: bool = True
    ) -> list[int]:
        """Returns the token ids of a conversation.

        Args:
            messages: dicts of `role` ("user" and "assistant" by turns, the user first) and `content`.
            template: a name in `zoo.tokenizers.chat.TEMPLATES`.
            add_generation_prompt: whether the conversation ends where the assistant's next text begins; if not, it
                is closed by the template's end.

        Raises:
            UserError: another order of roles, or an unknown template.
        """
        if add_generation_prompt:
            return chat.encode_prompt(self.encode_batch, messages, template)
        return chat.encode_conversations(self.encode_batch, [messages], template, eos_id=self.eos_id)[0][0]

    def stream_decoder(self, *, skip_special: bool = True) -> "StreamDecoder":
        """Returns a decoder that takes one id at a time and returns whole characters only."""
        return StreamDecoder(self, skip_special=skip_special)


@contextlib.contextmanager
def faults_refused(origin: str) -> Iterator[None]:
    """Raises UserError, naming `origin`, where a library cannot apply a tokenizer's file to a text.

    Libraries in Rust raise a bare Exception then, or panic, which is no Exception: of a regular expression that takes
    too many steps, or of a word without an entry.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{origin}: the tokenizer fails on this text ({first_line(error)}); get another file") from None


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError if the tokenizer has more entries than the model has rows."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer.path: the tokenizer has {tokenizer.vocab_size:,} entries, more than the model's "
            f"vocab_size {vocab_size:,}; raise model.vocab_size or take another tokenizer"
        )


class StreamDecoder:
    """Decodes ids one by one; the pieces joined are `decode` of all the ids.

    A character whose bytes are spread over several tokens is held back until its last byte. Some decoders give up whole
    characters that stand before a part of one ("byte fallback"); here these stay.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # The ids of the last piece: some decoders drop the space before the first word, so they must see a word before.
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Returns the text that `token` completes, "" in the middle of a character."""
        self._held.append(int(token))
        # A real U+FFFD in the text is held back as well, until the next token or `flush`.
        return "" if self._text().endswith(_REPLACEMENT) else self.flush()

    def flush(self) -> str:
        """Returns what is held back, at the end of the text (U+FFFD for an unfinished character)."""
        text = self._text()
        # Without a text of its own, what is held may still decide on the next one's first space.
        self._before = self._held if text else self._before + self._held
        self._held = []
        return text

    def _text(self) -> str:
        before = self._tokenizer.decode(self._before, skip_special=self._skip_special)
        both = self._tokenizer.decode(self._before + self._held, skip_special=self._skip_special)
        if both.startswith(before):
            return both[len(before) :]
        return self._tokenizer.decode(self._held, skip_special=self._skip_special)
