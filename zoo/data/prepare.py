"""From a source to shards: read, tokenise in processes, write; interrupted at any moment, it goes on.

Empty documents are passed over and counted. So is what cannot be used (no text, not UTF-8, a character the tokenizer
does not know), until there is too much of it: then preparing stops and names the last.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry
from zoo.data import documents, readers, remote, shards
from zoo.data.encode import Encoded, encode
from zoo.data.shards import Manifest, Shards
from zoo.errors import UserError
from zoo.recipe.data import DataSection, SourceSection
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.util import human_duration, sha256_hex

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
    if source.built_in:
        about |= {"seed": data.seed, "version": registry.corpus(source.source).VERSION}
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
        readers.check_hub(source)
        about["revision"] = readers.hub_revision(source)
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
