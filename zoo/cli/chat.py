"""`zoo chat MODEL`."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import given, late_interrupt
from zoo.cli.generate import Dtype, MinP, Raw, RepetitionPenalty, RopeScaling, open_model, open_stdin
from zoo.errors import UserError
from zoo.terminal import unguarded, visible

if TYPE_CHECKING:
    from zoo.language_model import LanguageModel

HELP = '''/reset           forget the conversation (the system text stays)
/system TEXT     what stands before the first message; without TEXT there is none
/save FILE       write the conversation as JSON (zoo chat MODEL --history FILE goes on with it)
/exit            leave; so does Ctrl-D
"""              begins a message of several lines, which ends with """; so does a \\ at a line's end
Ctrl-C           stops a reply'''


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run directory, a model directory or a name.")],
    template: Annotated[str | None, typer.Option(help="How turns are marked. Default: the model's own.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Put before the first message.")] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A conversation to go on with, as /save writes it.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of a reply. Default: the card's, else 128.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the card's, else 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps all. Default: the card's, else 0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 keeps all. Default: the card's, else 1.")] = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Annotated[int, typer.Option(help="Another seed, other replies.")] = 0,
    rope_scaling: RopeScaling = None,
    dtype: Dtype = None,
    raw: Raw = False,
) -> None:
    """Talk with a model. Replies come as they are written; /help lists what else can be typed.

    When a conversation grows longer than the model's context, its oldest turns are left out. Lines that come from a
    pipe are messages as well; the exit code is 2 if one of them could not be answered.

    \b
    Examples:
      zoo chat kodalite-1.3b
      zoo chat runs/kodalite_sft --temperature 0 --system "Answer in one sentence."
      echo "What is a zoo?" | zoo chat kodalite-1.3b
    """
    from zoo.generate import chat as conversations
    from zoo.tokenizers import chat as templates

    open_stdin("zoo chat")
    if template is not None:
        templates.find(template)
    messages = [] if history is None else conversations.read(history)
    if messages and messages[0]["role"] == "system":
        system, messages = system or messages[0]["content"], messages[1:]
    settings = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    lm = open_model(model, rope_scaling, dtype)
    session = Session(lm, template or lm.chat_template, settings, seed, raw=raw)
    session.system, session.messages = system or None, messages
    if not session.run():
        raise typer.Exit(2)


class Session:
    """A conversation on the terminal.

    Attributes:
        lm: the model that replies.
        template: the name of the chat template.
        settings: settings of generation, without the seed.
        seed: the first reply's; later ones count on from it.
        raw: whether control characters in a reply are printed as they are, else made visible.
        messages: the turns so far, by user and assistant; those too old for the context are gone.
        system: the system text or None.
    """

    def __init__(self, lm: "LanguageModel", template: str, settings: dict[str, Any], seed: int, *, raw: bool = False):
        self.lm, self.template, self.settings, self.seed, self.raw = lm, template, settings, seed, raw
        self.messages: list[dict[str, str]] = []
        self.system: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
        }

    def run(self) -> bool:
        """Reads and replies until the input ends. Returns False if a line from a pipe could not be answered."""
        at_terminal, ok = sys.stdin.isatty(), True
        if at_terminal:
            _edit_lines()
            note(f"{self.lm.name}; /help lists commands, Ctrl-D leaves")
        while True:
            try:
                text = read_message()
            except EOFError:
                return ok
            except KeyboardInterrupt:
                note("\n(Ctrl-D or /exit leaves)")
                continue
            word, _, rest = text.strip().partition(" ")
            if word in ("/exit", "/quit"):
                return ok
            try:
                if word in self._commands:
                    self._commands[word](rest.strip())
                elif word.startswith("/"):
                    raise UserError(f"unknown command {word}; /help lists them")
                elif text.strip():
                    self.reply(text.strip())
            except UserError as error:
                note(str(error))
                ok = ok and at_terminal

    def reply(self, text: str) -> None:
        """Prints the model's reply to a message of the user; Ctrl-C ends it, and what was printed is remembered."""
        message = {"role": "user", "content": text}
        written, out = "", unguarded(sys.stdout) if self.raw else sys.stdout
        try:
            with late_interrupt() as interrupted:
                stream = self.lm.stream_chat(
                    self._fitting(message), template=self.template, seed=self.seed + len(self.messages), **self.settings
                )
                for piece in stream:
                    if interrupted():
                        raise KeyboardInterrupt
                    print(piece if self.raw else visible(piece), end="", flush=True, file=out)
                    written += piece
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            note("(stopped)")
        if written.strip():
            self.messages += [message, {"role": "assistant", "content": written.strip()}]
        else:
            note("(no reply; your message is forgotten)")

    def all_messages(self) -> list[dict[str, str]]:
        """Returns the conversation, with its system text if there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def _fitting(self, message: dict[str, str]) -> list[dict[str, str]]:
        """Returns the conversation with the new message, without the turns for which there is no room."""
        from zoo.generate import chat as conversations

        reply = self.lm.reply_settings(self.template, self.settings).max_new_tokens
        context = self.lm.config.max_seq_len
        room = max(context - reply, context // 2)  # a reply that may be endless takes half of it
        messages = [*self.all_messages(), message]
        fitting, dropped = conversations.fit(self.lm.tokenizer, messages, self.template, room)
        if dropped:
            note(f"({dropped} oldest messages left out: they do not fit into {self.lm.config.max_seq_len} tokens)")
            del self.messages[:dropped]
        return fitting

    def _reset(self, _: str) -> None:
        self.messages = []
        note("(forgotten)")

    def _system(self, text: str) -> None:
        self.system = text or None
        note("(no system text)" if not text else "(set; /reset begins anew with it)" if self.messages else "(set)")

    def _save(self, name: str) -> None:
        from zoo.generate import chat as conversations

        if not name:
            raise UserError("/save needs the name of a file")
        conversations.save(Path(name).expanduser(), self.all_messages())
        note(f"({len(self.messages)} messages written to {name})")


def read_message() -> str:
    """Reads a message: a line, lines that end with a backslash and the next one, or lines between triple quotes.

    A message may also end with the input. Raises EOFError where the input ends before one.
    """
    line = input("> " if sys.stdin.isatty() else "")
    lines = []
    if line.lstrip().startswith('"""'):
        line = line.lstrip()[3:]
        while not line.rstrip().endswith('"""'):
            lines.append(line)
            line = _next_line()
            if line is None:
                return "\n".join(lines)
        lines.append(line.rstrip()[:-3])
    else:
        while line is not None and line.endswith("\\"):
            lines.append(line[:-1])
            line = _next_line()
        lines += [] if line is None else [line]
    return "\n".join(lines)


def note(text: str) -> None:
    """Prints what is not part of the conversation, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _next_line() -> str | None:
    """Reads a further line of a message; None at the end of the input."""
    try:
        return input("| " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _edit_lines() -> None:
    """Gives `input` arrow keys and a history, where the platform has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
