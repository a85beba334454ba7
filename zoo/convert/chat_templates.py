"""The templates of conversations as other programs take them: Jinja for transformers and GGUF, Go's for Ollama.

Weights of the hub keep the template of their release; what a run was trained on is rendered from
`zoo.tokenizers.chat.TEMPLATES`, so that a conversation outside is the text that the run saw.
"""

from dataclasses import dataclass
from typing import Any

from zoo.tokenizers import chat

# As KodaLite's release renders a conversation: the assistant's tag comes with the user's turn.
KODALITE_RELEASE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>\n{{ message['content'] }}\n<|assistant|>\n"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}<|endoftext|>"
    "{% endif %}{% endfor %}"
)
_KODALITE_RELEASE_GO = """{{- range .Messages }}{{ if eq .Role "user" }}<|user|>
{{ .Content }}
<|assistant|>
{{ else if eq .Role "assistant" }}{{ .Content }}<|endoftext|>{{ end }}{{ end }}"""


@dataclass(frozen=True)
class OutsideTemplate:
    """A template for other programs.

    Attributes:
        name: the one of `zoo.tokenizers.chat.TEMPLATES` that says the same.
        jinja: for transformers and llama.cpp.
        go: for Ollama.
    """

    name: str
    jinja: str
    go: str


def of_release(name: str) -> OutsideTemplate | None:
    """Returns the template of a published model, given the name of zoo's; None where none is published."""
    return OutsideTemplate(name, KODALITE_RELEASE, _KODALITE_RELEASE_GO) if name == "kodalite" else None


def of_run(name: str, eos: str | None) -> OutsideTemplate:
    """Returns the template that renders conversations as a run trained on them; `eos` is the tokenizer's, as text.

    A system message stands before the first user's text, with an empty line between, as in `zoo chat`.
    """
    marks = chat.find(name)
    end = marks.end + (eos or "" if marks.eos else "")
    text = {name: _quoted(piece) for name, piece in (("between", marks.between), ("user", marks.user), ("end", end))}
    jinja = (
        "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
        "{% set turns = messages[1:] if system else messages %}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' %}"
        f"{{% if not loop.first %}}{{{{ {text['between']} }}}}{{% endif %}}"
        f"{{{{ {text['user']} + (system if loop.first else '') + message['content'] }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {_quoted(marks.assistant)} + message['content'] }}}}"
        f"{{% if loop.last %}}{{{{ {text['end']} }}}}{{% endif %}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(marks.assistant)} }}}}{{% endif %}}"
    )
    go = (
        '{{- $system := "" }}{{ $later := false }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}{{ $system = .Content }}'
        '{{ else if eq .Role "user" }}'
        f"{{{{ if $later }}}}{marks.between}{{{{ end }}}}{marks.user}"
        "{{ if and $system (not $later) }}{{ $system }}\n\n{{ end }}{{ $later = true }}"
        f"{{{{ .Content }}}}{marks.assistant}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )
    return OutsideTemplate(name, jinja, go)


def name_of(jinja: Any) -> str | None:
    """Returns the name of zoo's template that a Jinja template of an export says; None for those of others."""
    if jinja == KODALITE_RELEASE:
        return "kodalite"
    for name, marks in chat.TEMPLATES.items():
        before, _, after = of_run(name, "\0").jinja.partition("\0")
        if isinstance(jinja, str) and jinja.startswith(before) and jinja.endswith(after) and (marks.eos or not after):
            return name
    return None


def _quoted(text: str) -> str:
    """Returns a text as a literal in Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
