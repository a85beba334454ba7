"""How the cost of a training step grows with the length of rows and with their number, and of attention with windows.

    python benchmarks/growth.py --json --plot docs/figures/growth.png
    python benchmarks/growth.py --recipe recipes/gelu_d12.yaml --lengths 256 1024 4096 --tokens 65536

The recipe's step (crónica's unless another is named) at several lengths with equally many tokens in a batch, and at
several batch sizes with the recipe's length; then attention alone, forward and backward, over everything before and
with a window: with equally many tokens, a window's time must not grow with the length. Tokens are made up.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import Way, alternate, machine, medians
from train import as_zoo_train, made_up_batches, training_way

from zoo.layers.attention_kernels import attention
from zoo.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/cronica_5m.yaml")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=8192, help="in a batch, at every length")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write a figure")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    options = parser.parse_args()
    by_length = {n: step_rate(options, n, max(options.tokens // n, 1)) for n in options.lengths}
    length = load_recipe(options.recipe, check_files=False).data.seq_len
    by_batch = {rows: step_rate(options, length, rows) for rows in options.batches}
    config = load_recipe(options.recipe, check_files=False).model.make_config()
    kinds = {"full": None, f"window {options.window}": options.window}
    attended = {kind: {n: attention_rate(options, config, n, w) for n in options.lengths} for kind, w in kinds.items()}
    for title, rates in (("length", by_length), (f"rows of {length}", by_batch), *attended.items()):
        print(f"{title}: " + ", ".join(f"{x} {rate:,.0f}" for x, rate in rates.items()) + " tokens/s")
    result = {"recipe": options.recipe, "by_length": by_length, "by_batch": by_batch, "attention": attended}
    if options.plot:
        draw(result, length, options.plot)
    if options.json:
        print(json.dumps(result | machine()))


def step_rate(options: argparse.Namespace, length: int, rows: int) -> float:
    """Tokens a second of the recipe's step with so many rows of such a length."""
    changes = [f"data.seq_len={length}", f"data.batch_size={rows}"]
    longest = load_recipe(options.recipe, check_files=False).model.make_config().max_seq_len
    if length > longest:
        changes.append(f"model.max_seq_len={length}")
    recipe = load_recipe(options.recipe, changes, check_files=False)
    program = as_zoo_train(recipe)
    way = training_way(program, next(made_up_batches(recipe, 1.0)))
    return rows * length / medians(alternate({"step": way}, options.rounds)[0])["step"]


def attention_rate(options: argparse.Namespace, config: Any, length: int, window: int | None) -> float:
    """Tokens a second of one attention, forward and backward, with the model's heads."""
    rows = max(options.tokens // length, 1)
    dtype = jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16
    kv_heads = getattr(config, "num_kv_heads", config.num_heads)
    q, k, v = (jnp.ones((rows, length, n, config.head_dim), dtype) for n in (config.num_heads, kv_heads, kv_heads))
    gradients = jax.jit(
        jax.grad(lambda *qkv: attention(*qkv, causal=True, window=window).astype(jnp.float32).sum(), (0, 1, 2))
    )
    seconds, _ = alternate({"attention": Way(lambda: gradients(q, k, v))}, options.rounds)
    return rows * length / medians(seconds)["attention"]


def draw(result: dict[str, Any], length: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (
        ("training step, by length", "tokens a row", {"": result["by_length"]}),
        (f"training step, rows of {length}", "rows", {"": result["by_batch"]}),
        ("attention alone, forward and backward", "tokens a row", result["attention"]),
    )
    for panel, (title, label, lines) in zip(axes, panels, strict=True):
        for name, rates in lines.items():
            panel.plot(list(rates), list(rates.values()), marker="o", label=name or None)
        panel.set(title=title, xlabel=label, ylabel="tokens/s", xscale="log", ylim=(0, None))
        panel.set_xticks(list(next(iter(lines.values()))), [str(x) for x in next(iter(lines.values()))])
        panel.minorticks_off()
        if "" not in lines:
            panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
