"""Preparing shards of a source: read, tokenise in processes, write. Interrupted at any moment, it goes on later.

Empty documents are skipped and counted. So are those that cannot be used (no text, not UTF-8, a character that the
tokenizer does not know), until there are too many: then preparing stops and names the last.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo import files, registry
from zoo.data import documents, readers, remote, shards
from zoo.data.budget import TokenBudget
from zoo.data.encode import Encoded, encode
from zoo.data.shards import Manifest, Shards
from zoo.errors import UserError
from zoo.recipe.data import FILES, DataSection, SourceSection
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.util import human_duration, sha256_hex

_PROGRESS_EVERY = 5.0  # seconds

Say = Callable[[str], None]


def directory_of(source: SourceSection, data: DataSection, tokenizer: Tokenizer) -> Path:
    """Returns the directory of a source's shards; its name ends in a hash of all that decides them.

    Shards in remote storage are fetched. Raises UserError where they, or the files of a source, are missing.
    """
    if source.source == "shards":
        return Path(source.path) if source.is_file else remote.fetch(source.path)
    key = sha256_hex(json.dumps([identity(source, data), tokenizer.fingerprint], sort_keys=True).encode())[:12]
    parts = (source.path or "").rstrip("/").replace("\\", "/").split("/")[-2 if source.source == "hub" else -1 :]
    name = "-".join(filter(None, [source.source, *parts, source.config, source.split]))
    return data.prepared_path / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}-{key}"


def identity(source: SourceSection, data: DataSection) -> dict[str, Any]:
    """Returns all that decides the documents of a source, as plain JSON.

    Local files count by name, size and time of change. Raises UserError where there are none.
    """
    content: dict[str, Any] = {"source": source.source, "kind": data.kind}
    for field in ("config", "split", "revision", "shuffle_buffer", "text_field", "separator", "format"):
        content[field] = getattr(source, field)
    if source.built_in:
        content |= {"seed": data.seed, "version": registry.corpus(source.source).VERSION}
    if source.shuffle_buffer:
        content["seed"] = data.seed
    if data.kind == "chat":
        content["template"] = dataclasses.asdict(chat.find(data.chat_template))
    if source.source in FILES:
        stats = [(path.name, path.stat()) for path in documents.files(source)]
        content["files"] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    elif source.source == "hub":
        content["path"] = source.path
    return content


def prepare(
    source: SourceSection, data: DataSection, tokenizer: Tokenizer, budget: TokenBudget, *, say: Say, name: str = "data"
) -> Path:
    """Tokenises what is missing of a source up to a budget, and returns the directory of its shards.

    Other processes that need the same source wait until it is prepared.

    Args:
        source: one source of the recipe.
        data: the recipe's section.
        tokenizer: of the recipe.
        budget: how much is needed.
        say: shows a line of progress.
        name: the source's field in the recipe, for messages.

    Raises:
        UserError: the source cannot be read, holds nothing, has more than `data.max_bad_records` records that cannot
            be used, or is shards of another tokenizer.
    """
    directory = directory_of(source, data, tokenizer)
    if source.source == "shards":
        _check_ready(directory, data, tokenizer, name)
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory, say):
        manifest = _manifest(directory, source, data, tokenizer)
        if not budget.met(manifest):
            _Preparing(directory, manifest, source, data, tokenizer, budget, say, name).run()
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
    """Returns the manifest in the directory, or one without shards."""
    if (directory / shards.MANIFEST).exists():
        return shards.read_manifest(directory)
    content = identity(source, data)
    if source.source == "hub" and not source.is_file:
        readers.check_hub(source)
        content["revision"] = readers.hub_revision(source)
    return Manifest(
        content,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        loss_masks=data.kind == "chat",
        shard_tokens=shards.SHARD_TOKENS,
    )


@contextlib.contextmanager
def _lock(directory: Path, say: Say) -> Iterator[None]:
    try:
        lock = files.open_lock(directory / ".lock")
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written ({error.strerror})") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {directory.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------------- writing


class _Preparing:
    """Reads on where a manifest ends and writes shards until enough is there."""

    def __init__(self, directory, manifest: Manifest, source, data, tokenizer, budget, say: Say, name: str):
        self._directory, self._source, self._data, self._tokenizer = directory, source, data, tokenizer
        self._budget, self._say, self._name = budget, say, name
        self._manifest = manifest
        self._items = manifest.shards[-1].items if manifest.shards else 0
        self._skipped = collections.Counter(manifest.skipped)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        self._open_tokens = 0
        if manifest.shards and manifest.shards[-1].tokens < manifest.shard_tokens:
            self._reopen()

    def _reopen(self) -> None:
        """Reads a last shard that is not full back into memory; it is written again when it is."""
        existing = Shards(self._directory)
        existing.verify()
        self._parts = [existing.arrays(-1)]
        self._open_tokens = self._manifest.shards[-1].tokens
        self._manifest = dataclasses.replace(self._manifest, shards=self._manifest.shards[:-1])

    def run(self) -> None:
        """Reads, tokenises and writes until there is enough or nothing left."""
        self._check_bad("see what was said when it stopped before")
        started = shown = time.monotonic()
        before, source = self._tokens(), self._source
        if revision := self._manifest.source.get("revision"):
            source = source.model_copy(update={"revision": revision})
        items = documents.read(source, self._data.kind, seed=self._data.seed, start=self._items)
        exhausted = True
        try:
            for encoded in encode(items, self._data, self._tokenizer):
                if self._add(encoded):
                    exhausted = False
                    break
                if time.monotonic() - shown > _PROGRESS_EVERY:
                    shown = time.monotonic()
                    self._say(self._progress(before, shown - started))
        except BaseException:
            self._close(exhausted=False)  # what has been read is kept, whatever stops it
            raise
        self._close(exhausted=exhausted)
        if not self._manifest.documents:
            raise UserError(f"{self._name}: {source.path or source.source} holds no document that could be used")
        seconds = time.monotonic() - started
        rate = (self._tokens() - before) / seconds
        self._say(f"prepared {self._summary()} in {human_duration(seconds)} ({rate:,.0f} tokens/s)")

    def _tokens(self) -> int:
        return sum(shard.tokens for shard in self._manifest.shards) + self._open_tokens

    def _documents(self) -> int:
        return self._manifest.documents + sum(len(lengths) for _, lengths, _ in self._parts)

    def _add(self, encoded: Encoded) -> bool:
        """Adds the documents that are still needed; returns whether there are enough."""
        ends = np.cumsum(encoded.lengths)
        at = 0
        while at < len(encoded.lengths):
            base = int(ends[at - 1]) if at else 0
            # Up to the document that fills the shard, or the one that meets the budget.
            room = self._manifest.shard_tokens - self._open_tokens
            if self._budget.tokens is not None:
                room = min(room, self._budget.tokens - self._tokens())
            stop = min(int(np.searchsorted(ends, base + room)) + 1, len(ends))
            if self._budget.documents is not None:
                filled = np.flatnonzero(encoded.lengths[at:stop])
                left = self._budget.documents - self._documents()
                if left < len(filled):
                    stop = at + int(filled[left - 1]) + 1
            self._append(encoded, at, stop, base, int(ends[stop - 1]))
            at = stop
            if self._open_tokens >= self._manifest.shard_tokens:
                self._close(exhausted=False)
            if self._budget.reached(self._tokens(), self._documents()):
                return True
        return False

    def _append(self, encoded: Encoded, start: int, stop: int, first: int, last: int) -> None:
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
        """Writes the open documents as a shard, and the manifest."""
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

    def _progress(self, before: int, seconds: float) -> str:
        rate = (self._tokens() - before) / seconds
        left = ""
        if self._budget.tokens is not None and rate > 0:
            left = f", {human_duration((self._budget.tokens - self._tokens()) / rate)} left"
        goal = "" if self._budget.tokens is None else f" of {self._budget.tokens:,}"
        return f"preparing {self._name}: {self._tokens():,}{goal} tokens ({rate:,.0f} a second{left})"

    def _summary(self) -> str:
        text = f"{self._name}: {self._manifest.tokens:,} tokens in {self._manifest.documents:,} documents"
        for reason, number in sorted(self._skipped.items()):
            text += f", {number:,} {reason} passed over"
        return text
