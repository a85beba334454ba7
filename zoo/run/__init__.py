"""A run of a recipe from start to finish; `job` has it in order."""

from zoo.run.job import StepRange, run

__all__ = ["StepRange", "run"]
