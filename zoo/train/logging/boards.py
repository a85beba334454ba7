"""Boards that show the numbers of metrics.jsonl: TensorBoard and Weights & Biases. Both are extras, off by default."""

import importlib
import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.util import atomic_write, first_line, safe_path

logger = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_id"  # in the run directory: a resumed run is the same run at Weights & Biases
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by field of the recipe's `logging` section


class Board(Protocol):
    """A place where logged numbers are shown.

    Attributes:
        name: for messages.
    """

    name: str

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Shows the numbers of a step, by name."""

    def finish(self) -> None:
        """Sends what is left and closes the board."""


class Boards:
    """Several boards as one. A board that fails is dropped with a warning: metrics.jsonl has all of its numbers."""

    def __init__(self, boards: Sequence[Board] = ()):
        self._boards = list(boards)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Shows the numbers of a step on every board."""
        self._on_each("log", numbers, step)

    def finish(self) -> None:
        """Closes every board."""
        self._on_each("finish")

    def _on_each(self, method: str, *arguments) -> None:
        for board in list(self._boards):
            try:
                getattr(board, method)(*arguments)
            except Exception as error:  # of each library's own kinds
                self._boards.remove(board)
                reason = f"{type(error).__name__}: {first_line(error)}"
                logger.warning("%s fails (%s); the run goes on without it", board.name, reason)


class TensorBoard:
    """TensorBoard event files in a directory; those of steps after `step` are hidden from view."""

    name = "TensorBoard"

    def __init__(self, directory: str | os.PathLike, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, write_to_disk=True)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Writes the numbers to the event file."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run directory in a bucket is copied before the next checkpoint

    def finish(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandB:
    """A run at Weights & Biases (https://docs.wandb.ai), started or resumed.

    Its environment variables apply: WANDB_MODE=offline writes into the run directory alone (`wandb sync` sends it
    later), WANDB_PROJECT names the project (default zoo), WANDB_ENTITY its owner.

    Args:
        run_dir: the run directory; wandb writes its files to `wandb/` there.
        recipe: gives the run its name, and is shown beside the curves.

    Raises:
        UserError: wandb does not start, most often because nobody is logged in or there is no network.
    """

    name = "Weights & Biases"

    def __init__(self, run_dir: Path, recipe: Recipe):
        import wandb

        id_file = run_dir / WANDB_ID_FILE
        if not id_file.is_file() or not re.fullmatch(rb"[\w-]{1,64}\s*", id_file.read_bytes()):  # or it is damaged
            atomic_write(id_file, uuid.uuid4().hex[:12] + "\n")
        try:
            with safe_path():  # it starts a process of its own
                self._run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", "zoo"),
                    name=recipe.name,
                    id=id_file.read_text(encoding="utf-8").strip(),
                    resume="allow",
                    dir=run_dir,
                    config=recipe.resolved(),
                    settings=wandb.Settings(console="off", quiet=True),  # the terminal is zoo's
                )
        except Exception as error:  # its own kinds, and those of its helper process
            raise UserError(
                f"logging.wandb: wandb does not begin ({first_line(error)}); run `wandb login`, set "
                "WANDB_MODE=offline, or leave logging.wandb out"
            ) from None
        # zoo's steps along the x axis: wandb's own count could not go back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Hands the numbers to wandb's own process, which sends them when it can."""
        self._run.log({**numbers, "step": step})

    def finish(self) -> None:
        """Waits until everything has been sent."""
        self._run.finish()


def check_boards(recipe: Recipe) -> None:
    """Raises UserError where the recipe asks for a board whose package is not installed."""
    for field, package in _PACKAGES.items():
        if getattr(recipe.logging, field):
            try:
                importlib.import_module(package)
            except ImportError:
                raise UserError(
                    f"logging.{field} is true, but {package} is missing; pip install 'zoo-nnx[{field}]'"
                ) from None


def open_boards(recipe: Recipe, step: int) -> Boards:
    """Opens the boards that the recipe asks for, for a run that goes on from `step`.

    Raises:
        UserError: Weights & Biases does not start.
    """
    boards: list[Board] = []
    if recipe.logging.wandb:
        boards.append(WandB(recipe.run_dir, recipe))
    if recipe.logging.tensorboard:
        boards.append(TensorBoard(recipe.run_dir / "tensorboard", step))
    return Boards(boards)
