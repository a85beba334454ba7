"""How many rows of the global batch go through the model at a time: `train.microbatch`."""

from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import Mesh

from zoo.hardware.memory import common_memory
from zoo.recipe import Recipe
from zoo.train.memory import FILLED, SURELY_FITS
from zoo.train.mesh import num_row_shards


@dataclass(frozen=True)
class Microbatch:
    """A number of rows of the global batch, and the bytes of the step with it where that was compiled to choose it."""

    rows: int
    step_bytes: float | None = None


def choose_microbatch(
    recipe: Recipe, mesh: Mesh, estimate: Callable[[int], int | None], measure: Callable[[int], float]
) -> Microbatch:
    """Returns the microbatch of `train.microbatch`; for `auto` the largest that fits into the devices' memory.

    Args:
        recipe: of the run.
        mesh: the devices.
        estimate: from the rows of a microbatch to about the bytes of a step on one device, or None.
        measure: the same, exactly, from compiling the step.
    """
    batch_size, wanted = recipe.data.batch_size, recipe.train.microbatch
    sizes = microbatch_sizes(batch_size, mesh)
    if wanted != "auto":
        # A search may try another batch size, which `wanted` need not divide: take its largest divisor up to `wanted`.
        return Microbatch(next((rows for rows in sizes if wanted is None or rows <= wanted), batch_size))
    limit = common_memory(list(mesh.devices.flat))
    if limit is None or 0 < (estimate(sizes[0]) or 0) <= SURELY_FITS * limit:
        return Microbatch(sizes[0])
    return largest_that_fits(sizes, limit, estimate, measure)


def largest_that_fits(
    sizes: list[int], limit: float, estimate: Callable[[int], int | None], measure: Callable[[int], float]
) -> Microbatch:
    """Returns the first of `sizes`, the largest first, whose step fits into `limit` bytes; see `choose_microbatch`.

    The estimate says where to begin; the compiler decides. Where none fits it is the last, which `zoo.plan.fit.check`
    refuses.
    """
    guesses = [estimate(rows) or 0 for rows in sizes]
    measured: dict[int, float] = {}

    def fits(i: int) -> bool:
        measured[i] = measure(sizes[i])
        return measured[i] <= limit

    def promising(i: int) -> bool:
        """Whether the next larger size would fit, if the estimate errs there by the same factor as at this size."""
        fixed = estimate(0) or 0
        growth = (guesses[i - 1] - fixed) / (guesses[i] - fixed) if guesses[i] > fixed else 1
        return fixed + (measured[i] - fixed) * growth <= limit

    best = next((i for i, guess in enumerate(guesses) if guess <= FILLED * limit), len(sizes) - 1)
    if fits(best):
        while best > 0 and promising(best) and fits(best - 1):
            best -= 1
    else:
        while best < len(sizes) - 1:
            best += 1
            if fits(best):
                break
    return Microbatch(sizes[best], measured[best])


def microbatch_sizes(batch_size: int, mesh: Mesh) -> list[int]:
    """Returns the numbers of rows that divide the batch and share out evenly over the mesh, the largest first."""
    shards = num_row_shards(mesh)
    return [rows for rows in range(batch_size, 0, -1) if batch_size % rows == 0 and rows % shards == 0] or [batch_size]
