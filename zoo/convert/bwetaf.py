"""The format of BwETAF (PyPI package BwETAF 0.6; hub: WICKED4950/BwETAFv3-97M).

A directory with `good_stuff.pkl`, which is no pickle but Flax's msgpack of {"params": {...}},
`understanding_good_stuff.json` with the config, and perhaps `tokenizer/yap.json`, `stats.json` and the
optimizer's state in `make_stuff_better.pkl` (the same msgpack).
"""

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from zoo.convert import base, files
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import Format, HubFiles, matching, writer
from zoo.convert.layouts import PADDED_BIAS
from zoo.convert.tokenizer_files import spelling, tokenizer_json
from zoo.errors import UserError
from zoo.models import build
from zoo.tokenizers.base import Tokenizer
from zoo.util import atomic_write, first_line

MODEL_NAME = "bwetaf-97m"
WEIGHTS, CONFIG, OPTIMIZER = "good_stuff.pkl", "understanding_good_stuff.json", "make_stuff_better.pkl"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer/yap.json", "tokenizer/understanding_yap.json"

# Fields that say how to compute, not what, or that their program reads and does not use.
IGNORED_CONFIG = (
    "possible_opt_path",
    "attn_chunks",
    "use_flash_attention",
    "use_fash_attention",  # their spelling of the field; the published card has the other
    "res_scale",
    "emb_scaling_factor",
    "dtype",  # the card lists it; zoo.load says which to compute in
)
KNOWN_CONFIG = (
    "num_heads",
    "attention_dim",
    "vocab_size",
    "num_blocks",
    "ff_dim",
    "dropout_rate",
    "max_len",
    "gqa_repeats",
    "emb_init_range",
    "param_init_rage",  # sic
)
INIT_STD = 0.002  # of their weights, where the config does not say

TOP_NAMES = {"emb.embedding": "embed/embedding"}
LAYER_NAMES = {
    "ln1.scale": "attn_norm/scale",
    "attn.q_dense.w": "attn/q/kernel",
    "attn.k_dense.w": "attn/k/kernel",
    "attn.v_dense.w": "attn/v/kernel",
    "attn.d_out.w": "attn/o/kernel",
    "attn.d_out.b": "attn/o/bias",
    "ln2.scale": "mlp_norm/scale",
    "d1.w": "mlp/up_gate/kernel",
    "d1.b": "mlp/up_gate/bias",
    "d2.w": "mlp/down/kernel",
    "d2.b": "mlp/down/bias",
}


def detect(path: str | os.PathLike) -> bool:
    """Whether `path` is a directory with BwETAF weights, or the weights file in one."""
    file = _weights(Path(path))
    if file is None or not (file.parent / CONFIG).is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(16)
    return b"params" in head and head[0] & 0xF0 == 0x80  # a msgpack map of at most 15 entries


def examine(path: str | os.PathLike) -> Published:
    """What lies at `path`; no array is kept. UserError if it is not what `detect` says or does not fit."""
    file = _weights(Path(path))
    if file is None:
        raise UserError(f"{path}: holds no {WEIGHTS}")
    directory = file.parent
    files.safe_join(directory, file.name)
    config = _config(files.read_json(files.safe_join(directory, CONFIG)), directory / CONFIG)
    reading = _Msgpack(file)
    tensors = {name.removeprefix("params."): leaf for name, leaf in reading.tensors().items()}
    base.check_layers(config, tensors, file)
    return Published(
        kind=f"BwETAF ({WEIGHTS}, Flax msgpack)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config),
        tokenizer_path=files.existing(directory, TOKENIZER),
    )


def save(
    directory: str | os.PathLike,
    *,
    config: Any,
    params: Any,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write weights, config, stats.json and, where given, tokenizer/; returns the path of the weights.

    The parameters keep their dtype. `step` has no place in the format. UserError for a model that BwETAF
    does not compute.
    """
    from flax import serialization

    theirs = _their_config(config.to_dict())
    flat = to_original(params, config.to_dict())
    nested = build.unflatten({f"params/{name.replace('.', '/')}": array for name, array in flat.items()})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / WEIGHTS
    atomic_write(file, serialization.msgpack_serialize(nested))
    atomic_write(directory / CONFIG, json.dumps(theirs, indent=2) + "\n")
    stats = {"name": directory.name, "num_params": sum(math.prod(array.shape) for array in flat.values())}
    atomic_write(directory / "stats.json", json.dumps(stats, indent=2) + "\n")
    if tokenizer is not None:
        _save_tokenizer(directory, tokenizer)
    return file


def rules(config: Mapping[str, Any]) -> Rules:
    """Where each parameter of a model of this config stands in `good_stuff.pkl`."""
    found = {ours: Rule(theirs) for theirs, ours in TOP_NAMES.items()}
    for i in range(config["num_layers"]):
        for theirs, ours in LAYER_NAMES.items():
            name = f"blocks_{i}.{theirs}"
            found[f"layers/{i}/{ours}"] = Rule(name, PADDED_BIAS) if ours.endswith("bias") else Rule(name)
    return found


def to_original(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters or gradients by BwETAF's names ("blocks_0.attn.q_dense.w") and shapes."""
    return base.to_original(rules(config), params)


def from_original(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[Any, Any]:
    """Our nested parameters or gradients from BwETAF's."""
    return base.from_original(rules(config), tensors)


def load_optimizer(path: str | os.PathLike, config: Mapping[str, Any]) -> dict[str, Any]:
    """The AdamW state in `make_stuff_better.pkl`: {"count": int, "mu": params, "nu": params}, moments float32.

    `path` is the file or its directory. UserError for any other optimizer's state.
    """
    file = Path(path)
    file = files.safe_join(file, OPTIMIZER) if file.is_dir() else file
    leaves = _Msgpack(file).tensors()
    moments: dict[str, dict[str, np.ndarray]] = {"mu": {}, "nu": {}}
    counts = []
    for name, tensor in leaves.items():
        parts = name.split(".")
        kind = next((part for part in parts if part in moments), None)
        if parts[-1] == "count" and tensor.shape == () and tensor.dtype.kind in "iu":
            counts.append((len(parts), name, tensor))
        elif kind is not None and tensor.dtype.name in base.FLOATS:
            rest = ".".join(parts[parts.index(kind) + 1 :]).removeprefix("params.")
            moments[kind][rest] = np.asarray(tensor.read(), np.float32)
        else:
            raise UserError(f"{file}: {name} belongs to no AdamW (count, mu, nu); go on without the optimizer")
    names = {rule.theirs for rule in rules(config).values()}
    for kind, found in moments.items():
        if set(found) != names or not counts:
            odd = sorted(set(found) ^ names) or ["count"]
            raise UserError(f"{file}: {kind} does not fit the model ({odd[0]}); go on without the optimizer")
    steps = {int(tensor.read()) for _, _, tensor in counts}
    if len(steps) > 1:
        raise UserError(f"{file}: its counts disagree ({sorted(steps)}); go on without the optimizer")
    count = steps.pop()
    if not 0 <= count < 2**31:  # the widest that optax counts with
        raise UserError(f"{file}: its count is {count}, which is none of steps; go on without the optimizer")
    return {"count": count, **{kind: from_original(found, config) for kind, found in moments.items()}}


def _weights(path: Path) -> Path | None:
    file = path / WEIGHTS if path.is_dir() else path
    return file if file.is_file() else None


def _config(theirs: dict[str, Any], file: Path) -> dict[str, Any]:
    for name in theirs:
        if name not in KNOWN_CONFIG and name not in IGNORED_CONFIG:
            raise UserError(f"{file}: field {name!r} is not one of BwETAF's")
    missing = sorted({"num_heads", "attention_dim", "vocab_size", "num_blocks", "ff_dim"} - set(theirs))
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}")
    heads = theirs["num_heads"]
    if isinstance(heads, list) and heads and heads == heads[:1] * len(heads) and len(heads) == theirs["num_blocks"]:
        theirs = {**theirs, "num_heads": heads[0]}  # their model also takes a list with the number of each block
    heads, width, repeats = theirs["num_heads"], theirs["attention_dim"], theirs.get("gqa_repeats", 1)
    for name in ("num_heads", "attention_dim", "vocab_size", "num_blocks", "ff_dim"):
        if type(theirs[name]) is not int or theirs[name] < 1:
            raise UserError(f"{file}: {name} is {theirs[name]!r}; zoo reads one whole number")
    if type(repeats) is not int or repeats < 1 or width % heads or heads % repeats:
        raise UserError(f"{file}: attention_dim {width}, num_heads {heads}, gqa_repeats {repeats!r} do not divide")
    ours = {
        "vocab_size": theirs["vocab_size"],
        "num_layers": theirs["num_blocks"],
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": heads // repeats,
        "head_dim": width // heads,
        "mlp_dim": theirs["ff_dim"],
        "embed_init_std": theirs.get("emb_init_range") or width**-0.5,
        "init_std": theirs.get("param_init_rage") or INIT_STD,
    }
    if "max_len" in theirs:
        ours["max_seq_len"] = theirs["max_len"]
    if "dropout_rate" in theirs:
        ours["dropout"] = theirs["dropout_rate"]
    return base.full_config(MODEL_NAME, ours)


def _their_config(ours: dict[str, Any]) -> dict[str, Any]:
    fixed = {
        "rope_theta": 10000.0,
        "norm_eps": 1e-8,
        "embed_rope": True,
        "final_norm": False,
        "tie_embeddings": True,
        "restart_positions": False,
        "head_dim": ours["embed_dim"] // ours["num_heads"],
    }
    for name, value in fixed.items():
        if ours[name] != value:
            raise UserError(f"model.{name}: BwETAF computes with {value} alone, this model has {ours[name]}")
    return {
        "num_heads": ours["num_heads"],
        "attention_dim": ours["embed_dim"],
        "vocab_size": ours["vocab_size"],
        "num_blocks": ours["num_layers"],
        "ff_dim": ours["mlp_dim"],
        "dropout_rate": ours["dropout"],
        "possible_opt_path": "",
        "max_len": ours["max_seq_len"],
        "attn_chunks": 1,
        "gqa_repeats": ours["num_heads"] // ours["num_kv_heads"],
        "emb_init_range": ours["embed_init_std"],
        "param_init_rage": ours["init_std"],
    }


def _save_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    content = tokenizer_json(tokenizer)
    (directory / "tokenizer").mkdir(exist_ok=True)
    atomic_write(directory / TOKENIZER, content)
    about = {
        "name": directory.name,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": list(tokenizer.special_tokens),
        "eos_token": spelling(tokenizer, "eos"),
        "uk_token": next((text for text in tokenizer.special_tokens if "UK" in text.upper()), None),
    }
    atomic_write(directory / TOKENIZER_CONFIG, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


class _Msgpack:
    """A file of Flax's msgpack: a nested map whose leaves are arrays, each an extension of type 1.

    The file stays mapped; finding the arrays' heads keeps none of them, and the first `read` decodes them
    all, which is the only way msgpack offers.
    """

    def __init__(self, file: Path):
        self._file = file
        self._arrays: dict[str, np.ndarray] | None = None

    def tensors(self) -> dict[str, Tensor]:
        heads = self._decode(_head)
        for name, head in heads.items():
            if not isinstance(head, _Head):
                raise UserError(f"{self._file}: {name} is a {type(head).__name__}, not an array")
        return {name: Tensor(head.shape, head.dtype, self._reader(name)) for name, head in heads.items()}

    def _reader(self, name: str):
        def read() -> np.ndarray:
            if self._arrays is None:
                self._arrays = self._decode(_array)
            return self._arrays[name]

        return read

    def _decode(self, hook) -> dict[str, Any]:
        try:
            with self._file.open("rb") as stream, contextlib.ExitStack() as stack:
                data = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
                return dict(_leaves(msgpack.unpackb(data, ext_hook=hook, raw=False), ""))
        except Exception as error:  # msgpack raises many kinds, NumPy a few more, a map in a map in a map another
            raise UserError(f"{self._file}: cannot be read as Flax msgpack ({first_line(error)})") from None


class _Head:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


def _unpack(code: int, data: bytes) -> tuple[tuple[int, ...], np.dtype, bytes]:
    if code not in (1, 3):  # Flax: 1 an array, 3 a NumPy scalar, in the same encoding
        raise ValueError(f"an extension of type {code}, which is no array")
    shape, name, content = msgpack.unpackb(data, raw=True)
    dtype = np.dtype("bfloat16" if name == b"bfloat16" else name.decode())
    if dtype.hasobject or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {len(content)} bytes that claims the shape {tuple(shape)}")
    return tuple(shape), dtype, content


def _head(code: int, data: bytes) -> _Head:
    shape, dtype, _ = _unpack(code, data)
    return _Head(shape, dtype)


def _array(code: int, data: bytes) -> np.ndarray:
    shape, dtype, content = _unpack(code, data)
    return np.frombuffer(content, dtype).reshape(shape)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif tree is not None:
        yield prefix, tree


def _hub_files(names: Sequence[str]) -> list[str]:
    return matching(names, WEIGHTS, CONFIG, "stats.json", "tokenizer/*.json") if WEIGHTS in names else []


FORMAT = Format(
    name="bwetaf",
    detect=detect,
    open=examine,
    write=writer(save),
    model_name=MODEL_NAME,
    hub_files=(HubFiles(10, _hub_files),),
    tokenizer_file=TOKENIZER,
    opened_by="BwETAF 0.6",
)
