"""The learning-rate schedule and the optimizer of a recipe's `optimizer` section."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.errors import UserError
from zoo.train.parameters import matches, matching

Tree = Any


def make_schedule(config, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    It rises linearly from `warmup_init_lr` at step 0 to `peak_lr` at `warmup_steps`. Then it follows half a cosine down
    to `final_lr` at `steps` (the warm-up is part of `steps`) and stays there; with `schedule` constant it stays at
    `peak_lr`. The cosine schedule is that of Loshchilov and Hutter, arXiv:1608.03983.

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
    """Returns the recipe's optimizer (see `zoo.recipe.optimizers`) behind a clip of the global gradient norm.

    The clip is that of Pascanu et al., arXiv:1211.5063.

    Weight decay applies to every parameter, norms and embeddings too, except those that `no_decay` matches. The update
    of a parameter, its decay included, is multiplied by the first of `lr_scales` whose pattern matches its path. Both
    moments are stored in `moments_dtype`; an update is computed in float32 whatever the dtype of the parameters.

    The transformation's `init` raises UserError for a pattern that matches no parameter, and for Muon on a model
    without matrices in its layers.

    Args:
        config: the recipe's `optimizer` section.
        steps: `train.steps`.
    """
    # identity() keeps the state's tree the same without a clip.
    clip = optax.identity() if config.clip_norm is None else _clip(config.clip_norm)
    decay = optax.add_decayed_weights(config.weight_decay, _decayed(config.no_decay))
    learning_rate = optax.scale_by_learning_rate(make_schedule(config, steps))
    tx = store_moments_in(config.build(decay, learning_rate), jnp.dtype(config.moments_dtype))
    return optax.chain(clip, _by_patterns(tx, config))


def to_float32(tree: Tree) -> Tree:
    """Returns the tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _clip(norm: float) -> optax.GradientTransformation:
    """Returns a clip of the global norm in float32; a sum of many squares in bfloat16 would stop growing early."""
    clip = optax.clip_by_global_norm(norm)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        return clip.update(to_float32(updates), state, params)

    return optax.GradientTransformation(clip.init, update)


def store_moments_in(tx: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """Returns `tx` with the moments of its state (`mu` and `nu`) stored in `dtype` between updates.

    An update is computed in float32: gradients, parameters and moments are cast to it, and the new moments are rounded
    to nearest.
    """

    def is_moment(path: tuple) -> bool:
        return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in ("mu", "nu") for key in path)

    def cast(state: Tree, to: Any) -> Tree:
        return jax.tree.map_with_path(lambda path, leaf: leaf.astype(to) if is_moment(path) else leaf, state)

    def init(params: Tree) -> Tree:
        return cast(tx.init(params), dtype)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        updates, state = tx.update(to_float32(updates), cast(state, jnp.float32), to_float32(params))
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _by_patterns(tx: optax.GradientTransformation, config) -> optax.GradientTransformation:
    """Returns `tx` with its updates scaled by `lr_scales`; its `init` checks all patterns against the parameters."""

    def factor(path: tuple) -> float:
        name = _name(path)
        return next((scale for pattern, scale in config.lr_scales.items() if matches(pattern, name)), 1.0)

    def init(params: Tree) -> Tree:
        names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        for field in ("lr_scales", "no_decay"):
            for pattern, matched in matching(getattr(config, field), names).items():
                if not matched:
                    raise UserError(
                        f"optimizer.{field}: {pattern!r} matches none of the {len(names)} trained parameters; they are "
                        f"called like {names[0]} and {names[-1]}"
                    )
        return tx.init(params)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        updates, state = tx.update(updates, state, params)
        if config.lr_scales:
            updates = jax.tree.map_with_path(lambda path, leaf: leaf * factor(path), updates)
        return updates, state

    return optax.GradientTransformation(init, update)


def _decayed(patterns: list[str]) -> Callable[[Tree], Tree] | None:
    """Returns a function that masks the parameters that decay; None where all do."""

    def decays(path: tuple, leaf: Any) -> bool:
        return not any(matches(pattern, _name(path)) for pattern in patterns)

    return functools.partial(jax.tree.map_with_path, decays) if patterns else None


def _name(path: tuple) -> str:
    """Returns a path as text, "layers/3/attn/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
