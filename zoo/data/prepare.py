"""Preparing shards of a source: read, tokenise in processes, write. Interrupted at any moment, it goes on later.

Empty documents are skipped and counted. So are those that cannot be used (no text, not UTF-8, a character that the
tokenizer does not know), until there are too many: then preparing stops and names the last.
"""

import collections
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import files, registry
from zoo.data import documents, readers, remote, shards, source_files
from zoo.data.budget import TokenBudget
from zoo.data.encode import Encoded, encode
from zoo.data.shards import Manifest, Shards
from zoo.errors import UserError
from zoo.recipe.data import FILES, DataSection, SourceSection
from zoo.tokenizers import chat
from zoo.tokenizers.base import Tokenizer
from zoo.util import first_line, human_duration, sha256_hex

_PROGRESS_EVERY = 5.0  # seconds
_BLOCK, _BLOCKS = 1 << 20, 16  # bytes, and how many of a large file
_WHOLE = _BLOCK * _BLOCKS

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

    Local files count by place in the source, size, time of change and content (see `file_identity`). Raises UserError
    where there are none.
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
        if source.format in (None, "messages"):
            content["weights"] = True  # of turns; shards that were made without regard to them are others
    if source.source in FILES:
        content["files"] = files_identity(documents.files(source))
    elif source.source == "hub":
        content["path"] = source.path
        if source.is_file:
            content["files"] = files_identity(source_files.all_files(source.path))
    return content


def files_identity(paths: Sequence[Path]) -> list[list[Any]]:
    """Returns [place, size in bytes, time of change in nanoseconds, SHA-256 of the content] of each file.

    The place is relative to the directory that all files share, so that they may be moved together. Of a file above
    `_WHOLE` bytes the content counts by `_BLOCKS` blocks, spread evenly from its beginning to its end.
    """
    root = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    stats = [(path, path.stat()) for path in paths]
    return [
        [str(path.absolute().relative_to(root)), stat.st_size, stat.st_mtime_ns, _content_hash(path, stat.st_size)]
        for path, stat in stats
    ]


def _content_hash(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if size <= _WHOLE:
                while block := file.read(_BLOCK):
                    digest.update(block)
            else:
                for number in range(_BLOCKS):
                    file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


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
            be used, or is shards of another tokenizer; or shards cannot be written. Where all that is needed is
            there, nothing is written: it may lie on a disk that is read-only.
    """
    directory = directory_of(source, data, tokenizer)
    if source.source == "shards":
        _check_ready(directory, data, tokenizer, name)
        return directory
    with _lock(directory, say, budget):
        manifest = _manifest(directory, source, data, tokenizer)
        if manifest.exhausted and not manifest.documents:  # it was of no use: read again, so that the reason is told
            manifest = dataclasses.replace(manifest, exhausted=False, skipped={})
        if not budget.met(manifest):
            _Preparing(directory, manifest, source, data, tokenizer, budget, say, name).run()
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
def _lock(directory: Path, say: Say, budget: TokenBudget | None = None) -> Iterator[None]:
    """Makes the directory and locks it; without a lock, if none can be had and the budget is met by what is there."""
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(files.open_lock(directory / ".lock"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another process that prepares {directory.name}")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            prepared = budget is not None and (directory / shards.MANIFEST).is_file()
            if not (prepared and budget.met(shards.read_manifest(directory))):
                raise _cannot_write(directory, error) from None
        yield


def _cannot_write(directory: Path, error: OSError) -> UserError:
    """Returns the error for a directory in which shards cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{directory}: the disk is full ({error.strerror}); free some space, or set data.prepared_dir to another "
            f"disk, and run again"
        )
    return UserError(
        f"{directory}: cannot be written ({error.strerror or first_line(error)}); set data.prepared_dir to a directory "
        f"that can be"
    )


# --------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _State:
    """How far preparing is. It is replaced whole, so that an interrupt at any moment finds it consistent.

    Attributes:
        manifest: of the shards that are closed.
        parts: the documents of the open shard: tokens, lengths and loss.
        tokens, documents: of the open shard.
        items: of the source that have been read.
        skipped: items that were skipped, by reason.
    """

    manifest: Manifest
    parts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray | None], ...]
    tokens: int
    documents: int
    items: int
    skipped: dict[str, int]


class _Preparing:
    """Reads on where a manifest ends and writes shards until enough is there."""

    def __init__(self, directory, manifest: Manifest, source, data, tokenizer, budget, say: Say, name: str):
        self._directory, self._source, self._data, self._tokenizer = directory, source, data, tokenizer
        self._budget, self._say, self._name = budget, say, name
        items = manifest.shards[-1].items if manifest.shards else 0
        self._state = _State(manifest, (), 0, 0, items, dict(manifest.skipped))
        if manifest.shards and manifest.shards[-1].tokens < manifest.shard_tokens:
            self._reopen()

    def _reopen(self) -> None:
        """Reads a last shard that is not full back into memory; it is written again when it is."""
        existing = Shards(self._directory)
        existing.verify()
        last, manifest = self._state.manifest.shards[-1], self._state.manifest
        self._state = dataclasses.replace(
            self._state,
            manifest=dataclasses.replace(manifest, shards=manifest.shards[:-1]),
            parts=(existing.arrays(-1),),
            tokens=last.tokens,
            documents=last.documents,
        )

    def run(self) -> None:
        """Reads, tokenises and writes until there is enough or nothing left."""
        self._check_bad(self._state.skipped, "see what was said when it stopped before")
        if self._source.source in FILES and (left_out := documents.found_files(self._source).summary()):
            self._say(f"{self._name}: of {self._source.path} these are left out: {left_out}")
        started = shown = time.monotonic()
        before, source = self._tokens(), self._source
        if revision := self._state.manifest.source.get("revision"):
            source = source.model_copy(update={"revision": revision})
        items = documents.read(source, self._data.kind, seed=self._data.seed, start=self._state.items)
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
        if not self._state.manifest.documents:
            raise UserError(f"{self._name}: {no_document(source, self._state.skipped, self._reasons)}")
        seconds = time.monotonic() - started
        rate = (self._tokens() - before) / seconds
        self._say(f"prepared {self._summary()} in {human_duration(seconds)} ({rate:,.0f} tokens/s)")

    def _tokens(self) -> int:
        return self._state.manifest.tokens + self._state.tokens

    def _documents(self) -> int:
        return self._state.manifest.documents + self._state.documents

    def _add(self, encoded: Encoded) -> bool:
        """Adds the documents that are still needed; returns whether there are enough."""
        ends = np.cumsum(encoded.lengths)
        at = 0
        while at < len(encoded.lengths):
            base = int(ends[at - 1]) if at else 0
            # Up to the document that fills the shard, or the one that meets the budget.
            room = self._state.manifest.shard_tokens - self._state.tokens
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
            if self._state.tokens >= self._state.manifest.shard_tokens:
                self._close(exhausted=False)
            if self._budget.reached(self._tokens(), self._documents()):
                return True
        return False

    def _append(self, encoded: Encoded, start: int, stop: int, first: int, last: int) -> None:
        lengths = encoded.lengths[start:stop]
        lengths = lengths[lengths > 0]
        loss = None if encoded.loss is None else encoded.loss[first:last]
        state, skipped = self._state, collections.Counter(self._state.skipped)
        reasons = [reason for item, reason in encoded.faults.items() if start <= item < stop]
        for number, reason in enumerate(reasons, 1):
            skipped["bad" if reason else "empty"] += 1
            if reason:
                self._reasons.setdefault(reason, None)
            if skipped["bad"] > self._data.max_bad_records:
                reasons = reasons[:number]
                break
        self._state = _State(
            state.manifest,
            (*state.parts, (encoded.tokens[first:last], lengths, loss)),
            state.tokens + last - first,
            state.documents + len(lengths),
            state.items + stop - start,
            dict(skipped),
        )
        bad = [reason for reason in reasons if reason]
        if bad:
            self._check_bad(skipped, f"the last: {bad[-1]}")

    def _check_bad(self, skipped: Mapping[str, int], more: str) -> None:
        bad, limit = skipped.get("bad", 0), self._data.max_bad_records
        if bad > limit:
            raise UserError(
                f"{self._name}: {bad:,} records of {self._source.path or self._source.source} cannot be used, more "
                f"than data.max_bad_records {limit}; {more}"
            )

    @functools.cached_property
    def _reasons(self) -> dict[str, None]:
        """Why items could not be used, each once, in the order in which they were met."""
        return {}

    def _close(self, *, exhausted: bool) -> None:
        """Writes the open documents as a shard, and the manifest.

        Interrupted before the end, it writes the same again when it is called again.
        """
        state = self._state
        closed = state.manifest.shards
        try:
            if state.tokens:
                tokens, lengths, loss = (
                    None if part[0] is None else np.concatenate(part) for part in zip(*state.parts, strict=True)
                )
                closed += (shards.write_shard(self._directory, len(closed), tokens, lengths, loss, state.items),)
            # What was skipped behind the last shard will be read, and counted, again.
            skipped = state.skipped if state.tokens or exhausted else state.manifest.skipped
            manifest = dataclasses.replace(state.manifest, shards=closed, exhausted=exhausted, skipped=skipped)
            manifest.write(self._directory)
        except OSError as error:
            raise _cannot_write(self._directory, error) from None
        self._state = _State(manifest, (), 0, 0, state.items, state.skipped)
        shards.delete_unlisted(self._directory, manifest)

    def _progress(self, before: int, seconds: float) -> str:
        rate = (self._tokens() - before) / seconds
        left = ""
        if self._budget.tokens is not None and rate > 0:
            left = f", {human_duration((self._budget.tokens - self._tokens()) / rate)} left"
        goal = "" if self._budget.tokens is None else f" of {self._budget.tokens:,}"
        return f"preparing {self._name}: {self._tokens():,}{goal} tokens ({rate:,.0f} a second{left})"

    def _summary(self) -> str:
        manifest = self._state.manifest
        text = f"{self._name}: {manifest.tokens:,} tokens in {manifest.documents:,} documents"
        for reason, number in sorted(self._state.skipped.items()):
            text += f", {number:,} {reason} passed over"
        return text


def no_document(source: SourceSection, skipped: Mapping[str, int], reasons: Iterable[str] = ()) -> str:
    """Returns why a source has no document that could be used, with the first reasons where they are known."""
    text = f"{source.path or source.source} holds no document that could be used"
    counts = ", ".join(f"{number:,} {reason}" for reason, number in sorted(skipped.items()) if number)
    if counts:
        text += f" ({counts})"
    first = next(iter(reasons), None)
    return text if first is None else f"{text}; the first: {first}"
