"""GGUF files of Llama-shaped models, as llama.cpp reads them (github.com/ggml-org/llama.cpp), and back.

llama.cpp turns neighbouring pairs of a head where zoo's Llama turns its halves, so q and k are permuted. Needs the
package `gguf` (pip install 'zoo-nnx[gguf]'). Q4_K_M is made by llama.cpp's own quantiser, where its programs or
llama-cpp-python are installed.
"""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.convert import base, files, gguf_files, gguf_tokenizer
from zoo.convert.base import Published, Rule, Rules, Tensor
from zoo.convert.format import Exported, Format, HubFiles
from zoo.convert.layouts import AS_IS, TRANSPOSED, Layout, interleaved
from zoo.convert.llama_shaped import LlamaShaped, as_llama, refusal
from zoo.errors import UserError
from zoo.layers.rotary import ntk_theta
from zoo.util import atomic_write, first_line

MODEL_NAME = "kodalite-1.3b"
TYPES = ("F16", "Q8_0", "Q4_K_M")
QUANTISER = "llama-quantize"  # llama.cpp's program

TOP_NAMES = {"embed/embedding": "token_embd.weight", "final_norm/scale": "output_norm.weight"}
LAYER_NORMS = {"attn_norm/scale": "attn_norm.weight", "mlp_norm/scale": "ffn_norm.weight"}
LAYER_LINEARS = {
    "attn/q": "attn_q",
    "attn/k": "attn_k",
    "attn/v": "attn_v",
    "attn/o": "attn_output",
    "mlp/gate": "ffn_gate",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
}
BIASES = {"attention_bias": ("attn/q", "attn/k", "attn/v"), "attention_out_bias": ("attn/o",)}

# Fields that change what llama.cpp computes of a Llama, and the values at which they do not.
NEUTRAL = {
    "llama.attention.sliding_window": (0,),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.attention.causal": (True,),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.logit_scale": (0.0, 1.0),
    "llama.expert_count": (0,),
    "llama.use_parallel_residual": (False,),
}


def detect(path: str | os.PathLike) -> bool:
    """Returns whether `path` is a GGUF file, or a directory with such files and no safetensors."""
    path = Path(path)
    if path.is_dir():
        return not files.has_safetensors(path) and any(path.glob("*.gguf"))
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == gguf_files.MAGIC


def open_published(path: str | os.PathLike) -> Published:
    """Opens what lies at `path`; no array is read. Raises UserError if it is no Llama or does not fit."""
    gguf = _package()
    parts = gguf_files.find(Path(path))
    file = parts[0]
    fields, tensors = gguf_files.read(gguf, parts)
    try:
        config = _read_config(fields, file, tensors)
        ends = (fields.get(f"tokenizer.ggml.{part}_token_id") for part in ("eos", "eot", "eom"))
        eos_ids = tuple(dict.fromkeys(int(i) for i in ends if i is not None))
    except UserError:
        raise
    except Exception as error:  # fields of another type than llama.cpp's
        raise UserError(f"{file}: cannot be read as GGUF ({first_line(error)})") from None
    base.check_layers(config, tensors, file)
    return Published(
        kind="GGUF (llama.cpp)",
        file=file,
        model_name=MODEL_NAME,
        config=config,
        tensors=tensors,
        rules=rules(config),
        eos_ids=eos_ids,
    )


def write(model: Exported, directory: Path, *, quantization: str | None = None) -> None:
    """Writes `<name>-<quantization>.gguf`, and a Modelfile where there is a chat template.

    `quantization` is one of TYPES, F16 by default; norms and biases stay float32. Raises UserError for what llama.cpp
    does not compute.
    """
    gguf, kind, llama = _package(), quantization or "F16", as_llama(model)
    if kind not in TYPES:
        raise UserError(f"gguf: there is no type {kind!r} here; known: {', '.join(TYPES)}")
    quantise = _quantiser() if kind == "Q4_K_M" else None
    if llama.config.mlp_bias:
        raise UserError("model.mlp_bias: llama.cpp's Llama has no biases in its MLP")
    if llama.config.rope_dtype != "float32":
        raise UserError("model.rope_dtype: llama.cpp computes rotary angles in float32; load with rope_dtype='float32'")
    file = directory / f"{model.name}-{kind}.gguf"
    if quantise is None:
        _write(gguf, file, llama, kind)
    else:
        unquantised = directory / f"{model.name}-F16.gguf"
        _write(gguf, unquantised, llama, "F16")
        failure = quantise(unquantised, file)
        unquantised.unlink()
        if failure is not None:
            raise UserError(f"gguf: llama.cpp could not quantise the model: {failure}; take Q8_0 or F16")
    if llama.template is not None:
        atomic_write(directory / "Modelfile", _modelfile(file.name, llama))


def _modelfile(file: str, model: LlamaShaped) -> str:
    """Returns the text of Ollama's Modelfile for a model with a chat template."""
    ends = [*model.stop_strings, *([model.only_token] if model.only_token else [])]
    settings = {name: value for name, value in (model.sampling or {}).items() if name in ("temperature", "top_k")}
    parameters = [("stop", json.dumps(end)) for end in ends] + [
        *settings.items(),
        ("num_ctx", model.config.max_seq_len),
    ]
    lines = [f"PARAMETER {name} {value}" for name, value in parameters]
    return "\n".join([f"FROM ./{file}", f'TEMPLATE """{model.template.go}"""', *lines]) + "\n"


def _quantiser() -> Callable[[Path, Path], str | None]:
    """Returns llama.cpp's quantiser to Q4_K_M, a program or a library: (source, target) -> the failure, or None."""
    program = shutil.which(QUANTISER)
    if program is not None and os.path.isabs(program):  # a PATH with an empty entry finds it in the working directory

        def run(source: Path, target: Path) -> str | None:
            result = subprocess.run(
                [program, source, target, "Q4_K_M"], capture_output=True, text=True, errors="replace"
            )
            return (result.stderr.strip().splitlines() or ["no reason given"])[-1] if result.returncode else None

        return run
    try:
        import llama_cpp
    except ImportError:
        raise UserError(
            f"gguf: Q4_K_M is made by llama.cpp, but neither its {QUANTISER} is on the path nor the package "
            "llama-cpp-python installed; install one, or take Q8_0 or F16"
        ) from None

    def call(source: Path, target: Path) -> str | None:
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
        return f"error {code}" if code else None

    return call


def rules(config: Mapping[str, Any]) -> Rules:
    """Returns where each parameter of a Llama of this config stands, such as "blk.0.attn_q.weight"."""
    table = {path: Rule(name) for path, name in TOP_NAMES.items()}
    with_bias = {module for switch, modules in BIASES.items() if config[switch] for module in modules}
    pairs = interleaved(config["head_dim"])
    turned = Layout(lambda x: pairs.from_file(x.T), lambda x: pairs.to_file(x).T, lambda shape: shape[::-1])
    for i in range(config["num_layers"]):
        for path, name in LAYER_NORMS.items():
            table[f"layers/{i}/{path}"] = Rule(f"blk.{i}.{name}")
        for path, name in LAYER_LINEARS.items():
            rotated = path in ("attn/q", "attn/k")
            table[f"layers/{i}/{path}/kernel"] = Rule(f"blk.{i}.{name}.weight", turned if rotated else TRANSPOSED)
            if path in with_bias:
                table[f"layers/{i}/{path}/bias"] = Rule(f"blk.{i}.{name}.bias", pairs if rotated else AS_IS)
    if not config["tie_embeddings"]:
        table["lm_head/kernel"] = Rule("output.weight", TRANSPOSED)
    return table


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf; pip install 'zoo-nnx[gguf]'") from None
    return gguf


def _read_config(fields: Mapping[str, Any], file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{file}: general.architecture is {fields.get('general.architecture')!r}; zoo reads llama")
    _refuse_other_models(fields, file)
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    config = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "num_layers": fields["llama.block_count"],
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length", width // heads),
        "mlp_dim": fields["llama.feed_forward_length"],
        "max_seq_len": fields["llama.context_length"],
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "norm_eps": _shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
        "tie_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in tensors,
    }
    return base.full_config(MODEL_NAME, config)


def _refuse_other_models(fields: Mapping[str, Any], file: Path) -> None:
    """Raises UserError, naming the field, for what llama.cpp computes and zoo's Llama does not."""
    kind = fields.get("llama.rope.scaling.type")
    # llama.cpp scales linearly where a factor stands without a type, as older files have it.
    names = [name for name in ("llama.rope.scaling.factor", "llama.rope.scale_linear") if fields.get(name)]
    if kind not in (None, "none", "linear"):
        raise UserError(f"{file}: llama.rope.scaling.type is {kind!r}; zoo's Llama has no such thing")
    if kind != "none" and names and fields[names[0]] != 1:
        raise UserError(f"{file}: {names[0]} is {fields[names[0]]:g}; zoo's Llama has no scaled positions")
    head_dim = fields["llama.embedding_length"] // fields["llama.attention.head_count"]
    head_dim = fields.get("llama.attention.key_length", head_dim)
    same = dict.fromkeys(("llama.attention.value_length", "llama.rope.dimension_count"), (head_dim,))
    for name, values in (NEUTRAL | same).items():
        if name in fields and fields[name] not in values:
            raise UserError(f"{file}: {name} is {fields[name]}; zoo's Llama has no such thing")


def _shortest(value: float) -> float:
    """Returns the shortest decimal that is this float32: GGUF stores no wider ones."""
    return float(str(np.float32(value)))


def _write(gguf: Any, file: Path, model: LlamaShaped, kind: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(model.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(ntk_theta(config.rope_theta, config.rope_ntk_factor, config.head_dim))
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "Q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if model.tokenizer is not None:
        gguf_tokenizer.write(gguf, writer, model.tokenizer, model)
    for tensor, array in base.to_original(rules(config.to_dict()), model.params).items():
        array = np.asarray(array, np.float32)
        if array.ndim == 1:
            writer.add_tensor(tensor, array)
        elif kind == "Q8_0":
            if array.shape[-1] % 32:
                raise UserError(f"gguf: {tensor} has rows of {array.shape[-1]}, and Q8_0 takes blocks of 32; take F16")
            # A block's scale is its largest number, divided by 127, in float16.
            base.cast_array(np.abs(array).max(initial=0, keepdims=True) / 127, np.float16, f"gguf: 1/127 of {tensor}")
            stored = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor, gguf.quants.quantize(array, stored), raw_dtype=stored)
        else:
            writer.add_tensor(tensor, base.cast_array(array, np.float16, f"gguf: {tensor}"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _hub_files(names: Sequence[str]) -> list[str]:
    names = [name for name in names if "/" not in name]
    chosen = gguf_files.choose(names)
    return [] if chosen is None else [name for name in gguf_files.part_names(chosen) if name in names]


FORMAT = Format(
    name="gguf",
    detect=detect,
    open=open_published,
    write=write,
    accepts=partial(refusal, "gguf"),
    options=("quantization",),
    own_dtypes=True,
    official=False,
    community=True,
    hub_files=(HubFiles(40, _hub_files),),
    tokenizer_file=None,
    opened_by="llama.cpp, Ollama (with the Modelfile, where there is one) and what builds on them",
)
