"""A model that writes what it was told, whatever it reads: for tests of what happens around a model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import registry
from zoo.language_model import LanguageModel
from zoo.layers import kv_cache
from zoo.models.decoder import Decoder, advanced
from zoo.models.llama import LlamaConfig
from zoo.tokenizers import bpe

# So that <|end|> is the five tokens that it is for GPT-2: <, |, end, |, >.
TEXTS = ["(end) [end] {end} =end= the end, user and assistant"] * 3 + ["¡Qué partido! Sí. ✓"] * 3


class Scripted(Decoder):
    """Writes `script` (token ids), each id with certainty, then its last id for ever; every row the same."""

    def __init__(self, config, script):
        self.config = config
        self.script = nnx.Param(jnp.asarray(script, jnp.int32))

    def hidden(self, tokens, *, positions=None, segment_ids=None, cache=None, key=None):
        """The logits themselves. The cache's carry counts the calls: the prompt's is the first."""
        written = self.script[...][jnp.minimum(cache.carry, self.script.shape[0] - 1)]
        logits = jax.nn.one_hot(written, self.config.vocab_size) * 50
        hidden = jnp.broadcast_to(logits[:, None], (*tokens.shape, logits.shape[-1]))
        return hidden, advanced(replace(cache, carry=cache.carry + 1), tokens, segment_ids)

    def unembed(self, hidden):
        """As they are."""
        return hidden

    @property
    def dtype(self):
        """Of the logits."""
        return jnp.float32

    def init_cache(self, batch, max_len, dtype=jnp.float32):
        """Of hardly anything: one layer, one head, one feature."""
        return kv_cache.init_cache(1, batch, max_len, 1, 1, dtype, carry=jnp.zeros(batch, jnp.int32))


def scripted_lm(text, *, name="kodalite-1.3b", max_seq_len=256, end=True):
    """A LanguageModel that writes `text`, then (if `end`) its EOS."""
    tokenizer = bpe.train(TEXTS, 280, eos_token="<|endoftext|>")
    assert len(tokenizer.encode("<|end|>")) == 5
    sizes = dict(vocab_size=tokenizer.vocab_size, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8)
    config = LlamaConfig(**sizes, mlp_dim=8, max_seq_len=max_seq_len)
    script = tokenizer.encode(text) + [tokenizer.eos_id] * end
    return LanguageModel(Scripted(config, script), tokenizer, registry.describe(name), config)
