"""Learning-rate schedule and optimizer from the recipe's `optimizer` section."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(config, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Climbs linearly from `warmup_init_lr` at step 0 to `peak_lr` at `warmup_steps`. Then it follows half a cosine down
    to `final_lr` at `steps` (the warm-up is part of `steps`), where it stays, or with `schedule` constant it stays at
    `peak_lr`.

    Args:
        config: the recipe's `optimizer` section: peak_lr, final_lr, warmup_steps, warmup_init_lr and schedule.
        steps: `train.steps`, the length of the run.
    """
    start = config.warmup_init_lr
    if config.schedule == "constant":
        climb = optax.linear_schedule(start, config.peak_lr, config.warmup_steps)
        return optax.join_schedules([climb, optax.constant_schedule(config.peak_lr)], [config.warmup_steps])
    return optax.warmup_cosine_decay_schedule(
        init_value=start,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.final_lr,
    )


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm; the weight decay reaches norms and embeddings too.

    Args:
        config: the recipe's `optimizer` section: clip_norm (None: no clip), b1, b2, eps, weight_decay, moments_dtype
            and what `make_schedule` reads.
        steps: `train.steps`.
    """
    # Without a clip its place stays: the state has the same tree either way.
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    if config.moments_dtype == "bfloat16":
        adamw = keep_state_in(adamw, jnp.bfloat16)
    return optax.chain(clip, adamw)


def keep_state_in(tx: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """`tx` with the floating leaves of its state kept in `dtype` between updates.

    An update is computed in float32: the state is widened, updated, and rounded to nearest on the way out.
    """

    def cast(state: Any, to: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def init(params: Any) -> Any:
        return cast(tx.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = tx.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)
