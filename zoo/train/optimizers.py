"""The learning-rate schedule and the optimizer of a recipe's `optimizer` section."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.recipe.patterns import check_all_match, first_match, matches
from zoo.tree import path_name

Tree = Any


def make_schedule(config, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    It rises linearly from `warmup_init_lr` at step 0 to `peak_lr` at the end of the warm-up, which is part of `steps`.
    Then it follows the schedule:

        cosine        half a cosine down to `final_lr` at `steps` (Loshchilov and Hutter, arXiv:1608.03983)
        linear        a line down to `final_lr` at `steps`
        trapezoid     `peak_lr` until the cool-down, then a line down to `final_lr` at `steps`; also called WSD, for
                      warm-up, stable, decay (Zhai et al., arXiv:2106.04560; Hu et al., arXiv:2404.06395)
        inverse_sqrt  `peak_lr` * sqrt(warm-up / step) (Vaswani et al., arXiv:1706.03762)
        constant      `peak_lr`

    and stays where it is after `steps`, but for inverse_sqrt, which falls on.

    Args:
        config: the recipe's `optimizer` section.
        steps: `train.steps`, the length of the run.
    """
    start, peak, warmup = config.warmup_init_lr, config.peak_lr, config.warmup(steps)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=start, peak_value=peak, warmup_steps=warmup, decay_steps=steps, end_value=config.final_lr
        )
    parts, boundaries = [optax.linear_schedule(start, peak, warmup)], [warmup]
    if config.schedule == "linear":
        parts.append(optax.linear_schedule(peak, config.final_lr, steps - warmup))
    elif config.schedule == "inverse_sqrt":
        parts.append(lambda after: peak * math.sqrt(warmup) * jax.lax.rsqrt(jnp.asarray(warmup + after, jnp.float32)))
    else:
        parts.append(optax.constant_schedule(peak))
        if config.schedule == "trapezoid":
            parts.append(optax.linear_schedule(peak, config.final_lr, config.cooldown(steps)))
            boundaries.append(steps - config.cooldown(steps))
    return optax.join_schedules(parts, boundaries)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """Returns the recipe's optimizer (see `zoo.recipe.optimizers`) behind a clip of the global gradient norm.

    The clip is that of Pascanu et al., arXiv:1211.5063.

    Weight decay applies to every parameter, norms and embeddings too, except those that `no_decay` matches; the first
    of `weight_decays` whose pattern matches a path gives its own. The update of a parameter, its decay included, is
    multiplied by the first of `lr_scales` whose pattern matches. Both moments are stored in `moments_dtype`; an update
    is computed in float32 whatever the dtype of the parameters. With `ema_decay` the state holds an average of the
    parameters, see `weight_average`.

    The transformation's `init` raises UserError for a pattern that matches no parameter, and where the optimizer does
    not fit them, as Muon does not fit a model without matrices in its layers.

    Args:
        config: the recipe's `optimizer` section.
        steps: `train.steps`.
    """
    # identity() keeps the state's tree the same without a clip.
    clip = optax.identity() if config.clip_norm is None else _clip(config.clip_norm)
    schedule = make_schedule(config, steps)
    decay, learning_rate = _weight_decay(config), optax.scale_by_learning_rate(schedule)
    tx = store_moments_in(config.build(decay, learning_rate), jnp.dtype(config.moments_dtype))
    tx = optax.chain(clip, config.wrap(_by_patterns(tx, config), schedule))
    return tx if config.ema_decay is None else weight_average(tx, config.ema_decay)


class WeightAverage(NamedTuple):
    """The state of `weight_average`.

    Attributes:
        inner: the state of the optimizer.
        count: int32 scalar, the number of updates.
        ema: the average, float32, a tree like the parameters.
    """

    inner: Tree
    count: jax.Array
    ema: Tree


EMA_FIELD = "ema"


def weight_average(tx: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Returns `tx` with an exponential moving average of the parameters it makes in its state (arXiv:1412.6980, 7.2).

    After update t it is the mean of the parameters after updates 1 to t, that after update s weighted by
    decay^(t - s): without a bias towards the first parameters, which do not count. Before the first update it is them.
    """

    def init(params: Tree) -> WeightAverage:
        copies = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
        return WeightAverage(tx.init(params), jnp.zeros([], jnp.int32), copies)

    def update(updates: Tree, state: WeightAverage, params: Tree | None = None) -> tuple[Tree, WeightAverage]:
        updates, inner = tx.update(updates, state.inner, params)
        count = optax.safe_increment(state.count)
        # Of an average over `count` updates; written so that float32 does not round decays close to 1.
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))
        new = to_float32(optax.apply_updates(params, updates))
        ema = jax.tree.map(lambda average, leaf: average + share * (leaf - average), state.ema, new)
        return updates, WeightAverage(inner, count, ema)

    return optax.GradientTransformation(init, update)


def in_state(opt_state: Tree, field: str) -> Tree:
    """Returns the tree that the optimizer's state, or a state inside it, has under `field`."""

    def has_it(node: Any) -> bool:
        return hasattr(node, "_fields") and field in node._fields

    nodes = jax.tree.leaves(opt_state, is_leaf=has_it)
    return getattr(next(filter(has_it, nodes)), field)


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
        return first_match(config.lr_scales, path_name(path), 1.0)

    def init(params: Tree) -> Tree:
        names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        for field in ("lr_scales", "no_decay", "weight_decays"):
            check_all_match(f"optimizer.{field}", getattr(config, field), names)
        return tx.init(params)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        updates, state = tx.update(updates, state, params)
        if config.lr_scales:
            updates = jax.tree.map_with_path(lambda path, leaf: leaf * factor(path), updates)
        return updates, state

    return optax.GradientTransformation(init, update)


def _weight_decay(config) -> optax.GradientTransformation:
    """Returns the transformation that adds each parameter, times its weight decay, to its update."""
    if not config.weight_decays:
        return optax.add_decayed_weights(config.weight_decay, _decayed(config.no_decay))
    decays = dict.fromkeys(config.no_decay, 0.0) | {
        pattern: decay for pattern, decay in config.weight_decays.items() if pattern not in config.no_decay
    }

    def add(path: tuple, update: jax.Array, param: jax.Array) -> jax.Array:
        return update + first_match(decays, path_name(path), config.weight_decay) * param

    return optax.stateless(functools.partial(jax.tree.map_with_path, add))


def _decayed(patterns: list[str]) -> Callable[[Tree], Tree] | None:
    """Returns a function that masks the parameters that decay; None where all do."""

    def decays(path: tuple, leaf: Any) -> bool:
        return not any(matches(pattern, path_name(path)) for pattern in patterns)

    return functools.partial(jax.tree.map_with_path, decays) if patterns else None
