"""The same training in PyTorch, from the same parameters, eager and compiled.

KodaLite and crónica are transformers' LlamaForCausalLM, loaded from zoo's export; BwETAF and gelu-d12 are written here
as one would write them in PyTorch, from their descriptions. Attention is F.scaled_dot_product_attention everywhere,
the optimizer torch's AdamW (fused on a GPU), the precision the recipe's: float32, or autocast over float32 masters.
"""

import tempfile
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from timing import Way
from torch import nn

from zoo.language_model import LanguageModel
from zoo.layers.rotary import rotary_tables
from zoo.models import build
from zoo.train.program import Program

HOWS = ("eager", "compiled")
LLAMAS = ("cronica-5m", "kodalite-1.3b")


def torch_ways(program: Program, batch: dict[str, np.ndarray]) -> dict[str, Way]:
    """A training step eager and compiled, each with a model of its own."""
    section = program.recipe.optimizer
    if section.name != "adamw" or section.betas or section.weight_decays or program.frozen:
        raise SystemExit("--vs torch: it trains all parameters by AdamW without groups; the recipe does not")
    return {f"torch {how}": _way(program, batch, how) for how in HOWS}


def _way(program: Program, batch: dict[str, np.ndarray], how: str) -> Way:
    device = "cuda" if torch.cuda.is_available() and jax.devices()[0].platform == "gpu" else "cpu"
    training = Training(_model(program)).to(device)
    step_loss = torch.compile(training) if how == "compiled" else training
    section, dtype = program.recipe.optimizer, getattr(torch, np.dtype(program.compute_dtype).name)
    optimizer = torch.optim.AdamW(
        training.parameters(),
        lr=section.peak_lr,
        betas=(section.b1, section.b2),
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=device == "cuda",
    )
    tokens, targets = (torch.from_numpy(batch[name].astype(np.int64)).to(device) for name in ("tokens", "targets"))
    targets = targets.masked_fill(torch.from_numpy(batch["loss_mask"] == 0).to(device), -100)
    mask = None
    if "segment_ids" in batch:
        ids = torch.from_numpy(batch["segment_ids"]).to(device)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        mask = ((ids[:, :, None] == ids[:, None]) & causal)[:, None]

    def run():
        for group in optimizer.param_groups:
            group["lr"] = float(program.schedule(len(way.losses)))
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = step_loss(tokens, targets, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if section.clip_norm is not None:
            nn.utils.clip_grad_norm_(training.parameters(), section.clip_norm)
        optimizer.step()
        way.losses.append(loss.detach())
        if device == "cuda":
            torch.cuda.synchronize()

    way = Way(run)
    return way


class Training(nn.Module):
    """The mean loss of a batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets, mask):
        logits = self.model(tokens, mask)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _model(program: Program) -> nn.Module:
    """With the parameters that the program begins with."""
    graphdef, params = build.create_params(
        program.spec.model_class(), program.config, program.recipe.train.seed, dtype="float32"
    )
    if program.spec.name in OWN:
        flat = {path: np.asarray(leaf) for path, leaf in build.flatten(params).items()}
        return OWN[program.spec.name](program.config, flat)
    if program.spec.name not in LLAMAS:
        raise SystemExit(f"--vs torch: there is no {program.spec.name} in PyTorch here")
    import transformers

    lm = LanguageModel(nnx.merge(graphdef, params), None, program.spec, program.config)
    with tempfile.TemporaryDirectory() as directory:
        lm.export(f"{directory}/hf", "hf")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            f"{directory}/hf", dtype=torch.float32, attn_implementation="sdpa"
        )
    return Transformers(model)


class Transformers(nn.Module):
    """A transformers model, called as those below."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, tokens, mask):
        return self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


def _linear(flat, path) -> nn.Linear:
    kernel, bias = flat[f"{path}/kernel"], flat.get(f"{path}/bias")
    layer = nn.Linear(*kernel.shape, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias.copy()))
    return layer


def _parameter(flat, path) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(flat[path])))


def _tables(length, width, theta, dtype="float32"):
    cos, sin = rotary_tables(jax.numpy.arange(length), width, theta, jax.numpy.dtype(dtype))
    return tuple(torch.from_numpy(np.array(table, np.float32)) for table in (cos, sin))


def _rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class BwetafBlock(nn.Module):
    def __init__(self, config, flat, prefix):
        super().__init__()
        self.config = config
        self.q, self.k, self.v, self.o = (_linear(flat, f"{prefix}/attn/{name}") for name in "qkvo")
        self.up_gate, self.down = (_linear(flat, f"{prefix}/mlp/{name}") for name in ("up_gate", "down"))
        self.attn_norm, self.mlp_norm = (_parameter(flat, f"{prefix}/{name}_norm/scale") for name in ("attn", "mlp"))

    def forward(self, x, q_tables, k_tables, mask):
        c, (rows, length, width) = self.config, x.shape
        h = F.rms_norm(x, (width,), self.attn_norm, c.norm_eps)
        q, k, v = _rotate(self.q(h), *q_tables), _rotate(self.k(h), *k_tables), self.v(h)
        q, k, v = (y.view(rows, length, -1, c.head_dim).transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        out = self.o(out.transpose(1, 2).flatten(2))
        x = x + F.dropout(out, c.dropout, self.training)
        up, gate = self.up_gate(F.rms_norm(x, (width,), self.mlp_norm, c.norm_eps)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Bwetaf(nn.Module):
    """BwETAF: rotary over the full width of embedding, queries and keys, a tied head, no final norm."""

    def __init__(self, config, flat):
        super().__init__()
        self.embed = _parameter(flat, "embed/embedding")
        self.layers = nn.ModuleList(BwetafBlock(config, flat, f"layers/{i}") for i in range(config.num_layers))
        for name, width in (
            ("x", config.embed_dim),
            ("q", config.num_heads * config.head_dim),
            ("k", config.num_kv_heads * config.head_dim),
        ):
            cos, sin = _tables(config.max_seq_len, width, config.rope_theta, config.rope_dtype)
            self.register_buffer(f"cos_{name}", cos, persistent=False)
            self.register_buffer(f"sin_{name}", sin, persistent=False)

    def forward(self, tokens, mask):
        def table(name):
            return tuple(getattr(self, f"{kind}_{name}")[: tokens.shape[1]] for kind in ("cos", "sin"))

        x = _rotate(F.embedding(tokens, self.embed), *table("x"))
        for block in self.layers:
            x = block(x, table("q"), table("k"), mask)
        return F.linear(x, self.embed)


class NanochatBlock(nn.Module):
    def __init__(self, config, flat, prefix):
        super().__init__()
        self.config = config
        self.q, self.k, self.v, self.o = (_linear(flat, f"{prefix}/attn/{name}") for name in "qkvo")
        self.up, self.down = (_linear(flat, f"{prefix}/mlp/{name}") for name in ("up", "down"))
        self.residual_scale = _parameter(flat, f"{prefix}/blend/residual_scale")
        self.x0_scale = _parameter(flat, f"{prefix}/blend/x0_scale")
        self.mixes = f"{prefix}/value_embed/embedding" in flat
        if self.mixes:
            self.value_embed = _parameter(flat, f"{prefix}/value_embed/embedding")
            self.value_gate = _linear(flat, f"{prefix}/attn/value_gate")

    def forward(self, x, x0, tokens, cos, sin, mask):
        c, (rows, length, width) = self.config, x.shape
        x = self.residual_scale * x + self.x0_scale * x0
        h = F.rms_norm(x, (width,), eps=c.norm_eps)
        q, k, v = (layer(h).view(rows, length, -1, c.head_dim) for layer in (self.q, self.k, self.v))
        if self.mixes:
            gate = 3 * torch.sigmoid(self.value_gate(h[..., : self.value_gate.in_features]))
            v = v + gate[..., None] * F.embedding(tokens, self.value_embed).view(v.shape)
        q, k = (_rotate(y, cos[:, None], sin[:, None]) for y in (q, k))
        q, k = (c.qk_norm_scale * F.rms_norm(y, (c.head_dim,), eps=c.norm_eps) for y in (q, k))
        q, k, v = (y.to(v.dtype).transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        h = F.gelu(self.up(F.rms_norm(x, (width,), eps=c.norm_eps)), approximate="tanh")
        return x + self.down(h)


class Nanochat(nn.Module):
    """gelu-d12, with all that its page names: smear, value embeddings, windows, blended stream, backout, soft-cap."""

    def __init__(self, config, flat):
        super().__init__()
        self.config = config
        self.embed = _parameter(flat, "embed/embedding")
        self.smear_gate, self.smear_scale = _linear(flat, "smear/gate"), _parameter(flat, "smear/scale")
        self.backout = _parameter(flat, "backout/scale")
        self.layers = nn.ModuleList(NanochatBlock(config, flat, f"layers/{i}") for i in range(config.num_layers))
        cos, sin = _tables(config.max_seq_len, config.head_dim, config.rope_theta, config.rope_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", -sin, persistent=False)

    def forward(self, tokens, mask):
        c, length = self.config, tokens.shape[1]
        distance = torch.arange(length, device=tokens.device)
        distance = distance[:, None] - distance
        x = F.rms_norm(F.embedding(tokens, self.embed), (c.embed_dim,), eps=c.norm_eps)
        gate = torch.sigmoid(self.smear_gate(x[..., : self.smear_gate.in_features]))
        x = x + self.smear_scale * gate * F.pad(x[:, :-1], (0, 0, 1, 0))
        x0 = middle = x
        for i, (block, window) in enumerate(zip(self.layers, c.windows(), strict=True)):
            seen = mask
            if window is not None and window < length - 1:
                near = (distance >= 0) & (distance <= window)
                seen = near if mask is None else mask & near
            x = block(x, x0, tokens, self.cos[:length], self.sin[:length], seen)
            if i == c.num_layers // 2:
                middle = x
        x = F.rms_norm(x - self.backout * middle, (c.embed_dim,), eps=c.norm_eps)
        logits = F.linear(x, self.embed[: c.vocab_size]).float()
        return c.logit_softcap * torch.tanh(logits / c.logit_softcap)


OWN = {"bwetaf-97m": Bwetaf, "gelu-d12": Nanochat}
