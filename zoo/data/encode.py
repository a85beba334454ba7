"""Tokenising the items of a source, in this process or in worker processes.

A document becomes its tokens between the tokenizer's BOS and EOS, where it has them (else followed by its separator).
Texts longer than `LONGEST_PIECE` characters are tokenised in pieces, cut at white space: on one text of many millions
of characters no tokenizer is quick, and some never end.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from zoo.data import shards
from zoo.data.documents import Item
from zoo.data.readers import Fault
from zoo.errors import UserError
from zoo.hardware.cores import allowed_cores
from zoo.recipe.data import DataSection
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.util import first_line, safe_path

LONGEST_PIECE = 1_000_000  # characters
_CHUNK_ITEMS, _CHUNK_CHARACTERS = 1024, 1_000_000  # of what goes to a worker at once
_ALONE = 4_000_000  # characters that are tokenised here before other processes are worth their start


@dataclass
class Encoded:
    """Some items of a source as tokens.

    Attributes:
        tokens: uint16 or uint32 [total], of all items one behind the other.
        lengths: int64 [items], the number of tokens of each item; 0 where it is skipped.
        loss: uint8 [total], 1 where a token bears loss; None where all do.
        faults: item -> why it cannot be used, "" for an empty one.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    loss: np.ndarray | None
    faults: dict[int, str]


def encode(items: Iterable[Item], data: DataSection, tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Yields items as tokens in their order, once there is much to do in `data.workers` processes (0: one a core).

    Raises UserError where such a process is killed or runs out of memory.
    """
    workers = data.workers or allowed_cores()
    settings = (data.kind, data.chat_template)
    chunks = _chunks(items)
    done = 0
    while workers == 1 or done < _ALONE:
        chunk = next(chunks, None)
        if chunk is None:
            return
        done += sum(map(_size, chunk))
        yield encode_chunk(chunk, tokenizer, *settings)
    with _named_deaths(workers), _pool(workers, tokenizer) as pool:
        running = collections.deque(
            pool.submit(_encode_in_worker, chunk, *settings) for chunk in itertools.islice(chunks, 2 * workers)
        )
        while running:
            encoded = running.popleft().result()
            if (chunk := next(chunks, None)) is not None:
                running.append(pool.submit(_encode_in_worker, chunk, *settings))
            yield encoded


def encode_chunk(items: list[Item], tokenizer: Tokenizer, kind: str, template: str | None) -> Encoded:
    """Returns some items as tokens, without worker processes. `template` marks the turns of kind "chat"."""
    faults = {number: item.reason for number, item in enumerate(items) if isinstance(item, Fault)}
    if kind == "text":
        faults |= {number: "" for number, item in enumerate(items) if isinstance(item, str) and not item.strip()}
    good = [number for number in range(len(items)) if number not in faults]
    encoder = _texts if kind == "text" else _chats
    try:
        rows = encoder([items[number] for number in good], tokenizer, template)
    except (UserError, ValueError):  # one of them is at fault: which?
        rows, encoded = [], []
        for number in good:
            try:
                rows += encoder([items[number]], tokenizer, template)
                encoded.append(number)
            except (UserError, ValueError) as error:
                faults[number] = first_line(error)
        good = encoded
    lengths = np.zeros(len(items), np.int64)
    tokens, lengths[good] = flatten([ids for ids, _ in rows], shards.token_dtype(tokenizer.vocab_size))
    loss = flatten([mask for _, mask in rows], np.uint8)[0] if kind == "chat" else None
    return Encoded(tokens, lengths, loss, dict(sorted(faults.items())))


def flatten(rows: Sequence[Sequence[int]], dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows one behind the other, `dtype` [total], and their lengths, int64 [rows]."""
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), dtype, int(lengths.sum())), lengths


def _texts(texts: list[str], tokenizer: Tokenizer, template: None) -> list[tuple[list[int], None]]:
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in pieces_of(text)]
    before, after = tokenizer.document_ends
    encoded = tokenizer.encode_batch([piece for _, piece in pieces])
    if len(pieces) == len(texts):
        return [(before + ids + after, None) for ids in encoded]
    joined: list[list[int]] = [[*before] for _ in texts]
    for (number, _), ids in zip(pieces, encoded, strict=True):
        joined[number] += ids
    return [(ids + after, None) for ids in joined]


def _chats(talks: list, tokenizer: Tokenizer, template: str) -> list[tuple[list[int], list[bool]]]:
    return chat.encode_conversations(tokenizer.encode_batch, talks, template, eos_id=tokenizer.eos_id)


def pieces_of(text: str) -> Iterator[str]:
    """Yields a text in pieces of at most LONGEST_PIECE characters, cut before white space if there is any."""
    start = 0
    while len(text) - start > LONGEST_PIECE:
        stop = start + LONGEST_PIECE
        cut = max(text.rfind(" ", start + 1, stop), text.rfind("\n", start + 1, stop))
        stop = cut if cut > start else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _size(item: Item) -> int:
    if isinstance(item, str):
        return len(item)
    return 0 if isinstance(item, Fault) else sum(len(message["content"]) for message in item)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += _size(item)
        if len(chunk) == _CHUNK_ITEMS or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


_tokenizer: Tokenizer | None = None  # of a worker process


@contextlib.contextmanager
def _named_deaths(workers: int) -> Iterator[None]:
    """Turns the end of a worker process into a UserError that says what it most likely died of."""
    try:
        yield
    except (BrokenProcessPool, MemoryError):
        remedy = f"set data.workers: {workers // 2} (now {workers})" if workers > 1 else "set data.workers: 1"
        raise UserError(
            f"data.workers: one of {workers} processes that tokenise was killed, as a system does that runs out of "
            f"memory; {remedy} or take a machine with more memory, and run again: what was prepared stays"
        ) from None


@contextlib.contextmanager
def _pool(workers: int, tokenizer: Tokenizer) -> Iterator[ProcessPoolExecutor]:
    with safe_path():  # the pool starts a process that tracks resources, and each worker when there is work for it
        # Not forked: a process in which JAX runs threads must not be.
        pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(tokenizer, os.getpid()),
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(tokenizer: Tokenizer, parent: int) -> None:
    """Sets up a worker: it has one thread, ignores Ctrl-C (the parent stops it) and ends when its parent does."""
    global _tokenizer
    _tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode_in_worker(items: list[Item], kind: str, template: str | None) -> Encoded:
    return encode_chunk(items, _tokenizer, kind, template)
