"""Weights & Biases (https://docs.wandb.ai) as a mirror of metrics.jsonl: an extra, off unless logging.wandb is true.

Its own environment decides the rest: WANDB_MODE=offline writes into the run directory alone (`wandb sync` sends it
later), WANDB_PROJECT names the project (default zoo), WANDB_ENTITY whose it is.
"""

import os
import uuid
from pathlib import Path

from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.util import atomic_write, first_line

ID_FILE = "wandb_id"  # in the run directory: a run that goes on is the same run there


def check_wandb() -> None:
    """Raises UserError when logging to Weights & Biases is asked for and its package is missing."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError("logging.wandb is true, but wandb is missing; pip install 'zoo-nnx[wandb]'") from None


class WandbLog:
    """A run there, begun or gone on with; `show` what was logged, `close` at the end.

    Args:
        run_dir: the run directory; files of wandb lie in `wandb/` there.
        recipe: named after, and shown beside the curves.

    Raises:
        UserError: wandb will not begin, most often as nobody is logged in or the network is away.
    """

    name = "Weights & Biases"

    def __init__(self, run_dir: Path, recipe: Recipe):
        import wandb

        known = run_dir / ID_FILE
        if not known.is_file():
            atomic_write(known, uuid.uuid4().hex[:12] + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "zoo"),
                name=recipe.name,
                id=known.read_text(encoding="utf-8").strip(),
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

    def show(self, numbers: dict[str, float], step: int) -> None:
        """These numbers, at that step."""
        self._run.log(numbers | {"step": step})

    def sync(self) -> None:
        """Nothing: wandb's own process sends when it can."""

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
