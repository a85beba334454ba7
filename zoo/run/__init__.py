"""A run from beginning to end; `job` tells it in order."""

from zoo.run.job import StepRange, run

__all__ = ["StepRange", "run"]
