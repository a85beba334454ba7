"""The learning-rate schedule and the optimizer of a recipe's `optimizer` section."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

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
    """Returns AdamW or Muon behind a clip of the global gradient norm.

    AdamW: Loshchilov and Hutter, arXiv:1711.05101. Muon: Jordan et al., github.com/KellerJordan/Muon, and Liu et al.,
    arXiv:2502.16982. Clip: Pascanu et al., arXiv:1211.5063.

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
    make = _muon if config.name == "muon" else _adamw
    tx = store_moments_in(make(config, make_schedule(config, steps)), jnp.dtype(config.moments_dtype))
    return optax.chain(clip, _by_patterns(tx, config))


def _adamw(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_decayed(config.no_decay),
    )


def _muon(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns Muon (github.com/KellerJordan/Muon) for the matrices of the layers, and AdamW for everything else.

    The momentum, with Nesterov's look-ahead, is made nearly orthogonal by `muon_iterations` Newton-Schulz steps and
    scaled by sqrt(max(1, fan_out / fan_in)); or, with `muon_rms`, by muon_rms * sqrt(max(fan_in, fan_out)), so that the
    root mean square of its entries is about muon_rms (Liu et al., arXiv:2502.16982; AdamW's is about 0.2).
    """

    def scale(update: jax.Array) -> jax.Array:
        fan_in, fan_out = update.shape
        if config.muon_rms is not None:
            return config.muon_rms * math.sqrt(max(fan_in, fan_out)) * update
        return math.sqrt(max(1.0, fan_out / fan_in)) * update

    def each_a_matrix(updates: Tree) -> Tree:
        return jax.tree.map(lambda _: MuonDimensionNumbers(), updates)

    muon = optax.chain(
        scale_by_muon(
            ns_steps=config.muon_iterations,
            beta=config.muon_momentum,
            weight_dimension_numbers=each_a_matrix,
        ),
        optax.stateless(lambda updates, params: jax.tree.map(scale, updates)),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed(config.no_decay)),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"muon": muon, "adam": _adamw(config, schedule)}, _muon_or_adam)


def _muon_or_adam(params: Tree) -> Tree:
    """Labels matrices in the list of layers "muon", and embeddings, head, norms, biases and scalars "adam"."""

    def label(path: tuple, leaf: Any) -> str:
        in_a_layer = any(isinstance(getattr(key, "key", None), int) for key in path)
        return "muon" if in_a_layer and leaf.ndim == 2 and _name(path[-1:]) != "embedding" else "adam"

    labels = jax.tree.map_with_path(label, params)
    if "muon" not in jax.tree.leaves(labels):
        raise UserError(
            "optimizer.name: muon moves the matrices of a model's layers and none of them is trained here; take adamw"
        )
    return labels


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
        _refuse_unmatched("optimizer.lr_scales", config.lr_scales, names)
        _refuse_unmatched("optimizer.no_decay", config.no_decay, names)
        return tx.init(params)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        updates, state = tx.update(updates, state, params)
        if config.lr_scales:
            updates = jax.tree.map_with_path(lambda path, leaf: leaf * factor(path), updates)
        return updates, state

    return optax.GradientTransformation(init, update)


def _decayed(patterns: Iterable[str]) -> Callable[[Tree], Tree] | None:
    """Returns a function that masks the parameters that decay; None where all do."""
    patterns = list(patterns)
    if not patterns:
        return None

    def mask(params: Tree) -> Tree:
        def decays(path: tuple, leaf: Any) -> bool:
            return not any(matches(pattern, _name(path)) for pattern in patterns)

        return jax.tree.map_with_path(decays, params)

    return mask


def _refuse_unmatched(field: str, patterns: Iterable[str], names: list[str]) -> None:
    for pattern, matched in matching(list(patterns), names).items():
        if not matched:
            raise UserError(
                f"{field}: {pattern!r} matches none of the {len(names)} trained parameters; they are called like "
                f"{names[0]} and {names[-1]}"
            )


def _name(path: tuple) -> str:
    """Returns a path as text, "layers/3/attn/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
