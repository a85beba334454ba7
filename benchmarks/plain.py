"""crónica's training in plain JAX, as one would first write it from its description: whole score matrices, whole
logits, nothing fused by hand. It starts from the same parameters and trains on the same targets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Way

from zoo.models import build
from zoo.train.program import Program


def plain_way(program: Program, batch: dict[str, np.ndarray]) -> Way:
    """A step of the program's training. SystemExit for another model."""
    config, spec = program.config, program.spec
    if spec.name != "cronica-5m":
        raise SystemExit(f"--vs plain: there is a plain program for cronica-5m, none for {spec.name}")
    _, params = build.create_params(spec.model_class(), config, program.recipe.train.seed)
    tx = program.tx

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
        way.losses.append(loss)
        return state

    way = Way(run)
    return way
