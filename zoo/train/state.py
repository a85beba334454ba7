"""The state of training: everything that changes from update to update, and that a checkpoint must hold."""

from dataclasses import dataclass
from typing import Any

from zoo.checkpoints.manager import Restored


@dataclass
class TrainState:
    """The state of training after `step` updates.

    Attributes:
        params: the trained parameters, a nested dict of arrays.
        opt_state: the optimizer's state.
        step: the number of updates done.
        tokens: the number of positions in their batches.
        seconds: training time over all starts of the run.
        left_out: numbers of the batches of the global order that the run leaves out after a rollback, ascending.
        skipped: how many updates, the last ones in a row, were skipped because they were not finite.
    """

    params: Any
    opt_state: Any
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: tuple[int, ...] = ()
    skipped: int = 0

    @classmethod
    def from_checkpoint(cls, restored: Restored) -> "TrainState":
        """Returns the state that a checkpoint holds."""
        meta = restored.meta
        return cls(
            restored.params,
            restored.opt_state,
            restored.step,
            meta["tokens_seen"],
            meta["train_seconds"],
            tuple(meta.get("left_out", ())),  # older checkpoints do not have these two
            meta.get("skipped", 0),
        )

    def meta(self) -> dict[str, Any]:
        """Returns what a checkpoint's meta holds of the state, as JSON; `from_checkpoint` reads it."""
        return {
            "tokens_seen": self.tokens,
            "train_seconds": self.seconds,
            "left_out": list(self.left_out),
            "skipped": self.skipped,
        }

    @property
    def batch(self) -> int:
        """The number of the next update's batch in the global order."""
        number = self.step
        for left_out in self.left_out:
            number += left_out <= number
        return number
