"""metrics.jsonl when disks fill up and when a board that shows its numbers fails."""

import logging
import resource

import pytest

from zoo.train.logging.boards import Boards
from zoo.train.logging.log import MetricsLog, read_metrics


def line(step: int) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "loss": 1.0 / step}


def test_a_line_that_a_full_disk_has_torn_is_an_error_and_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(line(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(line(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    # A torn line in the middle, as an older version could leave one.
    with path.open("a") as file:
        file.write("\n" + "".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in (3, 4, 5)))
    assert [found["step"] for found in read_metrics(path)] == [1, 3, 4, 5]
    MetricsLog(path, step=4).close()
    assert [found["step"] for found in read_metrics(path)] == [1, 3, 4]
    assert path.read_text().count("\n") == 3


class Failing:
    name = "the board"

    def __init__(self):
        self.shown = []

    def log(self, numbers, step):
        self.shown.append(step)
        raise ConnectionResetError("gone\nfor good")

    def finish(self):
        raise AssertionError("it was dropped")


def test_a_board_that_fails_is_dropped_and_the_run_goes_on(tmp_path, caplog):
    board = Failing()
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path / "metrics.jsonl", boards=Boards([board]))
        log.write(line(1))
        log.write(line(2))
        log.close()
    assert board.shown == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "the board fails (ConnectionResetError: gone); the run goes on without it"
    ]
    assert [found["step"] for found in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
