"""How fast text is written here, on random weights: zoo's generate, and transformers' beside it.

    python benchmarks/decode.py cronica-5m kodalite-100m --batch 1 8 --vs eager --json
    python benchmarks/decode.py kodalite-1.3b --dtype bfloat16 --batch 1 256 --vs eager static compiled

Shapes: cronica-5m, bwetaf-97m, gelu-d12, kodalite-1.3b, and kodalite-100m (KodaLite narrowed to 110M parameters).
transformers (its LlamaForCausalLM, for the shapes that are one: cronica-5m and kodalite) runs the same weights,
exported: `eager` with its usual cache, `static` with a static one, `compiled` with that and torch.compile. All are
greedy; every round times all ways one after the other, and medians are taken, so that a busy machine slows all alike.
The floor is the time to read all weights of the blocks and the head, and the cache as it is on average, once a step,
at the bandwidth that a sum over a large array reaches in the same run. A model that fits into a CPU's caches goes
below it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.generate import engine
from zoo.generate.sampling import Sampling
from zoo.hardware import cpu
from zoo.language_model import LanguageModel, create
from zoo.models.build import flatten

# Name: registry name, config fields.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "cronica-5m": ("cronica-5m", {}),
    "kodalite-100m": (
        "kodalite-1.3b",
        dict(num_layers=10, embed_dim=640, num_heads=10, num_kv_heads=5, head_dim=64, mlp_dim=1728),
    ),
    "bwetaf-97m": ("bwetaf-97m", {}),
    "gelu-d12": ("gelu-d12", {}),
    "kodalite-1.3b": ("kodalite-1.3b", {}),
}
LLAMAS = ("cronica-5m", "kodalite-100m", "kodalite-1.3b")
PROBE_BYTES = 2**28

Way = Callable[[], tuple[float, float, list[list[int]]]]  # seconds to the first token and for the rest, new tokens


def main() -> None:
    options = arguments()
    cpu.compute_in_calling_thread()  # as zoo's commands do
    bandwidth = measure_bandwidth()
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{device}, {bandwidth / 1e9:,.1f} GB/s read; {options.dtype}, {options.prompt} + {options.new} tokens")
    results = []
    for shape in options.shapes:
        name, fields = SHAPES[shape]
        lm = create(name, dtype=options.dtype, **fields)
        others = torch_models(lm, options) if shape in LLAMAS else {}
        for batch in options.batch:
            rng = np.random.default_rng(0)
            prompts = rng.integers(0, lm.config.vocab_size, (batch, options.prompt)).tolist()
            ways = {"zoo": zoo_way(lm, prompts, options.new)}
            ways |= {name: torch_way(model, prompts, options.new, how) for name, (model, how) in others.items()}
            found = {"shape": shape, "batch": batch, **measure(ways, lm, prompts, options, bandwidth)}
            report(found)
            results.append(found)
    if options.json:
        packages = ("jax", "torch", "transformers") if options.vs else ("jax",)
        settings = {"dtype": options.dtype, "prompt": options.prompt, "new": options.new, "rounds": options.rounds}
        versions = {package: version(package) for package in packages}
        found = {"device": device, "bandwidth_gb_per_s": bandwidth / 1e9, **settings, **versions, "results": results}
        print(json.dumps(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help="see above")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="prompts at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens written after each")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after the first, which compiles")
    parser.add_argument(
        "--vs", nargs="*", default=[], choices=["eager", "static", "compiled"], help="transformers' ways"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    return parser.parse_intermixed_args()


def measure_bandwidth() -> float:
    """Bytes a second that a sum over a large array reads; the best of several."""
    array = jnp.ones(PROBE_BYTES // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        total(array).block_until_ready()
        times.append(time.perf_counter() - began)
    return PROBE_BYTES / min(times)


def zoo_way(lm: LanguageModel, prompts: list[list[int]], new: int) -> Way:
    def run():
        began = time.perf_counter()
        decoding = engine.start(
            lm.module, prompts, max_new_tokens=new, sampling=Sampling(temperature=0), seeds=[0] * len(prompts)
        )
        first = time.perf_counter()
        decoding.advance()
        return first - began, time.perf_counter() - first, decoding.tokens

    return run


def torch_models(lm: LanguageModel, options: argparse.Namespace) -> dict[str, tuple[Any, str]]:
    """The model as transformers loads it from its export, a name a way."""
    if not options.vs:
        return {}
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() and jax.devices()[0].platform == "gpu" else "cpu"
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        lm.export(f"{directory}/hf", "hf")
        for how in options.vs:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                f"{directory}/hf", dtype=getattr(torch, options.dtype)
            )
            model = model.to(device).eval()
            if how == "compiled":
                mode = "reduce-overhead" if device == "cuda" else "default"
                model.forward = torch.compile(model.forward, mode=mode, fullgraph=True)
            found[f"transformers {how}"] = model, how
    return found


def torch_way(model, prompts: list[list[int]], new: int, how: str) -> Way:
    import torch

    rows = torch.tensor(prompts, device=model.device)
    settings = {"do_sample": False, "attention_mask": torch.ones_like(rows), "pad_token_id": 0, "eos_token_id": None}
    settings |= {"disable_compile": True} | ({} if how == "eager" else {"cache_implementation": "static"})

    def timed(tokens: int):
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(rows, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
        out = out[:, rows.shape[1] :].tolist()  # waits for the device
        return time.perf_counter() - began, out

    def run():
        first, _ = timed(1)
        both, tokens = timed(new)
        return first, both - first, tokens

    return run


def measure(ways: dict[str, Way], lm: LanguageModel, prompts: list, options: argparse.Namespace, bandwidth: float):
    """Medians over the rounds, and how near the memory's bandwidth zoo comes."""
    tokens = {name: way()[2] for name, way in ways.items()}  # compiles
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            times[name].append(way()[:2])
    found: dict[str, Any] = {}
    steps = options.new - 1
    for name, pairs in times.items():
        first, rest = (statistics.median(column) for column in zip(*pairs, strict=True))
        found[name] = {"first_ms": 1e3 * first, "tokens_per_s": len(prompts) * steps / rest}
        if name != "zoo":
            same = np.array(tokens[name]) == np.array(tokens["zoo"])
            found[name] |= {
                "ratio": found["zoo"]["tokens_per_s"] / found[name]["tokens_per_s"],
                "first_ratio": found[name]["first_ms"] / found["zoo"]["first_ms"],
                "same_tokens": float(same.mean()),
            }
    floor = step_bytes(lm, len(prompts), options.prompt + options.new / 2) / bandwidth
    found["zoo"]["share_of_bandwidth"] = floor * found["zoo"]["tokens_per_s"] / len(prompts)
    return found


def step_bytes(lm: LanguageModel, batch: int, length: float) -> float:
    """What a step has to read: the weights, without tables only looked up, and the cache's first `length` slots."""
    leaves = flatten(nnx.to_pure_dict(nnx.state(lm.module)))
    tied = "lm_head/kernel" not in leaves
    looked_up = [path for path in leaves if path.endswith("embedding") and not (tied and path == "embed/embedding")]
    weights = sum(leaf.nbytes for path, leaf in leaves.items() if path not in looked_up)
    cache = jax.eval_shape(lambda: lm.module.init_cache(batch, int(length), lm.module.dtype))
    return weights + sum(leaf.size * leaf.dtype.itemsize for leaf in (*cache.k, *cache.v))


def report(found: dict[str, Any]) -> None:
    print(f"{found['shape']}, batch {found['batch']}")
    for name, numbers in found.items():
        if not isinstance(numbers, dict):
            continue
        line = f"  {name:22} {numbers['tokens_per_s']:10,.0f} tokens/s, the first after {numbers['first_ms']:,.1f} ms"
        if name == "zoo":
            line += f"; {numbers['share_of_bandwidth']:.0%} of the memory's bandwidth"
        else:
            line += f"; zoo is {numbers['ratio']:.2f} times as fast ({numbers['same_tokens']:.0%} same tokens)"
        print(line)


if __name__ == "__main__":
    main()
