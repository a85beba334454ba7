"""The largest batch that fits, by trying: memory is nearly a straight line over rows, so few trials find it."""

from collections.abc import Callable
from dataclasses import dataclass

from zoo.plan.compiled import Needs
from zoo.train.mesh import num_row_shards
from zoo.train.program import Program

CLOSE = 1.1  # between what fits and what does not
FARTHEST = 16  # times the largest that is known to fit, in one go


@dataclass(frozen=True)
class Search:
    """The result of a search for the largest batch that goes through the model at once.

    Attributes:
      fits: the most rows that were tried and fit; None where none did.
      too_many: the fewest rows that were tried and do not fit; None where all did.
      trials: how many programs were tried after the plan's own.
    """

    fits: int | None
    too_many: int | None
    trials: int


def largest_batch(
    program: Program,
    first: Needs,
    limit: int,
    *,
    trials: int,
    measure: Callable[[Program], Needs],
    fitting: Callable[[Needs], bool],
) -> Search:
    """Searches for the largest batch that fits into `limit` bytes of a device.

    Args:
      program: with the recipe's own batch.
      first: the needs of the program itself.
      limit: bytes of a device.
      trials: how often `measure` is called at the most.
      measure: compiles or estimates a program.
      fitting: whether needs fit.
    """
    unit = num_row_shards(program.mesh)
    rows = program.microbatch.rows
    points = [(0, first.total - first.other + first.gradients), (rows, first.total)]
    fits, too_many = (rows, None) if fitting(first) else (0, rows)
    done = 0
    while done < trials:
        if too_many is not None and (too_many - fits <= unit or (fits and too_many <= CLOSE * fits)):
            break
        (rows_a, total_a), (rows_b, total_b) = sorted(points)[-2:] if too_many is None else _around(points, limit)
        slope = max((total_b - total_a) / (rows_b - rows_a), 1.0)
        guess = int((rows_a + (limit - total_a) / slope) // unit * unit)
        most = FARTHEST * max(fits, unit) if too_many is None else too_many - unit
        guess = min(max(guess, fits + unit), most)
        needs = measure(program.with_changes(data={"batch_size": guess}, train={"microbatch": None}))
        done += 1
        points.append((guess, needs.total))
        if fitting(needs):
            fits = guess
        else:
            too_many = guess
    return Search(fits or None, too_many, done)


def _around(points: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The (rows, bytes) next below the limit and next above it."""
    ordered = sorted(points)
    above = next(i for i, (_, total) in enumerate(ordered) if total > limit or i == len(ordered) - 1)
    return ordered[max(above, 1) - 1 : max(above, 1) + 1]
