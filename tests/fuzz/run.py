"""Feeds the readers of `targets.py` with what atheris makes of their inputs, and prints what came of it.

    pip install -e ".[dev,fuzz]"
    python tests/fuzz/run.py --inputs 1000000        # over all readers, split evenly
    python tests/fuzz/run.py --seconds 600 gguf recipe

Each reader runs in a process of its own, whose memory and answers libFuzzer measures. Faults are an answer of more than
10 s, more than 1 GB of memory, an exception other than UserError, and a file written outside of its directory.
An input that caused one is kept in `tests/fuzz/found/READER-HASH`, and `tests/test_fuzz.py` replays it from then on.
"""

import argparse
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE / "found"
LONGEST = 10  # seconds of an answer
MEMORY_MB = 1024  # over what the process takes before the first input
INPUT_BYTES = 1 << 16
MOST_FAULTS = 5  # of a reader, which then is given up


def main() -> int:
    """Runs the readers one after the other and returns 1 if one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help="names in targets.py; all by default")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all readers")
    parser.add_argument("--seconds", type=int, help="over all readers, in place of --inputs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return fuzz(options.child, options.inputs, options.seconds)
    sys.path.insert(0, str(HERE))
    from targets import TARGETS

    names = options.readers or list(TARGETS)
    print(f"{'reader':<24}{'inputs':>10}{'faults':>8}{'slowest':>9}{'memory':>9}{'edges':>8}{'took':>8}")
    faults = 0
    for name in names:
        faults += report(name, options, len(names))
    return min(faults, 1)


def report(name: str, options: argparse.Namespace, readers: int) -> int:
    """Runs one reader in a child, prints its row and returns the number of its faults."""
    limit = ["--inputs", str(-(-options.inputs // readers))]
    if options.seconds:
        limit = ["--seconds", str(max(1, options.seconds // readers))]
    started, done, faults, slowest, memory, edges = time.monotonic(), 0, 0, 0.0, 0, 0
    wanted = int(limit[1])
    while faults < MOST_FAULTS:
        command = [sys.executable, __file__, "--child", name, limit[0], str(max(1, wanted - done))]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
        text = ended.stdout + ended.stderr
        done += max(map(int, re.findall(r"^#(\d+)", text, flags=re.M)), default=0)
        slowest = max([slowest, *map(float, re.findall(r"SLOWEST ([\d.]+)", text))])
        memory = max([memory, *map(int, re.findall(r"rss: (\d+)Mb", text))])
        edges = max([edges, *map(int, re.findall(r"cov: (\d+)", text))])
        if ended.returncode == 0:
            break
        faults += 1
        print(text[-3000:], file=sys.stderr)
        if options.seconds:
            break
    took = time.monotonic() - started
    print(f"{name:<24}{done:>10,}{faults:>8}{slowest:>8.2f}s{memory:>7} MB{edges:>8}{took:>7.0f}s", flush=True)
    return faults


def _environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}


def fuzz(name: str, inputs: int, seconds: int | None) -> int:
    """Fuzzes one reader in this process, which ends in it."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["zoo", "gguf", "safetensors"], enable_loader_override=False):
        from targets import TARGETS
    from zoo.errors import UserError

    FOUND.mkdir(exist_ok=True)
    reader = TARGETS[name]
    work = Path(tempfile.mkdtemp(prefix="zoo-fuzz-"))
    os.chdir(work)
    corpus, place = work / "corpus", work / "place"
    corpus.mkdir()
    for number, data in enumerate(reader.inputs()):
        (corpus / f"seed{number}").write_bytes(data)
    for file in FOUND.glob(f"{name}-*"):
        shutil.copy(file, corpus)
    slowest = 0.0

    def one(data: bytes) -> None:
        nonlocal slowest
        place.mkdir(exist_ok=True)
        started = time.perf_counter()
        try:
            reader.read(data, place)
        except UserError:
            pass
        except BaseException:
            (FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
            raise
        finally:
            took = time.perf_counter() - started
            if took > 1.2 * slowest:  # libFuzzer ends the process without any farewell
                slowest = took
                print(f"SLOWEST {slowest:.3f}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
        if strangers := {path.name for path in work.iterdir()} - {"corpus", "place"}:
            raise RuntimeError(f"written outside of its directory: {strangers}")

    for data in reader.inputs():  # once before the measure is taken: imports, and programs that are compiled
        one(data)
    slowest = 0.0
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limit = [f"-max_total_time={seconds}"] if seconds else [f"-runs={inputs}"]
    limit += [f"-timeout={LONGEST}", f"-rss_limit_mb={base + MEMORY_MB}", f"-max_len={INPUT_BYTES}"]
    atheris.Setup([name, *limit, f"-artifact_prefix={work}/corpus/", str(corpus)], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
