"""Configuration of GeluGPT, the nanochat decoder (github.com/karpathy/nanochat) as gelu-d12 uses it."""

from transformers import PretrainedConfig


class GeluGPTConfig(PretrainedConfig):
    """Sizes and switches of `GeluGPTForCausalLM`; the defaults are those of gelu-d12.

    sequence_len: the rows it was trained on, and the long window. window_pattern: S (a quarter of that) and L,
    repeated over the layers, the last always L. pad_vocab_size_to: the tables' rows are a multiple of it.
    mlp: "gelu" (tanh) or "relu2".
    """

    model_type = "gelu_gpt"
    attribute_map = {  # noqa: RUF012 - transformers wants a plain dictionary
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        sequence_len=1024,
        vocab_size=32768,
        n_layer=12,
        n_head=12,
        n_kv_head=12,
        n_embd=768,
        window_pattern="SSSL",
        tie_embeddings=True,
        rope_base=100000.0,
        pad_vocab_size_to=64,
        mlp="gelu",
        **kwargs,
    ):
        self.sequence_len = sequence_len
        self.vocab_size = vocab_size
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_kv_head = n_kv_head
        self.n_embd = n_embd
        self.window_pattern = window_pattern
        self.tie_embeddings = tie_embeddings
        self.rope_base = rope_base
        self.pad_vocab_size_to = pad_vocab_size_to
        self.mlp = mlp
        kwargs.setdefault("tie_word_embeddings", tie_embeddings)
        super().__init__(**kwargs)
