"""How fast a recipe trains here, on made-up tokens: the very step of zoo-train, timed.

    python benchmarks/train.py recipes/cronica_5m.yaml --steps 10 --vs plain --json
    python benchmarks/train.py recipes/quickstart.yaml data.batch_size=4

Every round times, one after the other, a step, its forward pass alone, forward and backward, a 2048^3 float32 matrix
product and (with --vs plain) the same training as a plain JAX program: whole score matrices, whole logits, nothing
fused by hand. Medians over the rounds, so that a busy machine slows all of them alike. MFU is against that product.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo import registry
from zoo.recipe import Recipe, load_recipe
from zoo.train import step as steps
from zoo.train.mesh import check_batch_size, make_mesh, put_batch
from zoo.train.optimizers import make_optimizer, make_schedule

MATMUL = 2048


def main() -> None:
    options = arguments()
    recipe = load_recipe(options.recipe, options.overrides, check_files=False)
    mesh = make_mesh(recipe.mesh)
    check_batch_size(recipe.data.batch_size, mesh)
    batch = made_up_batch(recipe, options.targets)
    ways = zoo_ways(recipe, mesh, batch) | {"matmul": matmul()}
    if options.vs == "plain":
        ways["plain"] = plain_way(recipe, batch)
    seconds = measure(ways, options.steps)
    result = report(recipe, batch, seconds, {name: way.loss for name, way in ways.items()})
    if options.json:
        print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe file")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the recipe")
    parser.add_argument("--steps", type=int, default=5, help="timed rounds after the first, which compiles")
    parser.add_argument("--targets", type=float, default=1.0, help="share of each row that bears loss, at its end")
    parser.add_argument("--vs", choices=["plain"], help="time another program side by side")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    return parser.parse_intermixed_args()


def made_up_batch(recipe: Recipe, targets: float) -> dict[str, np.ndarray]:
    rows, length = recipe.data.batch_size, recipe.data.seq_len
    tokens = np.random.default_rng(0).integers(0, recipe.model.make_config().vocab_size, (rows, length + 1))
    mask = np.zeros((rows, length), np.float32)
    mask[:, length - round(targets * length) :] = 1
    return {"tokens": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32), "loss_mask": mask}


@dataclass
class Way:
    """Something to time: `run` starts it and returns what to wait for; losses are kept to be compared."""

    run: Callable[[], Any]
    loss: list[float] = field(default_factory=list)


def zoo_ways(recipe: Recipe, mesh: jax.sharding.Mesh, batch: dict) -> dict[str, Way]:
    from zoo.layers.sharding import param_shardings
    from zoo.models import build

    model_cls, config = registry.describe(recipe.model.name).model_class(), recipe.model.make_config()
    graphdef, _ = build.abstract_params(model_cls, config)
    placed = param_shardings(build.abstract(model_cls, config)[1], mesh)
    dtype = steps.compute_dtype_for(recipe.train.compute_dtype, mesh)
    schedule = make_schedule(recipe.optimizer, recipe.train.steps)
    on_mesh = put_batch(batch, mesh)

    def training(tx: optax.GradientTransformation) -> Way:
        _, params = build.create_params(model_cls, config, 0, mesh=mesh, dtype=jnp.dtype(recipe.train.param_dtype))
        shardings = steps.opt_state_shardings(tx, params, placed, mesh)
        state = [params, steps.init_opt_state(tx, params, shardings)]
        step_fn = steps.make_train_step(
            graphdef, {}, tx, schedule, mesh=mesh, shardings=(placed, shardings), compute_dtype=dtype
        )

        def run():
            # The step's number only enters the key and the reported rate; the optimizer counts for itself.
            *state[:], metrics = step_fn(*state, put_batch(batch, mesh), 0)
            way.loss.append(metrics["loss"])
            return state

        way = Way(run)
        return way

    evaluate = steps.make_eval_step(graphdef, {}, mesh=mesh, compute_dtype=dtype)
    _, params = build.create_params(model_cls, config, 0, mesh=mesh)
    return {
        "step": training(make_optimizer(recipe.optimizer, recipe.train.steps)),
        # Without an update the gradients still have to be there: their norm is reported.
        "forward + backward": training(optax.set_to_zero()),
        "forward": Way(lambda: evaluate(params, on_mesh)),
    }


def matmul() -> Way:
    a = jnp.ones((MATMUL, MATMUL), jnp.float32)
    product = jax.jit(jnp.matmul)
    return Way(lambda: product(a, a))


def plain_way(recipe: Recipe, batch: dict) -> Way:
    """crónica in plain JAX as one would first write it, on the same initial parameters."""
    from zoo.models import build

    spec, config = registry.describe(recipe.model.name), recipe.model.make_config()
    if spec.name != "cronica-5m":
        raise SystemExit(f"--vs plain: there is a plain program for cronica-5m, none for {spec.name}")
    _, params = build.create_params(spec.model_class(), config, 0)
    tx = make_optimizer(recipe.optimizer, recipe.train.steps)

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + config.norm_eps) * scale

    def rotate(x):  # [B, N, T, H]
        half = config.head_dim // 2
        angles = jnp.arange(x.shape[2])[:, None] * config.rope_theta ** (-jnp.arange(half) / half)
        cos, sin, even, odd = jnp.cos(angles), jnp.sin(angles), x[..., 0::2], x[..., 1::2]
        return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)

    def loss_fn(params, tokens, targets, mask):
        rows, length = tokens.shape
        x = params["embed"]["embedding"][tokens]
        for i in range(config.num_layers):
            layer = params["layers"][i]
            weights = {name: part["kernel"] for part in (layer["attn"], layer["mlp"]) for name, part in part.items()}
            h = norm(x, layer["attn_norm"]["scale"])
            q, k, v = (
                (h @ weights[n]).reshape(rows, length, config.num_heads, -1).transpose(0, 2, 1, 3) for n in "qkv"
            )
            scores = rotate(q) @ rotate(k).swapaxes(-1, -2) / np.sqrt(config.head_dim)
            scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
            heads = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(rows, length, -1)
            x = x + heads @ weights["o"]
            h = norm(x, layer["mlp_norm"]["scale"])
            x = x + (jax.nn.silu(h @ weights["gate"]) * (h @ weights["up"])) @ weights["down"]
        logits = norm(x, params["final_norm"]["scale"]) @ params["embed"]["embedding"].T
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (nll * mask).sum() / jnp.maximum(mask.sum(), 1)

    def train(params, state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch["tokens"], batch["targets"], batch["loss_mask"])
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    step_fn, state = jax.jit(train, donate_argnums=(0, 1)), [params, tx.init(params)]

    def run():
        *state[:], loss = step_fn(*state, batch)
        way.loss.append(loss)
        return state

    way = Way(run)
    return way


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    for way in ways.values():
        jax.block_until_ready(way.run())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            # Once untimed: the first run after another program pays for the memory that one gave back.
            jax.block_until_ready(way.run())
            start = time.perf_counter()
            jax.block_until_ready(way.run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(recipe: Recipe, batch: dict, seconds: dict[str, list[float]], losses: dict[str, list]) -> dict[str, Any]:
    rows, length = batch["tokens"].shape
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rate = rows * length / median["step"]
    flops = recipe.model.make_config().flops_per_token(length)
    matmul_rate = 2 * MATMUL**3 / median["matmul"]
    result = {
        "recipe": recipe.name,
        "rows": rows,
        "length": length,
        "targets": float(batch["loss_mask"].mean()),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": version("jax"),
        "rounds": len(seconds["step"]),
        "tokens_per_s": rate,
        "step_ms": 1e3 * median["step"],
        "forward_ms": 1e3 * median["forward"],
        "backward_ms": 1e3 * (median["forward + backward"] - median["forward"]),
        "update_ms": 1e3 * (median["step"] - median["forward + backward"]),
        "matmul_gflop_per_s": matmul_rate / 1e9,
        # The convention counts the head for every position, whether or not it bears loss.
        "mfu": flops * rate / matmul_rate,
    }
    print(f"{recipe.name}: {rows} rows of {length}, {result['targets']:.0%} of them targets, on {result['device']}")
    print(f"  {rate:,.0f} tokens/s, {result['mfu']:.0%} of {matmul_rate / 1e9:,.0f} GFLOP/s ({MATMUL}^3 in float32)")
    parts = [f"{part} {result[f'{part}_ms']:,.0f}" for part in ("forward", "backward", "update")]
    print(f"  step {result['step_ms']:,.0f} ms: {', '.join(parts)}")
    if "plain" in median:
        # Two programs that drift apart are not the same training.
        np.testing.assert_allclose(losses["step"], losses["plain"], rtol=1e-4)
        result |= {"plain_tokens_per_s": rows * length / median["plain"], "ratio": median["plain"] / median["step"]}
        print(f"  plain JAX {result['plain_tokens_per_s']:,.0f} tokens/s: zoo is {result['ratio']:.2f} times as fast")
    return result


if __name__ == "__main__":
    main()
