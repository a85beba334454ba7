"""Readers of files of strangers, each as a function of bytes, and the smallest inputs that each accepts.

A reader may answer or raise UserError, and nothing else. `run.py` feeds them what atheris makes of the inputs;
`tests/test_fuzz.py` replays the inputs, and those that found a fault once (the files in `found/`), without it.
"""

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo import tokenizers
from zoo.convert import bwetaf, cronica, files, gguf_files, hf, mlx, nanochat, peft, portable, safe_pickle, tiny
from zoo.data import documents, shards
from zoo.evaluate import compare
from zoo.generate import chat
from zoo.recipe import load_recipe, make_recipe
from zoo.recipe.data import SourceSection
from zoo.rundir import layout
from zoo.tasks.cronica import match
from zoo.tokenizers import token_files
from zoo.train import report
from zoo.train.logging.log import read_events, read_metrics

DATA = Path(__file__).parents[1] / "data"
GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = "The cat sat on the mat, 12 times. ¡Olé! <|endoftext|>"
LARGEST = 1 << 20  # bytes of an array that is read whole


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: reads the bytes, given an empty directory of its own to put them into.
        inputs: returns what it accepts, at least one input.
    """

    read: Callable[[bytes, Path], object]
    inputs: Callable[[], list[bytes]]


TARGETS: dict[str, Target] = {}


def target(inputs: Callable[[], list[bytes]]) -> Callable[[Callable[[bytes, Path], object]], Callable]:
    """Enters a reader into TARGETS under its name."""

    def enter(read: Callable[[bytes, Path], object]) -> Callable:
        TARGETS[read.__name__] = Target(read, inputs)
        return read

    return enter


def _golden(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(GOLDEN / name).read_bytes() for name in names]


def _json(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def _read_all(tensors) -> None:
    for tensor in tensors.values():
        if tensor.dtype.itemsize * np.prod(tensor.shape, dtype=object) <= LARGEST:
            tensor.read()


# ------------------------------------------------------------------------------------------------- weights


def _safetensors() -> list[bytes]:
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return [struct.pack("<Q", len(head)) + head + bytes(8), struct.pack("<Q", 2) + b"{}"]


@target(_safetensors)
def safetensors(data: bytes, directory: Path) -> object:
    (directory / "m.safetensors").write_bytes(data)
    return _read_all(files.open_safetensors(directory / "m.safetensors"))


def _npz() -> list[bytes]:
    content = io.BytesIO()
    np.savez(content, a=np.arange(3, dtype=np.float32))
    return [content.getvalue()]


@target(_npz)
def npz(data: bytes, directory: Path) -> object:
    (directory / "m.npz").write_bytes(data)
    return _read_all(files.open_npz(directory / "m.npz"))


def _pickles() -> list[bytes]:
    tree = {"layers": [{"w": np.ones((2, 3), np.float32), "b": np.float32(1)}], "step": 7, "name": "é"}
    return [pickle.dumps(tree, protocol) for protocol in (4, 2)]


@target(_pickles)
def pickles(data: bytes, directory: Path) -> object:
    return safe_pickle.loads(data, "m.pkl")


def _gguf() -> list[bytes]:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    field = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    words = text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc")
    tensor = text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + field + words + tensor
    return [head + bytes(-len(head) % 32) + bytes(32), b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field]


@target(_gguf)
def gguf(data: bytes, directory: Path) -> object:
    import gguf as package

    (directory / "m.gguf").write_bytes(data)
    _, tensors = gguf_files.read(package, [directory / "m.gguf"])
    return _read_all(tensors)


def _torch_zip() -> list[bytes]:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"config": {}}))
    return [content.getvalue()]


@target(_torch_zip)
def archives(data: bytes, directory: Path) -> object:
    (directory / "m.pt").write_bytes(data)
    return nanochat.detect(directory / "m.pt"), files.zip_names(directory / "m.pt")


def _beside(source: str, name: str, data: bytes, directory: Path) -> Path:
    """Puts links to the files of a golden model into the directory, and the bytes in the place of one."""
    for file in (GOLDEN / source).iterdir():
        if file.name != name and file.is_file() and file.suffix not in (".npz", ".npy"):
            (directory / file.name).write_bytes(file.read_bytes())
    (directory / name).write_bytes(data)
    return directory


def _model(format, source: str, name: str = "config.json"):
    def read(data: bytes, directory: Path) -> object:
        path = _beside(source, name, data, directory)
        return format.detect(path) and format.open(path).problems()

    return read


for _name, _format, _source in (
    ("config_of_llama", hf.FORMAT, "kodalite"),
    ("config_of_cronica", cronica.FORMAT, "cronica"),
    ("config_of_gelu", nanochat.FORMAT, "gelu"),
    ("config_of_tiny", tiny.FORMAT, "tiny"),
):
    TARGETS[_name] = Target(_model(_format, _source), _golden(f"{_source}/config.json"))
TARGETS["config_of_bwetaf"] = Target(
    _model(bwetaf.FORMAT, "bwetaf", "understanding_good_stuff.json"), _golden("bwetaf/understanding_good_stuff.json")
)


def _quantised() -> list[bytes]:
    config = json.loads((GOLDEN / "kodalite/config.json").read_text())
    return [json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}).encode()]


TARGETS["config_of_mlx"] = Target(_model(mlx.FORMAT, "kodalite"), _quantised)


@target(_json({"format": 1, "model": "tiny-lm", "config": {"num_layers": 1}, "tokenizer": None}))
def portable_config(data: bytes, directory: Path) -> object:
    (directory / "zoo.json").write_bytes(data)
    (directory / "model.safetensors").write_bytes(_safetensors()[0])
    return portable.FORMAT.detect(directory) and portable.FORMAT.open(directory).problems()


@target(_json({"peft_type": "LORA", "r": 1, "lora_alpha": 4, "target_modules": ["q_proj"], "revision": None}))
def adapter_config(data: bytes, directory: Path) -> object:
    (directory / "adapter_config.json").write_bytes(data)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"A": (1, 4), "B": (4, 1)}
    tensors = {f"{prefix}.lora_{part}.weight": np.ones(shape, np.float32) for part, shape in shapes.items()}
    files.save_safetensors(directory / "adapter_model.safetensors", tensors)
    return peft.detect(directory) and peft.load(directory)


# ------------------------------------------------------------------------------------------------- tokenizers


def _tokenizer_json() -> list[bytes]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")], unk_token="a"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    words = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return [backend.to_str().encode(), words.to_str().encode()]


def _use(tokenizer) -> object:
    ids = tokenizer.encode(TEXT)
    return tokenizer.decode(ids), tokenizer.fingerprint, tokenizer.prefix_ids, tokenizer.vocab_size


@target(_tokenizer_json)
def tokenizer_json(data: bytes, directory: Path) -> object:
    (directory / "tokenizer.json").write_bytes(data)
    return _use(tokenizers.load(directory))


@target(
    _json(
        {
            "eos_token": "</s>",
            "added_tokens_decoder": {"4": {"content": "<x>", "special": True}},
            "add_bos_token": False,
        },
        {"<|im_start|>": 4},
    )
)
def tokenizer_files(data: bytes, directory: Path) -> object:
    for name in token_files.NAMES:
        (directory / name).write_bytes(data)
    (directory / "tokenizer.json").write_bytes(_tokenizer_json()[0])
    return _use(tokenizers.load(directory))


@target(lambda: [(DATA / "small.model").read_bytes()])
def tokenizer_model(data: bytes, directory: Path) -> object:
    (directory / "tokenizer.model").write_bytes(data)
    return _use(tokenizers.load(directory))


@target(lambda: [b"".join((DATA / "small.tiktoken").read_bytes().splitlines(keepends=True)[:260])])
def tokenizer_tiktoken(data: bytes, directory: Path) -> object:
    (directory / "tokenizer.tiktoken").write_bytes(data)
    return _use(tokenizers.load(directory))


@target(_json({"characters": "".join(sorted(set(TEXT))), "format": 1}))
def tokenizer_characters(data: bytes, directory: Path) -> object:
    (directory / "characters.json").write_bytes(data)
    return _use(tokenizers.load(directory))


# ------------------------------------------------------------------------------------------------- recipes and runs

RECIPE = b"""name: x
model: {name: tiny-lm, num_layers: 1}
data: {source: stories, seq_len: 16, batch_size: 2}
tokenizer: {kind: characters}
optimizer: {warmup_steps: 2, peak_lr: 1e-3}
train: {steps: 9}
"""


@target(lambda: [RECIPE, b"extends: recipe.yaml\nname: &a y\ndescription: *a\n"])
def recipe(data: bytes, directory: Path) -> object:
    (directory / "recipe.yaml").write_bytes(data)
    return load_recipe(directory / "recipe.yaml", check_files=False).to_yaml()


@target(lambda: [b"train.steps=5", b"data.path=[1, 2]", b"model={name: tiny-lm}"])
def override(data: bytes, directory: Path) -> object:
    (directory / "recipe.yaml").write_bytes(RECIPE)
    return load_recipe(directory / "recipe.yaml", [data.decode("utf-8", "surrogateescape")], check_files=False)


@target(lambda: [b'{"step": 1, "loss": 2.5, "tokens": 4, "lr": 0.1}\n{"step": 1, "event": "recipe changed"}\n'])
def metrics(data: bytes, directory: Path) -> object:
    (directory / "metrics.jsonl").write_bytes(data)
    lines = read_metrics(directory / "metrics.jsonl")
    return read_events(directory / "metrics.jsonl"), report.summary(lines)


@target(_json({"format": 1, "step": 3, "evaluation": None, "sample": {"text": "x"}}))
def result(data: bytes, directory: Path) -> object:
    (directory / "result.json").write_bytes(data)
    return layout.read_result(directory)


@target(lambda: [b"# A run\n\n| | |\n|---|---|\n| Model | tiny |\n\n## Evaluation\n\ntext\n"])
def report_page(data: bytes, directory: Path) -> object:
    (directory / "report.md").write_bytes(data)
    return report.read_report(directory)


@target(_json([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]))
def history(data: bytes, directory: Path) -> object:
    (directory / "chat.json").write_bytes(data)
    return chat.read(directory / "chat.json")


@target(_json({"format": 1, "suite": "texts", "model": {}, "tasks": {}}))
def results_of_evaluations(data: bytes, directory: Path) -> object:
    (directory / "a.json").write_bytes(data)
    return compare.read(directory / "a.json")


# ------------------------------------------------------------------------------------------------- data


def _documents(source: str, name: str, kind: str = "text", **fields):
    def read(data: bytes, directory: Path) -> object:
        (directory / name).write_bytes(data)
        section = SourceSection(source=source, path=str(directory / name), **fields)
        return [item for item, _ in zip(documents.read(section, kind), range(1000), strict=False)]

    return read


for _name, _read, _inputs in (
    ("data_jsonl", _documents("jsonl", "d.jsonl"), lambda: [b'{"text": "a b"}\n{"text": "c", "n": 1}\n']),
    ("data_gzip", _documents("jsonl", "d.jsonl.gz"), lambda: [gzip.compress(b'{"text": "a b"}\n', mtime=0)]),
    ("data_text", _documents("text", "d.txt", separator="\n--\n"), lambda: [b"one\n--\ntwo\n"]),
    ("data_parquet", _documents("parquet", "d.parquet"), lambda: [(DATA / "stories.parquet").read_bytes()]),
    (
        "data_chat",
        _documents("jsonl", "d.jsonl", "chat", format="messages"),
        lambda: [b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'],
    ),
):
    TARGETS[_name] = Target(_read, _inputs)


def _manifest() -> list[bytes]:
    shard = {"name": "a.tokens", "documents": 1, "tokens": 2, "items": 1, "sha256": "0" * 64}
    content = {"format": shards.FORMAT, "source": {}, "tokenizer": "0" * 64, "vocab_size": 300, "shard_tokens": 4}
    content |= {"skipped": {}, "exhausted": True, "loss_masks": False, "shards": [shard]}
    return [json.dumps(content).encode()]


@target(_manifest)
def manifest(data: bytes, directory: Path) -> object:
    (directory / shards.MANIFEST).write_bytes(data)
    return shards.read_manifest(directory)


@target(lambda: ["Rayo 2-1 Betis; 23 Pérez; 67 López (Betis); 88 Ibarra".encode()])
def match_line(data: bytes, directory: Path) -> object:
    return match.parse_line(data.decode("utf-8", "replace"))


@target(lambda: [match.to_block(match.parse_line("Rayo 2-1 Betis; 23 Pérez; 67 López (Betis); 88 Ibarra")[0]).encode()])
def match_block(data: bytes, directory: Path) -> object:
    return match.parse_block(data.decode("utf-8", "replace"))


@target(_json({"name": "x", "model": {"name": "tiny-lm"}, "data": {"source": "stories", "seq_len": 16}}))
def recipe_of_python(data: bytes, directory: Path) -> object:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return make_recipe(content, check_files=False) if isinstance(content, dict) else None
