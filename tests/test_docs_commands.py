"""The commands in the documents and in the heads of the recipes: each is parsed, and each recipe line is loaded."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from zoo.cli import train
from zoo.cli.common import new_app
from zoo.cli.main import COMMANDS, build_app
from zoo.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PLACEHOLDERS = {"RECIPE": "recipes/quickstart.yaml", "...": None}
PROGRAM = re.compile(r"(?:^|(?<=[\s/'\"]))(zoo-train|zoo(?= +[a-z])) +(?=\S)")


def of_document(text: str) -> list[str]:
    """Lines of shell blocks, indented lines and code in a sentence."""
    fences = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4}(.*)$", rest, flags=re.M)
    sentences = re.sub(r"^ {4}.*$", "", rest, flags=re.M)
    inline = [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`", sentences)]
    return [line for block in fences for line in shell_lines(block)] + indented + inline


def of_recipe(text: str) -> list[str]:
    """The command in a recipe's head, and lines that are one."""
    head = "\n".join(line[1:].strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
    head = re.sub(r"\\\n", "", head)
    lines = re.findall(r"^(?:command +)?((?:zoo-train|zoo) .*)$", head, flags=re.M)
    return [re.split(r" {2,}\(", line)[0] for line in lines] + re.findall(r"`([^`]+)`", head)


def shell_lines(block: str) -> list[str]:
    """The lines of a block, continued ones joined and variables replaced by what the block gives them."""
    block = re.sub(r"\\\n", "", block)
    block = re.sub(r"\b[A-Z]+='[^']*'", lambda found: found[0].replace("\n", " "), block)
    values = {name: value.strip("'") for name, value in re.findall(r"\b([A-Z]+)=('[^']*'|\S+)", block)}
    return [re.sub(r"\$([A-Z]+)", lambda found: values.get(found[1], found[0]), line) for line in block.splitlines()]


def commands_in(line: str) -> list[list[str]]:
    """Each call of zoo or zoo-train in a line of shell, as words."""
    found = []
    for match in PROGRAM.finditer(line):
        before, rest = line[: match.start()], line[match.end() :]
        if " #" in before:
            break
        for quote in "'\"":
            if before.count(quote) % 2:  # inside a quoted line for another shell
                rest = rest.split(quote)[0]
        lexer = shlex.shlex(rest, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words = [match[1]]
        for word in lexer:
            if set(word) <= set("|&;<>()"):
                break
            words.append(word)
        words = [PLACEHOLDERS.get(word, word) for word in words]
        found.append([word for word in words if word is not None])
    return [words for words in found if len(words) > 1]


COMMAND_LINES = [
    (path, words)
    for paths, lines_of in ((DOCUMENTS, of_document), (RECIPES, of_recipe))
    for path in paths
    for line in lines_of(path.read_text("utf-8"))
    for words in commands_in(line)
]


def parsed(words: list[str]) -> dict:
    """The arguments and options of a command line, by name; {} for the bare name of a command."""
    if words[0] == "zoo-train":
        app = new_app()
        app.command()(train.train)
        name, command, rest = words[0], typer.main.get_command(app), words[1:]
    else:
        assert words[1] in COMMANDS, words
        name, command, rest = "zoo", typer.main.get_command(build_app([words[1]])), words[1:]
    while hasattr(command, "commands"):
        if not rest:
            return {}
        name, rest = rest[0], rest[1:]
        assert name in command.commands, words
        command = command.commands[name]
    return command.make_context(name, list(rest)).params if rest else {}


def test_the_documents_are_read():
    lines = [" ".join(words) for _, words in COMMAND_LINES]
    assert len(lines) > 100
    for expected in (
        "zoo-train recipes/kodalite_1b.yaml data.source=shards data.path=gs://BUCKET/prepared/kodalite "
        "data.shuffle_buffer=0 data.batch_size=256 mesh.data=1 mesh.fsdp=256 logging.runs_dir=gs://BUCKET/runs "
        "--rehearse",
        "zoo-train recipes/gelu_d12.yaml --rehearse",
        "zoo data prepare recipes/kodalite_1b.yaml",
        "zoo eval --compare a.json b.json",
    ):
        assert expected in lines
    assert any("recipes/cronica_5m.yaml" in str(path) and "data.source=hub" in words for path, words in COMMAND_LINES)


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_accepted(path):
    for words in [words for source, words in COMMAND_LINES if source == path]:
        try:
            params = parsed(words)
        except Exception as error:  # typer's own classes
            if type(error).__name__ == "MissingParameter":  # a sentence about one option
                continue
            raise AssertionError(f"{' '.join(words)}: {error}") from error
        if "recipe" in params and "overrides" in params:
            overrides = list(params["overrides"] or ())
            assert load_recipe(ROOT / params["recipe"], overrides, check_files=False), words


def test_runs_that_follow_each_other_have_names_of_their_own():
    text = (ROOT / "docs" / "scale.md").read_text("utf-8")
    block = next(block for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S) if "TINY=" in block)
    calls = [parsed(words) for line in shell_lines(block) for words in commands_in(line) if words[0] == "zoo-train"]
    names = [load_recipe(ROOT / one["recipe"], list(one["overrides"]), check_files=False).name for one in calls]
    assert names == ["two", "two", "three"]  # the first two calls are one run, of two processes
    assert "\nwait\n" in block
