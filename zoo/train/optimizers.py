"""Learning-rate schedule and optimizer from the recipe's `optimizer` section."""

import optax


def make_schedule(config, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Climbs linearly from 0 at step 0 to `peak_lr` at `warmup_steps`, then follows half a cosine down to `final_lr` at
    `steps` (the warm-up is part of `steps`), where it stays.

    Args:
        config: the recipe's `optimizer` section: peak_lr, final_lr, warmup_steps.
        steps: `train.steps`, the length of the run.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.final_lr,
    )


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm; the weight decay reaches norms and embeddings too.

    Args:
        config: the recipe's `optimizer` section: clip_norm, b1, b2, eps, weight_decay and what `make_schedule` reads.
        steps: `train.steps`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )
