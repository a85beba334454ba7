"""Every model on every mesh trains as on one device: some of the table that benchmarks/scale.py makes, or all of it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.train.mesh import batch_share

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale.py"


def table(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, "--json", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        pytest.param("kodalite-1.3b", "data 2 x tensor 4", marks=pytest.mark.slow),
        ("bwetaf-97m", "data 2 x fsdp 2 x tensor 2"),
    ],
)
def test_a_model_on_a_mesh_trains_as_on_one_device(model, layout):
    """Vocabulary 257 and two kv heads on a tensor axis of four, and all three axes at once."""
    rows = table("--models", model, "--layouts", layout)
    assert [row["layout"] for row in rows] == ["1 device", layout]
    assert rows[1]["losses"] <= 1e-5
    assert rows[1]["gradients"] > 0  # they were compared


@pytest.mark.slow
def test_all_models_on_all_meshes_train_as_on_one_device():
    rows = table()
    assert len(rows) == 5 * 7
    assert all(row["losses"] <= 1e-5 for row in rows)


def mesh(processes, data, fsdp, tensor, order=None):
    """The parts of a mesh that decide who loads what; devices belong to processes in blocks, in `order` if given."""
    count = data * fsdp * tensor
    owners = order or [number * processes // count for number in range(count)]
    devices = np.array([SimpleNamespace(process_index=owner) for owner in owners]).reshape(data, fsdp, tensor)
    return SimpleNamespace(devices=devices, shape={"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("processes", "sizes", "wanted"),
    [
        (1, (2, 2, 2), [(0, 1)]),
        (2, (8, 1, 1), [(0, 2), (1, 2)]),
        (2, (2, 2, 2), [(0, 2), (1, 2)]),
        (2, (1, 8, 1), [(0, 2), (1, 2)]),
        (4, (2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a tensor axis across two processes: the same rows
        (2, (1, 1, 8), [(0, 1), (0, 1)]),
    ],
)
def test_a_process_loads_the_rows_that_its_devices_hold(processes, sizes, wanted):
    assert [batch_share(mesh(processes, *sizes), process) for process in range(processes)] == wanted


def test_rows_that_lie_apart_are_a_share_all_the_same():
    """As on a torus whose hosts are squares of chips: rows 0, 1, 4, 5 and 2, 3, 6, 7."""
    torus = mesh(2, 8, 1, 1, order=[0, 0, 1, 1, 0, 0, 1, 1])
    assert [batch_share(torus, process) for process in (0, 1)] == [(0, 2), (1, 2)]


def test_processes_whose_rows_overlap_in_part_are_refused():
    with pytest.raises(UserError, match=r"mesh: data 1 x fsdp 4 x tensor 3 .* 6 devices"):
        batch_share(mesh(2, 1, 4, 3, order=[0] * 5 + [1] * 7), 0)
    with pytest.raises(UserError, match="partly overlap"):
        batch_share(mesh(4, 1, 4, 3, order=[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]), 0)


def test_a_new_process_count_divides_the_same_batch():
    """Shares of all processes together are every row once, whatever the layout."""
    for processes, sizes in ((2, (4, 2, 1)), (4, (2, 2, 2)), (8, (4, 1, 2))):
        shares = {batch_share(mesh(processes, *sizes), process) for process in range(processes)}
        (count,) = {count for _, count in shares}
        assert {index for index, _ in shares} == set(range(count))
