"""Reading and writing BwETAF, nanochat, Koda, tiny-lm and Hugging Face Llama files; refusing what does not fit."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx, serialization
from safetensors.numpy import load_file, save_file

import zoo.convert
from zoo import registry, tokenizers
from zoo.convert import base, bwetaf, hf, koda, llama, nanochat, nanochat_names, peft, portable, tiny
from zoo.convert.format import Exported
from zoo.errors import UserError
from zoo.models import build
from zoo.tokenizers.hf import HFTokenizer
from zoo.weights.export import export

GOLDEN = Path(__file__).parent / "golden"
READ = {
    "bwetaf": ("bwetaf", bwetaf, "bwetaf-97m", None),
    "gelu": ("gelu", nanochat, "gelu-d12", None),
    "gelu-orbax": ("gelu/orbax", nanochat, "gelu-d12", 100),
    "gelu-orbax-step": ("gelu/orbax/100", nanochat, "gelu-d12", 100),
    "kodalite": ("kodalite", hf, "kodalite-1.3b", None),
    "koda-safetensors": ("kodalite_native", koda, "kodalite-1.3b", None),
    "koda-orbax": ("kodalite_native/step_000100.orbax", koda, "kodalite-1.3b", 100),
    "tiny": ("tiny", tiny, "tiny-lm", None),
}


def config_of(loaded):
    return registry.describe(loaded.model_name).config_class().from_dict(loaded.config)


def exported(loaded, *, config=None, params=None, step=None, tokenizer=None):
    config, params = config or config_of(loaded), params or loaded.params
    return Exported("m", registry.describe(loaded.model_name), config, params, tokenizer, None, step)


def write(format, directory, loaded, **changes):
    directory.mkdir()
    format.write(exported(loaded, **changes), directory)


def assert_equal(one, other):
    one, other = build.flatten(one), build.flatten(other)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]), name


def copied(name, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(GOLDEN / name, target)
    return target


def edit_json(file, **changes):
    content = json.loads(file.read_text())
    content |= changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize("name", READ)
def test_formats_are_told_apart_and_read_whole(name):
    place, module, model, step = READ[name]
    assert zoo.convert.detect_format(GOLDEN / place) is module.FORMAT
    found = zoo.convert.examine(GOLDEN / place)
    assert found.problems() == [] and found.step == step and found.model_name == model
    loaded = found.load()
    flat = build.flatten(loaded.params)
    assert {path: leaf.shape for path, leaf in flat.items()} == found.shapes
    assert all(leaf.dtype == np.float32 for leaf in flat.values())


def test_the_two_files_of_a_model_hold_the_same():
    assert_equal(zoo.convert.load(GOLDEN / "gelu").params, zoo.convert.load(GOLDEN / "gelu/orbax").params)
    native = GOLDEN / "kodalite_native"
    flax, orbax = zoo.convert.load(native), zoo.convert.load(native / "step_000100.orbax")
    assert_equal(flax.params, orbax.params)
    assert flax.config == orbax.config


def test_koda_state_alone_tells_its_config(tmp_path):
    shutil.copytree(GOLDEN / "kodalite_native/step_000100.orbax", tmp_path / "step_000100.orbax")
    alone, beside = zoo.convert.load(tmp_path), zoo.convert.load(GOLDEN / "kodalite_native")
    assert alone.config == beside.config and alone.step == 100


def test_orbax_of_flaxchat_is_asked_for_what_its_metadata_do_not_say(tmp_path):
    """The release says GELU by its config.json; what flaxchat's trainer writes may be that or ReLU squared."""
    shutil.copytree(GOLDEN / "gelu/orbax/100", tmp_path / "100")
    for read in (zoo.load, zoo.convert.load):
        with pytest.raises(UserError, match="does not say the activation: give activation='gelu_tanh' or activation="):
            read(tmp_path)
    released = zoo.load(GOLDEN / "gelu/orbax")
    assert zoo.load(tmp_path, activation="gelu_tanh").config == released.config
    other = zoo.load(tmp_path, activation="relu_squared")
    assert np.abs(np.asarray(other.logits([1, 2, 3]) - released.logits([1, 2, 3]))).max() > 1e-3
    shutil.rmtree(tmp_path / "100/metadata")
    with pytest.raises(UserError, match=r"config\.json.*fetch it"):
        zoo.convert.examine(tmp_path)


def test_both_spellings_of_a_llama_config(tmp_path):
    target = copied("kodalite", tmp_path)
    older = zoo.convert.load(target)
    (target / "config_transformers5.json").rename(target / "config.json")
    assert zoo.convert.load(target).config == older.config
    assert older.config["rope_theta"] == 10000.0 and older.config["norm_eps"] == 1e-6


SAVED = {
    "bwetaf": ("bwetaf", bwetaf.FORMAT),
    "gelu": ("gelu", nanochat.FORMAT),
    "kodalite": ("kodalite", hf.FORMAT),
    "koda": ("kodalite_native", koda.FORMAT),
    "koda-to-hf": ("kodalite_native", hf.FORMAT),
    "tiny": ("tiny", tiny.FORMAT),
}


def small_tokenizer():
    return HFTokenizer(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3}, "merges": [["Ġ", "a"]]},
            }
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SAVED)
def test_round_trip_is_bit_identical(name, dtype, tmp_path):
    place, format = SAVED[name]
    loaded = zoo.convert.load(GOLDEN / place)
    config = config_of(loaded)
    flat = {path: leaf.astype(dtype) for path, leaf in build.flatten(loaded.params).items()}
    write(format, tmp_path / "out", loaded, params=build.unflatten(flat), step=7, tokenizer=small_tokenizer())
    assert zoo.convert.detect_format(tmp_path / "out") is format
    again = format.open(tmp_path / "out")
    stored = {str(again.tensors[rule.name].dtype) for rule in again.rules.values()}
    assert stored == {"float32" if name == "tiny" else dtype}
    assert_equal(again.load().params, build.unflatten({path: leaf.astype("float32") for path, leaf in flat.items()}))
    assert config_of(again.load()).to_dict() == config.to_dict()
    if format is not nanochat.FORMAT:  # which has no place for one
        assert tokenizers.load(again.tokenizer_path).encode("a b a") == small_tokenizer().encode("a b a")
    if format is nanochat.FORMAT:
        assert again.step == 7


def test_names_of_tensors_are_those_of_the_originals(tmp_path):
    """The files written have the very tensors of the files read: names, shapes and bits."""
    for place, module, file in (
        ("kodalite", hf, "model.safetensors"),
        ("kodalite_native", koda, "model.safetensors"),
    ):
        loaded = zoo.convert.load(GOLDEN / place)
        write(module.FORMAT, tmp_path / place, loaded)
        ours, theirs = load_file(tmp_path / place / file), load_file(GOLDEN / place / file)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    loaded = zoo.convert.load(GOLDEN / "bwetaf")
    write(bwetaf.FORMAT, tmp_path / "b", loaded)
    ours, theirs = (
        serialization.msgpack_restore((place / "good_stuff.pkl").read_bytes())
        for place in (tmp_path / "b", GOLDEN / "bwetaf")
    )
    assert_equal(ours, theirs)
    loaded = zoo.convert.load(GOLDEN / "tiny")
    write(tiny.FORMAT, tmp_path / "t", loaded)
    ours, theirs = np.load(tmp_path / "t/params.npz"), np.load(GOLDEN / "tiny/params.npz")
    assert set(ours) == set(theirs) and all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("name", "module", "gradients"),
    [
        ("bwetaf", bwetaf, "grads_f32.npz"),
        ("gelu", nanochat_names, "grads.npz"),
        ("kodalite", llama, "grads.npz"),
        ("tiny", tiny, "grads.npz"),
    ],
)
def test_gradients_go_there_and_back(name, module, gradients):
    config = zoo.convert.load(GOLDEN / name).config
    theirs = dict(np.load(GOLDEN / name / gradients))
    ours = base.from_original(module.rules(config), theirs)
    shapes = {path: leaf.shape for path, leaf in build.flatten(ours).items()}
    assert shapes == zoo.convert.examine(GOLDEN / name).shapes
    back = base.to_original(module.rules(config), ours)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[key], theirs[key]) for key in theirs)


def test_sharded_directory(tmp_path):
    target = copied("kodalite", tmp_path)
    tensors = load_file(target / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, target / file)
    (target / "model.safetensors").unlink()
    index = target / "model.safetensors.index.json"
    weight_map = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(zoo.convert.load(target).params, zoo.convert.load(GOLDEN / "kodalite").params)
    index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": "../../etc/passwd"}}))
    with pytest.raises(UserError, match=r"passwd|leads out"):
        zoo.convert.load(target)
    index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": "a" * 5000}}))
    with pytest.raises(UserError, match=r"'a{80}' names no file"):
        zoo.convert.load(target)
    index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"lists gone\.safetensors, which is not there"):
        zoo.convert.load(target)
    index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="lacks lm_head"):
        zoo.convert.load(target)


def hf_llama(directory, **fields):
    """A directory that transformers itself wrote, with weights away from their initial values."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({}, {"tie_embeddings": False, "attention_bias": False, "mlp_bias": False}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"attention_bias": True, "mlp_bias": True}, {"attention_bias": True, "attention_out_bias": True}),
        ({"head_dim": 8, "rms_norm_eps": 1e-3}, {"head_dim": 8, "norm_eps": 1e-3}),
        ({"rope_theta": 500.0}, {"rope_theta": 500.0}),
    ],
)
def test_llamas_of_transformers(tmp_path, fields, ours):
    torch = pytest.importorskip("torch")

    if "rope_theta" in fields:  # transformers 5 has it in a dictionary
        fields = {"rope_parameters": {"rope_type": "default", "rope_theta": fields["rope_theta"]}}
    model = hf_llama(tmp_path / "hf", **fields)
    lm = zoo.load(tmp_path / "hf")
    assert ours.items() <= lm.config.to_dict().items()
    tokens = np.random.default_rng(0).integers(0, 40, (2, 20))
    with torch.no_grad():  # in float64: two float32 evaluations would each have their own rounding
        expected = model.double()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(lm.logits(tokens), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.*linear"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters.*llama3"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": ...}, "lacks hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_hidden_layers": 3}, r"layers\.2\.\S+ is missing"),
        ({"num_hidden_layers": 1}, r"layers\.1\.\S+ is not part of the model"),
        ({"intermediate_size": 130}, r"down_proj.weight has shape \(64, 128\), its config says \(64, 130\)"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
        ({"head_dim": 1e308}, r"head_dim: 1e\+308 is more than any model has"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding"),
        ({"attention_bias": True}, r"_proj\.bias is missing \(and 7 more"),
        ({"mlp_bias": True}, r"_proj\.bias is missing \(and 5 more"),
    ],
)
def test_llamas_that_do_not_fit_are_refused_by_name(tmp_path, changes, named):
    target = copied("kodalite", tmp_path)
    edit_json(target / "config.json", **changes)
    with pytest.raises(UserError, match=named) as caught:
        zoo.convert.load(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "changes", "named"),
    [
        ("bwetaf", bwetaf.CONFIG, {"num_heads": [4, 2]}, r"num_heads is \[4, 2\]"),
        ("bwetaf", bwetaf.CONFIG, {"num_heads": [4, 4, 4]}, "num_heads"),
        ("bwetaf", bwetaf.CONFIG, {"num_heads": [], "num_blocks": 0}, "num_heads"),
        ("bwetaf", bwetaf.CONFIG, {"gqa_repeats": 3}, "gqa_repeats"),
        ("bwetaf", bwetaf.CONFIG, {"rotary": True}, "'rotary' is not one of BwETAF's"),
        ("bwetaf", bwetaf.CONFIG, {"ff_dim": 50}, r"blocks_0\.d2\.w has shape \(48, 32\)"),
        ("gelu", "config.json", {"n_layer": ...}, "lacks n_layer"),
        ("gelu", "config.json", {"mlp": "swiglu"}, "mlp is 'swiglu'"),
        ("gelu", "config.json", {"mlp": ["gelu"]}, "mlp is"),
        ("gelu", "config.json", {"n_head": 5}, "n_embd 48 is no multiple of n_head 5"),
        ("gelu", "config.json", {"n_layer": 5}, r"resid_lambdas has shape \(3,\), its config says \(5,\).*zoo inspect"),
        ("kodalite_native", "config.json", {"moe": 1}, "'moe' is not one of Koda's"),
        ("kodalite_native", "config.json", {"num_heads": 0}, "num_heads is 0"),
        ("tiny", "config.json", {"n_layers": 3}, "n_layers is 3, but the arrays"),
    ],
)
def test_configs_that_do_not_fit_are_refused_by_name(tmp_path, name, file, changes, named):
    target = copied(name, tmp_path)
    edit_json(target / file, **changes)
    with pytest.raises(UserError, match=named) as caught:
        zoo.convert.load(target)
    assert "\n" not in str(caught.value)


def test_the_published_spelling_of_flash_attention_is_read(tmp_path):
    target = copied("bwetaf", tmp_path)
    edit_json(target / bwetaf.CONFIG, use_flash_attention=False, res_scale=1.0, dtype="bfloat16", num_heads=[4, 4])
    again, original = zoo.convert.load(target), zoo.convert.load(GOLDEN / "bwetaf")
    assert again.config == original.config
    assert_equal(again.params, original.params)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 5e4, "rope_parameters": {"rope_type": "default"}}, 5e4),
        ({"rope_theta": 5e4, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4),
        ({"rope_theta": 5e4, "rope_scaling": {"rope_type": "default"}}, 5e4),
        ({"rope_scaling": {"type": "default", "rope_theta": 6e4}, "rope_theta": ...}, 6e4),
        ({"layer_types": ["full_attention", "full_attention"]}, 1e4),
    ],
)
def test_fields_that_say_what_is_so_anyway(tmp_path, changes, theta):
    target = copied("kodalite", tmp_path)
    edit_json(target / "config.json", **changes)
    found = zoo.convert.examine(target)
    assert found.config["rope_theta"] == theta and found.problems() == []


def test_a_window_pattern_in_small_letters(tmp_path):
    target = copied("gelu", tmp_path)
    edit_json(target / "config.json", window_pattern="sssl")
    assert zoo.convert.examine(target).config == zoo.convert.examine(GOLDEN / "gelu").config


def test_an_orbax_config_need_not_say_whether_the_table_is_tied(tmp_path):
    from zoo.convert import orbax_tree

    loaded = zoo.convert.load(GOLDEN / "gelu")
    untied = config_of(loaded).from_dict({**loaded.config, "tie_embeddings": False})
    flat = build.flatten(loaded.params)
    head = np.ones((untied.embed_dim, untied.vocab_size), np.float32)
    params = build.unflatten({**flat, "lm_head/kernel": head})
    for number, (config, tree) in enumerate(((config_of(loaded), loaded.params), (untied, params))):
        names = base.to_original(nanochat_names.rules(config, flax=True), tree) | {
            name: np.ones((1, 4, 1, 2)) for name in nanochat_names.TABLES
        }
        theirs = nanochat_names.source_config(config.to_dict())
        del theirs["tie_embeddings"]
        tree = build.unflatten({name.replace(".", "/"): array for name, array in names.items()})
        orbax_tree.save_composite(tmp_path / str(number), 3, tree, {"step": 3, "model_config": theirs})
        found = zoo.convert.examine(tmp_path / str(number))
        assert found.problems() == [] and found.config == config.to_dict()


@pytest.mark.parametrize(
    ("place", "file", "field"),
    [
        ("kodalite", "config.json", "num_hidden_layers"),
        ("gelu", "config.json", "n_layer"),
        ("gelu/orbax", "config.json", "n_layer"),
        ("bwetaf", bwetaf.CONFIG, "num_blocks"),
        ("kodalite_native", "config.json", "num_blocks"),
        ("portable", portable.CONFIG_FILE, "num_layers"),
    ],
)
def test_a_number_of_layers_is_held_against_the_file_first(tmp_path, place, file, field):
    """All that is made for each layer would be made a million times before anything is found missing."""
    if place == "portable":
        loaded = zoo.convert.load(GOLDEN / "kodalite")
        portable.save(tmp_path / "copy", name=loaded.model_name, config=config_of(loaded), params=loaded.params)
        target = tmp_path / "copy"
    else:
        target = copied(place, tmp_path)
    content = json.loads((target / file).read_text())
    section = content.get("model", content) if place == "gelu/orbax" else content.get("config", content)
    section[field] = 1000
    (target / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the config says 1000 layers, the file has \d+ tensors in all"):
        zoo.convert.examine(target)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": ["x"]}, r'zoo\.json: its model is \["x"\], not a name'),
        ({"model": {}}, "its model is {}"),
        ({"model": 5}, "its model is 5"),
        ({"tokenizer": "a\0b"}, r"'a\\x00b' names no file"),
        ({"tokenizer": "a" * 5000}, r"'a{80}' names no file"),
    ],
)
def test_a_zoo_json_that_names_nothing(tmp_path, changes, named):
    loaded = zoo.convert.load(GOLDEN / "tiny")
    portable.save(tmp_path / "copy", name=loaded.model_name, config=config_of(loaded), params=loaded.params)
    edit_json(tmp_path / "copy" / portable.CONFIG_FILE, **changes)
    with pytest.raises(UserError, match=named):
        zoo.convert.examine(tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_dropout": [0.1]}, "lora_dropout"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is '5'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ],
)
def test_adapters_whose_config_is_of_other_kinds(tmp_path, changes, named):
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "x"}
    (tmp_path / peft.CONFIG).write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=named):
        peft.load(tmp_path)


def test_maps_in_maps_in_maps(tmp_path):
    target = copied("bwetaf", tmp_path)
    (target / bwetaf.WEIGHTS).write_bytes(b"\x81\xa6params" + b"\x81\xa1a" * 1000 + b"\xc0")
    with pytest.raises(UserError, match=r"good_stuff\.pkl: cannot be read as Flax msgpack"):
        zoo.convert.examine(target)


def halved(params):
    flat = build.flatten(params)
    return build.unflatten({path: (leaf * 0.5).astype(ml_dtypes.bfloat16) for path, leaf in flat.items()})


def optimizer_state(**more):
    loaded = zoo.convert.load(GOLDEN / "bwetaf")
    flat = base.to_original(bwetaf.rules(loaded.config), halved(loaded.params))
    moments = {
        key: {"params": build.unflatten({name.replace(".", "/"): array for name, array in flat.items()})}
        for key in ("mu", "nu")
    }
    count = np.asarray(9, np.int32)
    return loaded, {"0": {"count": count, **moments}, "1": {}, "2": {"count": count}, **more}


def test_bwetaf_optimizer(tmp_path):
    loaded, state = optimizer_state()
    (tmp_path / bwetaf.OPTIMIZER).write_bytes(serialization.msgpack_serialize(state))
    found = bwetaf.load_optimizer(tmp_path, loaded.config)
    assert found["count"] == 9
    expected = {path: leaf.astype(np.float32) for path, leaf in build.flatten(halved(loaded.params)).items()}
    assert_equal(found["mu"], build.unflatten(expected))
    assert_equal(found["nu"], build.unflatten(expected))
    for more, named in (
        ({"3": {"trace": np.zeros(3, np.float32)}}, r"3\.trace belongs to no AdamW"),
        ({"2": {"count": np.asarray(8, np.int32)}}, "counts disagree"),
    ):
        _, state = optimizer_state(**more)
        (tmp_path / bwetaf.OPTIMIZER).write_bytes(serialization.msgpack_serialize(state))
        with pytest.raises(UserError, match=named):
            bwetaf.load_optimizer(tmp_path, loaded.config)
    for key, leaf, named in (
        ("count", np.asarray(2**40), "count is 1099511627776"),
        ("count", np.asarray(np.nan, np.float32), r"0\.count belongs to no AdamW"),
        ("mu", np.asarray([1, 2]), r"0\.mu belongs to no AdamW"),
    ):
        _, state = optimizer_state()
        state["0"][key] = leaf
        state["2"] = {}
        (tmp_path / bwetaf.OPTIMIZER).write_bytes(serialization.msgpack_serialize(state))
        with pytest.raises(UserError, match=named):
            bwetaf.load_optimizer(tmp_path, loaded.config)
    _, state = optimizer_state()
    del state["0"]["nu"]["params"]["emb"]
    state["2"] = {}
    (tmp_path / bwetaf.OPTIMIZER).write_bytes(serialization.msgpack_serialize(state))
    with pytest.raises(UserError, match=r"nu does not fit the model \(emb\.embedding\)"):
        bwetaf.load_optimizer(tmp_path, loaded.config)


@pytest.mark.parametrize("moment", [np.ones((3, 2), np.float32), np.full((2, 3), np.inf, np.float32)])
def test_moments_that_cannot_be_trained_on_with(moment):
    import jax.numpy as jnp
    import optax

    from zoo.run import restore

    params = {"w": jnp.zeros((2, 3))}
    adam = {"count": 1, "mu": {"w": np.zeros((2, 3), np.float32)}, "nu": {"w": moment}}
    with pytest.raises(UserError, match=r"^from\.optimizer: a moment does not fit its parameter, or is not finite"):
        restore._with_adam_moments(adam, optax.adam(0.1).init(params))


def torch_file(path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, path)
    return path


def test_torch_file(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in load_file(GOLDEN / "gelu/model.safetensors").items()}
    theirs = json.loads((GOLDEN / "gelu/config.json").read_text())
    config = {name: theirs[name] for name in {**nanochat_names.REQUIRED, **nanochat_names.OPTIONAL}}
    file = torch_file(tmp_path / "gelu.pt", {"config": config, "state_dict": state})
    assert zoo.convert.detect_format(file) is nanochat.FORMAT
    assert_equal(zoo.convert.load(file).params, zoo.convert.load(GOLDEN / "gelu").params)
    halves = {name.removeprefix("model."): value.bfloat16() for name, value in state.items()}
    half = zoo.convert.load(torch_file(tmp_path / "half.pt", {"config": config, "model": halves}))
    expected = build.flatten(zoo.convert.load(GOLDEN / "gelu").params)
    for path, leaf in build.flatten(half.params).items():
        assert np.array_equal(leaf, expected[path].astype(ml_dtypes.bfloat16).astype(np.float32))
    with pytest.raises(UserError, match="no 'config'"):
        zoo.convert.load(torch_file(tmp_path / "bare.pt", state))


class Attack:
    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.directory),)


def test_a_torch_file_runs_nothing(tmp_path):
    witness = tmp_path / "witness"
    file = torch_file(tmp_path / "evil.pt", {"config": {}, "state_dict": Attack(witness)})
    with pytest.raises(UserError, match=r"evil\.pt: refused by torch\.load"):
        zoo.convert.load(file)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("name", "format", "changes", "named"),
    [
        ("bwetaf", "bwetaf", {"norm_eps": 1e-6}, "norm_eps"),
        ("bwetaf", "bwetaf", {"embed_rope": False}, "embed_rope"),
        ("gelu", "nanochat", {"smear": False}, "smear"),
        ("gelu", "nanochat", {"activation": "relu_squared"}, "activation"),
        ("kodalite_native", "koda", {"norm_eps": 1e-5}, "norm_eps"),
        ("kodalite", "hf", {"rope_dtype": "bfloat16"}, "rope_dtype"),
        ("tiny", "tiny", {"norm_eps": 1e-6}, "norm_eps"),
    ],
)
def test_what_a_format_cannot_say_is_not_written(tmp_path, name, format, changes, named):
    loaded = zoo.convert.load(GOLDEN / name)
    config = registry.describe(loaded.model_name).config_class().from_dict(loaded.config | changes)
    with pytest.raises(UserError, match=named):
        export(exported(loaded, config=config), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def own_nanochat(directory, step, leave_out=(), **fields):
    """Writes a checkpoint as nanochat does, without some tensors; returns them by the names of the other formats."""
    torch = pytest.importorskip("torch")
    drawn = torch.Generator().manual_seed(step)
    layers, width, heads, kv_heads, rows = 4, 64, 4, 2, 320
    shapes = {"transformer.wte.weight": (rows, width), "lm_head.weight": (rows, width), "smear_gate.weight": (1, 24)}
    shapes |= {"resid_lambdas": (layers,), "x0_lambdas": (layers,), "smear_lambda": (1,), "backout_lambda": (1,)}
    kv_width = width // heads * kv_heads
    for i in range(layers):
        prefix = f"transformer.h.{i}."
        sizes = {"attn.c_q": (width, width), "attn.c_k": (kv_width, width), "attn.c_v": (kv_width, width)}
        sizes |= {"attn.c_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        if i % 2 == 1:
            sizes["attn.ve_gate"] = (kv_heads, 12)
            shapes[f"value_embeds.{i}.weight"] = (rows, kv_width)
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in sizes.items()}
    state = {name: 0.3 * torch.randn(*shape, generator=drawn) for name, shape in shapes.items()}
    state = {name: value for name, value in state.items() if not name.startswith(tuple(leave_out))}
    config = {"sequence_len": 64, "vocab_size": 300, "n_layer": layers, "n_head": heads, "n_kv_head": kv_heads}
    config |= {"n_embd": width, "window_pattern": "SSSL"} | fields
    config = {name: value for name, value in config.items() if value is not None}
    directory.mkdir(exist_ok=True)
    torch.save(state, directory / f"model_{step:06}.pt")
    (directory / f"meta_{step:06}.json").write_text(json.dumps({"step": step, "model_config": config}))
    renamed = {k.replace("transformer.h.", "blocks.").removeprefix("transformer."): v for k, v in state.items()}
    torch.save(
        {"config": config | {"mlp": "relu2", "tie_embeddings": False}, "state_dict": renamed},
        directory / f"same{step}.pt",
    )


def test_nanochats_own_checkpoints(tmp_path):
    own_nanochat(tmp_path / "d4", 10)
    own_nanochat(tmp_path / "d4", 20)
    tokens = np.arange(1, 50)
    for path, step in (("d4", 20), ("d4/model_000010.pt", 10)):
        lm = zoo.load(tmp_path / path)
        assert lm.origin.step == step and lm.config.activation == "relu_squared" and not lm.config.tie_embeddings
        np.testing.assert_array_equal(lm.logits(tokens), zoo.load(tmp_path / "d4" / f"same{step}.pt").logits(tokens))
    # Older ones lack parts: full attention, scalars of 1 and 0.
    whole = zoo.load(tmp_path / "d4", window_pattern="L")
    own_nanochat(tmp_path / "old", 20, ("x0_lambdas", "resid_lambdas", "smear", "backout"), window_pattern=None)
    old = zoo.load(tmp_path / "old")
    switches = ("x0_blend", "residual_scalars", "smear", "backout")
    assert not any(getattr(old.config, name) for name in switches) and old.config.window_pattern == "L"
    flat = build.flatten(nnx.to_pure_dict(nnx.state(whole.module)))
    neutral = {"residual_scale": 1.0, "x0_scale": 0.0, "smear/scale": 0.0, "backout/scale": 0.0}
    for path, leaf in flat.items():
        value = next((value for name, value in neutral.items() if path.endswith(name)), None)
        flat[path] = leaf if value is None else jnp.full_like(leaf, value)
    patched = nnx.merge(nnx.split(whole.module)[0], build.unflatten(flat))
    np.testing.assert_allclose(old.logits(tokens), patched(jnp.asarray(tokens)[None])[0], atol=2e-5)
    (tmp_path / "old" / "meta_000020.json").write_text("{}")
    with pytest.raises(UserError, match="has no section 'model_config'"):
        zoo.load(tmp_path / "old")
