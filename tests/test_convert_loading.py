"""`zoo.load`: formats, dtypes, meshes, overrides, the hub's cache; broken and hostile files."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
import zoo.convert
from zoo.cli.main import main
from zoo.convert import bwetaf
from zoo.convert.files import open_npz
from zoo.errors import UserError
from zoo.models import build
from zoo.weights import hub

GOLDEN = Path(__file__).parent / "golden"
LOGITS = {
    "cronica": "logits",
    "bwetaf": "logits_f32",
    "gelu": "logits",
    "gelu/orbax": "logits",
    "kodalite": "logits",
    "kodalite_native": "logits",
    "kodalite_native/step_000100.orbax": "logits",
    "tiny": "raw_logits",
}
EVERY = pytest.mark.parametrize("place", LOGITS)


def golden(place, name):
    return np.load(GOLDEN / place.split("/")[0] / f"{name}.npy")


def copied(name, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(GOLDEN / name, target)
    return target


def overrides(place):
    return {"rope_dtype": "float32"} if place == "bwetaf" else {}


@EVERY
def test_every_format_gives_its_originals_logits(place):
    lm = zoo.load(GOLDEN / place, **overrides(place))
    np.testing.assert_allclose(lm.logits(golden(place, "tokens")), golden(place, LOGITS[place]), atol=2e-5)


def test_storage_and_compute_dtypes(tmp_path):
    tokens = golden("kodalite", "tokens")
    full, half = zoo.load(GOLDEN / "kodalite"), zoo.load(GOLDEN / "kodalite", dtype="bfloat16")
    mixed = zoo.load(GOLDEN / "kodalite", compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(build_params(half))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(build_params(mixed))} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(half.logits(tokens), mixed.logits(tokens))
    assert 1e-3 < np.abs(np.asarray(full.logits(tokens) - half.logits(tokens))).max() < 0.5
    wide = zoo.load(GOLDEN / "kodalite", dtype="bfloat16", compute_dtype="float32")
    assert np.abs(np.asarray(wide.logits(tokens) - full.logits(tokens))).max() > 1e-3
    prompt = tokens[0, :5].tolist()
    assert mixed.generate(prompt, temperature=0, max_new_tokens=8) == half.generate(
        prompt, temperature=0, max_new_tokens=8
    )
    mixed.save(tmp_path / "saved")
    assert_same(build_params(zoo.load(tmp_path / "saved")), build_params(full))


def build_params(lm):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(lm.module))


def assert_same(one, other):
    one, other = build.flatten(one), build.flatten(other)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


FOUR_DEVICES = """
import sys
import jax, numpy as np
import zoo
from flax import nnx
from zoo.models import build

mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
golden = sys.argv[1]
lm = zoo.load(golden, mesh=mesh)
whole = build.flatten(nnx.to_pure_dict(nnx.state(zoo.load(golden).module)))
flat = build.flatten(nnx.to_pure_dict(nnx.state(lm.module)))
for path, leaf in flat.items():
    assert leaf.sharding.mesh.shape == mesh.shape and np.array_equal(leaf, whole[path]), path
assert {len(leaf.sharding.device_set) for leaf in flat.values()} == {4}
assert flat["layers/0/attn/q/kernel"].addressable_shards[0].data.shape == (24, 24)
assert flat["layers/0/mlp/down/kernel"].addressable_shards[0].data.shape == (96, 24)
np.testing.assert_allclose(lm.logits(np.load(golden + "/tokens.npy")), np.load(golden + "/logits.npy"), atol=2e-5)
created = zoo.create("gelu-d12", mesh=mesh, **{**lm.config.to_dict(), "num_layers": 1})
assert len(created.module.embed.embedding[...].sharding.device_set) == 4
print("well")
"""


def test_loading_onto_a_mesh_lays_every_parameter_where_it_belongs():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "NPROC": "32"}
    result = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES, str(GOLDEN / "gelu")], capture_output=True, text=True, env=environment
    )
    assert result.stdout == "well\n", result.stderr[-3000:]


def test_overrides_change_what_has_no_shape():
    tokens = golden("kodalite_native", "tokens")
    trained = zoo.load(GOLDEN / "kodalite_native", rope_dtype="bfloat16")
    np.testing.assert_allclose(trained.logits(tokens), golden("kodalite_native", "logits_rope_bf16"), atol=2e-5)
    with pytest.raises(UserError, match=r"has shape .*, its config says"):
        zoo.load(GOLDEN / "kodalite", embed_dim=32)
    with pytest.raises(UserError, match="not part of the model"):
        zoo.load(GOLDEN / "kodalite", num_layers=1)
    with pytest.raises(UserError, match=r"model\.ropedtype.*did you mean 'rope_dtype'"):
        zoo.load(GOLDEN / "kodalite", ropedtype="float32")
    with pytest.raises(UserError, match="revision"):
        zoo.load(GOLDEN / "kodalite", revision="main")


# The hub, without a network: a cache laid out as huggingface_hub lays it, read offline.

LOAD = "import sys, zoo; lm = zoo.load(sys.argv[1]); print(lm.spec.name, lm.config.vocab_size)"


def hub_cache(home, repo, source):
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(path for path in source.iterdir() if path.is_file()):
        shutil.copy(file, folder / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def offline(home, name):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", LOAD, name], capture_output=True, text=True, env=environment, check=False
    )


def test_names_are_read_from_the_hubs_cache_offline(tmp_path):
    hub_cache(tmp_path, "DanielRegaladoCardoso/cronica-jax-5m", GOLDEN / "cronica")
    hub_cache(tmp_path, "someone/a-llama", GOLDEN / "kodalite")
    assert offline(tmp_path, "cronica-5m").stdout == "cronica-5m 160\n"
    assert offline(tmp_path, "someone/a-llama").stdout == "kodalite-1.3b 128\n"
    absent = offline(tmp_path, "gelu-d12")
    for part in (
        "UserError",
        "mlnomad/gelu-d12-chinchilla-261M-pytorch",
        "model.safetensors",
        "or take zoo.create('gelu-d12'), which has random weights",
    ):
        assert part in absent.stderr


def test_models_without_published_weights_say_so():
    with pytest.raises(UserError, match=r"tiny-lm.*no published weights.*zoo\.create\('tiny-lm'\)"):
        zoo.load("tiny-lm")


def test_only_the_files_needed_are_fetched():
    orbax = ["100/model/a", "100/metadata/m", "100/optimizer/o", "200/model/a", "200/optimizer/o", "200/metadata/m"]
    for listed, wanted in (
        (
            ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "modeling_gelu_gpt.py", "x.gguf"],
            ["config.json", "model.safetensors"],
        ),
        (
            [*orbax, "config.json", "200/_CHECKPOINT_METADATA"],
            ["200/_CHECKPOINT_METADATA", "200/metadata/m", "200/model/a", "config.json"],
        ),
        (
            ["good_stuff.pkl", "understanding_good_stuff.json", "make_stuff_better.pkl", "tokenizer/yap.json", "a.png"],
            ["good_stuff.pkl", "tokenizer/yap.json", "understanding_good_stuff.json"],
        ),
        (["ckpt_000100.pkl", "ckpt_002000.pkl", "tokenizer.json"], ["ckpt_002000.pkl", "tokenizer.json"]),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "consolidated.safetensors",
                "config.json",
            ],
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["step_000010.orbax/d/x", "step_000200.orbax/d/x"], ["step_000200.orbax/d/x"]),
        (["m-Q8_0.gguf", "m-F16.gguf", "m-Q4_K_M.gguf", "README.md", "config.json"], ["config.json", "m-F16.gguf"]),
        (["m-Q4_K_M.gguf", "m.q8_0.gguf", "m-BF16.gguf"], ["m.q8_0.gguf"]),
        (["only-Q4_K_M.gguf"], ["only-Q4_K_M.gguf"]),
        (["m-Q4_K_M.gguf", "m-Q5_K_M.gguf"], []),
        (
            ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "optimizer.pt"],
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        (["../config.json", "/etc/config.json", "../model.safetensors", "readme.md"], []),
    ):
        assert hub.needed(listed) == wanted


# Broken and hostile files: one line, nothing written.


def fails(path, named):
    before = sorted(str(file) for file in Path(path).parent.rglob("*"))
    with pytest.raises(UserError, match=named) as caught:
        zoo.load(path)
    assert "\n" not in str(caught.value)
    assert sorted(str(file) for file in Path(path).parent.rglob("*")) == before


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, 100_000])
@pytest.mark.parametrize("name", ["gelu", "kodalite", "kodalite_native"])
def test_truncated_safetensors(tmp_path, name, keep):
    target = copied(name, tmp_path)
    shutil.rmtree(target / "orbax", ignore_errors=True)
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    fails(target, r"model\.safetensors")


def test_a_header_that_claims_too_much(tmp_path):
    target = copied("kodalite", tmp_path)
    file = target / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"] = {"dtype": "F32", "shape": [50000, 50000], "data_offsets": [0, 10_000_000_000]}
    changed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
    fails(target, r"model\.safetensors: cannot be read as safetensors")
    file.write_bytes(struct.pack("<Q", 10_000_000_000) + data[8:])
    fails(target, r"model\.safetensors: cannot be read as safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}), r"model.norm.weight has shape \(63,\)"),
        (lambda t: t.update({"model.norm.weight": np.ones(64, np.int32)}), "model.norm.weight is no array of floating"),
        (lambda t: t.update({"surplus": np.ones(64, np.float32)}), "surplus is not part of the model"),
        (lambda t: t["model.norm.weight"].__setitem__(3, np.nan), "model.norm.weight holds NaN"),
        (lambda t: t["lm_head.weight"].__setitem__((3, 4), np.inf), "lm_head.weight holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, named):
    target = copied("kodalite", tmp_path)
    tensors = {name: array.copy() for name, array in load_file(target / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    fails(target, named)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_links_out_of_the_directory(tmp_path, file):
    target = copied("kodalite", tmp_path)
    (target / file).rename(tmp_path / "elsewhere")
    (target / file).symlink_to(tmp_path / "elsewhere")
    fails(target, "leads out of its directory")


@pytest.mark.parametrize("keep", [0, 20, 1000, 60000])
def test_truncated_msgpack(tmp_path, keep):
    target = copied("bwetaf", tmp_path)
    (target / bwetaf.WEIGHTS).write_bytes((target / bwetaf.WEIGHTS).read_bytes()[:keep])
    fails(target, r"good_stuff\.pkl|no published format|in no published")


def test_an_npz_that_unpacks_to_hundreds_of_times_its_size(tmp_path):
    arrays = dict(np.load(GOLDEN / "tiny" / "params.npz"))
    np.savez_compressed(tmp_path / "params.npz", **arrays | {"token_embedding": np.zeros((70_000, 1024), np.float32)})
    fails(tmp_path / "params.npz", r"claim to unpack to 28\d,\d+,")


def test_damaged_npz_and_orbax(tmp_path):
    target = copied("tiny", tmp_path)
    data = bytearray((target / "params.npz").read_bytes())
    data[3000] ^= 0xFF
    (target / "params.npz").write_bytes(data)
    fails(target, r"params\.npz")
    native = tmp_path / "native" / "step_000100.orbax"
    shutil.copytree(GOLDEN / "kodalite_native/step_000100.orbax", native)
    for part in native.glob("ocdbt.process_0/d/*"):
        part.write_bytes(part.read_bytes()[:100])
    fails(native, "orbax")


def test_links_out_of_an_orbax_checkpoint(tmp_path):
    native = tmp_path / "native" / "step_000100.orbax"
    shutil.copytree(GOLDEN / "kodalite_native/step_000100.orbax", native)
    part = next(native.glob("ocdbt.process_0/d/*"))
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    fails(native, "leads out of its directory")


def test_a_run_in_a_folder_of_its_own(tmp_path):
    shutil.copytree(GOLDEN / "gelu/orbax", tmp_path / "repository" / "run")
    found = zoo.convert.examine(tmp_path / "repository")
    assert found.step == 100 and found.problems() == []


# zoo inspect


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@EVERY
def test_inspect_tells_what_lies_there(capsys, place):
    code, out, err = run(capsys, "inspect", GOLDEN / place)
    assert code == 0 and err == "", err
    assert "would load" in out and "float32" in out


def test_inspect_lists_names_shapes_bytes_and_all_that_is_wrong(capsys, tmp_path):
    target = copied("kodalite", tmp_path)
    code, out, _ = run(capsys, "inspect", target)
    assert code == 0
    for part in ("kodalite-1.3b", "lm_head.weight", "128 x 64", "32,768", "num_kv_heads", "90,432 parameters"):
        assert part in out, part
    tensors = load_file(target / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors |= {"surplus": np.ones(3, np.float32), "lm_head.weight": np.ones((3, 64), np.float32)}
    save_file(tensors, target / "model.safetensors")
    code, out, err = run(capsys, "inspect", target)
    assert code == 1 and "would not load" in err
    for part in ("model.norm.weight is missing", "surplus is not part", "lm_head.weight has shape (3, 64)"):
        assert part in err
    (target / "model.safetensors").write_bytes(b"short")
    code, out, err = run(capsys, "inspect", target)
    assert code == 1 and "model.safetensors" in err and "Traceback" not in err
    assert run(capsys, "inspect", tmp_path / "nothing")[0] == 1


# Memory


PEAK = """
import sys, threading, time
import numpy as np
import zoo

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

import jax
zoo.load(sys.argv[3], dtype=sys.argv[2])  # what the libraries themselves take is not measured
before, peak, going = anonymous(), 0, True

def watch():
    global peak
    while going:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch); thread.start()
lm = zoo.load(sys.argv[1], dtype=sys.argv[2])
going = False; thread.join()
leaves = jax.tree.leaves(__import__("flax").nnx.state(lm.module))
size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
print((max(peak, anonymous()) - before) / size, size)
"""


def write_llama(directory, layers, width, mlp, vocab):
    """A Hugging Face directory of random float32 weights."""
    from zoo import registry
    from zoo.convert import llama

    config = registry.describe("kodalite-1.3b").make_config(
        num_layers=layers,
        embed_dim=width,
        num_heads=width // 64,
        num_kv_heads=width // 64,
        mlp_dim=mlp,
        vocab_size=vocab,
    )
    _, abstract = build.abstract_params(registry.describe("kodalite-1.3b").model_class(), config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract)
    llama.save(directory, config=config, params=params)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_holds_little_more_than_the_parameters(tmp_path, dtype):
    write_llama(tmp_path / "model", 16, 512, 1408, 8000)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "model"), dtype, str(GOLDEN / "kodalite")],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    ratio, size = map(float, result.stdout.split())
    assert size > 1e8 and 0.9 < ratio < 1.3, result.stdout


# Fuzz: whatever becomes of a real file, it loads or is refused in one line.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("cronica", "ckpt_002000.pkl"),
        ("bwetaf", "good_stuff.pkl"),
        ("bwetaf", "understanding_good_stuff.json"),
        ("gelu", "model.safetensors"),
        ("gelu", "config.json"),
        ("kodalite", "model.safetensors"),
        ("kodalite", "config.json"),
        ("kodalite_native", "model.safetensors"),
        ("tiny", "params.npz"),
    ],
)
def test_mutated_files_load_or_are_refused(tmp_path, place, file):
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    target = copied(place, tmp_path)
    shutil.rmtree(target / "orbax", ignore_errors=True)
    for state in target.glob("step_*.orbax"):
        shutil.rmtree(state)
    original = (target / file).read_bytes()
    # Heads decide how a file is read: half of the changes go there.
    places = st.one_of(st.integers(0, min(len(original), 3000) - 1), st.integers(0, len(original) - 1))
    edits = st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits, st.one_of(st.none(), st.integers(0, len(original))))
    def mutate(changes, keep):
        data = bytearray(original)
        for at, new in changes:
            data[at : at + len(new)] = new
        (target / file).write_bytes(bytes(data[:keep]))
        try:
            zoo.convert.load(target)
        except UserError as error:
            assert "\n" not in str(error), error

    mutate()


def test_a_head_that_pythons_own_parser_trips_over_is_one_line(tmp_path):
    """NumPy reads heads with it, and what it raises is no ValueError."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3"
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(UserError, match=r"params\.npz: cannot be read as npz") as refused:
        open_npz(tmp_path / "params.npz")
    assert "\n" not in str(refused.value)


def test_a_run_that_is_not_there_is_not_sought_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny_lm").mkdir(parents=True)
    monkeypatch.setattr(zoo.weights.hub, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    for name, hint in (
        ("runs/tiny_ml", "did you mean runs/tiny_lm"),
        ("runs/tiny_ml@500", "did you mean runs/tiny_lm"),
        ("runs/nosuch", "train it first"),
        ("runs/deep/er", "train it first"),
    ):
        with pytest.raises(UserError, match=hint):
            zoo.weights.resolve.find(name)


def test_reasons_are_cut_at_a_word():
    from zoo.util import first_line

    told = first_line(RuntimeError("word " * 60 + "\nsecond line"))
    assert len(told) <= 200 and told.endswith("word ...")
    assert first_line(RuntimeError("short")) == "short" and first_line(RuntimeError()) == "RuntimeError"
