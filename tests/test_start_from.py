"""Runs that begin from others: what is taken over, what is refused, and a whole chain that ends in a chat."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import remote_paths  # noqa: F401  (registers file://)
import yaml
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import TINY

import zoo
from zoo.checkpoints.manager import Checkpoints
from zoo.cli.main import main as zoo_main
from zoo.cli.train import main as train
from zoo.convert import bwetaf
from zoo.convert.base import to_original
from zoo.data.text import TextData
from zoo.errors import UserError
from zoo.layers import lora
from zoo.models import build
from zoo.recipe import load_recipe, make_recipe, resume_diff
from zoo.run import job as run_module
from zoo.run.restore import restore_or_initialize
from zoo.tokenizers import bpe, tiktoken_bpe
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.train.logging.log import read_metrics
from zoo.train.mesh import make_mesh
from zoo.train.program import Program

DATA = Path(__file__).parent / "data"
MODEL = {"name": TINY["llama"][0], **TINY["llama"][1]}
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q", "down"]}


# ------------------------------------------------------------------------------------------ beginnings, one by one


def recipe_of(tmp_path, name="next", **sections):
    data = {"kind": "text", "source": "stories", "seq_len": 12, "batch_size": 4}
    content = {"name": name, "model": MODEL, "data": data, "logging": {"runs_dir": str(tmp_path)}}
    return make_recipe({**content, "train": {"seed": 3}, **sections})


def program_of(recipe):
    return Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))


def begun(recipe, said=None):
    checkpoints = Checkpoints(recipe.run_dir / "checkpoints")
    return restore_or_initialize(
        program_of(recipe), checkpoints, lambda meta: None, (said if said is not None else []).append
    )


def written(recipe, step=5, *, seed=0, meta=None):
    """A run directory as a run leaves it after `step` updates: random parameters and moments. Its parameters."""
    program, start = program_of(recipe), begun(recipe)
    random = np.random.default_rng(seed)

    def noise(leaf):
        return jnp.asarray(random.normal(size=leaf.shape) * 0.1, leaf.dtype) if leaf.ndim else jnp.full_like(leaf, step)

    params = jax.tree.map(noise, start.state.params)
    opt_state = jax.tree.map(noise, start.state.opt_state)
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    (recipe.run_dir / "recipe.yaml").write_text(recipe.to_yaml())
    CharacterTokenizer.train(["abc"]).save(recipe.run_dir / "tokenizer")
    with Checkpoints(recipe.run_dir / "checkpoints", keep=9) as checkpoints:
        about = {"base": start.base, "tokens_seen": 1, "train_seconds": 1.0, **(meta or {})}
        checkpoints.save(step, params, opt_state, about)
    assert jax.tree.structure(params) == jax.tree.structure(program.params)
    return build.flatten(params), opt_state


def same(actual, wanted):
    actual = actual if all(isinstance(key, str) and "/" in key for key in actual) else build.flatten(actual)
    assert actual.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(actual[path], np.float32), np.asarray(leaf, np.float32), path)


@pytest.fixture
def base(tmp_path):
    """A run of all parameters with checkpoints of steps 5 and 6."""
    recipe = recipe_of(tmp_path, "base")
    older, _ = written(recipe, 5, seed=1)
    newer, opt_state = written(recipe, 6, seed=2)
    return recipe.run_dir, older, newer, opt_state


def test_weights_alone_are_taken_from_a_run_or_one_of_its_checkpoints(tmp_path, base):
    run, older, newer, _ = base
    said = []
    found = begun(recipe_of(tmp_path, **{"from": str(run)}), said)
    same(found.state.params, newer)
    assert found.frozen == {} and found.state.step == 0 and found.base["step"] == 6
    assert "step 6" in said[0] and len(said) == 1
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(found.state.opt_state))
    same(begun(recipe_of(tmp_path, **{"from": f"{run}@5"})).state.params, older)
    same(begun(recipe_of(tmp_path, **{"from": {"source": str(run), "step": 5}})).state.params, older)
    same(nnx.to_pure_dict(nnx.state(zoo.load(f"{run}@5").module)), older)
    with pytest.raises(UserError, match=r"^from: .* no checkpoint of step 7; there are \[5, 6\]"):
        begun(recipe_of(tmp_path, **{"from": f"{run}@7"}))


def test_the_moments_come_along_where_they_are_asked_for(tmp_path, base):
    run, _, _, opt_state = base
    found = begun(recipe_of(tmp_path, **{"from": {"source": str(run), "optimizer": True}})).state.opt_state
    adam = optax.tree.get(found, "mu")
    same(adam, build.flatten(optax.tree.get(opt_state, "mu")))
    counts = {type(node).__name__: int(node.count) for node in _nodes(found)}
    assert counts == {"ScaleByAdamState": 6, "ScaleByScheduleState": 0}
    with pytest.raises(UserError, match="another model or optimizer"):
        begun(recipe_of(tmp_path, lora=LORA, **{"from": {"source": str(run), "optimizer": True}}))


def _nodes(opt_state):
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in found if isinstance(node, kinds)]


def test_bwetafs_own_optimizer_state_is_read(tmp_path):
    from flax import serialization

    sizes = dict(embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=16, vocab_size=40, num_layers=2)
    lm = zoo.create("bwetaf-97m", **sizes)
    lm.export(tmp_path / "theirs", "bwetaf")
    config = lm.config.to_dict()
    params = nnx.to_pure_dict(nnx.state(lm.module))
    moments = {
        name: jax.tree.map(lambda leaf, factor=factor: np.full(leaf.shape, factor, np.float32), params)
        for name, factor in (("mu", 0.25), ("nu", 0.5))
    }
    moments["mu"]["layers"][1]["attn"]["q"]["kernel"][0, 1] = 7.0
    theirs = {
        name: build.unflatten(
            {f"params/{key.replace('.', '/')}": x for key, x in to_original(bwetaf.rules(config), tree).items()}
        )
        for name, tree in moments.items()
    }
    content = serialization.msgpack_serialize({"0": {"count": np.int32(12), **theirs}, "1": {"count": np.int32(12)}})
    (tmp_path / "theirs" / bwetaf.OPTIMIZER).write_bytes(content)
    source = {"source": str(tmp_path / "theirs"), "optimizer": True}
    recipe = recipe_of(tmp_path, model={"name": "bwetaf-97m", **config}, **{"from": source})
    found = begun(recipe)
    same(found.state.params, build.flatten(params))
    for name in ("mu", "nu"):
        same(optax.tree.get(found.state.opt_state, name), build.flatten(moments[name]))
    assert sorted(int(node.count) for node in _nodes(found.state.opt_state)) == [0, 12]
    with pytest.raises(UserError, match=r"^from.optimizer: .*AdamW of all parameters"):
        begun(
            recipe_of(
                tmp_path, model={"name": "bwetaf-97m", **config}, lora=LORA | {"targets": ["q"]}, **{"from": source}
            )
        )
    lm.save(tmp_path / "portable")
    with pytest.raises(UserError, match=r"^from.optimizer: .*portable holds no state"):
        begun(
            recipe_of(
                tmp_path,
                **{"from": {**source, "source": str(tmp_path / "portable")}},
                model={"name": "bwetaf-97m", **config},
            )
        )


def test_what_the_source_lacks_begins_anew_where_that_is_said(tmp_path, base):
    run, _, newer, _ = base
    wider = {**MODEL, "vocab_size": 44}
    with pytest.raises(UserError, match=r"^from: embed/embedding is \(40, 24\) in .*from.partial to begin it anew"):
        begun(recipe_of(tmp_path, model=wider, **{"from": str(run)}))
    section = {"source": str(run), "partial": ["embed/*", "re:^lm_head"]}
    said = []
    found = build.flatten(begun(recipe_of(tmp_path, model=wider, **{"from": section}), said).state.params)
    new = build.flatten(program_of(recipe_of(tmp_path, model=wider)).create()[0])
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, (new if path in ("embed/embedding", "lm_head/kernel") else newer)[path])
    assert "2 parameters begin anew: embed/embedding, lm_head/kernel" in said[-1]
    assert "model.vocab_size is 40 there, 44 here" in said[1]
    # What the model does not have is left out in the same way.
    shallow = {**MODEL, "num_layers": 1}
    with pytest.raises(UserError, match=r"layers/1/.* no parameter in the recipe's model"):
        begun(recipe_of(tmp_path, model=shallow, **{"from": str(run)}))
    section["partial"] = ["layers/1/*"]
    found = build.flatten(begun(recipe_of(tmp_path, model=shallow, **{"from": section})).state.params)
    same(found, {path: leaf for path, leaf in newer.items() if not path.startswith("layers/1/")})


def test_another_class_of_model_is_refused(tmp_path, base):
    name, values = TINY["tiny"]
    with pytest.raises(UserError, match=r"is a kodalite-1.3b, of another class than the recipe's tiny-lm; set model"):
        begun(recipe_of(tmp_path, model={"name": name, **values}, **{"from": str(base[0])}))
    with pytest.raises(UserError, match=r"^from: .*no such file or directory"):
        begun(recipe_of(tmp_path, **{"from": "nothing_here"}))


def test_adapters_begin_on_a_base_that_is_read_again_and_may_not_change(tmp_path, base):
    run, _, newer, _ = base
    recipe = recipe_of(tmp_path, "tuned", lora=LORA, **{"from": str(run)})
    first = begun(recipe)
    same(first.frozen, newer)
    adapters, _ = written(recipe, 4, seed=7)
    assert all("/lora/" in path for path in adapters)
    stored = Checkpoints(recipe.run_dir / "checkpoints").parameter_shapes(4)
    assert set(stored) == set(adapters)  # a checkpoint holds the adapters alone
    again = begun(recipe)
    assert again.state.step == 4 and again.base == first.base
    same(again.frozen, newer)
    same(again.state.params, adapters)
    # zoo.load puts both together; merged it computes the same.
    lm = zoo.load(recipe.run_dir)
    same(nnx.to_pure_dict(nnx.state(lm.module)), newer | adapters)
    tokens = np.arange(9)
    wanted = np.asarray(lm.logits(tokens))
    assert np.abs(wanted - zoo.load(run).logits(tokens)).max() > 1e-4
    assert zoo_main(["merge", str(recipe.run_dir), "--out", str(tmp_path / "merged")]) == 0
    np.testing.assert_allclose(zoo.load(tmp_path / "merged").logits(tokens), wanted, rtol=0, atol=1e-5)
    assert zoo_main(["inspect", str(recipe.run_dir)]) == 0
    # The base goes on training: the run keeps to the checkpoint that it began with.
    written(recipe_of(tmp_path, "base"), 7, seed=9)
    same(begun(recipe).frozen, newer)
    # A base of another content is refused, when training and when loading.
    written(recipe_of(tmp_path, "base"), 6, seed=8)
    for attempt in (lambda: begun(recipe), lambda: zoo.load(recipe.run_dir)):
        with pytest.raises(UserError, match=r"^from: the run was begun on other parameters .* or start over"):
            attempt()


def test_both_may_move_together(tmp_path, base):
    recipe = recipe_of(tmp_path, "tuned", lora=LORA, **{"from": str(base[0])})
    adapters, _ = written(recipe, 4)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "tuned"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    found = nnx.to_pure_dict(nnx.state(zoo.load(tmp_path / "elsewhere" / "tuned").module))
    same(found, base[2] | adapters)


def test_an_adapter_goes_on_or_is_merged(tmp_path, base):
    tuned = recipe_of(tmp_path, "tuned", lora=LORA, **{"from": str(base[0])})
    adapters, _ = written(tuned, 4, seed=7)
    said = []
    same_kind = recipe_of(tmp_path, "same", lora=LORA, **{"from": str(tuned.run_dir)})
    found = begun(same_kind, said)
    same(found.state.params, adapters)
    same(found.frozen, base[2])
    assert any("adapters (rank 2) go on" in line for line in said)
    # Its own base is a run with adapters: loaded, each finds its own.
    written(same_kind, 2, seed=11)
    assert (
        lora.adapters(zoo.load(same_kind.run_dir).module).keys() == lora.adapters(zoo.load(tuned.run_dir).module).keys()
    )
    merged = build.flatten(nnx.to_pure_dict(nnx.state(zoo.load(tuned.run_dir).merge().module)))
    for number, section in enumerate((LORA | {"rank": 3}, LORA | {"alpha": 5.0}, None)):
        said = []
        found = begun(recipe_of(tmp_path, f"other{number}", lora=section, **{"from": str(tuned.run_dir)}), said)
        same(found.state.params if section is None else found.frozen, merged)
        assert any("are merged into its weights" in line for line in said)


def adapter_of(directory):
    """The base that an export in PEFT's format names, and its revision."""
    about = json.loads((directory / "adapter_config.json").read_text())
    return about["base_model_name_or_path"], about["revision"]


@pytest.mark.slow
def test_exported_adapters_name_the_very_weights_that_they_adapt(tmp_path, base):
    run, runs = base[0], {}
    for name, source in {"newest": "base", "fifth": "base@5", "on": "newest", "more": "on"}.items():
        recipe = recipe_of(tmp_path, name, lora=LORA, **{"from": f"{tmp_path}/{source}"})
        written(recipe, 4, seed=len(name))
        runs[name] = recipe.run_dir
    written(recipe_of(tmp_path, "base"), 7, seed=9)  # the base goes on training
    steps = {"newest": 6, "fifth": 5, "on": 6, "more": 6}  # adapters that went on are for what the first run began from
    for name, step in steps.items():
        lm = zoo.load(runs[name])
        lm.export(tmp_path / f"{name}_peft", "peft")
        assert adapter_of(tmp_path / f"{name}_peft") == (f"{run}@{step}", None)
        again = zoo.load(tmp_path / f"{name}_peft")
        same(nnx.to_pure_dict(nnx.state(again.module)), build.flatten(nnx.to_pure_dict(nnx.state(lm.module))))
    again.export(tmp_path / "again", "peft")
    assert adapter_of(tmp_path / "again") == adapter_of(tmp_path / "more_peft")
    # Adapters that go on from a directory of PEFT's, and such as are put on a run by hand.
    recipe = recipe_of(tmp_path, "third", lora=LORA, **{"from": str(tmp_path / "on_peft")})
    written(recipe, 4, seed=3)
    zoo.load(recipe.run_dir).export(tmp_path / "third_peft", "peft")
    assert adapter_of(tmp_path / "third_peft") == (f"{run}@6", None)
    lm = zoo.load(run)
    lora.add_lora(lm.module, rank=1, alpha=1.0, key=jax.random.key(0))
    lm.export(tmp_path / "hand", "peft")
    assert adapter_of(tmp_path / "hand") == (f"{run}@7", None)
    # Both have moved: the name is that of the place where the base is found.
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "fifth"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    zoo.load(tmp_path / "elsewhere" / "fifth").export(tmp_path / "moved", "peft")
    assert adapter_of(tmp_path / "moved") == (str(tmp_path / "elsewhere" / "base@5"), None)


def test_adapters_that_do_not_make_the_run_are_not_exported(tmp_path, base, capsys):
    def tuned(name, source, **sections):
        recipe = recipe_of(tmp_path, name, lora=LORA, **{"from": str(source)}, **sections)
        written(recipe, 4)
        return recipe.run_dir

    def refused(source, words):
        with pytest.raises(UserError, match=f"^format peft: {words}"):
            zoo.load(source).export(tmp_path / "out", "peft")
        assert not (tmp_path / "out").exists()

    norms = tuned("norms", base[0], train={"seed": 3, "trainable": ["*norm/scale"]})
    refused(norms, r"\S*norm/scale and \d more are not the base's .*take another format \(hf")
    # The run's adapters go on, and its norms are frozen now: they are still not the base's.
    refused(tuned("after", norms), r"\S*norm/scale and 4 more are not the base's .*")
    stretched = tuned("stretched", base[0], model={**MODEL, "rope_ntk_factor": 2.0})
    refused(stretched, rf"model\.rope_ntk_factor is 2\.0 here, 1\.0 in the base {base[0]}@6, .*take another format")
    assert zoo_main(["convert", str(stretched), str(tmp_path / "out"), "--to", "peft"]) == 2
    assert "model.rope_ntk_factor is 2.0 here" in capsys.readouterr().err
    # How long rows were changes nothing that is computed.
    longer = tuned("longer", base[0], model={**MODEL, "max_seq_len": 2048})
    zoo.load(longer).export(tmp_path / "longer_peft", "peft")
    tokens = np.arange(9)
    np.testing.assert_array_equal(zoo.load(tmp_path / "longer_peft").logits(tokens), zoo.load(longer).logits(tokens))
    # Adapters on others that were merged are for the merged model; following what the refusal says makes it whole.
    wider = recipe_of(tmp_path, "wider", lora=LORA | {"rank": 3}, **{"from": str(longer)})
    written(wider, 4)
    zoo.load(wider.run_dir).export(tmp_path / "wider_peft", "peft")
    with pytest.raises(
        UserError, match=rf"has adapters itself; .*`zoo merge {longer}@4 --out DIR`.* name that as base"
    ):
        zoo.load(tmp_path / "wider_peft")
    assert zoo_main(["merge", f"{longer}@4", "--out", str(tmp_path / "merged")]) == 0
    about = tmp_path / "wider_peft" / "adapter_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "base_model_name_or_path": str(tmp_path / "merged")}))
    wanted = zoo.load(wider.run_dir).logits(tokens)
    np.testing.assert_allclose(zoo.load(tmp_path / "wider_peft").logits(tokens), wanted, rtol=0, atol=1e-5)


def test_exported_adapters_name_the_revision_of_their_base(tmp_path, base, monkeypatch):
    zoo.load(base[0]).save(tmp_path / "hub")
    asked = []

    def fetch(repo, revision, *, what):
        asked.append((repo, revision))
        return tmp_path / "hub"

    monkeypatch.setattr(zoo.weights.hub, "fetch", fetch)
    source = {"source": "someone/a-llama", "revision": "v1"}
    recipe = recipe_of(tmp_path, "tuned", lora=LORA, **{"from": source})
    written(recipe, 4)
    lm = zoo.load(recipe.run_dir)
    lm.export(tmp_path / "peft", "peft")
    assert adapter_of(tmp_path / "peft") == ("someone/a-llama", "v1")
    asked.clear()
    tokens = np.arange(9)
    np.testing.assert_array_equal(zoo.load(tmp_path / "peft").logits(tokens), lm.logits(tokens))
    assert set(asked) == {("someone/a-llama", "v1")}
    by_hand = zoo.load("someone/a-llama", revision="v2")
    lora.add_lora(by_hand.module, rank=1, alpha=1.0, key=jax.random.key(0))
    by_hand.export(tmp_path / "by_hand", "peft")
    assert adapter_of(tmp_path / "by_hand") == ("someone/a-llama", "v2")


@pytest.mark.slow
def test_a_remote_base_that_goes_on_training_stays_the_one_begun_with(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket"
    there = recipe_of(tmp_path / "bucket", "base")
    older, _ = written(there, 5, seed=1)
    remote = recipe_of(tmp_path, "base", logging={"runs_dir": url})
    (there.run_dir / "recipe.yaml").write_text(remote.to_yaml())
    for number, source in enumerate((f"{url}/base", {"source": f"{url}/base@5"})):
        recipe = recipe_of(tmp_path, f"tuned{number}", lora=LORA, **{"from": source})
        written(recipe, 4, seed=7)
    written(there, 6, seed=2)
    (there.run_dir / "recipe.yaml").write_text(remote.to_yaml())
    for number in range(2):
        run = tmp_path / f"tuned{number}"
        lm = zoo.load(run)
        flat = build.flatten(nnx.to_pure_dict(nnx.state(lm.module)))
        same({path: leaf for path, leaf in flat.items() if "/lora/" not in path}, older)
        lm.export(tmp_path / f"peft{number}", "peft")
        assert adapter_of(tmp_path / f"peft{number}") == (f"{url}/base@5", None)
        same(nnx.to_pure_dict(nnx.state(zoo.load(tmp_path / f"peft{number}").module)), flat)


def test_frozen_patterns_without_a_source_are_the_seeds(tmp_path):
    recipe = recipe_of(tmp_path, "part", train={"seed": 3, "trainable": ["layers/1/*"]})
    wanted = build.flatten(program_of(recipe_of(tmp_path)).create()[0])
    trained, _ = written(recipe, 4)
    assert all(path.startswith("layers/1/") for path in trained)
    again = begun(recipe)
    same(again.frozen, {path: leaf for path, leaf in wanted.items() if path not in trained})
    same(nnx.to_pure_dict(nnx.state(zoo.load(recipe.run_dir).module)), wanted | trained)


def test_what_a_run_begins_as_is_fixed(tmp_path, base):
    old = recipe_of(tmp_path, lora=LORA, **{"from": str(base[0])})
    moved = recipe_of(tmp_path, lora=LORA, **{"from": str(tmp_path)})
    assert resume_diff(old, moved) == []  # local files may move; the fingerprint tells whether they are the same
    for changed in (
        {"lora": LORA},
        {"lora": LORA, "from": f"{base[0]}@5"},
        {"lora": LORA | {"rank": 3}, "from": str(base[0])},
        {"from": str(base[0])},
        {"lora": LORA, "from": str(base[0]), "train": {"seed": 3, "trainable": ["*"]}},
    ):
        assert resume_diff(old, recipe_of(tmp_path, **changed))
    assert load_recipe(_saved(tmp_path, old)).resolved() == old.resolved()
    assert load_recipe(_saved(tmp_path, recipe_of(tmp_path))).lora is None


def _saved(tmp_path, recipe):
    (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
    return tmp_path / "saved.yaml"


# ------------------------------------------------------------------------------------------ masks of conversations

words = st.text("abc ñ\n.?", min_size=1, max_size=12).filter(str.strip)
conversation = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    talks=st.lists(conversation, min_size=1, max_size=4),
    packing=st.sampled_from(["document", "best_fit"]),
    eos=st.booleans(),
)
def test_the_loss_is_on_the_assistants_words_and_the_end_alone(tmp_path_factory, talks, packing, eos):
    directory = tmp_path_factory.mktemp("talks")
    with (directory / "talks.jsonl").open("w") as file:
        for talk in talks:
            turns = [({"role": "user", "content": u}, {"role": "assistant", "content": a}) for u, a in talk]
            file.write(json.dumps({"messages": [message for turn in turns for message in turn]}) + "\n")
    content = {
        "name": "x",
        "model": {**MODEL, "vocab_size": 400, "max_seq_len": 512},
        "tokenizer": {"path": str(DATA / "small.tiktoken")},
        "data": {"kind": "chat", "source": "jsonl", "path": str(directory / "talks.jsonl"), "packing": packing}
        | {"seq_len": 512, "batch_size": 1, "shuffle": False, "prepared_dir": str(directory / "p"), "workers": 1}
        | {"chat_template": "kodalite_eos" if eos else "kodalite"},
        "eval": {"num_pairs": 0},
    }
    recipe = make_recipe(content)
    tokenizer = tiktoken_bpe.TiktokenTokenizer.from_file(DATA / "small.tiktoken")
    data = TextData.load(recipe, tokenizer, recipe.model.make_config(), say=lambda line: None)
    batches = data.batches(1)
    seen: list[list[str]] = []
    for _ in range(len(data.order.rows) and sum(data.order.rows)):
        row = {name: array[0] for name, array in next(batches).items()}
        # Runs of targets with loss, each as text: one an answer, the end glued to the last.
        texts, learnt = [], row["loss_mask"] > 0
        for at in np.flatnonzero(learnt):
            if not (at and learnt[at - 1]):
                texts.append([])
            texts[-1].append(int(row["targets"][at]))
        seen.append([tokenizer.decode(ids, skip_special=False) for ids in texts])
    end = "\n<|end|>" + ("<|endoftext|>" if eos else "")
    wanted = [[*(a for _, a in talk[:-1]), talk[-1][1] + end] for talk in talks]
    assert sorted(text for texts in seen for text in texts) == sorted(text for texts in wanted for text in texts)
    if packing == "document":
        assert seen == wanted


# ------------------------------------------------------------------------------------------ from the command line


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "peak_flops", lambda: (1e11, "not measured"))
    monkeypatch.chdir(tmp_path)


ANSWERS = {"cat?": "meow", "dog?": "woof", "cow?": "moo", "owl?": "hoot"}


def write_recipe(name, **sections):
    content = {
        "name": name,
        "model": {"name": "kodalite-1.3b", "vocab_size": 320, "num_layers": 2, "embed_dim": 64, "num_heads": 4}
        | {"num_kv_heads": 2, "head_dim": 16, "mlp_dim": 128, "max_seq_len": 64},
        "tokenizer": {"path": "tokenizer/tokenizer.json"},
        "data": {
            "kind": "chat",
            "source": "jsonl",
            "path": "talks.jsonl",
            "seq_len": 64,
            "batch_size": 4,
            "workers": 1,
        },
        "optimizer": {"warmup_steps": 0, "peak_lr": 1e-2, "final_lr": 1e-3, "weight_decay": 0.0},
        "train": {"steps": 2},
        "checkpoint": {"every": 2, "keep": 3},
        "logging": {"every": 1},
        "eval": {"num_pairs": 0, "final_sample": False},
    }
    for section, fields in sections.items():
        content[section] = {**content[section], **fields} if section in content else fields
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


def write_data():
    """talks.jsonl, words.jsonl and a byte-level BPE of both whose only special token is <|endoftext|>."""
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in ANSWERS.items()
    ]
    Path("talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks * 4))
    texts = ["<|user|>\nthe cat and the dog\n<|assistant|>\nmeow woof moo hoot cow owl\n<|end|>"] * 8
    Path("words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    bpe.train(texts * 2, 290, eos_token="<|endoftext|>").save("tokenizer")


def losses(name):
    return [
        (line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(Path("runs", name, "metrics.jsonl"))
    ]


@pytest.mark.slow
def test_a_run_on_a_base_stops_and_goes_on_and_refuses_another(quick, capsys):
    write_data()
    assert train([write_recipe("base")]) == 0
    tuned = write_recipe("tuned", lora={"rank": 2}, train={"steps": 4}, **{"from": "runs/base"})
    capsys.readouterr()
    assert train([tuned]) == 0
    said = capsys.readouterr().out
    trained = sum(leaf.size for leaf in jax.tree.leaves(Program(load_recipe(tuned), _mesh()).params))
    assert f"; {trained:,} are trained" in said and "from " in said
    half = write_recipe("half", lora={"rank": 2}, train={"steps": 2}, **{"from": "runs/base"})
    # A schedule of four steps, stopped after two, and then on.
    assert train([half, "optimizer.schedule=constant", "optimizer.final_lr=null"]) == 0
    whole = write_recipe("whole", lora={"rank": 2}, train={"steps": 4}, **{"from": "runs/base"})
    constant = ["optimizer.schedule=constant", "optimizer.final_lr=null"]
    assert train([whole, *constant]) == 0
    capsys.readouterr()
    assert train([half, *constant, "train.steps=4"]) == 0
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    assert losses("half") == losses("whole")
    assert train([half, *constant, "train.steps=6", "lora.rank=3"]) == 2
    assert "lora.rank: 2 in the run, 3 in the recipe" in capsys.readouterr().err
    # Nothing is written where the base is missing or does not fit.
    assert train([write_recipe("lost", **{"from": "runs/nothing/here"})]) == 2
    assert re.search("from: runs/nothing/here: no such file", capsys.readouterr().err)
    assert train([write_recipe("odd", model={"mlp_dim": 64}, **{"from": "runs/base"})]) == 2
    assert "from.partial" in capsys.readouterr().err
    assert not Path("runs/lost").exists() and not Path("runs/odd").exists()


def _mesh():
    return make_mesh(make_recipe({"name": "x", "model": MODEL}).mesh, jax.devices()[:1])


@pytest.mark.slow
def test_a_models_whole_life_ends_in_a_chat(quick, capsys):
    write_data()
    words = {"kind": "text", "path": "words.jsonl", "packing": "windows"}
    assert train([write_recipe("pretrained", data=words, train={"steps": 100}, optimizer={"peak_lr": 3e-3})]) == 0
    adapters = {"rank": 8, "alpha": 16.0, "targets": ["*"]}
    tuning = {"lora": adapters, "train": {"steps": 200}, "optimizer": {"clip_norm": 0.5}}
    assert train([write_recipe("sft", **tuning, **{"from": "runs/pretrained"})]) == 0
    eos = {"data": {"chat_template": "kodalite_eos"}, "lora": adapters, "train": {"steps": 60}}
    assert train([write_recipe("eot", **eos, optimizer={"peak_lr": 3e-3}, **{"from": "runs/sft"})]) == 0
    longer = {"rope_ntk_factor": 2.0, "max_seq_len": 128}
    data = {"chat_template": "kodalite_eos", "packing": "best_fit", "document_mask": True, "seq_len": 128}
    stretched = {
        "model": longer,
        "data": data,
        "lora": adapters,
        "train": {"steps": 60},
        "optimizer": {"peak_lr": 3e-3},
    }
    assert train([write_recipe("long", **stretched, **{"from": "runs/eot"})]) == 0
    said = capsys.readouterr().out
    assert "adapters (rank 8) go on" in said and "model.rope_ntk_factor is 1.0 there, 2.0 here" in said
    for run in ("sft", "eot", "long"):
        lm = zoo.load(f"runs/{run}")
        for question, answer in ANSWERS.items():
            reply = lm.chat(question, temperature=0, max_new_tokens=24)
            assert (reply.text, reply.finish) == (answer, "stop"), (run, question)
    # The end is written: after the marker the tuned model says <|endoftext|>, told not to stop at either.
    prompt = lm.tokenizer.apply_chat_template([{"role": "user", "content": "cat?"}])
    free = lm.generate(prompt, temperature=0, max_new_tokens=24, ignore_eos=True)
    assert lm.tokenizer.decode(free.tokens, skip_special=False).startswith("meow\n<|end|><|endoftext|>")
    assert zoo_main(["merge", "runs/long", "--out", "merged"]) == 0
    assert zoo_main(["convert", "runs/long", "hf", "--to", "hf"]) == 0
    for exported in ("merged", "hf"):
        lm = zoo.load(exported)
        assert not lora.adapters(lm.module)
        assert [lm.chat(question, temperature=0, max_new_tokens=24).text for question in ANSWERS] == [*ANSWERS.values()]
    about = json.loads(Path("hf/config.json").read_text())
    assert about["rope_theta"] == pytest.approx(10_000 * 2 ** (16 / 14)) and about["max_position_embeddings"] == 128


SHARDED = """
    import sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    import jax, numpy as np
    import test_start_from as t
    from zoo.models import build
    from zoo.train.mesh import make_mesh, put_batch
    from zoo.train.program import Program

    tmp = Path({tmp!r})
    base = t.recipe_of(tmp, "base")
    t.written(base, 5, seed=1)
    tokens = np.random.default_rng(0).integers(0, 40, (8, 13)).astype(np.int32)
    batch = {{"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((8, 12), np.float32)}}

    def losses(**sizes):
        sections = dict(mesh=sizes, lora=t.LORA, **{{"from": str(base.run_dir)}})
        recipe = t.recipe_of(tmp, "tuned", **sections, optimizer={{"warmup_steps": 0, "peak_lr": 1e-2}})
        mesh = make_mesh(recipe.mesh, jax.devices()[: np.prod(list(sizes.values()))])
        program = Program(recipe, mesh)
        begun = t.restore_or_initialize(program, t.Checkpoints(tmp / "none"), lambda meta: None, lambda line: None)
        for part, wanted in ((begun.frozen, program.frozen), (begun.state.params, program.params)):
            for path, leaf in build.flatten(part).items():
                assert leaf.sharding.is_equivalent_to(build.flatten(wanted)[path].sharding, leaf.ndim), path
        step, params, opt_state, found = program.step(begun.frozen), begun.state.params, begun.state.opt_state, []
        for number in range(3):
            params, opt_state, metrics = step(params, opt_state, put_batch(batch, mesh), number)
            found.append(float(metrics["loss"]))
        return found, begun.base

    alone, base_alone = losses(data=1, fsdp=1, tensor=1)
    for sizes in (dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8, tensor=1)):
        found, about = losses(**sizes)
        np.testing.assert_allclose(found, alone, rtol=1e-5)
        assert about == base_alone  # the fingerprint does not depend on where the parameters lie
    print("sharded adapters agree", alone)
"""


@pytest.mark.slow
def test_adapters_train_alike_on_eight_devices(tmp_path):
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8", NPROC="32")
    script = textwrap.dedent(SHARDED).format(here=str(Path(__file__).parent), tmp=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sharded adapters agree" in done.stdout
