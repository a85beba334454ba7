"""How fast data come: batches from prepared shards, tokenising beside the raw libraries, and how long training waits.

    python benchmarks/data.py --json
    python benchmarks/data.py --wait recipes/cronica_5m.yaml --steps 6

Batches: made-up tokens in shards, packed every way, read in shuffled order by one thread of one process, assembled as
arrays. Beside them the same rows as records of an array_record file, read through Grain. Tokenising: the whole way from
texts to the arrays that shards are written from, on one thread, and the library's own batch call on the same texts, by
turns. `--wait` trains a recipe for some steps and reads the share of time that the loop waited for its batches.

Rates are per second of CPU time of this process, so that other programs on the machine do not count; with --wait, of
wall time. The best of the rounds is reported: the others were disturbed.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as in a worker of `zoo data prepare`

import numpy as np

from zoo.data import stories
from zoo.data.encode import encode_chunk
from zoo.data.order import Order
from zoo.data.packing import make_layout
from zoo.data.rows import PackedSource, Rows
from zoo.data.shards import Manifest, Shards, write_shard
from zoo.data.text import TextData
from zoo.tokenizers import bpe
from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.characters import CharacterTokenizer

SEQ_LEN, BATCH, TOKENS = 1024, 64, 1 << 24


def main() -> None:
    options = arguments()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.wait:
            result |= wait(options.wait, options.steps, Path(scratch))
        else:
            result |= batches(Path(scratch), options.rounds) | tokenising(options.rounds)
    if options.json:
        print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each thing is measured")
    parser.add_argument("--wait", metavar="RECIPE", help="train this recipe and report its data-wait share")
    parser.add_argument("--steps", type=int, default=6, help="steps of --wait; the first compiles and does not count")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    return parser.parse_args()


def cpu_seconds(function: Callable[[], object], rounds: int) -> float:
    """The least CPU time of some calls."""
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        function()
        taken.append(time.process_time() - begun)
    return min(taken)


# ----------------------------------------------------------------------------------------------------- batches


def batches(scratch: Path, rounds: int) -> dict[str, float]:
    shards = made_up(scratch / "shards")
    result = {}
    for packing, mask in (("concat", False), ("concat", True), ("best_fit", True), ("document", False)):
        data = text_data(shards, packing, mask)
        rate = rate_of(data, rounds)
        name = f"{packing}{'_masked' if mask else ''}"
        result[f"{name}_tokens_per_s"] = rate
        print(f"{name:<16} {rate / 1e6:7.1f}M tokens/s assembled, one core")
    result["prepared_tokens_per_s"] = result["concat_tokens_per_s"]
    result["array_record_tokens_per_s"] = rate = array_record(scratch, shards, rounds)
    print(f"{'array_record':<16} {rate / 1e6:7.1f}M tokens/s, the same rows as records, batched by Grain")
    return result


def made_up(directory: Path) -> Shards:
    """Shards of random documents, lengths as of web pages."""
    directory.mkdir()
    random = np.random.default_rng(0)
    written = []
    for number in range(2):
        lengths = np.minimum(random.lognormal(5.6, 1.1, TOKENS // 400).astype(np.int64) + 1, 20_000)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), TOKENS // 2)]
        tokens = random.integers(0, 50_000, lengths.sum(), np.uint16)
        written.append(write_shard(directory, number, tokens, lengths, None, 0))
    Manifest({}, "made up", 50_000, False, 1, tuple(written), exhausted=True).write(directory)
    return Shards(directory)


def text_data(shards: Shards, packing: str, mask: bool) -> TextData:
    last = shards.manifest.documents
    layout = make_layout(packing, shards, 0, last, SEQ_LEN, split=mask, seed=0)
    source = PackedSource("made up", shards, 0, last, layout, 1.0)
    order = Order([len(layout)], [1.0], 0)
    return TextData((source,), None, 0, order, Rows(SEQ_LEN, document_mask=mask), None, {"packing": packing})


def rate_of(data: TextData, rounds: int, number: int = 40) -> float:
    found = data.batches(BATCH)
    next(found)

    def take() -> None:
        for _ in range(number):
            next(found)

    return number * BATCH * SEQ_LEN / cpu_seconds(take, rounds)


def array_record(scratch: Path, shards: Shards, rounds: int) -> float:
    """Rows of the concat packing as array_record records, shuffled and batched by Grain."""
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = scratch / "rows.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    row = np.empty(SEQ_LEN + 1, np.int32)
    for start in range(0, min(int(shards.offsets[-1]), 1 << 23) - SEQ_LEN - 1, SEQ_LEN):
        shards.read(start, start + SEQ_LEN + 1, row)
        writer.write(row.astype(np.uint16).tobytes())
    writer.close()

    def split(rows: list[bytes]) -> dict[str, np.ndarray]:
        tokens = np.stack([np.frombuffer(row, np.uint16) for row in rows]).astype(np.int32)
        mask = np.ones((len(tokens), SEQ_LEN), np.float32)
        return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "loss_mask": mask}

    source = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(path)])).seed(0).shuffle().repeat()
    data = source.batch(BATCH, batch_fn=split)
    found = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    next(found)

    def take() -> None:
        for _ in range(20):
            next(found)

    return 20 * BATCH * SEQ_LEN / cpu_seconds(take, rounds)


# --------------------------------------------------------------------------------------------------- tokenising


def tokenising(rounds: int) -> dict[str, float]:
    texts = stories.generate(3000)
    byte_level = bpe.train(texts[:2000], 1000, eos_token="<|endoftext|>")
    kinds: dict[str, tuple[Tokenizer, Callable]] = {
        "tokenizers": (byte_level, lambda: byte_level._backend.encode_batch_fast(texts, add_special_tokens=False)),
    }
    tiktoken = as_tiktoken(byte_level)
    kinds["tiktoken"] = tiktoken, lambda: tiktoken._encoding.encode_ordinary_batch(texts, num_threads=1)
    pieces = sentencepiece_of(texts[:2000])
    kinds["sentencepiece"] = pieces, lambda: pieces._backend.encode(texts, num_threads=1)
    result = {}
    for name, (tokenizer, raw) in kinds.items():
        ours, theirs = [], []
        for _ in range(rounds):  # by turns, so that whatever disturbs one disturbs the other
            ours.append(cpu_seconds(lambda t=tokenizer: encode_chunk(texts, t, "text", None), 1))
            theirs.append(cpu_seconds(raw, 1))
        tokens = len(encode_chunk(texts, tokenizer, "text", None).tokens)
        result[f"{name}_tokens_per_s"] = tokens / min(ours)
        result[f"{name}_ratio"] = min(theirs) / min(ours)
        print(
            f"{name:<16} {tokens / min(ours) / 1e6:7.2f}M tokens/s to arrays, {result[f'{name}_ratio']:.2f} times the "
            f"library's own batch call"
        )
    alphabet = CharacterTokenizer.train(texts)
    taken = cpu_seconds(lambda: encode_chunk(texts, alphabet, "text", None), rounds)
    result["characters_tokens_per_s"] = sum(map(len, texts)) / taken
    print(f"{'characters':<16} {result['characters_tokens_per_s'] / 1e6:7.2f}M tokens/s to arrays")
    return result


def as_tiktoken(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary for tiktoken."""
    from zoo.tokenizers.tiktoken_bpe import GPT2_PATTERN, TiktokenTokenizer

    plain = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    vocabulary = json.loads(tokenizer._content)["model"]["vocab"]
    ordered = sorted((rank, token) for token, rank in vocabulary.items() if token not in tokenizer.special_tokens)
    ranks = {bytes(letters[letter] for letter in token): i for i, (_, token) in enumerate(ordered)}
    return TiktokenTokenizer(ranks, GPT2_PATTERN, {"<|endoftext|>": len(ranks)})


def sentencepiece_of(texts: list[str]) -> Tokenizer:
    import io

    import sentencepiece

    from zoo.tokenizers.sentencepiece_model import SentencePieceTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=1000, model_type="bpe", minloglevel=2
    )
    return SentencePieceTokenizer(model.getvalue())


# ------------------------------------------------------------------------------------------------------ waiting


def wait(recipe: str, steps: int, scratch: Path) -> dict[str, float]:
    from zoo.recipe import load_recipe
    from zoo.run.job import run
    from zoo.train.logging.log import read_metrics

    overrides = [f"train.steps={steps}", "optimizer.warmup_steps=1", "eval.cronicas=0", "eval.final_sample=false"]
    overrides += ["eval.num_pairs=0", "logging.every=1", f"logging.runs_dir={scratch}", "name=wait"]
    run(load_recipe(recipe, overrides))
    lines = [line for line in read_metrics(scratch / "wait" / "metrics.jsonl") if line["data_wait"] is not None]
    worst = max(line["data_wait"] for line in lines)
    mean = sum(line["data_wait"] for line in lines) / len(lines)
    print(f"data-wait: {mean:.3%} of the time of {len(lines)} steps (worst {worst:.3%})")
    return {"data_wait": mean, "worst_data_wait": worst}


if __name__ == "__main__":
    main()
