"""The specs of the built-in models, with every fact that their authors publish. Loads no JAX.

A new model takes a module beside this one and a spec here, listed in `ALL`.
"""

from zoo.models.spec import ModelSpec

CRONICA_5M = ModelSpec(
    name="cronica-5m",
    summary="Spanish football match reports in 8 regional styles, from a block of statistics",
    cls="zoo.models.cronica:Cronica",
    config_cls="zoo.models.cronica:CronicaConfig",
    tokenizer="byte-level BPE, 8,000 entries, 16 of them special tokens (tokenizer.json)",
    source="https://huggingface.co/DanielRegaladoCardoso/cronica-jax-5m",
    licence="Apache-2.0",
    dataset="cronicas-d2t (Apache-2.0): 5,000 pairs, 1,074,312 words, 8 styles",
    tokens_seen="about 1.4M in the texts, 2,000 steps x 8 x 768 positions over them",
    tokens_per_param=0.28,
    facts={
        "parameters": "5,261,568",
        "context": "768 tokens",
        "trained": "2,000 steps x 8 x 768 tokens, AdamW, peak 3e-4, warm-up 100, weight decay 0.1, clip 1.0",
        "hardware": "Apple M4 CPU, about 28 minutes, 6,940 tokens/s",
        "final loss": "2.80 (perplexity 16.4)",
        "published generation, held out, n=12": "home 16.7%, away 25.0%, scorers 0 of 39, score 0%",
        "published style": "apasionado 100%, literario 100%, comentario_tecnico 50%",
        "files": "tokenizer.json, ckpt_002000.pkl",
        "limits": "hallucinated context, coverage of leagues, style overlap",
    },
    sampling={"max_new_tokens": 300, "temperature": 0.85, "top_k": 50, "top_p": 0.9},
    task="cronicas",
)

BWETAF_97M = ModelSpec(
    name="bwetaf-97m",
    summary="BwETAFv3: rotary positions over the full width and at the embedding, no final norm",
    cls="zoo.models.bwetaf:Bwetaf",
    config_cls="zoo.models.bwetaf:BwetafConfig",
    tokenizer="its own BPE, 16,384 entries, special tokens <|UK|> and <|EOS|> (tokenizer/yap.json)",
    source="https://huggingface.co/WICKED4950/BwETAFv3-97M",
    dataset="FineWeb for training and validation, TinyStories for training alone",
    tokens_seen="3,390,046,208 (6,466 steps x 256 x 2,048)",
    tokens_per_param=34.73,
    facts={
        "parameters": "97,609,728",
        "context": "2,048 tokens",
        "trained": "bfloat16, 6e-4 to a peak of 1.5e-3 over the first 2%, cosine to 1.8e-4, weight decay 0.1, "
        "b1 0.95, b2 0.98, eps 1.5e-8, moments in bfloat16, dropout 0.05",
        "hardware": "TPU v3-8, 4.82 hours, about 195k tokens/s",
        "validation loss": "3.02",
        "rope dtype": "bfloat16 (rope_dtype; with float32 tables the weights compute another function)",
        "licence of its package": "MIT (classifier)",
        "use": "research and experimentation",
        "files": "good_stuff.pkl, understanding_good_stuff.json, make_stuff_better.pkl, stats.json, "
        "tokenizer/yap.json, tokenizer/understanding_yap.json",
    },
    # Its program goes on after the end of a document.
    sampling={"max_new_tokens": 128, "temperature": 0.8, "top_p": 0.92, "ignore_eos": True},
)

GELU_D12 = ModelSpec(
    name="gelu-d12",
    summary="nanochat's stack with GELU: value embeddings, smear, backout, x0 blend, windows",
    cls="zoo.models.nanochat:Nanochat",
    config_cls="zoo.models.nanochat:NanochatConfig",
    tokenizer="that of Mistral-7B-v0.1, 32,000 entries (the table has 32,768 rows)",
    source="https://huggingface.co/mlnomad/gelu-d12-chinchilla-261M-pytorch",
    licence="Apache-2.0",
    dataset="allenai/c4, English",
    tokens_seen="5.22B (19,920 steps x 256 x 1,024)",
    tokens_per_param=20.0,
    facts={
        "parameters": "261,096,338",
        "context": "1,024 tokens",
        "trained": "19,920 steps x 256 x 1,024 tokens, AdamW, peak 0.01, warm-up and cosine; "
        "betas, eps, weight decay and length of the warm-up not stated",
        "hardware": "TPU v6e-8, 2.03 hours, 703k to 717k tokens/s",
        "final loss": "3.0745 (smoothed 3.1106)",
        "final loss, three seeds": "mean 3.0955 +- 0.028 (smoothed 3.1155 +- 0.008: 3.1106, 3.1097, 3.1261)",
        "wikitext-103 test": "loss 3.840, perplexity 46.52, about 330K tokens",
        "LAMBADA": "18.4% (perplexity 42.0)",
        "HellaSwag": "31.4%",
        "ARC-Easy": "34.5%",
        "parity": "Flax to torch 1.3e-5, cached to full under 3e-5",
        "card's sampling": "50 new tokens, temperature 0.8, top-p 0.9",
        "files": "config.json, generation_config.json, model.safetensors (1.04 GB, float32), torch_gpt.py, "
        "configuration_gelu_gpt.py, modeling_gelu_gpt.py",
        "files, Orbax with optimizer": "https://huggingface.co/mlnomad/gelu-d12-chinchilla-261M",
    },
    sampling={"max_new_tokens": 50, "temperature": 0.8, "top_p": 0.9},
    tokenizer_repo="mistralai/Mistral-7B-v0.1",
    completions={
        "The meaning of life is": "to live in a place where you can live. The meaning of life is to live in a",
        "Once upon a time,": "the first thing I would do was to make a list of all the things I would like to do",
    },
    figures={"wikitext-103": {"nats_per_token": 3.840, "perplexity": 46.52}},
)

NANOCHAT_D12 = ModelSpec(
    name="nanochat-d12",
    summary="the stack of gelu-d12 with ReLU^2 and a head of its own",
    cls="zoo.models.nanochat:Nanochat",
    config_cls="zoo.models.nanochat:NanochatConfig",
    config={"activation": "relu_squared", "tie_embeddings": False},
    facts={
        "parameters": "286,262,162",
        "program": "flaxchat (MIT)",
        "final loss": "not stated for this size; the stack with ReLU^2 by parameters: 9M 7.28, 28M 5.79, "
        "61M 4.24, 109M 3.95, 261M 3.42, 503M 3.39",
    },
)

KODALITE_1B = ModelSpec(
    name="kodalite-1.3b",
    summary="a Llama of 24 layers, base model with a merged chat adapter; English, severely undertrained",
    cls="zoo.models.llama:Llama",
    config_cls="zoo.models.llama:LlamaConfig",
    tokenizer="GPT-2 BPE, 50,257 entries; <|end|> is five of them",
    source="https://huggingface.co/YoAbriel/KodaLite-1.3B",
    licence="Apache-2.0",
    dataset="SlimPajama-6B, streamed; SFT on Dolly-15K and OASST1 (LoRA of rank 16, alpha 32, merged)",
    tokens_seen="1.64B (100,000 steps x 16 x 1,024)",
    tokens_per_param=1.291,
    facts={
        "parameters": "1,269,209,088",
        "context": "1,024 tokens",
        "trained": "bfloat16, AdamW, 3e-4 over 5,000 steps, cosine to 3e-5 at step 100,000, weight decay 0.1, clip 1.0",
        "hardware": "2x L40S, about 25 hours",
        "rope dtype": "float32 in the released files (rope_dtype); pretraining ran with bfloat16 tables",
        "HellaSwag": "25.65",
        "ARC-Easy": "32.79",
        "ARC-Challenge": "21.50",
        "WinoGrande": "49.57",
        "PIQA": "58.92",
        "BoolQ": "44.34",
        "OpenBookQA": "25.00",
        "LAMBADA": "18.22 (perplexity 93.78)",
        "average of the seven choice tasks": "36.8 (zero-shot, by its own protocol)",
        "card's sampling": "150 new tokens, temperature 0.7, top-k 40, stop string <|end|>",
        "limits": "English only, severely undertrained, may repeat, not for production",
        "also as": "KodaLite-1.3B-mlx, -mlx-8bit, -GGUF of the same owner",
    },
    sampling={"max_new_tokens": 150, "temperature": 0.7, "top_k": 40, "stop": ("<|end|>",)},
    chat_template="kodalite",
)

TINY_LM = ModelSpec(
    name="tiny-lm",
    summary="a minimal transformer over characters, for teaching: LayerNorm, learned positions, ReLU",
    cls="zoo.models.tiny:TinyLM",
    config_cls="zoo.models.tiny:TinyConfig",
    tokenizer="characters: the sorted distinct ones of the training and validation text",
    source="https://github.com/cmaddis/tlm (program alone; no weights are published)",
    licence="GPL-3.0",
    dataset="a subset of TinyStories",
    facts={
        "parameters": "214,244",
        "parameters by size of the alphabet A": "201,344 + 129 A; registered with A = 100",
        "context": "32 characters",
        "trained": "5,000 steps x 16 x 32 characters, Adam at 1e-3, constant, no decay, clipping or dropout",
        "what a run shows": "a sample of 2,000 characters",
        "files": "no weights published",
    },
    sampling={"max_new_tokens": 2000},
)

ALL = (CRONICA_5M, BWETAF_97M, GELU_D12, NANOCHAT_D12, KODALITE_1B, TINY_LM)
