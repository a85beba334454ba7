"""Flips the bytes of a small run directory one after the other, and prints what became of each flip, by file.

    python tests/fuzz/flip.py                # every byte of small files, every 64th of files over 64 KiB
    python tests/fuzz/flip.py --every 64     # every 64th byte of all files

A flip may be refused by name, be told by a warning and set aside (an older checkpoint is taken, a line is left out), or
change nothing. It must neither raise another exception nor change logits, token ids or settings without a word.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import zoo
from zoo.cli.train import main as train
from zoo.errors import UserError
from zoo.rundir import layout
from zoo.train import report
from zoo.train.logging.log import count_damaged, read_metrics

LARGE = 1 << 16
RECIPE = """name: d
model: {{name: cronica-5m, num_layers: 1, embed_dim: 8, num_heads: 1, head_dim: 8, mlp_dim: 8, max_seq_len: 16,
  vocab_size: 270}}
tokenizer: {{vocab_size: 262, train: true}}
data: {{kind: text, source: jsonl, path: {place}/d.jsonl, seq_len: 16, batch_size: 2, prepared_dir: {place}/prepared,
  workers: 1}}
train: {{steps: 4}}
checkpoint: {{every: 2}}
optimizer: {{warmup_steps: 1}}
logging: {{runs_dir: {place}/runs, every: 1}}
eval: {{num_pairs: 2, final_sample: false}}
"""


def make_run(place: Path) -> Path:
    """Trains a run of four steps with two checkpoints and returns its directory."""
    texts = (json.dumps({"text": f"hello world {number} " * 5}) + "\n" for number in range(60))
    (place / "d.jsonl").write_text("".join(texts))
    (place / "d.yaml").write_text(RECIPE.format(place=place))
    with contextlib.redirect_stdout(sys.stderr):
        assert train([str(place / "d.yaml")]) == 0
    return place / "runs" / "d"


class Told(logging.Handler):
    """Whether anything was logged as a warning."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.number += 1


def probe(run: Path) -> tuple:
    """Returns all that a user gets out of a run: logits, ids, the step, metrics and the result."""
    lm = zoo.load(run)
    logits = np.asarray(lm.logits([list(range(1, 15))])).tobytes()
    ids = tuple(lm.tokenizer.encode("hello world 7")), lm.tokenizer.special_tokens, lm.prefix_ids
    lines = read_metrics(run / "metrics.jsonl")
    return logits, ids, lm.origin.step, report.summary(lines), layout.read_result(run)


def flips(size: int, every: int | None) -> range:
    """Returns the positions of a file that are flipped."""
    return range(0, size, every or (64 if size > LARGE else 1))


def outcome(run: Path, right: tuple, told: Told) -> str:
    """Returns what became of one flip: refused, told, harmless, CHANGED or the name of an exception."""
    told.number = 0
    damaged = count_damaged(run / "metrics.jsonl")
    try:
        found = probe(run)
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__.upper()}"
    if found == right:
        return "harmless"
    return "told" if told.number or damaged else "CHANGED"


def campaign(run: Path, every: int | None = None) -> dict[str, Counter]:
    """Flips one bit at each position of each file, the bit by its position; returns file -> outcome -> number."""
    told = Told()
    logging.getLogger().addHandler(told)
    right, table = probe(run), {}
    for file in sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink()):
        content, counted = file.read_bytes(), Counter()
        for at in flips(len(content), every):
            changed = bytearray(content)
            changed[at] ^= 1 << (at % 8)
            file.write_bytes(changed)
            counted[outcome(run, right, told)] += 1
        file.write_bytes(content)
        table[str(file.relative_to(run))] = counted
    logging.getLogger().removeHandler(told)
    assert probe(run) == right
    return table


def main() -> int:
    """Runs the campaign, prints its table and returns 1 if a flip changed something in silence or raised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, help="flip each so many bytes of every file")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="zoo-flip-"))
    try:
        table = campaign(make_run(place), options.every)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    names = sorted({name for counted in table.values() for name in counted})
    print("file".ljust(60) + "".join(name.rjust(12) for name in names))
    for file, counted in table.items():
        print(file[-58:].ljust(60) + "".join(f"{counted[name]:>12,}" for name in names))
    total = sum(table.values(), Counter())
    print("all".ljust(60) + "".join(f"{total[name]:>12,}" for name in names))
    return int(any(name.isupper() for name in total))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
