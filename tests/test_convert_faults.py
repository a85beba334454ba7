"""Files that say one thing and hold another, and numbers that a format does not reach: right values, or a refusal."""

import json
import struct

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import zoo
from zoo.convert import gguf_files, mlx
from zoo.errors import UserError
from zoo.evaluate import verification
from zoo.language_model import LanguageModel
from zoo.models import build

SIZES = {"num_layers": 1, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "mlp_dim": 128}
TOKENS = [1, 2, 3, 4, 5]


def llama(**sizes) -> LanguageModel:
    return zoo.create("kodalite-1.3b", **{**SIZES, "vocab_size": 96, "max_seq_len": 16, **sizes})


def changed(lm, path, value) -> LanguageModel:
    """The model with one number of a parameter set to `value`."""
    graphdef, state = nnx.split(lm.module)
    flat = build.flatten(nnx.to_pure_dict(state))
    flat[path] = flat[path].at[(0,) * flat[path].ndim].set(value)
    return LanguageModel(nnx.merge(graphdef, build.unflatten(flat)), None, lm.spec, lm.config)


def edit(directory, config=None, tensors=None):
    """Changes fields of config.json, and tensors by a function of them."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    if tensors is not None:
        save_file(tensors(load_file(directory / "model.safetensors")), directory / "model.safetensors")


# Tied or not


def test_a_head_of_its_own_is_used_whatever_the_config_says(tmp_path):
    lm = llama(tie_embeddings=False)
    lm.export(tmp_path / "hf")
    edit(tmp_path / "hf", {"tie_word_embeddings": True})
    again = zoo.load(tmp_path / "hf")
    assert not again.config.tie_embeddings
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))
    for bits in (None, 8):
        lm.export(tmp_path / f"mlx{bits}", "mlx", bits=bits)
        right = zoo.load(tmp_path / f"mlx{bits}").logits(TOKENS)
        edit(tmp_path / f"mlx{bits}", {"tie_word_embeddings": True})
        np.testing.assert_array_equal(zoo.load(tmp_path / f"mlx{bits}").logits(TOKENS), right)


@pytest.mark.parametrize("kept", [("model.embed_tokens.weight", "lm_head.weight"), ("lm_head.weight",)])
def test_a_tied_table_may_lie_under_either_name_or_both(tmp_path, kept):
    lm = llama(tie_embeddings=True)
    lm.export(tmp_path / "hf")

    def renamed(tensors):
        table = tensors.pop("model.embed_tokens.weight")
        return tensors | {name: table.copy() for name in kept}

    edit(tmp_path / "hf", tensors=renamed)
    again = zoo.load(tmp_path / "hf")
    assert again.config.tie_embeddings
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    llama(tie_embeddings=True).export(tmp_path / "hf")
    edit(tmp_path / "hf", {"tie_word_embeddings": False})
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        zoo.load(tmp_path / "hf")


def test_a_mistral_without_a_window_in_its_config_has_one(tmp_path):
    llama().export(tmp_path / "hf")
    edit(tmp_path / "hf", {"model_type": "mistral"})
    assert zoo.load(tmp_path / "hf").config.max_seq_len == 16  # shorter than the window
    edit(tmp_path / "hf", {"max_position_embeddings": 8192})
    with pytest.raises(UserError, match="sliding_window is missing, which transformers takes for 4096"):
        zoo.load(tmp_path / "hf")
    edit(tmp_path / "hf", {"sliding_window": None})
    zoo.load(tmp_path / "hf")


# GGUF


def split(gguf, source, directory, count):
    """Writes a GGUF file's tensors into `count` parts, as llama.cpp's gguf-split does."""
    reader = gguf.GGUFReader(source)
    shares = np.array_split(np.arange(len(reader.tensors)), count)
    for number, share in enumerate(shares):
        writer = gguf.GGUFWriter(directory / f"m-{number + 1:05}-of-{count:05}.gguf", "llama")
        if number == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    writer.add_key_value(name, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for i in share:
            tensor = reader.tensors[i]
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def test_a_model_in_parts_is_read_whole_or_not_at_all(tmp_path):
    gguf = pytest.importorskip("gguf")
    llama().export(tmp_path / "whole", "gguf", name="m")
    right = zoo.load(tmp_path / "whole").logits(TOKENS)
    parts = tmp_path / "parts"
    parts.mkdir()
    split(gguf, tmp_path / "whole" / "m-F16.gguf", parts, 3)
    for named in (parts, parts / "m-00001-of-00003.gguf", parts / "m-00002-of-00003.gguf"):
        np.testing.assert_array_equal(zoo.load(named).logits(TOKENS), right)
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert gguf_files.choose(names) == names[0] and gguf_files.part_names(names[1]) == names
    (parts / names[1]).rename(tmp_path / "away.gguf")
    for named in (parts, parts / names[0]):
        with pytest.raises(UserError, match=rf"{names[1]}: is missing; the model lies in 3 parts"):
            zoo.load(named)
    (parts / names[0]).rename(tmp_path / "first.gguf")
    with pytest.raises(UserError, match=rf"{names[0]}: is missing"):
        zoo.load(parts)
    with pytest.raises(UserError, match="is part 1 of 3 by its head, and 1 of 1 by its name"):
        zoo.load(tmp_path / "first.gguf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"llama.rope.scale_linear": 4.0}, "llama.rope.scale_linear is 4"),
        ({"llama.rope.scaling.factor": 8.0}, "llama.rope.scaling.factor is 8"),
        ({"llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0}, None),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn'"),
        ({"llama.attention.sliding_window": 8}, "sliding_window is 8"),
        ({"llama.logit_scale": 0.5}, "logit_scale is 0.5"),
    ],
)
def test_fields_that_change_what_llama_cpp_computes(tmp_path, fields, words):
    gguf = pytest.importorskip("gguf")
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    llama().export(tmp_path / "out", "gguf", name="m")
    reader = gguf.GGUFReader(tmp_path / "out" / "m-F16.gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    kept = {name: (field.contents(), field.types[0]) for name, field in reader.fields.items()}
    kept = {
        name: value for name, value in kept.items() if not name.startswith("GGUF.") and name != "general.architecture"
    }
    for name, (value, kind) in (kept | {name: (value, kinds[type(value)]) for name, value in fields.items()}).items():
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    if words is None:
        zoo.load(tmp_path / "other.gguf")
    else:
        with pytest.raises(UserError, match=words):
            zoo.load(tmp_path / "other.gguf")


def field(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 4) + b"name" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            struct.pack("<IQQ", 3, 0, 1) + field(9, struct.pack("<IQ", 0, 2**60)),
            "takes 1,152,921,504,606,846,976 bytes",
        ),
        (struct.pack("<IQQ", 3, 0, 1) + field(9, struct.pack("<IQ", 8, 2**60)), "parts of an array in 0 bytes"),
        (struct.pack("<IQQ", 3, 0, 1) + field(9, struct.pack("<IQ", 9, 1) * 6 + bytes(64)), "deeper than 4"),
        (struct.pack("<IQQ", 3, 0, 1) + field(8, struct.pack("<Q", 2**63)), "a text takes"),
        (struct.pack("<IQQ", 3, 0, 2**61), "fields in 0 bytes"),
        (struct.pack("<IQQ", 3, 2**61, 0), "tensors in 0 bytes"),
        (
            struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"x" + struct.pack("<I", 2**31) + bytes(40),
            "dimensions",
        ),
        (struct.pack("<IQQ", 3, 0, 1) + field(77, b""), "unknown type 77"),
        (struct.pack("<IQQ", 9, 0, 0), "of version 9"),
        (b"", "cannot be read as GGUF"),
    ],
)
def test_counts_are_held_against_the_bytes_that_are_there(tmp_path, head, words):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + head)
    with pytest.raises(UserError, match=words):
        gguf_files.check(tmp_path / "m.gguf")


# Numbers


def test_float16_that_would_overflow_is_refused(tmp_path):
    lm = changed(llama(), "final_norm/scale", 1e5)
    lm.save(tmp_path / "saved")
    words = r"final_norm/scale holds numbers (up to 1e\+05|beyond 65,504)"
    for act in (
        lambda: lm.export(tmp_path / "out", dtype="float16"),
        lambda: lm.save(tmp_path / "out", dtype="fp16"),
        lambda: zoo.load(tmp_path / "saved", dtype="float16"),
        lambda: zoo.load(tmp_path / "saved", compute_dtype="float16"),
    ):
        with pytest.raises(UserError, match=words):
            act()
    lm.export(tmp_path / "bf16", dtype="bfloat16")
    assert np.isfinite(np.asarray(zoo.load(tmp_path / "saved", dtype="bfloat16").logits(TOKENS))).all()


@pytest.mark.parametrize(("format", "options"), [("mlx", {}), ("gguf", {}), ("gguf", {"quantization": "Q8_0"})])
def test_halves_and_scales_that_would_overflow_are_refused(tmp_path, format, options):
    pytest.importorskip("gguf")
    lm = changed(llama(), "layers/0/mlp/up/kernel", 1e7)
    with pytest.raises(UserError, match=r"up.*float16 ends at 65,504"):
        lm.export(tmp_path / "out", format, **options)


def test_widths_that_cannot_be_quantised_are_refused_by_name(tmp_path):
    pytest.importorskip("gguf")
    lm = llama(embed_dim=48, num_heads=2, head_dim=32)
    with pytest.raises(UserError, match=r"rows of 48, and 4 bits are stored in groups of 64 or 32 numbers"):
        lm.export(tmp_path / "out", "mlx", bits=4)
    with pytest.raises(UserError, match="rows of 48, and Q8_0 takes blocks of 32; take F16"):
        lm.export(tmp_path / "out", "gguf", quantization="Q8_0")
    assert not list(tmp_path.iterdir())
    narrow = llama(embed_dim=96, mlp_dim=64)
    narrow.export(tmp_path / "mlx", "mlx", bits=8)
    assert json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"] == {"group_size": 32, "bits": 8}
    tensors = load_file(tmp_path / "mlx" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == np.uint32
    assert tensors["model.embed_tokens.scales"].shape == (96, 96 // mlx.GROUPS[1])
    found, right = (np.asarray(model.logits(TOKENS)) for model in (zoo.load(tmp_path / "mlx"), narrow))
    assert np.abs(found - right).max() < 0.05 * right.std()


def test_verification_follows_the_size_of_the_logits(tmp_path):
    """Float32 rounding of large logits is no fault of an export; a wrong one is still found."""
    pytest.importorskip("transformers")
    lm = llama(num_layers=4, tie_embeddings=False)
    graphdef, state = nnx.split(lm.module)
    state = jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else leaf * 4, state)
    lm = LanguageModel(nnx.merge(graphdef, state), None, lm.spec, lm.config)
    assert np.abs(np.asarray(lm.logits(TOKENS))).max() > 5
    lm.export(tmp_path / "out")
    bound = verification.bound_for(lm, exact=True)
    found = list(verification.written(lm, tmp_path / "out", "hf", bound=bound, dtype="float32"))
    assert all(check.ok for check in found), found
    assert found[0].what == "parameters" and "bit-identical" in found[0].found
    assert sum("float64" in check.what for check in found) == 3
    edit(tmp_path / "out", tensors=lambda t: t | {"lm_head.weight": t["lm_head.weight"] * np.float32(1.001)})
    wrong = list(verification.written(lm, tmp_path / "out", "hf", bound=bound, dtype="float32"))
    assert [check.ok for check in wrong[:2]] == [False, False]
