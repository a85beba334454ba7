"""Runs whose evaluated weights are an average: what they log, what is loaded, exported and refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx

import zoo
from zoo import registry, tokenizers
from zoo.checkpoints.manager import Checkpoints
from zoo.cli.main import main as zoo_main
from zoo.cli.train import main as train
from zoo.errors import UserError
from zoo.models import build
from zoo.recipe import load_recipe
from zoo.run import job as run_module
from zoo.run.restore import restore_or_initialize
from zoo.train.logging.log import read_metrics
from zoo.train.mesh import make_mesh, own_rows, put_batch
from zoo.train.optimizers import in_state
from zoo.train.program import Program
from zoo.train.report import read_report

RECIPE = {
    "model": {"name": "tiny-lm", "num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32},
    "tokenizer": {"kind": "characters"},
    "data": {"kind": "text", "source": "stories", "packing": "windows", "seq_len": 16, "batch_size": 4}
    | {"workers": 1, "max_tokens": 4000},
    "optimizer": {"peak_lr": 0.05, "warmup_steps": 1},
    "train": {"steps": 6},
    "checkpoint": {"every": 3, "keep": 9},
    "logging": {"every": 1},
    "eval": {"every": 3, "num_pairs": 4, "max_new_tokens": 4},
}


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
    monkeypatch.chdir(tmp_path)


def written(name, optimizer=()):
    """A recipe file."""
    content = RECIPE | {"optimizer": RECIPE["optimizer"] | dict(optimizer)}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return f"{name}.yaml"


def restored(name):
    """The state of a run's last checkpoint, and its program."""
    recipe = load_recipe(f"runs/{name}/recipe.yaml", check_files=False)
    program = Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))
    start = restore_or_initialize(program, Checkpoints(recipe.checkpoints_dir), lambda meta: None, lambda line: None)
    return start.state, program


def parameters(lm):
    return build.flatten(nnx.to_pure_dict(nnx.state(lm.module)))


def same(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other[path]), path)


def test_a_moving_average_is_evaluated_saved_and_exported_beside_the_weights(capsys):
    assert train([written("x", {"ema_decay": 0.8})]) == 0
    lines = {line["step"]: line for line in read_metrics("runs/x/metrics.jsonl")}
    for step in (3, 6):
        assert 0 < abs(lines[step]["heldout_loss_ema"] - lines[step]["heldout_loss"]) < 1
    assert "heldout_loss_ema" not in lines[4]
    assert "Heldout loss ema" in read_report("runs/x").facts

    state, _ = restored("x")
    ema = build.flatten(in_state(state.opt_state, "ema"))
    raw, average = zoo.load("runs/x"), zoo.load("runs/x@ema")
    same(parameters(raw), build.flatten(state.params))
    same(parameters(average), ema)
    assert "moving average" in average.origin.kind and average.origin.name.endswith("runs/x@6@ema")
    older = parameters(zoo.load("runs/x@3@ema"))
    assert any(not np.array_equal(older[path], ema[path]) for path in ema)
    half = zoo.load("runs/x@ema", dtype=jnp.bfloat16)
    same(parameters(half), {path: leaf.astype(jnp.bfloat16) for path, leaf in ema.items()})

    # The figures of the run's end are of the weights themselves, and stand in no card of their average.
    for source, directory in (("runs/x", "raw"), ("runs/x@ema", "ema")):
        assert zoo_main(["convert", source, directory, "--to", "portable"]) == 0
    same(parameters(zoo.load("ema")), ema)
    cards = [Path(name, "README.md").read_text("utf-8") for name in ("raw", "ema")]
    assert ["moving average" in card for card in cards] == [False, True]
    assert ["## Sample" in card for card in cards] == [True, False]
    assert all("ema_decay 0.8" in card for card in cards)

    # Only runs that keep one have an average, and it stays for the whole of a run.
    for name, words in (("ema@ema", "ema is no run directory"), ("gelu-d12@ema", "there is no run directory gelu-d12")):
        with pytest.raises(UserError, match=f"{name}: {words}"):
            zoo.load(name)
    assert train(["x.yaml", "name=v", "from=ema@ema"]) == 2
    assert "ema is no run directory, and averages are of the weights of a run" in capsys.readouterr().err
    capsys.readouterr()
    assert train(["x.yaml", "optimizer.ema_decay=null", "train.steps=7"]) == 2
    assert "optimizer.ema_decay: 0.8 in the run" in capsys.readouterr().err

    # Other runs start from it, and take the moments from the weights themselves alone.
    assert train(["x.yaml", "name=z", "from=runs/x@3@ema", "train.steps=2", "eval.every=0", "checkpoint.every=1"]) == 0
    same(parameters(zoo.load("runs/z@1")), older)  # at step 0 the rate is 0
    assert train(["x.yaml", "name=w", "from.source=runs/x", "from.ema=true", "from.optimizer=true"]) == 2
    assert "from.optimizer: the moments are not those of an average" in capsys.readouterr().err

    # A run that takes the moments over begins an average of its own: after one update it is what that has made.
    source = ["name=y", "from.source=runs/x", "from.optimizer=true", "train.steps=2", "eval.every=0"]
    assert train(["x.yaml", *source, "checkpoint.every=1"]) == 0
    weights, before = parameters(zoo.load("runs/y@1")), parameters(zoo.load("runs/x@ema"))
    for path, leaf in parameters(zoo.load("runs/y@1@ema")).items():
        np.testing.assert_allclose(leaf, weights[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert any(not np.allclose(before[path], leaf, rtol=1e-2) for path, leaf in weights.items())


def test_of_a_schedule_free_run_the_average_is_what_is_evaluated_and_loaded(capsys):
    recipe = written("x", {"name": "schedule_free", "schedule": "constant", "weight_decay": 0.0})
    assert train([recipe]) == 0
    state, program = restored("x")
    x = build.flatten(program.evaluated(state.params, state.opt_state))
    assert any(not np.allclose(x[path], leaf, rtol=1e-3) for path, leaf in build.flatten(state.params).items())
    lm = zoo.load("runs/x")
    with pytest.raises(UserError, match=r"runs/x@ema: the run keeps no average .*optimizer\.ema_decay.*take runs/x"):
        zoo.load("runs/x@ema")
    for path, leaf in parameters(lm).items():
        np.testing.assert_allclose(leaf, x[path], rtol=1e-6, atol=1e-7, err_msg=path)
    line = read_metrics("runs/x/metrics.jsonl")[-1]
    # The held-out loss of the log is the loaded model's, and not that of the weights that are trained.
    assert line["heldout_loss"] == pytest.approx(loss_of(program, build.unflatten(x)), rel=1e-6)
    assert line["heldout_loss"] != pytest.approx(loss_of(program, state.params), rel=1e-4)
    capsys.readouterr()
    assert train([recipe, "name=y", "from.source=runs/x", "from.optimizer=true"]) == 2
    assert "from.optimizer: an average that optimizer.name schedule_free has begun" in capsys.readouterr().err
    assert train([recipe, "name=y", "train.param_dtype=bfloat16"]) == 2
    assert "set train.param_dtype: float32" in capsys.readouterr().err


def loss_of(program, params):
    """The mean loss over the held-out rows of a run of texts, in nats a target."""
    tokenizer = tokenizers.load(program.recipe.run_dir / "tokenizer")
    task = registry.task_class("text").prepare(program.recipe, tokenizer, lambda line: None)
    evaluate, sums = program.evaluate({}), []
    for batch in task.heldout_batches(program.microbatch.rows):
        sums.append(evaluate(params, put_batch(own_rows(batch, program.mesh), program.mesh)))
    nll, count = (sum(float(part) for part in parts) for parts in zip(*sums, strict=True))
    return nll / count
