"""What commands share: running a typer app with errors shown in a line, Ctrl-C, setting JAX up, printing tables."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from zoo.errors import UserError
from zoo.terminal import guarded, one_line
from zoo.util import safe_path

# Newer typer carries its own copy of click: the class must be the one typer raises.
_ClickException = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def new_app(**settings) -> typer.Typer:
    """Makes a typer app whose help is plain text and whose exceptions come out unchanged."""
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **settings)


def run_command(app: Callable, argv: Sequence[str] | None, prog: str, *, lasting: bool = False) -> int:
    """Runs a typer app on `argv` (None: the process's own) and returns the exit code.

    0: success. 2: bad usage or a `UserError`, its text on stderr. 130: interrupted. 1: the reader of stdout
    went away, or any other exception, one line on stderr. `--debug` anywhere before `--` adds the traceback.

    `lasting`: whether the command goes on when the reader of its output has gone away.

    What is printed meanwhile goes through `zoo.terminal.visible`, and no Python process that is started meanwhile looks
    for modules in the working directory.
    """
    with guarded(lasting=lasting), safe_path():
        return _run_command(app, argv, prog)


def _run_command(app: Callable, argv: Sequence[str] | None, prog: str) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = argv[: argv.index("--")] if "--" in argv else argv
    debug = "--debug" in options
    if debug:
        argv.remove("--debug")
    _avoid_missing_tpu()
    try:
        code = app(args=argv, prog_name=prog, standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe can still be answered
        return int(code or 0)
    except UserError as error:
        return _report(f"{prog}: {error}", 2, debug)
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else prog
        # An option's type is checked by pydantic, which begins its texts so.
        message = error.format_message().replace("Value error, ", "")
        return _report(f"{command}: {message}\nTry: {command} --help", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
        return 1
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        hint = "" if debug else " (add --debug for the traceback)"
        return _report(f"{prog}: unexpected {type(error).__name__}: {text}{hint}", 1, debug)


@contextlib.contextmanager
def late_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C was pressed in the block; a second one is a KeyboardInterrupt.

    JAX may crash of an exception that comes while it traces and compiles.
    """
    pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():  # which alone has signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def ready_to_compute() -> None:
    """Sets JAX up for commands that load a model; must be called before JAX looks for devices and compiles."""
    from zoo.hardware import compile_cache, cpu  # these import JAX

    compile_cache.enable()
    cpu.compute_in_calling_thread()


def _avoid_missing_tpu() -> None:
    """Keeps JAX from looking for a TPU in vain, of which libtpu, there for `zoo plan`, complains at length."""
    tpu = any(next(Path("/dev").glob(name), None) for name in ("accel*", "vfio/[0-9]*"))
    if find_spec("libtpu") is not None and not tpu and not entry_points(group="jax_plugins"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def given(**settings: Any) -> dict[str, Any]:
    """Returns the settings that are not None: the options that the user gave."""
    return {name: value for name, value in settings.items() if value is not None}


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of text in aligned columns, each on one line; the last column is not padded."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


def _report(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(text, file=sys.stderr)
    return code
