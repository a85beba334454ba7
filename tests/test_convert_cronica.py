"""Reading and writing cronica-jax checkpoints, and refusing pickles that are more than arrays."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import zoo.convert
from zoo.convert import cronica, safe_pickle
from zoo.errors import UserError
from zoo.models import build
from zoo.models.cronica import CronicaConfig
from zoo.tasks.cronica import tokens as cronica_tokens

GOLDEN = Path(__file__).parent / "golden" / "cronica"


def content():
    return pickle.loads((GOLDEN / "ckpt_002000.pkl").read_bytes())


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def test_directory_and_file_give_the_same():
    by_directory, by_file = zoo.convert.load(GOLDEN), zoo.convert.load(GOLDEN / "ckpt_002000.pkl")
    assert by_directory.step == by_file.step == 2000
    assert by_directory.config == by_file.config
    assert by_directory.model_name == "cronica-5m"
    assert by_directory.config["norm_eps"] == 1e-5 and by_directory.config["embed_dim"] == 64
    assert by_directory.tokenizer_path is None


def test_content_decides_not_the_name(tmp_path):
    shutil.copy(GOLDEN / "ckpt_002000.pkl", tmp_path / "weights.bin")
    assert zoo.convert.detect_format(tmp_path / "weights.bin") is cronica.FORMAT
    write(tmp_path / "ckpt_009999.pkl", ["something", "else"])
    shutil.copy(GOLDEN / "ckpt_002000.pkl", tmp_path / "ckpt_000003.pkl")
    (tmp_path / "tokenizer.json").write_text("{}")
    loaded = zoo.convert.load(tmp_path)  # the higher number is no checkpoint
    assert loaded.step == 2000 and loaded.tokenizer_path == tmp_path / "tokenizer.json"
    assert zoo.convert.detect_format(tmp_path / "tokenizer.json") is None


def test_highest_number_is_read(tmp_path):
    for step in (999_999, 1_000_000, 5):
        write(tmp_path / f"ckpt_{step:06d}.pkl", {**content(), "step": step})
    assert zoo.convert.load(tmp_path).step == 1_000_000


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_round_trip(tmp_path, protocol):
    loaded = zoo.convert.load(write(tmp_path / "in.pkl", content(), protocol))
    config = CronicaConfig(**loaded.config)
    tokenizer = cronica_tokens.train(["El partido"] * 9, 276)
    file = cronica.save(tmp_path / "out", config=config, params=loaded.params, step=7, tokenizer=tokenizer)
    assert file.name == "ckpt_000007.pkl"
    ours, theirs = pickle.loads(file.read_bytes()), content()
    their_fields = {k: v for k, v in theirs["config"].items() if k != "args"}
    assert ours["config"] == their_fields == json.loads((tmp_path / "out" / "config.json").read_text())
    again = zoo.convert.load(tmp_path / "out")
    assert again.step == 7 and again.config == loaded.config and again.tokenizer_path.name == "tokenizer.json"
    for name in ("tok_embed", "final_norm"):
        assert np.array_equal(ours["params"][name], theirs["params"][name])
    for mine, original in zip(ours["params"]["layers"], theirs["params"]["layers"], strict=True):
        assert mine.keys() == original.keys()
        assert all(np.array_equal(mine[n], original[n]) and mine[n].dtype == np.float32 for n in mine)
    for name, leaf in build.flatten(again.params).items():
        assert np.array_equal(leaf, build.flatten(loaded.params)[name])


def test_files_of_numpy_1_are_read(tmp_path):
    data = pickle.dumps(content(), protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in data
    (tmp_path / "old.pkl").write_bytes(data)
    assert zoo.convert.load(tmp_path / "old.pkl").step == 2000


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["step", "params", "config", "key"])
def test_attack_pickles_are_refused_and_nothing_runs(tmp_path, place):
    witness = tmp_path / "witness"
    attack = Attack(os.mkdir, str(witness))
    value = {**content(), place: attack} if place != "key" else {"step": 1, attack.call: attack}
    file = write(tmp_path / "ckpt_000001.pkl", value)
    with pytest.raises(UserError, match=r"ckpt_000001.*refused.*posix\.mkdir"):
        zoo.convert.load(file)
    assert not witness.exists()
    pickle.loads(file.read_bytes())  # the attack is a real one
    assert witness.exists()


@pytest.mark.parametrize(
    "call",
    [
        Attack(eval, "1"),
        Attack(getattr, 1, "real"),
        Attack(np.load, "x", None, True),
        Attack(np.frombuffer, b"1234"),
        Attack(pickle.loads, b"N."),
    ],
    ids=lambda attack: attack.call[0].__name__,
)
def test_other_callables_are_refused(call):
    with pytest.raises(UserError, match="refused"):
        safe_pickle.loads(pickle.dumps({"step": call}), "file")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_every_kind_of_number(protocol):
    value = {
        "big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "apart": np.arange(12, dtype=np.int64)[::2],
        "whole": np.array(3.5, np.float16),
        "number": np.float32(2.5),
        "truth": np.bool_(True),
    }
    data = pickle.dumps(value, protocol=protocol)
    found = safe_pickle.loads(data, "file")
    for name, array in pickle.loads(data).items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


@pytest.mark.parametrize("array", [np.array([1, None]), np.zeros(2, "V8"), np.zeros(2, "f4,i4"), np.array(["a"])])
def test_arrays_of_other_things_are_refused(array):
    """NumPy trusts the flags of a pickled dtype: with those of objects it takes what it is given for pointers."""
    with pytest.raises(UserError, match=r"refused: .*an array of"):
        safe_pickle.loads(pickle.dumps({"step": array}, protocol=4), "file")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\x80\x04X\x04\0\0\0stepr\xff\xff\xff\x7f.", "claim to remember 2,147,483,647 objects"),
        (b"\x80\x04X\x04\0\0\0stepp2000000000\n.", "claim to remember 2,000,000,000 objects"),
        (b"\x80\x04\x8e\0\0\0\0\x05\0\0\0.", "not a readable pickle"),
        (b"\x80\x04" + b"N0" * 600_000 + b"}.", "more than 1,000,000 operations"),
    ],
    ids=["binary", "text", "bytes", "steps"],
)
def test_a_short_pickle_that_claims_much(monkeypatch, data, named):
    monkeypatch.setattr(safe_pickle._ArrayUnpickler, "load", lambda self: pytest.fail("it was unpickled"))
    with pytest.raises(UserError, match=named):
        safe_pickle.loads(data, "file")


def broken(change):
    value = content()
    change(value)
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("params"), "'params' is missing"),
        (lambda c: c.update(step="many"), "'step' is 'many'"),
        (lambda c: c.update(step=float("inf")), "'step' is inf"),
        (lambda c: c["config"].pop("d_ff"), "config lacks d_ff"),
        (lambda c: c["config"].update(dropout=0.1), "config field 'dropout'"),
        (lambda c: c["config"].update(n_layers=3), "'layers' is not a list of 3"),
        (lambda c: c["config"].update(d_ff=97), r"layers\[0\]\.w_down has shape \(96, 64\).*\(97, 64\)"),
        (lambda c: c["params"]["layers"][1].pop("wq"), r"layers\[1\]\.wq is missing"),
        (
            lambda c: c["params"].update(tok_embed=np.zeros((160, 64), int)),
            "tok_embed is no array of floating-point numbers but of int64",
        ),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path, change, message):
    file = write(tmp_path / "ckpt_000001.pkl", broken(change))
    with pytest.raises(UserError, match=message):
        zoo.convert.load(file)


def test_truncated_file_and_no_file(tmp_path):
    (tmp_path / "ckpt_000001.pkl").write_bytes((GOLDEN / "ckpt_002000.pkl").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"ckpt_000001\.pkl: not a readable pickle"):
        zoo.convert.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        zoo.convert.load(tmp_path / "absent")
    with pytest.raises(UserError, match="not in a published format"):
        zoo.convert.load(GOLDEN / "logits.npy")


def test_another_norm_eps_is_not_written(tmp_path):
    loaded = zoo.convert.load(GOLDEN)
    config = CronicaConfig(**{**loaded.config, "norm_eps": 1e-6})
    with pytest.raises(UserError, match="norm_eps"):
        cronica.save(tmp_path / "out", config=config, params=loaded.params)
    assert not (tmp_path / "out").exists()
