"""Adapters: what they compute, which parameters they leave alone, and PEFT's files."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import TINY, fast_for, tiny

import zoo
from zoo import registry
from zoo.cli.main import main as zoo_main
from zoo.convert import peft as peft_format
from zoo.errors import UserError
from zoo.evaluate import verification
from zoo.layers import lora
from zoo.layers.embedding import Head
from zoo.layers.initializers import truncated_normal, zeros
from zoo.layers.linear import Linear
from zoo.models import build
from zoo.models.summary import OVER_KEYS, summarize
from zoo.recipe import make_recipe
from zoo.train.mesh import make_mesh, put_batch
from zoo.train.program import Program
from zoo.weights import resolve

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 11))


def adapted(name, *, rank=3, alpha=6.0, targets=("*",), noise=0.0, **options):
    """A tiny model with adapters, whose second factors are `noise` instead of zero."""
    graphdef, params, _ = tiny(name)
    model = nnx.merge(graphdef, params)
    lora.add_lora(model, rank=rank, alpha=alpha, targets=targets, key=jax.random.key(5), **options)
    for number, adapter in enumerate(lora.adapters(model).values()):
        adapter.b[...] = noise * jax.random.normal(jax.random.key(number), adapter.b.shape)
    return model


@jax.jit
def logits(model):
    return model(jnp.asarray(TOKENS, jnp.int32))


# ---------------------------------------------------------------------------------------------------- one projection


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_an_adapter_adds_its_product_and_moves_no_path():
    linear = Linear(6, 4, axes=("embed", "heads"), units=(1, 2), bias=True, key=KEY, init=truncated_normal(1.0))
    x, paths = draw(2, 3, 6), set(nnx.to_pure_dict(nnx.state(linear)))
    before = np.asarray(linear(jnp.asarray(x, jnp.float32)), np.float64)
    linear.lora = adapter = lora.LoRA(linear.kernel, rank=2, alpha=6.0, key=jax.random.key(1))
    np.testing.assert_array_equal(linear(jnp.asarray(x, jnp.float32)), before)
    assert set(nnx.to_pure_dict(nnx.state(linear))) - paths == {"lora"} and paths == {"kernel", "bias"}
    adapter.b[...] = jnp.asarray(draw(2, 4, seed=2), jnp.float32)
    a, b = (np.asarray(factor[...], np.float64) for factor in (adapter.a, adapter.b))
    np.testing.assert_allclose(linear(jnp.asarray(x, jnp.float32)), before + x @ a @ b * 3.0, atol=5e-6)
    np.testing.assert_allclose(adapter.delta(), a @ b * 3.0, atol=1e-6)
    graphdef, state = nnx.split(linear)  # as a training step takes it
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(jnp.asarray(x, jnp.float32)), linear(jnp.float32(x)))
    assert adapter.a.get_metadata("axes") == ("embed", "lora_rank")
    assert adapter.b.get_metadata("units") == (1, 2)


def test_a_new_adapter_is_normal_with_the_deviation_of_its_fan_in():
    linear = Linear(400, 8, axes=("embed", "mlp"), key=KEY, init=zeros)
    new = lora.LoRA(linear.kernel, rank=100, alpha=1.0, key=KEY)
    values = np.asarray(new.a[...])
    assert values.std() == pytest.approx(0.05, rel=0.02) and np.abs(values).max() > 0.18
    assert (np.asarray(new.b[...]) == 0).all()


def test_half_precision_adapters_are_computed_in_float32():
    linear = Linear(64, 16, axes=("embed", "mlp"), key=KEY, init=zeros)
    linear.lora = lora.LoRA(linear.kernel, rank=4, alpha=4.0, key=KEY)
    linear.lora.b[...] = jax.random.normal(KEY, (4, 16))
    x = jnp.asarray(draw(5, 64), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(linear.lora.delta(), np.float64)
    np.testing.assert_array_equal(linear(x), np.asarray(exact, np.float32).astype(jnp.bfloat16))


# ---------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", fast_for("llama"))
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same(name):
    graphdef, params, _ = tiny(name)
    plain = logits(nnx.merge(graphdef, params))
    new = adapted(name)
    assert len(lora.adapters(new)) == len(lora.projections(new)) > 4
    np.testing.assert_array_equal(logits(new), plain)
    trained = adapted(name, noise=0.02)
    changed, merged = logits(trained), lora.merge(trained)
    scale = np.abs(changed).max()
    assert np.abs(changed - plain).max() > 0.01 * scale
    assert np.abs(logits(merged) - changed).max() <= 1e-6 * scale
    assert nnx.graphdef(merged) == graphdef  # nothing but the values has changed
    assert lora.adapters(trained) and not lora.adapters(merged)


def test_kodalite_has_the_published_number_of_adapter_parameters():
    recipe = _recipe(model={"name": "kodalite-1.3b"}, lora={"rank": 16, "alpha": 32})
    program = Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))
    assert sum(leaf.size for leaf in jax.tree.leaves(program.params)) == 5_111_808
    assert sum(leaf.size for leaf in jax.tree.leaves(program.frozen)) == 1_269_209_088
    moments = [leaf for leaf in jax.tree.leaves(program.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * 5_111_808


def test_targets_are_names_or_paths():
    def paths(*targets):
        return lora.add_lora(nnx.merge(*tiny("llama")[:2]), rank=1, alpha=1.0, targets=targets, key=KEY)

    assert paths("q", "up") == [f"layers/{i}/{name}" for i in range(2) for name in ("attn/q", "mlp/up")]
    assert paths("layers/1/attn/[kv]") == ["layers/1/attn/k", "layers/1/attn/v"]
    assert len(paths("*")) == 14  # the head is not among them
    assert isinstance(nnx.merge(*tiny("llama")[:2]).lm_head, Head)
    for target in ("lm_head", "qq", "layers/7/attn/q"):
        with pytest.raises(UserError, match=rf"lora\.targets: '{target}' matches no projection.* k, o, q, v, down"):
            paths("q", target)


def test_an_adapters_first_values_do_not_depend_on_the_others():
    few, many = adapted("llama", targets=["v"]), adapted("llama", targets=["*"])
    a = {path: np.asarray(found.a[...]) for path, found in lora.adapters(many).items()}
    for path, found in lora.adapters(few).items():
        np.testing.assert_array_equal(found.a[...], a[path])
    assert len({values.tobytes() for values in a.values()}) == len(a)


def test_dropout_needs_a_key_and_depends_on_it_and_on_the_path_alone():
    model = adapted("llama", noise=0.3, dropout=0.5)
    graphdef, params = nnx.split(model)

    @jax.jit
    def dropped(seed):
        with lora.dropout_key(jax.random.key(seed)):
            return nnx.merge(graphdef, params)(jnp.asarray(TOKENS, jnp.int32))

    still = logits(model)
    np.testing.assert_array_equal(still, logits(adapted("llama", noise=0.3)))
    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert np.abs(dropped(1) - still).max() > 1e-3 and np.abs(dropped(1) - dropped(2)).max() > 1e-3
    np.testing.assert_array_equal(still, logits(model))  # the key is gone with the block it was set for
    x = jnp.ones((1, 24))
    with lora.dropout_key(KEY):
        first, second = (found(x) / found.delta().sum(0) for found in list(lora.adapters(model).values())[:2])
    assert np.abs(first - 1).max() > 0.1 and np.abs(np.mean(first) - np.mean(second)) > 1e-4


# ---------------------------------------------------------------------------------------------------- training

MODEL = {"name": TINY["llama"][0], **TINY["llama"][1]}


def _recipe(**sections):
    data = {"kind": "text", "source": "stories", "seq_len": 12, "batch_size": 4}
    content = {"name": "x", "model": MODEL, "data": data, "optimizer": {"warmup_steps": 0, "peak_lr": 1e-2}}
    return make_recipe({**content, **sections})


def _batch(seed):
    tokens = np.random.default_rng(seed).integers(0, 40, (4, 13)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": np.ones((4, 12), np.float32)}


def _program(recipe):
    return Program(recipe, make_mesh(recipe.mesh, jax.devices()[:1]))


def _train(program, step_fn=None, steps=3):
    """Names and values before and after, and of what is frozen; the losses; the parameters themselves."""
    frozen = program.create_frozen()
    params, opt_state = program.create()
    before = {path: np.array(leaf) for path, leaf in build.flatten(params).items()}
    kept = {path: np.array(leaf) for path, leaf in build.flatten(frozen).items()}
    step_fn, losses = step_fn or program.step(frozen), []
    for step in range(steps):
        params, opt_state, metrics = step_fn(params, opt_state, put_batch(_batch(step), program.mesh), step)
        losses.append(float(metrics["loss"]))
    for path, leaf in build.flatten(frozen).items():
        np.testing.assert_array_equal(leaf, kept[path])
    return before, {path: np.array(leaf) for path, leaf in build.flatten(params).items()}, kept, losses


def test_only_adapters_are_trained_and_the_base_is_the_plain_models():
    program = _program(_recipe(lora={"rank": 2, "targets": ["q", "down"]}))
    before, after, kept, losses = _train(program)
    assert {path.split("/")[-1] for path in after} == {"a", "b"} and len(after) == 8
    assert all(np.abs(after[path] - before[path]).max() > 0 for path in after)
    spec = registry.describe(MODEL["name"])
    _, plain = build.create_params(spec.model_class(), _recipe().model.make_config(), 0)
    flat = build.flatten(plain)
    assert flat.keys() == kept.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(leaf, kept[path])
    # Evaluation sees both; with zero adapters it is the plain model's.
    frozen, batch = build.unflatten(kept), put_batch(_batch(0), program.mesh)
    evaluate = program.evaluate(frozen)
    (nll, count), (later, _) = (evaluate(build.unflatten(part), batch) for part in (before, after))
    assert later < nll and float(nll / count) == pytest.approx(losses[0], rel=1e-6)
    plain_nll, _ = _program(_recipe()).evaluate()(plain, batch)
    assert float(plain_nll) == float(nll)


@pytest.mark.parametrize(
    "patterns, wanted",
    [
        (["layers/1/*", "*norm/scale"], lambda path: path.startswith("layers/1/") or path.endswith("norm/scale")),
        (["re:attn/(q|k)/"], lambda path: "/attn/q/" in path or "/attn/k/" in path),
    ],
)
def test_patterns_say_what_is_trained(patterns, wanted):
    before, after, kept, _ = _train(_program(_recipe(train={"trainable": patterns})))
    assert set(after) == {path for path in {**after, **kept} if wanted(path)} and kept
    assert all(np.abs(after[path] - before[path]).max() > 0 for path in after)


def test_patterns_beside_adapters_are_trained_with_them():
    program = _program(_recipe(lora={"rank": 1, "targets": ["q"]}, train={"trainable": ["*norm/scale"]}))
    assert {path.split("/")[-1] for path in build.flatten(program.params)} == {"a", "b", "scale"}
    assert not any(path.endswith("scale") for path in build.flatten(program.frozen))


def test_a_pattern_that_matches_nothing_is_named():
    for pattern, words in [("layer/*", "matches no parameter"), ("re:(", "no regular expression")]:
        with pytest.raises(UserError, match=words):
            _ = _program(_recipe(train={"trainable": ["*norm/scale", pattern]})).params


@pytest.mark.parametrize("name", TINY)
def test_a_frozen_weight_costs_four_operations_a_token(name):
    """Kernels and the head, tied or not, cut to the vocabulary or not; attention costs what it did."""
    registered, values = TINY[name]

    def program(**sections):
        data = {"kind": "text", "source": "stories", "seq_len": 4, "batch_size": 4}
        return _program(_recipe(model={"name": registered, **values}, data=data, **sections))

    whole, adapters = program(), program(lora={"rank": 2})
    config, length = whole.config, whole.config.max_seq_len
    summary = summarize(registry.describe(registered).model_class(), config)
    (over_keys,) = (part.flops for part in summary.components if part.name == OVER_KEYS)
    assert whole.flops_per_token(length) == summary.flops_training
    wanted = 2 * (summary.flops_forward - over_keys) + 3 * over_keys
    assert adapters.flops_per_token(length) == pytest.approx(wanted, rel=1e-9)
    # With what the head is made of trained too; and with all that is in the layers trained, and nothing else.
    tables = program(lora={"rank": 2}, train={"trainable": ["re:embedding$|^lm_head/"]})
    head = config.embed_dim * config.vocab_size
    assert tables.flops_per_token(length) == pytest.approx(wanted + 2 * head, rel=1e-9)
    layers = program(train={"trainable": ["layers/*/kernel"]})
    outside = [leaf.size for path, leaf in build.flatten(layers.frozen).items() if path == "smear/gate/kernel"]
    assert layers.flops_per_token(length) == pytest.approx(summary.flops_training - 2 * (head + sum(outside)), rel=1e-9)


@pytest.mark.slow
def test_bfloat16_weights_have_float32_adapters_and_a_steps_dropout_is_that_of_its_number():
    kinds = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    program = _program(_recipe(lora={"rank": 2, "targets": ["*"], "dropout": 0.5}, train=kinds))
    assert {leaf.dtype for leaf in jax.tree.leaves(program.params)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(program.frozen)} == {jnp.dtype(jnp.bfloat16)}
    step_fn = program.step(program.create_frozen())
    _, after, _, losses = _train(program, step_fn)
    assert all(leaf.dtype == np.float32 for leaf in after.values())
    assert losses == _train(program, step_fn)[3]
    still = _train(_program(_recipe(lora={"rank": 2, "targets": ["*"]}, train=kinds)))[3]
    assert losses[0] == still[0] and losses[2] != still[2]  # new adapters have nothing to drop


# ---------------------------------------------------------------------------------------------------- PEFT


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A directory of a small LlamaForCausalLM."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    model.save_pretrained(directory)
    return directory


def _theirs(hf, adapter):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(hf), adapter).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("targets", [["*"], ["layers/1/attn/q", "layers/0/mlp/down"]])
def test_peft_computes_what_zoo_exports(hf, tmp_path, targets):
    lm = zoo.load(hf)
    plain = np.asarray(lm.logits(TOKENS))
    lora.add_lora(lm.module, rank=3, alpha=7.0, targets=targets, dropout=0.1, key=KEY)
    for number, adapter in enumerate(lora.adapters(lm.module).values()):
        adapter.b[...] = 0.3 * jax.random.normal(jax.random.key(number), adapter.b.shape)
    ours = np.asarray(lm.logits(TOKENS))
    scale = np.abs(ours).max()
    assert np.abs(ours - plain).max() > 0.05 * scale
    lm.export(tmp_path / "adapter", "peft")
    assert np.abs(_theirs(hf, tmp_path / "adapter") - ours).max() <= 1e-5 * scale
    # Back again: on the same base, and the very same numbers in the files.
    about = json.loads((tmp_path / "adapter" / peft_format.CONFIG).read_text())
    assert (
        about["target_modules"]
        == {
            7: ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
            2: ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"],
        }[len(about["target_modules"])]
    )
    assert about["base_model_name_or_path"] == str(hf)
    again = zoo.load(tmp_path / "adapter")
    np.testing.assert_allclose(again.logits(TOKENS), ours, rtol=0, atol=1e-6 * scale)
    again.export(tmp_path / "second", "peft")
    first, second = (tmp_path / name / peft_format.WEIGHTS for name in ("adapter", "second"))
    assert second.read_bytes() == first.read_bytes()
    assert json.loads((tmp_path / "second" / peft_format.CONFIG).read_text()) == about


def _save_theirs(hf, directory, **options):
    """Adapters as PEFT makes, changes and saves them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(hf), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)


def test_zoo_reads_what_peft_saves_and_merges_it(hf, tmp_path, capsys):
    _save_theirs(hf, tmp_path / "adapter")
    wanted = _theirs(hf, tmp_path / "adapter")
    found = resolve.find(tmp_path / "adapter")
    assert found.lora.targets == [f"layers/{i}/{name}" for i in range(2) for name in ("attn/q", "mlp/up")]
    lm = zoo.load(tmp_path / "adapter")
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(lm.logits(TOKENS), wanted, rtol=0, atol=1e-5 * scale)
    assert zoo_main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    assert "rank 2 merged" in capsys.readouterr().out
    merged = zoo.load(tmp_path / "merged")
    assert not lora.adapters(merged.module)
    np.testing.assert_allclose(merged.logits(TOKENS), lm.logits(TOKENS), rtol=0, atol=1e-6 * scale)
    # What other formats are written from is merged as well.
    lm.export(tmp_path / "hf", "hf")
    np.testing.assert_allclose(zoo.load(tmp_path / "hf").logits(TOKENS), wanted, rtol=0, atol=1e-5 * scale)
    assert zoo_main(["merge", str(tmp_path / "hf"), "--out", str(tmp_path / "again")]) == 2
    assert "has no adapters to merge" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "mica"])
def test_first_values_that_leave_the_base_alone_are_read(hf, tmp_path, kind):
    try:
        _save_theirs(hf, tmp_path / "adapter", init_lora_weights=kind)
    except ValueError as error:
        pytest.skip(f"this version of PEFT does not have it: {error}")
    assert json.loads((tmp_path / "adapter" / peft_format.CONFIG).read_text())["init_lora_weights"] == kind
    wanted = _theirs(hf, tmp_path / "adapter")
    ours = zoo.load(tmp_path / "adapter").logits(TOKENS)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_first_values_taken_out_of_the_base_are_refused(hf, tmp_path):
    """PEFT takes them out of the base's weights when it loads; on the base as it is the adapters are another model."""
    for kind in ("pissa", "olora", "pissa_niter_2"):
        _save_theirs(hf, tmp_path / kind, init_lora_weights=kind)
        with pytest.raises(UserError, match=f'adapter_config.json: init_lora_weights is "{kind}".*merge_and_unload'):
            zoo.load(tmp_path / kind)
    about = tmp_path / "pissa" / peft_format.CONFIG
    content = json.loads(about.read_text())
    for kind in ("corda", "loftq", "lora_ga", "of a later PEFT"):
        about.write_text(json.dumps({**content, "init_lora_weights": kind}))
        with pytest.raises(UserError, match=f'init_lora_weights is "{kind}"'):
            peft_format.load(tmp_path / "pissa")
    for kind in (None, True, False, "eva"):
        about.write_text(json.dumps({**content, "init_lora_weights": kind}))
        assert peft_format.load(tmp_path / "pissa").rank == 2


def test_adapters_added_by_hand_name_what_was_loaded(hf, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(hf.parent)
    lm = zoo.load(hf.name)
    lora.add_lora(lm.module, rank=2, alpha=4.0, key=KEY)
    for number, adapter in enumerate(lora.adapters(lm.module).values()):
        adapter.b[...] = 0.3 * jax.random.normal(jax.random.key(number), adapter.b.shape)
    ours = np.asarray(lm.logits(TOKENS))
    lm.export(tmp_path / "adapter", "peft")
    monkeypatch.chdir(tmp_path)  # what is named does not depend on where one stands
    np.testing.assert_array_equal(zoo.load("adapter").logits(TOKENS), ours)
    with torch.no_grad():
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained("adapter").eval()(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
    # On weights that others were merged into, which lie nowhere.
    merged = lm.merge()
    lora.add_lora(merged.module, rank=2, alpha=4.0, key=KEY)
    with pytest.raises(UserError, match=r"^format peft: .*others were merged into; save that model, load it"):
        merged.export(tmp_path / "twice", "peft")
    # What was changed when it was loaded is in no file either.
    turned = zoo.load(hf, rope_theta=5000.0)
    lora.add_lora(turned.module, rank=2, alpha=4.0, key=KEY)
    with pytest.raises(UserError, match=r"model\.rope_theta is 5000\.0 here, 10000\.0 in the base"):
        turned.export(tmp_path / "turned", "peft")
    assert not (tmp_path / "twice").exists() and not (tmp_path / "turned").exists()
    # New weights have no name; PEFT is told the base by hand then.
    new = zoo.create(MODEL["name"], **TINY["llama"][1])
    lora.add_lora(new.module, rank=2, alpha=4.0, key=KEY)
    new.export(tmp_path / "new", "peft")
    assert peft_format.load(tmp_path / "new").base is None


def test_what_is_not_plain_lora_of_a_llama_is_refused_by_name(tmp_path):
    adapter = peft_format.Adapter(
        {f"layers/0/attn/q/lora/{factor}": np.ones(shape) for factor, shape in (("a", (24, 2)), ("b", (2, 24)))},
        rank=2,
        alpha=4.0,
        base="kodalite-1.3b",
    )
    peft_format.save(tmp_path / "good", adapter, num_layers=2)
    about = json.loads((tmp_path / "good" / peft_format.CONFIG).read_text())
    assert peft_format.load(tmp_path / "good").alpha == 4.0
    for number, (field, value) in enumerate(
        {"peft_type": "IA3", "use_dora": True, "use_rslora": True, "bias": "all", "r": 0, "lora_alpha": "8"}.items()
    ):
        bad = tmp_path / str(number)
        peft_format.save(bad, adapter, num_layers=2)
        (bad / peft_format.CONFIG).write_text(json.dumps({**about, field: value}))
        with pytest.raises(UserError, match=f"adapter_config.json: {field} is"):
            peft_format.load(bad)
    spec = registry.describe(MODEL["name"])
    good = peft_format.load(tmp_path / "good")
    good.check(spec.model_class(), spec.make_config(**TINY["llama"][1]))
    with pytest.raises(UserError, match=r"q_proj.lora_A.weight has shape \(2, 24\), the base .* want \(2, 32\)"):
        good.check(spec.model_class(), spec.make_config(**{**TINY["llama"][1], "embed_dim": 32}))
    odd = peft_format.Adapter({"layers/0/attn/x/lora/a": np.ones((2, 2))}, rank=2, alpha=1.0)
    with pytest.raises(UserError, match=r"layers/0/attn/x: .*Llamas alone"):
        peft_format.save(tmp_path / "x", odd, num_layers=1)
    nanochat = zoo.create(TINY["nanochat"][0], **TINY["nanochat"][1])
    with pytest.raises(UserError, match="this model has no adapters"):
        nanochat.export(tmp_path / "n", "peft")


def test_adapters_are_converted_alone_and_read_back(tmp_path, capsys):
    base = Path(__file__).parent / "golden" / "kodalite"
    width = zoo.load(base).config.embed_dim
    arrays = {f"layers/0/attn/q/lora/{x}": draw(*shape) for x, shape in (("a", (width, 2)), ("b", (2, width)))}
    arrays = {path: np.asarray(array, np.float32) for path, array in arrays.items()}
    adapter = peft_format.Adapter(arrays, rank=2, alpha=4.0, base=str(base))
    peft_format.save(tmp_path / "adapter", adapter, num_layers=2)
    convert = ["convert", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "peft"]
    for option in ("dtype", "name"):
        assert zoo_main([*convert, f"--{option}", "bf16"]) == 2
        assert f"format peft takes no {option}: " in capsys.readouterr().err
    assert zoo_main([*convert, "--verify"]) == 0
    told = capsys.readouterr().out
    assert "written as peft" in told and "layers/0/attn/q/lora/a" in told and "BAD" not in told
    assert zoo_main(["convert", "--help"]) == 0 and "peft" in capsys.readouterr().out
    # Merged, and what is written holds as many parameters as what is read back.
    assert zoo_main(["convert", str(tmp_path / "adapter"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    lm = zoo.load(tmp_path / "adapter")
    checks = list(verification.written(lm, tmp_path / "hf", "koda", bound=1e9, dtype="float32"))
    assert checks[0].ok and "21 of 21" in checks[0].found
