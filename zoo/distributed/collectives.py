"""What several processes of one run must agree on. With one process nothing is sent and nothing is waited for.

Every function here is called by all processes, in the same order.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_TEXT = 240  # bytes of a problem that travel


def is_main_process() -> bool:
    """Whether this is process 0, which decides, writes small files and deletes."""
    return jax.process_index() == 0


def broadcast_one(value: Any) -> Any:
    """Process 0's value on every process, whatever the others gave. It goes as JSON."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode() if is_main_process() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    return json.loads(
        bytes(multihost_utils.broadcast_one_to_all(data if is_main_process() else np.zeros(length, np.uint8)))
    )


def first_problem(problem: str | None) -> str | None:
    """The problem of the lowest process that has one, on every process; None where all is well on all of them."""
    if jax.process_count() == 1:
        return problem
    text = np.zeros(_TEXT, np.uint8)
    if problem is not None:
        data = (problem or "unknown").encode()[:_TEXT]
        text[: len(data)] = np.frombuffer(data, np.uint8)
    for process, row in enumerate(multihost_utils.process_allgather(text)):
        if row.any():
            return f"process {process}: {bytes(row[row != 0]).decode(errors='replace')}"
    return None
