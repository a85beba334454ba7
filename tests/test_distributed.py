"""Several processes as one run, each a real process with virtual CPU devices of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from test_resume import write_inputs

from zoo.checkpoints.manager import Checkpoints
from zoo.cli.train import main
from zoo.distributed import supervisor
from zoo.distributed.cluster import Cluster, find_cluster
from zoo.distributed.supervisor import supervise
from zoo.errors import UserError
from zoo.rundir.layout import lock
from zoo.train.logging.log import read_metrics

# A rate that does not depend on how many steps there will be, and is low enough that rounding does not grow.
RECIPE = ["data.batch_size=8", "optimizer.schedule=constant", "optimizer.final_lr=null", "optimizer.peak_lr=0.001"]
LOST_AFTER = 20


# ------------------------------------------------------------------------------ who is there, by the environment


SLURM = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="n[1-2]", SLURM_NTASKS="4", SLURM_PROCID="3", SLURM_LOCALID="1")
MPIRUN = dict(OMPI_MCA_orte_hnp_uri="x", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
BY_HAND = dict(JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="3", JAX_PROCESS_ID="2")


@pytest.mark.parametrize(
    "flags, environment, wanted",
    [
        ((None, None, None), {}, None),
        ((None, None, None), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # no step of srun
        ((None, None, None), SLURM, Cluster(4, 3)),
        ((None, None, None), MPIRUN, Cluster(2, 1)),
        ((None, None, None), BY_HAND, Cluster(3, 2, "h:1")),
        (("h:1", 2, 0), {}, Cluster(2, 0, "h:1")),
        (("h:1", None, None), SLURM, Cluster(4, 3, "h:1")),
        (("h:1", 2, None), {"PMI_RANK": "1"}, Cluster(2, 1, "h:1")),
        (("h:1", 1, 0), {}, None),
    ],
)
def test_the_processes_are_found_in_flags_and_environment(flags, environment, wanted):
    assert find_cluster(*flags, environment={"JAX_PLATFORMS": "cpu"} | environment) == wanted


@pytest.mark.parametrize(
    "flags, message",
    [
        ((None, 2, None), "--num-processes needs --coordinator HOST:PORT"),
        ((None, None, 1), "--process-id needs --coordinator HOST:PORT"),
        (("host", 2, 0), "--coordinator host is not HOST:PORT"),
        (("h:1", None, 0), "--num-processes is missing"),
        (("h:1", 2, None), "--process-id is missing"),
        (("h:1", 2, 2), "--process-id is 2 and --num-processes 2; ids go from 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_together_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        find_cluster(*flags, environment={"JAX_PLATFORMS": "cpu"})


def test_a_tpu_slice_is_counted_from_its_environment(monkeypatch):
    monkeypatch.setattr("zoo.distributed.cluster._has_tpu", lambda: True)
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}
    assert find_cluster(environment=hosts) == Cluster(4, 2)
    assert find_cluster(environment=hosts | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}) == Cluster(8, 6)
    assert find_cluster(environment=hosts | {"JAX_PLATFORMS": "cpu"}) is None
    told = {"worker-network-endpoints": "x:y:1.2.3.4,x:y:1.2.3.5", "agent-worker-number": "1"}
    told["tpu-env"] = "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n"
    monkeypatch.setattr("zoo.distributed.cluster._metadata", told.get)
    assert find_cluster(environment={}) == Cluster(6, 5)
    monkeypatch.setattr("zoo.distributed.cluster._metadata", lambda name: None)
    assert find_cluster(environment={}) is None


SILENT = """E1121 20:24:51.069520   29555 coordination_service.cc:1549] [12015] Use error polling to propagate: \\
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
0
3
The tasks have crashed. Check the task logs for an earlier error
F1121 20:24:51.070052   29568 client.h:80] Terminating process because the JAX distributed service detected errors.
RPC: /xla.coordination.CoordinationService/PollForError
*** Check failure stack trace: ***
    @     0x7f9650840634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
GONE = """F1121 20:25:47.114263   30458 client.h:80] Terminating process because the JAX service detected errors.

RPC: /xla.coordination.CoordinationService/Heartbeat
*** Check failure stack trace: ***
"""


@pytest.mark.parametrize(
    "program, code, said",
    [
        ("print('no such file', file=sys.stderr); sys.exit(2)", 2, "no such file\nPROCESS ended with exit code 2\n"),
        ("os.kill(os.getpid(), 9)", 137, "PROCESS was killed by SIGKILL (by hand, or the machine was out of memory)\n"),
        (
            f"print({SILENT!r}, file=sys.stderr, flush=True); os.abort()",
            134,
            "PROCESS ended because process 0, 3 does not answer any more; start all again to go on\n",
        ),
        (
            f"print({GONE!r}, file=sys.stderr, flush=True); os.abort()",
            134,
            "PROCESS ended because process 0, the coordinator, does not answer any more; start all again to go on\n",
        ),
        (
            f"print('careful'); print({GONE!r}, 'zoo-train: why', sep='\\n', file=sys.stderr); sys.exit(1)",
            1,
            "zoo-train: why\nPROCESS ended with exit code 1\n",
        ),
        ("", 0, ""),
    ],
)
def test_the_parent_says_what_became_of_its_process(program, code, said, capfd):
    command = [sys.executable, "-c", f"import os, sys; {program}"]
    assert supervise(command, Cluster(2, 1, "h:1")) == code
    assert capfd.readouterr().err == said.replace("PROCESS", f"zoo-train: process 1 of 2 ({socket.gethostname()})")


def test_the_parent_passes_sigterm_on(tmp_path):
    child = "import signal, time; signal.signal(15, lambda *_: exit(7)); print('ready', flush=True); time.sleep(60)"
    imports = "import sys; from zoo.distributed.supervisor import *"
    parent = f"{imports}; sys.exit(supervise([sys.executable, '-c', {child!r}], None))"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 7


def test_a_sigterm_while_the_child_starts_reaches_it(tmp_path, monkeypatch):
    """It comes before there is anybody to pass it on to."""
    start = subprocess.Popen

    def slow(command, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(command, **options)

    monkeypatch.setattr(supervisor.subprocess, "Popen", slow)
    assert supervise([sys.executable, "-c", "import time; time.sleep(60)"], None) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ------------------------------------------------------------------------------------------------------- real processes


class Running:
    """`zoo-train` on this machine as so many processes; their output is in files of the directory."""

    def __init__(self, directory: Path, *arguments: str, processes: int = 2, devices: int = 4, program: str = ""):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        env = {key: value for key, value in os.environ.items() if not key.startswith("XLA_")}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "32"}
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, *(["-c", textwrap.dedent(program)] if program else ["-m", "zoo.cli.train"])]
        self.outs, self.processes = [], []
        for number in range(processes):
            group = ["--coordinator", address, "--num-processes", str(processes), "--process-id", str(number)]
            group += [f"--lost-after={LOST_AFTER}"]
            self.outs.append(directory / f"out{number}")
            with self.outs[-1].open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *arguments, *(group if processes > 1 else [])], env=env, stdout=out, stderr=out
                    )
                )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exc_info) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                for child in children(process.pid):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()

    def worker(self, number: int) -> int:
        """The id of the process that trains, under its parent."""
        return children(self.processes[number].pid)[0]

    def codes(self, timeout: float = 300) -> list[int]:
        return [process.wait(timeout) for process in self.processes]

    def out(self, number: int) -> str:
        return self.outs[number].read_text()


def children(process: int) -> list[int]:
    """The ids of a process's children."""
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def until_step(run_dir: Path, step: int, running: Running) -> None:
    """Wait until a step has been logged."""
    while not any(line["step"] >= step for line in read_metrics(run_dir / "metrics.jsonl")):
        assert all(process.poll() is None for process in running.processes), running.out(0) + running.out(1)
        time.sleep(0.05)


def losses(run_dir: Path) -> np.ndarray:
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([[line["loss"], line["grad_norm"], line.get("heldout_loss", 0)] for line in lines])


def trained(directory: Path, *arguments: str, **how) -> str:
    """Run to the end; what process 0 said."""
    with Running(directory, *arguments, **how) as running:
        assert running.codes() == [0] * len(running.processes), "\n".join(map(running.out, range(len(running.outs))))
        return running.out(0)


def stopped_by_sigterm(directory: Path, recipe: list[str], devices: int) -> int:
    """Train on two processes until one of them gets SIGTERM; the step that both have saved."""
    run_dir = directory / "runs" / "tiny"
    endless = ["train.steps=100000", "checkpoint.every=100000", "eval.every=0"]
    with Running(directory, *recipe, *endless, devices=devices) as running:
        until_step(run_dir, 3, running)
        running.processes[1].send_signal(signal.SIGTERM)
        assert running.codes() == [0, 0], running.out(0) + running.out(1)
        said = running.out(0)
        assert not re.search(r"^(step|Model|saved)", running.out(1), re.MULTILINE)
    stopped = int(re.search(r"saved step (\d+); go on with", said)[1])
    assert Checkpoints(run_dir / "checkpoints").steps() == [stopped]
    assert len(losses(run_dir)) == stopped
    return stopped


def is_undisturbed(directory: Path, recipe: list[str], steps: int) -> None:
    """The run has the lines of one of so many steps that was never stopped, on one device."""
    assert main([*recipe, f"train.steps={steps}", "name=undisturbed"]) == 0
    wanted, found = losses(directory / "runs" / "undisturbed"), losses(directory / "runs" / "tiny")
    assert len(wanted) == steps
    np.testing.assert_allclose(found[:, :2], wanted[:, :2], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_on_all_and_one_goes_on(tmp_path, capsys):
    recipe = [str(write_inputs(tmp_path)), *RECIPE]
    stopped = stopped_by_sigterm(tmp_path, recipe, 2)
    assert main([*recipe, f"train.steps={stopped + 5}"]) == 0
    assert f"going on from the checkpoint of step {stopped}" in capsys.readouterr().out
    is_undisturbed(tmp_path, recipe, stopped + 5)


@pytest.mark.slow
def test_any_number_of_processes_and_devices_goes_on(tmp_path):
    """The same steps, the same rows, the same losses."""
    recipe = [str(write_inputs(tmp_path)), *RECIPE]
    steps = stopped_by_sigterm(tmp_path, recipe, 4)
    for processes, devices, mesh in ((1, 8, "{data: 2, fsdp: 4}"), (1, 1, "{}"), (2, 2, "{fsdp: 4}"), (1, 4, "auto")):
        how = {"processes": processes, "devices": devices}
        said = trained(tmp_path, *recipe, f"train.steps={steps + 4}", f"mesh={mesh}", **how)
        assert f"going on from the checkpoint of step {steps}" in said
        assert f"{processes * devices} x cpu" in said
        steps += 4
    is_undisturbed(tmp_path, recipe, steps)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_in_bounded_time_and_the_run_goes_on(tmp_path, number, victim):
    recipe, run_dir = [str(write_inputs(tmp_path)), *RECIPE, "checkpoint.every=5"], tmp_path / "runs" / "tiny"
    with Running(tmp_path, *recipe, "train.steps=100000") as running:
        until_step(run_dir, 7, running)
        os.kill(running.worker(victim), number)
        began = time.monotonic()
        assert running.processes[1 - victim].wait(120) > 0
        assert time.monotonic() - began < LOST_AFTER + 30
        said = running.out(1 - victim)
        assert re.search(r"process \d of 2 \(.*\) ended (because (process \d|it lost)|with exit code 1)", said), said
        assert "***" not in said and "@ 0x" not in said  # no C++ stack
        if number == signal.SIGKILL:
            running.processes[victim].wait(60)
            assert "was killed by SIGKILL" in running.out(victim)
    reached = Checkpoints(run_dir / "checkpoints").latest()
    said = trained(tmp_path, *recipe, f"train.steps={reached + 7}")
    assert f"going on from the checkpoint of step {reached}" in said
    assert len(losses(run_dir)) == reached + 7


@pytest.mark.slow
def test_a_process_that_hangs_ends_all(tmp_path):
    program = """
        import os, sys, time
        os.environ["ZOO_TRAIN_WORKER"] = "1"
        from zoo.cli.train import main
        from zoo.train.step import TrainStep

        run_step = TrainStep.__call__

        def step(self, params, opt_state, batch, number):
            while number == 4 and sys.argv[-2] == "1":
                time.sleep(1)  # its heart still beats
            return run_step(self, params, opt_state, batch, number)

        TrainStep.__call__ = step
        sys.exit(main(sys.argv[1:]))
        """
    recipe = [str(write_inputs(tmp_path)), *RECIPE, "--step-limit=60"]
    with Running(tmp_path, *recipe, program=program) as running:
        assert running.codes(300) == [1, 1]
        both = running.out(0) + running.out(1)
    assert re.search(
        r"zoo-train: process \d has ended: no step was finished for 60 s \(the last: [34]\); it hangs", both
    )


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_with_its_reason(tmp_path):
    recipe = [str(write_inputs(tmp_path)), *RECIPE]
    with lock(tmp_path / "runs" / "tiny"), Running(tmp_path, *recipe) as running:
        assert all(code in (1, 2) for code in running.codes())
        for number in (0, 1):
            assert "another process is training this run" in running.out(number)


@pytest.mark.slow
def test_an_odd_layout_and_the_end_of_a_run_with_two_processes(tmp_path):
    """A tensor axis across both processes; the evaluation at the end, samples and the best checkpoint."""
    recipe = [str(write_inputs(tmp_path)), *RECIPE, "train.steps=9", "eval.every=3", "model.max_seq_len=400"]
    more = ["eval.cronicas=2", "eval.max_new_tokens=6", "eval.sample_every=4", "eval.final_sample=true"]
    more += ["checkpoint.keep_best=true", "checkpoint.keep=1"]
    trained(tmp_path, *recipe, *more, "mesh={data: 1, fsdp: 1, tensor: 2}", devices=1)
    trained(tmp_path, *recipe, *more, "name=one", processes=1, devices=1)
    run_dir, one = tmp_path / "runs" / "tiny", tmp_path / "runs" / "one"
    np.testing.assert_allclose(losses(run_dir), losses(one), rtol=1e-5)
    assert (run_dir / "samples.md").read_text() == (one / "samples.md").read_text()
    assert "## Evaluation" in (run_dir / "report.md").read_text()
    assert Checkpoints(run_dir / "checkpoints").pinned() == Checkpoints(one / "checkpoints").pinned()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_rehearsal_compares_and_leaves_nothing(tmp_path, processes):
    recipe = [str(write_inputs(tmp_path)), *RECIPE, "train.steps=1000", "--rehearse"]
    said = trained(tmp_path, *recipe, processes=processes, devices=2)
    assert re.search(r"rehearsal: ok: .* after \d+ steps every loss", said), said
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_rehearsal_says_what_differs(tmp_path):
    program = """
        import sys
        from zoo.cli import train
        from zoo.run import rehearse

        rehearse._different_leaves = lambda one, other: ["model/embed: other bits"]
        sys.exit(train.main(sys.argv[1:]))
        """
    recipe = [str(write_inputs(tmp_path)), *RECIPE, "train.steps=1000", "--rehearse"]
    with Running(tmp_path, *recipe, processes=1, devices=1, program=program) as running:
        assert running.codes() == [1]
        assert "rehearsal: NOT OK" in running.out(0) and "model/embed: other bits" in running.out(0)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_killed_at_seeded_moments_on_two_processes_then_one(tmp_path):
    program = Path(__file__).parent.parent / "benchmarks" / "kill.py"
    command = [sys.executable, str(program), "--moments=2", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
