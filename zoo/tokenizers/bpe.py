"""Byte-level BPE trained on texts, as a `tokenizer.json`."""

from collections.abc import Iterable, Sequence

from zoo.errors import UserError
from zoo.tokenizers.hf import HFTokenizer


def train(
    texts: Iterable[str], vocab_size: int, *, eos_token: str, special_tokens: Sequence[str] = (), strip_accents=False
) -> HFTokenizer:
    """Trains a tokenizer of exactly `vocab_size` entries.

    Args:
        texts: the training texts; the same texts in any order give the same tokenizer.
        vocab_size: the number of entries, with the special tokens (the first ids, `eos_token` is 0) and the 256 bytes.
        eos_token: the special token that ends a document.
        special_tokens: further special tokens.
        strip_accents: whether characters are decomposed (NFD) and accents dropped, as BwETAF does; otherwise texts stay
            as they are.

    Raises UserError when `texts` are too few for it.
    """
    from tokenizers import normalizers

    normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]) if strip_accents else None
    content = learn(texts, vocab_size, special_tokens=[eos_token, *special_tokens], normalizer=normalizer)
    return HFTokenizer(content, parts={"eos": eos_token})


def learn(
    texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str], normalizer=None, unk_token=None
) -> str:
    """Trains a byte-level BPE without prefix space on pairs seen at least twice; returns its `tokenizer.json`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    smallest = len(special_tokens) + 256  # special tokens and single bytes, without any merge
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size: {vocab_size} is too small; the special tokens and the 256 bytes "
            f"alone need {smallest}"
        )
    backend = tokenizers.Tokenizer(models.BPE(unk_token=unk_token))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learnt = backend.get_vocab_size()
    if learnt != vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: the corpus is too small for {vocab_size:,} entries, it gives {learnt:,}; "
            f"use more of it (data.num_pairs, data.num_documents) or a smaller vocabulary"
        )
    return backend.to_str(pretty=True)
