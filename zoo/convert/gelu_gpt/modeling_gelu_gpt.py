"""GeluGPT in PyTorch: the nanochat decoder (github.com/karpathy/nanochat) as gelu-d12 uses it.

    e = norm(table[tokens]);  x = e + smear * gate(e) * (e of the token before);  x0 = x
    each block: x = a x + b x0;  x = x + attention(norm(x));  x = x + mlp(norm(x))
    logits = 15 tanh(head(norm(x - c * (x after the middle block))) / 15)

norm is RMSNorm without gain. Queries and keys are normalised after the rotation; most layers see a window; every
second layer adds value embeddings to its values. See docs/models/gelu-d12.md of zoo for the equations.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_gelu_gpt import GeluGPTConfig

NORM_EPS = 1e-6
QK_SCALE = 1.2
LOGIT_CAP = 15.0
SMEAR_FEATURES = 24
VALUE_GATE_FEATURES = 12

# transformers renamed past_key_values to cache (5.24); outputs carry the cache under the name of the version in use.
CACHE_NAME = next(
    name
    for name in ("cache", "past_key_values")
    if name in (field.name for field in dataclasses.fields(CausalLMOutputWithPast))
)
# What tokenizers, `generate` and trainers hand to every model and this one has no use for.
UNUSED_ARGUMENTS = ("token_type_ids", "cache_position", "num_items_in_batch")


def norm(x):
    """RMSNorm over the last axis, without gain."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rotate(x, cos, sin):
    """Rotary positions on halves of each head, x [B, T, N, H]; the angle turns the other way than in Llama."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def windows(config):
    """How many tokens before its own a query of each layer sees."""
    short = 128 * math.ceil(math.ceil(config.sequence_len / 4) / 128)
    sizes = {"S": short, "L": config.sequence_len}
    pattern = config.window_pattern
    return [sizes[pattern[i % len(pattern)]] for i in range(config.n_layer - 1)] + [config.sequence_len]


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys, and gated value embeddings on some layers."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, config.n_head, config.n_kv_head
        self.head_dim = config.n_embd // config.n_head
        self.c_q = nn.Linear(config.n_embd, self.heads * self.head_dim, bias=False)
        self.c_k = nn.Linear(config.n_embd, self.kv_heads * self.head_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, self.kv_heads * self.head_dim, bias=False)
        self.c_proj = nn.Linear(self.heads * self.head_dim, config.n_embd, bias=False)
        if layer % 2 == (config.n_layer - 1) % 2:
            self.ve_gate = nn.Linear(VALUE_GATE_FEATURES, self.kv_heads, bias=False)

    def qkv(self, x, value_embedding, cos, sin):
        """q, k [B, T, N or K, H] rotated and normalised, v [B, T, K, H] with its value embedding."""
        batch, length, _ = x.shape
        q = self.c_q(x).view(batch, length, self.heads, self.head_dim)
        k = self.c_k(x).view(batch, length, self.kv_heads, self.head_dim)
        v = self.c_v(x).view(batch, length, self.kv_heads, self.head_dim)
        if value_embedding is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :VALUE_GATE_FEATURES]))
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        return QK_SCALE * norm(rotate(q, cos, sin)), QK_SCALE * norm(rotate(k, cos, sin)), v

    def attend(self, q, k, v, mask):
        """q [B, N, T, H] over k, v [B, K, S, H] where mask [B, 1, T, S] is true; the result [B, T, D]."""
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Up, activation, down."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.squared = config.mlp == "relu2"

    def forward(self, x):
        """[B, T, D] to [B, T, D]."""
        x = self.c_fc(x)
        return self.c_proj(F.relu(x).square() if self.squared else F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """The parameters of one block."""

    def __init__(self, config, layer):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)


class GeluGPTPreTrainedModel(PreTrainedModel):
    """Loading and saving."""

    config_class = GeluGPTConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True
    # Other programs store their rotary tables; here they are computed.
    _keys_to_ignore_on_load_unexpected = [r"model\.rope_(cos|sin)"]  # noqa: RUF012


class GeluGPTModel(GeluGPTPreTrainedModel):
    """Token ids to final hidden states.

    The cache is an ordinary `DynamicCache`. Keys are kept rotated and normalised. The smear needs the embedding of
    the token before, un-smeared: layer 0 keeps it beside its values, as n_head more heads, so that whatever
    generation does to a cache (reordering, repeating, cropping) is done to it as well.
    """

    def __init__(self, config):
        super().__init__(config)
        rows = -(-config.vocab_size // config.pad_vocab_size_to) * config.pad_vocab_size_to
        self.wte = nn.Embedding(rows, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        width = config.n_kv_head * (config.n_embd // config.n_head)
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(rows, width) for i in range(config.n_layer) if i % 2 == (config.n_layer - 1) % 2}
        )
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = nn.Linear(SMEAR_FEATURES, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self.windows = windows(config)
        self.post_init()

    def get_input_embeddings(self):
        """The token table."""
        return self.wte

    def set_input_embeddings(self, value):
        """Replace the token table."""
        self.wte = value

    def forward(self, input_ids, attention_mask=None, cache=None, position_ids=None):
        """Hidden states [B, T, D] and the cache. attention_mask: 1 = token, 0 = padding on the left.

        Positions follow from the mask; ValueError where `position_ids` [B, T] are others.
        """
        past = 0 if cache is None else cache.get_seq_length()
        batch, length = input_ids.shape
        total = past + length
        valid = torch.ones(batch, total, dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            valid[:, :] = attention_mask[:, :total].bool()
        positions = (valid.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        if position_ids is not None and ((position_ids != positions) & valid[:, past:]).any():
            raise ValueError("GeluGPT counts positions from the first token that is no padding; leave position_ids out")
        cos, sin = self._tables(positions)
        distance, seen = self._distances(valid, past)

        embedded = norm(self.wte(input_ids))
        x = x0 = self._smear(embedded, self._last_embedding(cache, past), valid, past)
        for i, block in enumerate(self.blocks):
            value_embedding = self.value_embeds[str(i)](input_ids) if str(i) in self.value_embeds else None
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            q, k, v = (part.transpose(1, 2) for part in block.attn.qkv(norm(x), value_embedding, cos, sin))
            if cache is not None:
                if i == 0:
                    v = torch.cat((v, self._as_heads(embedded)), dim=1)
                k, v = cache.update(k, v, i)
                v = v[:, : block.attn.kv_heads]
            mask = seen & (distance <= self.windows[i])
            x = x + block.attn.attend(q, k, v, mask.unsqueeze(1))
            x = x + block.mlp(norm(x))
            if i == self.config.n_layer // 2:
                middle = x
        return norm(x - self.backout_lambda * middle), cache

    def _as_heads(self, embedded):
        """[B, T, D] as [B, n_head, T, head_dim]."""
        batch, length, _ = embedded.shape
        return embedded.view(batch, length, self.config.n_head, -1).transpose(1, 2)

    def _last_embedding(self, cache, past):
        """The un-smeared embedding [B, 1, D] of the last cached token; None at the beginning."""
        if not past:
            return None
        layers = getattr(cache, "layers", None)
        values = layers[0].values if layers is not None else cache.value_cache[0]
        return values[:, self.config.n_kv_head :, -1:].transpose(1, 2).flatten(2)

    def _smear(self, embedded, before, valid, past):
        if before is None:
            before = torch.zeros_like(embedded[:, :1])
        previous = torch.cat((before.to(embedded.dtype), embedded[:, :-1]), dim=1)
        # A row that begins after padding has nothing before its first token.
        there = F.pad(valid, (1, 0))[:, past : past + embedded.shape[1]].unsqueeze(-1)
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(embedded[..., :SMEAR_FEATURES]))
        return embedded + gate * torch.where(there, previous, 0)

    def _tables(self, positions):
        """cos and sin [B, T, 1, head_dim / 2], computed in float32 from each token's place [B, T] in its text."""
        head_dim = self.config.n_embd // self.config.n_head
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        angles = positions.unsqueeze(-1).float() * (1.0 / self.config.rope_base**powers)
        dtype = self.wte.weight.dtype
        return angles.cos().unsqueeze(2).to(dtype), angles.sin().unsqueeze(2).to(dtype)

    def _distances(self, valid, past):
        """How far each key lies before each query [T, S], and whether it may be seen at all [B, T, S]."""
        index = torch.arange(valid.shape[1], device=valid.device)
        distance = index[past:, None] - index[None, :]
        # Padding sees itself, so that no row of the softmax is empty.
        return distance, (distance >= 0) & (valid[:, None, :] | (distance == 0))


class GeluGPTForCausalLM(GeluGPTPreTrainedModel, GenerationMixin):
    """Token ids to soft-capped float32 logits; `generate` works with its cache, padded batches included."""

    def __init__(self, config):
        super().__init__(config)
        self.model = GeluGPTModel(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, self.model.wte.num_embeddings, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        """The token table."""
        return self.model.wte

    def set_input_embeddings(self, value):
        """Replace the token table."""
        self.model.wte = value

    def get_output_embeddings(self):
        """The head, None where the token table is the head."""
        return getattr(self, "lm_head", None)

    def forward(
        self,
        input_ids,
        attention_mask=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        position_ids=None,
        cache=None,
        **kwargs,
    ):
        """Logits [B, T, V]; with `labels` (-100 is left out) also the mean loss of each token after the first.

        `past_key_values` and `cache` are two names of one argument. Raises TypeError for arguments that would change
        the result and that this model does not have; ValueError for a cache or mask of a kind that it cannot use.
        """
        for name, value in kwargs.items():
            if value is not None and value is not False and name not in UNUSED_ARGUMENTS:
                raise TypeError(f"GeluGPTForCausalLM.forward has no argument {name!r}")
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise TypeError("cache and past_key_values are two names of one argument; give one")
        cache = past_key_values if cache is None else cache
        if cache is not None and (not isinstance(cache, Cache) or getattr(cache, "is_compileable", False)):
            raise ValueError(f"GeluGPT needs a DynamicCache that grows, not a {type(cache).__name__}")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("GeluGPT needs an attention_mask [B, S] of 1 (token) and 0 (padding)")
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True)
        if cache is None and use_cache and not self.training:
            cache = DynamicCache()
        hidden, cache = self.model(input_ids, attention_mask, cache, position_ids)
        if isinstance(logits_to_keep, int):
            logits_to_keep = slice(-logits_to_keep if logits_to_keep else None, None)
        head = self.model.wte.weight if self.config.tie_embeddings else self.lm_head.weight
        logits = F.linear(hidden[:, logits_to_keep], head)[..., : self.config.vocab_size].float()
        logits = LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        if return_dict is False:
            return tuple(part for part in (loss, logits, cache) if part is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE_NAME: cache})
