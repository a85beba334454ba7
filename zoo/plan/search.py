"""The largest batch that fits, by trying: memory is nearly a straight line over rows, so few trials find it."""

from collections.abc import Callable
from dataclasses import dataclass

from zoo.plan.compiled import Needs
from zoo.train.memory import changed
from zoo.train.mesh import num_row_shards
from zoo.train.program import Program

CLOSE = 1.1  # between what fits and what does not
FARTHEST = 16  # times the largest that is known to fit, in one go


@dataclass(frozen=True)
class Search:
    """`fits` rows of a batch, all at once, were tried and fit; `too_many` were tried and do not (None: never tried).

    `trials`: how many there were after the plan's own.
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
    """Search with at most `trials` of `measure`.

    Args:
      first: the needs of the program itself.
      limit: bytes of a device.
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
        needs = measure(changed(program, data={"batch_size": guess}, train={"microbatch": None}))
        done += 1
        points.append((guess, needs.total))
        if fitting(needs):
            fits = guess
        else:
            too_many = guess
    return Search(fits or None, too_many, done)


def _around(points: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The last point below the limit and the first above it, in rows."""
    ordered = sorted(points)
    above = next(i for i, (_, total) in enumerate(ordered) if total > limit or i == len(ordered) - 1)
    return ordered[max(above, 1) - 1 : max(above, 1) + 1]
