"""The facts about a run that the terminal, its report and its checkpoints show."""

from importlib.metadata import version

import jax
import jax.numpy as jnp

from zoo import __version__
from zoo.hardware.cores import allowed_cores
from zoo.models import build
from zoo.rundir.layout import display_path
from zoo.tokenizers.base import Tokenizer
from zoo.train.program import Program


def facts(program: Program, tokenizer: Tokenizer, data: str, epochs: float | None) -> dict[str, str]:
    """Returns what is worth knowing about a run before it starts, name -> text, in order.

    Args:
        program: the run's program.
        tokenizer: of the data and the model.
        data: the data in a line.
        epochs: how many the run's steps make; None where the data have no epochs.
    """
    recipe = program.recipe
    num_params = build.count_params(program.spec.model_class(), program.config)
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(program.params))
    batch, length = recipe.data.batch_size, recipe.data.seq_len
    positions = recipe.train.steps * batch * length
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {allowed_cores()} CPU cores"
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    return {
        "Model": f"{recipe.model.name}, {num_params:,} parameters"
        + (f"; {num_trained:,} are trained" if program.frozen else ""),
        "Data": data,
        "Tokenizer": f"{tokenizer.vocab_size:,} entries, SHA-256 {tokenizer.fingerprint[:12]}",
        "Plan": f"{recipe.train.steps:,} steps of {batch} x {length} ({'at most ' if recipe.data.trim_to else ''}"
        f"{positions:,} tokens{'' if epochs is None else f', {epochs:.1f} epochs'})",
        "Devices": f"{devices}; mesh {mesh}; compute in {jnp.dtype(program.compute_dtype).name}; "
        f"attention by {', '.join(map(str, program.attention_kernels))}",
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "Run": display_path(recipe.run_dir),
    }


def as_lines(facts: dict[str, str]) -> str:
    """Returns facts for the terminal, one a line."""
    return "\n".join(f"{name + ':':<11}{text}" for name, text in facts.items())


def versions() -> dict[str, str]:
    """Returns the versions of zoo and of the libraries that a run depends on."""
    packages = {"jax": "jax", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint"}
    return {"zoo": __version__} | {name: version(package) for name, package in packages.items()}
