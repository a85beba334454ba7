"""Kill a run of two processes again and again, at seeded moments, and see that nothing is lost but what may be.

    python benchmarks/kill.py --moments 20 [--seed 0] [--json]

A tiny model trains on two processes (gloo, two CPU devices each), then on one, then on two again, and so on. Each
start ends by SIGKILL to one of its processes, at a random moment within a step, a checkpoint's save or an evaluation:
`--moments` of each, in random order. Each next start must go on from a checkpoint at most one save interval back,
behind the step reached or behind the checkpoint that was being written; where one of two is killed the other must end
by itself. At the end the run is finished undisturbed, and every loss must be, to 1e-5, that of a run that was never
killed. The last line is the outcome; the exit code is 0 if all held.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

SAVE_EVERY, EVALUATE_EVERY = 5, 7
BOUND = 60  # seconds within which the other process must be gone
KINDS = ("step", "save", "evaluation")

# Runs in the process that is to die: from a seeded instant after the call it has a random while to live.
WORKER = """
import json, os, signal, sys, threading, time
os.environ["ZOO_TRAIN_WORKER"] = "1"
kind, step, delay = json.loads(os.environ["KILL"])
from zoo import checkpoints
from zoo.cli.train import main
from zoo.run import job
from zoo.train.trainer import Trainer
from zoo.train.step import TrainStep

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def doom():
    print(f"doomed in {kind}", flush=True)
    threading.Timer(delay, die).start() if delay else die()

run_step, save, evaluate = TrainStep.__call__, checkpoints.Checkpoints.save, Trainer._evaluate

def step_and_die(self, params, opt_state, batch, number):
    time.sleep(0.05)  # or a save would take as long as many steps
    if kind == "step" and number >= step:
        doom()
    return run_step(self, params, opt_state, batch, number)

def save_and_die(self, number, *args):
    if kind == "save" and number >= step:
        doom()
    return save(self, number, *args)

def evaluate_and_die(self):
    if kind == "evaluation" and self.state.step >= step:
        doom()
    return evaluate(self)

TrainStep.__call__, checkpoints.Checkpoints.save, Trainer._evaluate = step_and_die, save_and_die, evaluate_and_die
job.peak_flops = lambda: (1e11, "not measured")
sys.exit(main(sys.argv[1:]))
"""


def write_recipe(directory: Path) -> Path:
    """A model of one layer on random words, for which a step takes milliseconds."""
    source = random.Random(0)
    words = ["".join(source.choices("aeilmnorst", k=source.randint(2, 7))) for _ in range(200)]
    text = "\n".join(json.dumps({"text": " ".join(source.choices(words, k=40))}) for _ in range(400))
    (directory / "words.jsonl").write_text(text + "\n")
    recipe = {
        "name": "killed",
        "model": {"name": "tiny-lm", "num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
        | {"max_seq_len": 32},
        "tokenizer": {"kind": "characters", "train": True},
        "data": {"kind": "text", "source": "jsonl", "path": str(directory / "words.jsonl"), "seq_len": 32}
        | {"batch_size": 8, "prepared_dir": str(directory / "prepared"), "max_tokens": 50_000},
        # A rate so low that the rounding of other numbers of devices does not grow over hundreds of steps.
        "optimizer": {"warmup_steps": 3, "peak_lr": 1e-4, "schedule": "constant"},
        "train": {"steps": 100_000},
        "checkpoint": {"every": SAVE_EVERY},
        "logging": {"runs_dir": str(directory / "runs"), "every": 1},
        "eval": {"every": EVALUATE_EVERY, "num_pairs": 8, "final_sample": False},
    }
    path = directory / "killed.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Start:
    """One start of the run, as one process or two."""

    def __init__(self, directory: Path, recipe: Path, overrides: list[str], processes: int, victim: int, moment: list):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = {key: value for key, value in os.environ.items() if not key.startswith("XLA_")}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "NPROC": "32"}
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.logs = [directory / f"process{number}.log" for number in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            group = [f"--coordinator=localhost:{port}", f"--num-processes={processes}", f"--process-id={number}"]
            arguments = [str(recipe), *overrides, *(group if processes > 1 else []), "--lost-after=10"]
            here = moment if number == victim else ["never", 0, 0]
            with log.open("w") as out:
                command = [sys.executable, "-P", "-c", WORKER, *arguments]
                kill = {"KILL": json.dumps(here)}
                self.processes.append(subprocess.Popen(command, env=env | kill, stdout=out, stderr=out))

    def wait(self, number: int, timeout: float) -> int | None:
        """The exit code of a process, None where it has not ended by then; it is killed then."""
        try:
            return self.processes[number].wait(timeout)
        except subprocess.TimeoutExpired:
            self.processes[number].kill()
            self.processes[number].wait()
            return None

    def said(self) -> str:
        return "\n".join(f"--- process {i}\n{log.read_text()}" for i, log in enumerate(self.logs))


def lines(run_dir: Path) -> list[dict]:
    """The logged steps of a run."""
    from zoo.train.logging.log import read_metrics

    return read_metrics(run_dir / "metrics.jsonl")


class Failed(Exception):
    """A bar was not held."""


def went_on_from(said: str) -> int:
    """The step that a start went on from; 0 where it began anew."""
    found = re.search(r"going on from the checkpoint of step ([\d,]+)", said)
    return int(found[1].replace(",", "")) if found else 0


def kill_once(directory: Path, recipe: Path, kind: str, number: int, source: random.Random, reached: int) -> dict:
    """One start that ends by SIGKILL; what came of it."""
    processes = 2 if number % 2 == 0 else 1
    victim = source.randrange(processes)
    step = reached + source.randint(2, 7)
    delay = source.choice([0.0, source.uniform(0, 0.03 if kind == "step" else 0.4)])
    start = Start(directory, recipe, [], processes, victim, [kind, step, delay])
    try:
        code = start.wait(victim, 600)
        if code != -signal.SIGKILL:
            raise Failed(f"process {victim} was not killed but ended with {code}\n{start.said()}")
        began = time.monotonic()
        for other in set(range(processes)) - {victim}:
            if start.wait(other, BOUND) is None:
                raise Failed(f"process {other} did not end within {BOUND} s\n{start.said()}")
        ended = time.monotonic() - began
    finally:
        for process in start.processes:
            process.kill()
            process.wait()
    last = lines(directory / "runs" / "killed")
    under_way = [int(path.name.split(".")[0]) for path in (directory / "runs/killed/checkpoints").glob("*-tmp*")]
    return {
        "kind": kind,
        "processes": processes,
        "victim": victim,
        "went_on_from": went_on_from(start.said()),
        "reached": last[-1]["step"] if last else 0,
        "being_saved": max(under_way, default=None),
        "other_ended_after_s": round(ended, 1),
    }


def lost(killed: dict, went_on_from: int) -> bool:
    """Whether more than a save interval was lost of a start that was killed."""
    behind = killed["being_saved"] or killed["reached"]
    return behind - went_on_from > SAVE_EVERY or killed["reached"] - behind > SAVE_EVERY


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="of each kind: step, save, evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON")
    options = parser.parse_args()
    source = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        recipe = write_recipe(directory)
        moments = [kind for kind in KINDS for _ in range(options.moments)]
        source.shuffle(moments)
        before, outcomes = 0, []
        try:
            for number, kind in enumerate(moments):
                found = kill_once(directory, recipe, kind, number, source, before)
                if outcomes and lost(outcomes[-1], found["went_on_from"]):
                    raise Failed(f"it went on from step {found['went_on_from']} after {outcomes[-1]}")
                before = found["reached"]
                outcomes.append(found)
                print(f"{number + 1} of {len(moments)}: {found}", flush=True)
            worst = finish(directory, recipe, before + 5)
        except Failed as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    outcome = {
        "moments": len(moments),
        "seed": options.seed,
        "steps": before + 5,
        "most_steps_lost": max(a["reached"] - b["went_on_from"] for a, b in itertools.pairwise(outcomes)),
        "longest_until_the_other_ended_s": max(found["other_ended_after_s"] for found in outcomes),
        "worst_relative_difference": worst,
    }
    print(json.dumps(outcome) if options.json else outcome)
    return 0


def finish(directory: Path, recipe: Path, steps: int) -> float:
    """Finish the run, and one beside it that nothing disturbs; the largest relative difference of their losses."""
    for name, processes in (("killed", 2), ("undisturbed", 1)):
        overrides = [f"name={name}", f"train.steps={steps}"]
        start = Start(directory, recipe, overrides, processes, -1, [])
        codes = [start.wait(number, 1800) for number in range(processes)]
        if any(codes):
            raise Failed(f"the last start of {name} ended with {codes}\n{start.said()}")
    killed, wanted = lines(directory / "runs" / "killed"), lines(directory / "runs" / "undisturbed")
    if [line["step"] for line in killed] != list(range(1, steps + 1)):
        raise Failed("steps are missing, or there twice, in metrics.jsonl")
    worst = 0.0
    for one, other in zip(killed, wanted, strict=True):
        if one.keys() != other.keys() or one["tokens"] != other["tokens"]:
            raise Failed(f"{one} is not what was expected: {other}")
        for name in ("loss", "grad_norm", "lr", "heldout_loss"):
            if name in other:
                worst = max(worst, abs(one[name] - other[name]) / max(abs(other[name]), 1e-30))
    if worst > 1e-5:
        raise Failed(f"losses differ by {worst:.1e}, more than 1e-5")
    return worst


if __name__ == "__main__":
    sys.exit(main())
