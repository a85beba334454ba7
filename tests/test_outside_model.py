"""A new model is one file: written here, registered by an entry point, and then known everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = '''
"""A decoder with one attention layer and no MLP."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from zoo import ModelSpec
from zoo.layers import kv_cache
from zoo.layers.attention import Attention
from zoo.layers.embedding import Embedding
from zoo.layers.initializers import normal
from zoo.layers.norm import RMSNorm
from zoo.layers.rotary import rotary_tables, rotate_split_half
from zoo.models.config import ModelConfig, mean_keys, training_flops
from zoo.models.decoder import Decoder


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    vocab_size: int = 600
    embed_dim: int = 32
    num_heads: int = 2
    head_dim: int = 16
    max_seq_len: int = 512

    def flops_per_token(self, seq_len):
        weights = self.embed_dim * (4 * self.num_heads * self.head_dim + self.vocab_size)
        return training_flops(weights, self.num_heads * self.head_dim * mean_keys(seq_len))


class Toy(Decoder):
    def __init__(self, config, *, key):
        embed_key, *keys = jax.random.split(key, 5)
        c, self.config = config, config
        self.embed = Embedding(c.vocab_size, c.embed_dim, key=embed_key, init=normal(0.1))
        self.attn = Attention(c.embed_dim, c.num_heads, c.num_heads, c.head_dim, keys=keys, init=normal(0.1))
        self.norm = RMSNorm(c.embed_dim, 1e-6)

    def forward(self, tokens, positions, segment_ids, cache, key):
        cos, sin = rotary_tables(positions, self.config.head_dim, 1e4)
        rotate = partial(rotate_split_half, cos=cos[:, :, None], sin=sin[:, :, None])
        x = self.embed(tokens)
        out, cache = self.attn(x, rotate, segment_ids=segment_ids, cache=cache)
        return self.norm(x + out), cache

    def init_cache(self, batch, max_len, dtype=jnp.float32):
        return kv_cache.init_cache(1, batch, max_len, self.config.num_heads, self.config.head_dim, dtype)


SPEC = ModelSpec("toy", "one layer", "toy_model:Toy", "toy_model:ToyConfig")
'''

RECIPE = """
name: toy_run
model: {name: toy}
data: {source: stories, packing: concat, seq_len: 64, batch_size: 4}
optimizer: {peak_lr: 1e-2, warmup_steps: 2}
train: {steps: 12}
checkpoint: {every: 6}
logging: {every: 1}
eval: {num_pairs: 4, max_new_tokens: 8}
"""

USE = """
import zoo, jax
from flax import nnx
from pathlib import Path
assert "toy" in zoo.list_models()
made = zoo.create("toy", seed=3)
assert made.spec.num_params == 600 * 32 + 4 * 32 * 32 + 32
lm = zoo.load("runs/toy_run")
lm.save("saved")
again = zoo.load("saved")
first, second = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(each.module))) for each in (lm, again))
assert all((a == b).all() for a, b in zip(first, second))
assert again.generate([[1, 2, 3]], max_new_tokens=4)[0].tokens == lm.generate([[1, 2, 3]], max_new_tokens=4)[0].tokens
print("used")
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A directory with another package installed in it, and what runs a program there."""
    root = tmp_path_factory.mktemp("outside")
    (root / "toy_model.py").write_text(MODEL)
    info = root / "toy_model-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-model\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[zoo.models]\ntoy = toy_model:SPEC\n")
    (root / "toy.yaml").write_text(RECIPE)

    def run(*command):
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, *command], cwd=root, env=env, capture_output=True, text=True)

    return root, run


def test_a_new_model_takes_less_than_sixty_lines():
    assert len(MODEL.strip().splitlines()) < 60


def test_it_lists_trains_saves_and_loads(outside):
    root, run = outside
    listed = run("-m", "zoo.cli.main", "list")
    assert listed.returncode == 0 and "toy" in listed.stdout, listed.stderr
    trained = run("-m", "zoo.cli.train", "toy.yaml")
    assert trained.returncode == 0, trained.stderr[-2000:]
    lines = [json.loads(line) for line in Path(root / "runs/toy_run/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses[12] < losses[1] - 0.5
    used = run("-c", USE)
    assert used.stdout.strip().endswith("used"), used.stderr[-2000:]
