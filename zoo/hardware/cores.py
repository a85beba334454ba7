"""How many CPU cores this process may use: fewer than the machine has, in a container or a job of a cluster."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def allowed_cores(root: Path = Path("/")) -> int:
    """Returns how many cores the process may use: those that it may run on, or the CPU time of its control groups.

    A share of a core that a control group gives counts as a whole one. `root` is the directory of /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the limits of the process's control groups and of those above them, in cores (versions 1 and 2)."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for group in groups:
        _, _, rest = group.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = Path(name.lstrip("/"))
        for directory in (place, *place.parents):
            quota = _quota(mount / directory, version=1 if controllers else 2)
            if quota is not None:
                yield quota


def _quota(directory: Path, version: int) -> float | None:
    """Returns the limit of one control group in cores, None where it has none."""
    names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = " ".join((directory / name).read_text(encoding="utf-8") for name in names).split()
        return int(quota) / int(period) if int(quota) > 0 else None  # "max" or -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
