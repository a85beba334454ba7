"""The plans of the large recipes that docs/scale.md shows: runs `zoo plan` for each, one after another.

    python benchmarks/plans.py                     # all, about ten minutes on two cores; prints the section
    python benchmarks/plans.py --only gelu --write # one, and the section of docs/scale.md is written anew
    python benchmarks/plans.py --json              # one JSON object as the last line

Every plan's JSON is kept in --directory; those of plans not run again are taken from there. No TPU is needed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- plans -->", "<!-- end of plans -->"

# key: recipe, topology, overrides. Meshes and options are those with which each fits; the batch is the published one
# but where the line says otherwise.
PLANS: dict[str, tuple[str, str, list[str]]] = {
    "kodalite_v6e8": ("kodalite_1b", "v6e:2x4", ["mesh.data=1", "mesh.fsdp=8", "train.scan_layers=true"]),
    "kodalite_v3": (
        "kodalite_1b",
        "v3:4x4",
        ["mesh.data=1", "mesh.fsdp=16", "mesh.tensor=2", "train.scan_layers=true"],
    ),
    "kodalite_v6e256": (
        "kodalite_1b",
        "v6e:16x16",
        ["mesh.data=1", "mesh.fsdp=16", "mesh.tensor=16", "train.scan_layers=true"],
    ),
    "kodalite_v6e256_batch256": (
        "kodalite_1b",
        "v6e:16x16",
        ["mesh.data=1", "mesh.fsdp=256", "data.batch_size=256", "train.scan_layers=true"],
    ),
    "gelu_v6e8": ("gelu_d12", "v6e:2x4", []),
    "bwetaf_v3": ("bwetaf_97m", "v3:2x2", ["train.microbatch=64", "train.remat=dots"]),
}


def run(key: str, trials: int) -> dict:
    """One plan, in a process of its own, as the JSON of `zoo plan` with the command and what it took added."""
    recipe, topology, overrides = PLANS[key]
    command = ["plan", f"recipes/{recipe}.yaml", "--topology", topology, *overrides]
    begun, busy = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    full = [sys.executable, "-P", "-m", "zoo.cli.main", *command, "--trials", str(trials), "--json"]
    done = subprocess.run(full, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"zoo {' '.join(command)} ended with {done.returncode}")
    return {
        "command": " ".join(["zoo", *command]),
        "wall_seconds": time.perf_counter() - begun,
        "cpu_seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - busy,
        "cores": os.cpu_count(),
    } | json.loads(done.stdout)


def section(plans: list[dict]) -> str:
    """The section of docs/scale.md."""
    gib = 2**30
    lines = [
        "Made by `python benchmarks/plans.py --write`. GiB are of one device; state is parameters and optimizer.",
        "",
        "| plan | mesh | batch | state | the rest | total, of | largest batch at once | sent, GB | compute, memory, "
        "network, ms | at 40% of the peak | compiled in | host memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        memory, found, bounds = plan["memory"], plan["largest_batch"], plan["lower_bound_s"]
        mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        batch = f"{plan['batch_size']} x {plan['seq_len']:,}"
        if plan["microbatch"] < plan["batch_size"]:
            batch += f", {plan['microbatch']} rows at once"
        state = (memory["parameters"] + memory["optimizer"]) / gib
        rest = memory["activations_and_temporaries"] / gib
        verdict = "fits" if plan["fits"] else f"**does not fit**; would: {'; '.join(plan['changes_that_fit'])}"
        largest = "not searched"
        if found is not None:
            beyond = "more not tried" if found["too_many"] is None else f"{found['too_many']} do not"
            largest = f"{found['fits']} fit, {beyond}"
        by_axes: dict[str, float] = {}
        for one in plan["collectives"]:
            axes = " x ".join(one["axes"])
            by_axes[axes] = by_axes.get(axes, 0.0) + one["sent"] / 1e9
        sent = ", ".join(f"{axes} {size:.2f}" for axes, size in by_axes.items() if size >= 0.005) or "none"
        sent += " (estimated)" if plan["collectives_how"] == "estimated" else ""
        times = ", ".join(
            "-" if bounds[name] is None else f"{bounds[name] * 1e3:.1f}" for name in ("compute", "memory", "network")
        )
        rate = f"{plan['tokens_per_s']:,.0f} tokens/s, {plan['days']:.2f} days"
        took = f"{plan['compile_seconds']:.0f} s on {plan['cores']} cores ({plan['cpu_seconds']:.0f} s of CPU for all)"
        lines.append(
            f"| {plan['recipe']}, {plan['topology']} | {mesh} | {batch} | {state:.2f} | {rest:.2f} | "
            f"{memory['total'] / gib:.2f} of {memory['limit'] / gib:.2f}: {verdict} | {largest} | {sent} | {times} | "
            f"{rate} | {took} | {plan['host_bytes'] / gib:.1f} GiB |"
        )
    compilers = ", ".join(sorted({plan["compiler"] for plan in plans}))
    lines += ["", f"Compiled by {compilers}; the commands:", ""]
    lines += [f"    {plan['command']}" for plan in plans]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run those whose key begins so: " + ", ".join(PLANS))
    parser.add_argument("--trials", type=int, default=0, help="compilations in search of the largest batch (0)")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "plans", help="where JSON is kept")
    parser.add_argument("--write", action="store_true", help="write the section into docs/scale.md")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for key in PLANS:
        file = options.directory / f"{key}.json"
        if key.startswith(options.only):
            found[key] = run(key, options.trials)
            file.write_text(json.dumps(found[key], indent=2) + "\n")
        elif file.exists():
            found[key] = json.loads(file.read_text())
    text = section(list(found.values()))
    print(text)
    if options.write:
        page = ROOT / "docs" / "scale.md"
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
