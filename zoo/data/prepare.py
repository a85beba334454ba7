"""From a source to shards: read, tokenise in processes, write; interrupted at any moment, it goes on.

A document is its tokens between the tokenizer's BOS and EOS, where it has them (else followed by its separator). Texts
longer than `LONGEST_PIECE` characters are tokenised in pieces parted at white space: no tokenizer is quick, and some
never end, on one text of many millions of characters.

Empty documents are passed over and counted. So is what cannot be used (no text, not UTF-8, a character the tokenizer
does not know), until there is too much of it: then preparing stops and names the last.
"""

import collections
import contextlib
import dataclasses
import fcntl
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import documents, remote, shards, stories
from zoo.data.documents import Fault, Item
from zoo.data.shards import Manifest, Shards
from zoo.errors import UserError
from zoo.recipe_data import DataSection, SourceSection
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.util import human_duration, sha256_hex

LONGEST_PIECE = 1_000_000  # characters
_CHUNK_ITEMS, _CHUNK_CHARACTERS = 1024, 1_000_000  # of what goes to a worker at once
_ALONE = 4_000_000  # characters that are tokenised here before other processes are worth their start
_SAY_EVERY = 5.0  # seconds

Say = Callable[[str], None]


@dataclass(frozen=True)
class Want:
    """How much of a source: so many tokens, and at most so many documents; None is all of it."""

    tokens: int | None = None
    documents: int | None = None

    def met(self, manifest: Manifest) -> bool:
        """Whether shards hold that much, or all there is."""
        enough = self.tokens is not None and manifest.tokens >= self.tokens
        enough = enough or (self.documents is not None and manifest.documents >= self.documents)
        return enough or manifest.exhausted

    def documents_of(self, found: Shards) -> int:
        """How many of the first documents it takes."""
        number = found.manifest.documents
        if self.tokens is not None:
            number = min(number, int(np.searchsorted(found.offsets, self.tokens)))
        return number if self.documents is None else min(number, self.documents)


def directory_of(source: SourceSection, data: DataSection, tokenizer: Tokenizer) -> Path:
    """Where the shards of a source are (to be) kept: the name says what, its end is a hash of what decides them.

    Shards that lie elsewhere are fetched. Raises UserError where they, or the files of a source, are not there.
    """
    if source.source == "shards":
        return Path(source.path) if source.is_file else remote.fetch(source.path)
    about = identity(source, data)
    key = sha256_hex(json.dumps([about, tokenizer.fingerprint], sort_keys=True).encode())[:12]
    words = (source.path or "").rstrip("/").replace("\\", "/").split("/")[-2 if source.source == "hub" else -1 :]
    name = "-".join(filter(None, [source.source, *words, source.config, source.split]))
    return data.prepared_path / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}-{key}"


def identity(source: SourceSection, data: DataSection) -> dict[str, Any]:
    """What decides the documents of a source, as plain JSON. Local files count by name, size and time of change.

    Raises UserError where there are none.
    """
    about: dict[str, Any] = {"source": source.source, "kind": data.kind}
    for field in ("config", "split", "revision", "shuffle_buffer", "text_field", "separator", "format"):
        about[field] = getattr(source, field)
    if source.source == "stories":
        about |= {"seed": data.seed, "version": stories.VERSION}
    if source.shuffle_buffer:
        about["seed"] = data.seed
    if data.kind == "chat":
        about["template"] = dataclasses.asdict(chat.find(data.chat_template))
    if source.source in ("jsonl", "parquet", "text"):
        stats = [(path.name, path.stat()) for path in documents.files(source)]
        about["files"] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    elif source.source == "hub":
        about["path"] = source.path
    return about


def prepare(
    source: SourceSection, data: DataSection, tokenizer: Tokenizer, want: Want, *, say: Say, name: str = "data"
) -> Path:
    """Tokenise as much of a source as is wanted and not yet there; the directory of its shards.

    Other processes that want the same wait until it is there. Raises UserError when the source cannot be read, holds
    nothing, has more than `data.max_bad_records` records that cannot be used, or is shards of another tokenizer.
    """
    directory = directory_of(source, data, tokenizer)
    if source.source == "shards":
        _check_ready(directory, data, tokenizer, name)
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory, say):
        manifest = _manifest(directory, source, data, tokenizer)
        if not want.met(manifest):
            _Preparing(directory, manifest, source, data, tokenizer, want, say, name).run()
        elif not manifest.documents:
            raise UserError(f"{name}: {source.path or source.source} holds no document that could be used")
    return directory


def _check_ready(directory: Path, data: DataSection, tokenizer: Tokenizer, name: str) -> None:
    manifest = shards.read_manifest(directory)
    if manifest.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"{name}.path: the shards in {directory} were made with another tokenizer ({manifest.tokenizer[:12]}, here "
            f"{tokenizer.fingerprint[:12]}); set tokenizer.path to the one they were made with"
        )
    if manifest.loss_masks != (data.kind == "chat"):
        raise UserError(f"{name}.path: the shards in {directory} hold {'chats' if manifest.loss_masks else 'texts'}")


def _manifest(directory: Path, source: SourceSection, data: DataSection, tokenizer: Tokenizer) -> Manifest:
    """The one there, or the one to begin with."""
    if (directory / shards.MANIFEST).exists():
        return shards.read_manifest(directory)
    about = identity(source, data)
    if source.source == "hub" and not source.is_file:
        if (reason := documents.hub.unreachable()) is None:
            about["revision"] = documents.hub_revision(source)
        else:
            documents.open_hub(source)  # says in one line what is wrong
            raise UserError(f"data.path: {source.path}: the hub does not answer ({reason})")
    return Manifest(
        about,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        loss_masks=data.kind == "chat",
        shard_tokens=shards.SHARD_TOKENS,
    )


@contextlib.contextmanager
def _lock(directory: Path, say: Say) -> Iterator[None]:
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {directory.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------------- writing


@dataclass
class Encoded:
    """Some items of a source as tokens.

    tokens: of all of them, one behind the other; lengths: int64, of each item, 0 where it is passed over.
    loss: uint8 beside the tokens, or None. faults: item -> why it cannot be used; empty ones have "".
    """

    tokens: np.ndarray
    lengths: np.ndarray
    loss: np.ndarray | None
    faults: dict[int, str]


class _Preparing:
    """Reads on where a manifest ends and writes shards until enough is there."""

    def __init__(self, directory, manifest: Manifest, source, data, tokenizer, want: Want, say: Say, name: str):
        self._directory, self._source, self._data, self._tokenizer = directory, source, data, tokenizer
        self._want, self._say, self._name = want, say, name
        self._manifest = manifest
        self._items = manifest.shards[-1].items if manifest.shards else 0
        self._skipped = collections.Counter(manifest.skipped)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        self._open_tokens = 0
        if manifest.shards and manifest.shards[-1].tokens < manifest.shard_tokens:
            self._reopen()

    def _reopen(self) -> None:
        """Take a last shard that is not full back into memory, to be written again when it is."""
        found = Shards(self._directory)
        found.verify()
        self._parts = [found.arrays(-1)]
        self._open_tokens = self._manifest.shards[-1].tokens
        self._manifest = dataclasses.replace(self._manifest, shards=self._manifest.shards[:-1])

    def run(self) -> None:
        """Read, tokenise and write until there is enough or nothing left."""
        self._check_bad("see what was said when it stopped before")
        begun = said = time.monotonic()
        had, source = self._tokens(), self._source
        if revision := self._manifest.source.get("revision"):
            source = source.model_copy(update={"revision": revision})
        items = documents.read(source, self._data.kind, seed=self._data.seed, start=self._items)
        exhausted = True
        try:
            for encoded in encode(items, self._data, self._tokenizer):
                if self._add(encoded):
                    exhausted = False
                    break
                if time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    self._say(self._progress(had, said - begun))
        except BaseException:
            self._close(exhausted=False)  # what is there is kept, whatever stops it
            raise
        self._close(exhausted=exhausted)
        if not self._manifest.documents:
            raise UserError(f"{self._name}: {source.path or source.source} holds no document that could be used")
        took = time.monotonic() - begun
        rate = (self._tokens() - had) / took
        self._say(f"prepared {self._summary()} in {human_duration(took)} ({rate:,.0f} tokens/s)")

    def _tokens(self) -> int:
        return sum(shard.tokens for shard in self._manifest.shards) + self._open_tokens

    def _documents(self) -> int:
        return self._manifest.documents + sum(len(lengths) for _, lengths, _ in self._parts)

    def _add(self, encoded: Encoded) -> bool:
        """Take over the documents that are still wanted; whether there are enough."""
        ends = np.cumsum(encoded.lengths)
        at = 0
        while at < len(encoded.lengths):
            base = int(ends[at - 1]) if at else 0
            # Up to the document that fills the shard, or the one that meets what is wanted.
            room = self._manifest.shard_tokens - self._open_tokens
            if self._want.tokens is not None:
                room = min(room, self._want.tokens - self._tokens())
            stop = min(int(np.searchsorted(ends, base + room)) + 1, len(ends))
            if self._want.documents is not None:
                kept = np.flatnonzero(encoded.lengths[at:stop])
                left = self._want.documents - self._documents()
                if left < len(kept):
                    stop = at + int(kept[left - 1]) + 1
            self._take(encoded, at, stop, base, int(ends[stop - 1]))
            at = stop
            if self._open_tokens >= self._manifest.shard_tokens:
                self._close(exhausted=False)
            if self._enough():
                return True
        return False

    def _enough(self) -> bool:
        tokens, number = self._want.tokens, self._want.documents
        return (tokens is not None and self._tokens() >= tokens) or (number is not None and self._documents() >= number)

    def _take(self, encoded: Encoded, start: int, stop: int, first: int, last: int) -> None:
        lengths = encoded.lengths[start:stop]
        loss = None if encoded.loss is None else encoded.loss[first:last]
        self._parts.append((encoded.tokens[first:last], lengths[lengths > 0], loss))
        self._open_tokens += last - first
        self._items += stop - start
        for item, reason in encoded.faults.items():
            if start <= item < stop:
                self._skip(reason)

    def _skip(self, reason: str) -> None:
        self._skipped["bad" if reason else "empty"] += 1
        if reason:
            self._check_bad(f"the last: {reason}")

    def _check_bad(self, more: str) -> None:
        bad, limit = self._skipped["bad"], self._data.max_bad_records
        if bad > limit:
            raise UserError(
                f"{self._name}: {bad:,} records of {self._source.path or self._source.source} cannot be used, more "
                f"than data.max_bad_records {limit}; {more}"
            )

    def _close(self, *, exhausted: bool) -> None:
        """Write what is open as a shard, and the manifest."""
        closed = self._manifest.shards
        if self._open_tokens:
            tokens, lengths, loss = (
                None if part[0] is None else np.concatenate(part) for part in zip(*self._parts, strict=True)
            )
            closed += (shards.write_shard(self._directory, len(closed), tokens, lengths, loss, self._items),)
        self._manifest = dataclasses.replace(
            self._manifest, shards=closed, exhausted=exhausted, skipped=dict(self._skipped)
        )
        self._manifest.write(self._directory)
        shards.delete_unlisted(self._directory, self._manifest)
        self._parts, self._open_tokens = [], 0

    def _progress(self, had: int, took: float) -> str:
        rate = (self._tokens() - had) / took
        left = ""
        if self._want.tokens is not None and rate > 0:
            left = f", {human_duration((self._want.tokens - self._tokens()) / rate)} left"
        goal = "" if self._want.tokens is None else f" of {self._want.tokens:,}"
        return f"preparing {self._name}: {self._tokens():,}{goal} tokens ({rate:,.0f} a second{left})"

    def _summary(self) -> str:
        text = f"{self._name}: {self._manifest.tokens:,} tokens in {self._manifest.documents:,} documents"
        for reason, number in sorted(self._skipped.items()):
            text += f", {number:,} {reason} passed over"
        return text


# ------------------------------------------------------------------------------------------------ tokenising


def encode(items: Iterable[Item], data: DataSection, tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Items as tokens, in their order; in `data.workers` processes (0: one a core) once there is much to do."""
    workers = data.workers or os.cpu_count() or 1
    settings = (data.kind, data.chat_template)
    chunks = _chunks(items)
    done = 0
    while workers == 1 or done < _ALONE:
        chunk = next(chunks, None)
        if chunk is None:
            return
        done += sum(map(_size, chunk))
        yield encode_chunk(chunk, tokenizer, *settings)
    with _pool(workers, tokenizer) as pool:
        running = collections.deque(
            pool.submit(_encode_there, chunk, *settings) for chunk in itertools.islice(chunks, 2 * workers)
        )
        while running:
            encoded = running.popleft().result()
            if (chunk := next(chunks, None)) is not None:
                running.append(pool.submit(_encode_there, chunk, *settings))
            yield encoded


def encode_chunk(items: list[Item], tokenizer: Tokenizer, kind: str, template: str | None) -> Encoded:
    """Some items as tokens, here and now. `template`: of the conversations, for kind "chat"."""
    faults = {number: item.reason for number, item in enumerate(items) if isinstance(item, Fault)}
    if kind == "text":
        faults |= {number: "" for number, item in enumerate(items) if isinstance(item, str) and not item.strip()}
    good = [number for number in range(len(items)) if number not in faults]
    encoder = _texts if kind == "text" else _chats
    try:
        rows = encoder([items[number] for number in good], tokenizer, template)
    except (UserError, ValueError):  # one of them is at fault: which?
        rows, kept = [], []
        for number in good:
            try:
                rows += encoder([items[number]], tokenizer, template)
                kept.append(number)
            except (UserError, ValueError) as error:
                faults[number] = str(error).splitlines()[0]
        good = kept
    dtype = shards.token_dtype(tokenizer.vocab_size)
    lengths = np.zeros(len(items), np.int64)
    lengths[good] = [len(ids) for ids, _ in rows]
    total = int(lengths.sum())
    tokens = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in rows), dtype, total)
    loss = None
    if kind == "chat":
        loss = np.fromiter(itertools.chain.from_iterable(mask for _, mask in rows), np.uint8, total)
    return Encoded(tokens, lengths, loss, dict(sorted(faults.items())))


def _texts(texts: list[str], tokenizer: Tokenizer, template: None) -> list[tuple[list[int], None]]:
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in pieces_of(text)]
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if not before and not after:
        after = tokenizer.separator_ids
    encoded = tokenizer.encode_batch([piece for _, piece in pieces])
    if len(pieces) == len(texts):
        return [(before + ids + after, None) for ids in encoded]
    joined: list[list[int]] = [[*before] for _ in texts]
    for (number, _), ids in zip(pieces, encoded, strict=True):
        joined[number] += ids
    return [(ids + after, None) for ids in joined]


def _chats(found: list, tokenizer: Tokenizer, template: str) -> list[tuple[list[int], list[bool]]]:
    return chat.encode_conversations(tokenizer, found, template)


def pieces_of(text: str) -> Iterator[str]:
    """A text cut, before white space if there is any, into pieces of at most LONGEST_PIECE characters; mostly one."""
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


_here: Tokenizer | None = None  # of a worker


@contextlib.contextmanager
def _pool(workers: int, tokenizer: Tokenizer) -> Iterator[ProcessPoolExecutor]:
    # Not forked: a process in which JAX runs threads must not be.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tokenizer, os.getpid())
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(tokenizer: Tokenizer, parent: int) -> None:
    """Set up a worker: one thread, deaf to Ctrl-C (the parent stops it), gone when the parent is."""
    global _here
    _here = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode_there(items: list[Item], kind: str, template: str | None) -> Encoded:
    return encode_chunk(items, _here, kind, template)
