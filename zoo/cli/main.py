"""`zoo`: every command but training. See `zoo --help`."""

import importlib
import sys
from collections.abc import Sequence

import typer

from zoo.cli.common import new_app, run_command
from zoo.errors import UserError
from zoo.util import nearest

# In the order of the help. Modules are imported only when their command, or the list of all, is asked for.
COMMANDS = {
    "list": "zoo.cli.list_models:list_models",
    "describe": "zoo.cli.describe:describe",
    "diff": "zoo.cli.diff:diff",
    "generate": "zoo.cli.generate:generate",
    "chat": "zoo.cli.chat:chat",
    "cronica": "zoo.cli.cronica:cronica",
    "eval": "zoo.cli.eval:evaluate",
    "plot": "zoo.cli.plot:plot",
    "plan": "zoo.cli.plan:plan",
    "data": "zoo.cli.data:app",
    "convert": "zoo.cli.convert:convert",
    "merge": "zoo.cli.merge:merge",
    "inspect": "zoo.cli.inspect_:inspect",
    "verify": "zoo.cli.verify:verify",
}


def _about(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """A Flax NNX model zoo: look at models, run them, measure them. `zoo-train RECIPE` trains.

    \b
    Examples:
      zoo list
      zoo describe cronica-5m
      zoo generate runs/quickstart --stats match.txt --style mexicano_clasico

    Every command takes --help, and --debug to show the traceback of an error.
    """
    if version:
        import zoo

        print(f"zoo {zoo.__version__}")
        raise typer.Exit


def build_app(names: Sequence[str]) -> typer.Typer:
    """Makes the typer app with these commands, names from COMMANDS."""
    app = new_app()
    app.callback(invoke_without_command=True)(_about)
    for name in names:
        module, function = COMMANDS[name].split(":")
        command = getattr(importlib.import_module(module), function)
        if isinstance(command, typer.Typer):  # a group of commands
            app.add_typer(command, name=name)
            continue
        # Typer would cut the first paragraph at 45 letters.
        app.command(name, short_help=" ".join(command.__doc__.split("\n\n")[0].split()))(command)
    return app


def _refuse(word: str) -> None:
    """Raises UserError for a command that there is not."""
    if word == "train":
        raise UserError("training has a command of its own: zoo-train RECIPE (zoo-train --help)")
    near = nearest(word, COMMANDS)
    hint = f"did you mean zoo {near}?" if near else f"there are {', '.join(COMMANDS)}"
    raise UserError(f"No such command {word!r}; {hint} (zoo --help; training is zoo-train)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `zoo` with `argv` (None: the process's own) and returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        run_command(build_app(list(COMMANDS)), ["--help"], "zoo")
        return 2
    first = next((word for word in argv if not word.startswith("-")), None)
    if first == argv[0] and first not in COMMANDS:
        return run_command(lambda **_: _refuse(first), argv, "zoo")
    return run_command(build_app([first] if first in COMMANDS else list(COMMANDS)), argv, "zoo")


if __name__ == "__main__":
    sys.exit(main())
