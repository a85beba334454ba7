"""Prepared data on disk: tokens of whole documents in shards of a fixed size, and a manifest of them.

    <directory>/manifest.json        what was prepared from what with which tokenizer; a hash a shard
    <directory>/N.tokens.npy         uint16 or uint32: the tokens of the shard's documents, one behind the other
    <directory>/N.lengths.npy        uint32: how many of them belong to each document
    <directory>/N.loss.npy           uint8, chat data alone: 1 where the token is a target that bears loss

N is the shard's number and the beginning of its hash. The arrays are memory-mapped and read where a row needs them. A
shard ends with the first document that takes it to `SHARD_TOKENS`; only the last one may be smaller. So what the shards
hold does not depend on how often preparing was interrupted, nor on how much more was prepared later.
"""

import bisect
import copy
import ctypes
import dataclasses
import errno
import hashlib
import itertools
import json
import mmap
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo import files
from zoo.errors import UserError
from zoo.hardware.cores import allowed_cores
from zoo.util import atomic_write, first_line

FORMAT, MANIFEST = 1, "manifest.json"
SHARD_TOKENS = 1 << 23


@dataclass(frozen=True)
class Shard:
    """One shard of a manifest.

    Attributes:
        name: begins the names of its files.
        documents: how many it holds.
        tokens: how many it holds.
        items: of the source, read until the shard's end, skipped ones included.
        sha256: see `content_hash`.
    """

    name: str
    documents: int
    tokens: int
    items: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a directory of shards.

    Attributes:
        source: what was read, as plain JSON; its `revision` is the commit where the source has one.
        tokenizer: fingerprint of the tokenizer.
        vocab_size: its size.
        loss_masks: whether the shards say which tokens bear loss.
        shard_tokens: the size of a full shard.
        shards: in order.
        exhausted: whether the source was read to its end.
        skipped: items skipped until the end of the last shard, by reason: "empty" and "bad".
    """

    source: dict[str, Any]
    tokenizer: str
    vocab_size: int
    loss_masks: bool
    shard_tokens: int
    shards: tuple[Shard, ...] = ()
    exhausted: bool = False
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """The tokens' dtype, the smallest that holds the vocabulary."""
        return token_dtype(self.vocab_size)

    @property
    def tokens(self) -> int:
        """The number of tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """The number of documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    def write(self, directory: Path) -> None:
        """Writes manifest.json, whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        atomic_write(directory / MANIFEST, json.dumps(content, indent=1) + "\n")


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest dtype that holds the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def read_manifest(directory: Path) -> Manifest:
    """Reads manifest.json. Raises UserError if there is none or it is not one."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version != FORMAT:
            raise UserError(f"{path}: format {version!r}; this version reads {FORMAT}: prepare the data anew")
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        manifest = Manifest(**content, shards=shards)
        _check_types(manifest)
        for shard in shards:
            files.safe_join(directory, shard.name)
        return manifest
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the directory holds no prepared shards") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as a manifest of shards ({error!r}); delete it and prepare anew"
        ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    """Returns the error for a file that is there and may be whole: nothing is to be deleted."""
    remedies = {
        errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
        errno.ENFILE: "close other programs: the machine has too many files open",
        errno.ENOMEM: "free some memory, or raise the limit of mapped files (`sysctl vm.max_map_count`)",
        errno.EACCES: "mend its permissions",
        errno.EPERM: "mend its permissions",
    }
    remedy = remedies.get(error.errno, "see that its disk is there and sound")
    return UserError(f"{path}: cannot be read ({error.strerror or first_line(error)}); {remedy} and run again")


def _check_types(manifest: Manifest) -> None:
    """Raises TypeError unless every field is of its type, and no number is below zero."""
    numbers = [manifest.vocab_size, manifest.shard_tokens, *manifest.skipped.values()]
    numbers += [number for shard in manifest.shards for number in (shard.documents, shard.tokens, shard.items)]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise TypeError("a number in it is no whole number of at least 0")
    texts = [manifest.tokenizer, *(text for shard in manifest.shards for text in (shard.name, shard.sha256))]
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest.source, dict):
        raise TypeError("a text in it is no text")
    if not isinstance(manifest.exhausted, bool) or not isinstance(manifest.loss_masks, bool):
        raise TypeError("exhausted or loss_masks is neither true nor false")


def write_shard(
    directory: Path, number: int, tokens: np.ndarray, lengths: np.ndarray, loss: np.ndarray | None, items: int
) -> Shard:
    """Writes the files of shard `number` and fsyncs them; the shard counts once a manifest lists it.

    `tokens`: uint16 or uint32 [tokens]; `lengths`: int [documents]; `loss`: uint8 [tokens]; `items`: see `Shard`.
    """
    sha256 = content_hash(tokens, lengths, loss)
    name = f"{number:05d}-{sha256[:8]}"  # a shard that is written again never replaces one that is listed
    arrays = {"tokens": tokens, "lengths": lengths.astype(np.uint32)} | ({} if loss is None else {"loss": loss})
    for part, array in arrays.items():
        temporary = directory / f".{name}.{part}.tmp"
        try:
            with files.open_new(temporary) as file:
                # As `np.save` writes it, whose error on a full disk does not say what it is.
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(np.ascontiguousarray(array).data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(directory / f"{name}.{part}.npy")
        except OSError:
            files.remove(temporary)
            raise
    return Shard(name, len(lengths), len(tokens), items, sha256)


def delete_unlisted(directory: Path, manifest: Manifest) -> None:
    """Deletes shards that the manifest does not list: left over from a kill, or written again."""
    listed = {shard.name for shard in manifest.shards}
    for path in (*directory.glob("*.npy"), *directory.glob(".*.tmp")):
        if path.name.split(".")[0] not in listed:
            files.remove(path)


def content_hash(tokens: np.ndarray, lengths: np.ndarray, loss: np.ndarray | None) -> str:
    """Returns the SHA-256 (64 hexadecimal digits) of what a shard holds."""
    digest = hashlib.sha256()
    for array, dtype in ((tokens, f"<u{tokens.dtype.itemsize}"), (lengths, "<u4"), (loss, "u1")):
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()


class Shards:
    """The shards of a directory, memory-mapped, as one long row of tokens.

    Attributes:
        manifest: see `Manifest`.
        offsets: int64 [documents + 1]; document i is `read(offsets[i], offsets[i + 1])`.
    """

    def __init__(self, directory: Path):
        """Raises UserError when the manifest or a shard is missing or has another size than the manifest says."""
        self.directory, self.manifest = directory, read_manifest(directory)
        parts = ("tokens", "lengths", "loss") if self.manifest.loss_masks else ("tokens", "lengths")
        arrays = {part: [self._map(shard, part) for shard in self.manifest.shards] for part in parts}
        self._tokens, self._lengths, self._loss = arrays["tokens"], arrays["lengths"], arrays.get("loss")
        self._cuts: tuple[int, ...] = ()
        self.offsets = np.zeros(self.manifest.documents + 1, np.int64)
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=self.offsets[1:])
        self._starts = list(itertools.accumulate((shard.tokens for shard in self.manifest.shards), initial=0))
        self._first = list(itertools.accumulate((shard.documents for shard in self.manifest.shards), initial=0))
        if self.offsets[-1] != self._starts[-1]:
            raise UserError(f"{directory}: the lengths of the documents do not add up to the tokens; prepare it anew")

    def _map(self, shard: Shard, part: str) -> np.ndarray:
        path = self.directory / f"{shard.name}.{part}.npy"
        try:
            array = _mapped(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)}); {self._remedy(shard)}") from None
        except OSError as error:  # says nothing about the file
            raise _unreadable(path, error) from None
        except Exception as error:  # NumPy gives a damaged head to Python's own tokenizer and parser
            raise UserError(f"{path}: cannot be read ({first_line(error)}); {self._remedy(shard)}") from None
        size = shard.documents if part == "lengths" else shard.tokens
        dtype = {"tokens": self.manifest.dtype, "lengths": np.dtype(np.uint32), "loss": np.dtype(np.uint8)}[part]
        if array.shape != (size,) or array.dtype != dtype:
            raise UserError(
                f"{path}: holds {array.dtype} {list(array.shape)}, the manifest says {dtype} [{size}]; "
                f"{self._remedy(shard)}"
            )
        return array

    def _remedy(self, shard: Shard) -> str:
        return f"delete {self.directory} (or get shard {shard.name} again) and run again"

    def verify(self, shards: int | None = None) -> None:
        """Checks the first `shards` (None: all) against the manifest's hashes. Raises UserError for a damaged one."""
        chosen = self.manifest.shards[:shards]
        with ThreadPoolExecutor(max_workers=min(4, allowed_cores())) as pool:  # hashing releases Python's lock
            for shard, sha256 in zip(chosen, pool.map(self._hash, range(len(chosen))), strict=True):
                if sha256 != shard.sha256:
                    raise UserError(
                        f"{self.directory}: shard {shard.name} is damaged (its SHA-256 is not that of the manifest); "
                        f"{self._remedy(shard)}"
                    )

    def _hash(self, number: int, documents: int | None = None) -> str:
        """Returns the hash of a shard, or of its first documents."""
        lengths = self._lengths[number][:documents]
        size = int(lengths.sum(dtype=np.int64))
        loss = None if self._loss is None else self._loss[number][:size]
        return content_hash(self._tokens[number][:size], lengths, loss)

    def fingerprint(self, documents: int) -> str:
        """Returns the SHA-256 (64 hexadecimal digits) of the first `documents`, whatever else the shards hold.

        It is made of the hashes in the manifest, which `verify` checks against the files.
        """
        digest = hashlib.sha256()
        cuts = [place for place in self._cuts if place < self.offsets[documents]]
        if cuts:
            digest.update(f"cut at {cuts}".encode())
            documents -= len(cuts)
        for number, shard in enumerate(self.manifest.shards):
            inside = min(documents - self._first[number], shard.documents)
            if inside <= 0:
                break
            whole = inside == shard.documents
            digest.update((shard.sha256 if whole else self._hash(number, inside)).encode())
        return digest.hexdigest()

    def cut(self, place: int) -> "Shards":
        """Returns the same shards with the document around a place in the long row cut in two, which count as two.

        `place`: the first token of the second part; no document begins there yet.
        """
        other = copy.copy(self)
        other.__dict__.pop("longest", None)
        other.offsets = np.insert(self.offsets, np.searchsorted(self.offsets, place), place)
        other._cuts = (*self._cuts, place)
        return other

    def shards_of(self, documents: int) -> int:
        """Returns how many shards the first `documents` lie in."""
        return bisect.bisect_left(self._first, documents)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies the tokens from `start` to `stop` of the whole row into `out`, int32 [stop - start]."""
        self._copy(self._tokens, start, stop, out)

    def read_loss(self, start: int, stop: int, out: np.ndarray) -> None:
        """Copies which of these tokens bear loss (1 or 0) into `out`, [stop - start] of any numbers.

        Only for shards whose `manifest.loss_masks` is true.
        """
        self._copy(self._loss, start, stop, out)

    def loss_places(self) -> np.ndarray:
        """Returns the places of all tokens that bear loss, int64, ascending; for shards with loss masks."""
        places = [start + np.flatnonzero(loss) for start, loss in zip(self._starts, self._loss, strict=False)]
        return np.concatenate(places) if places else np.zeros(0, np.int64)

    def _copy(self, arrays: list[np.ndarray], start: int, stop: int, out: np.ndarray) -> None:
        number = bisect.bisect_right(self._starts, start) - 1
        done = 0
        while start < stop:
            base, end = self._starts[number], min(stop, self._starts[number + 1])
            out[done : done + end - start] = arrays[number][start - base : end - base]
            done, start, number = done + end - start, end, number + 1

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns the tokens, lengths (int64) and loss of one shard."""
        loss = None if self._loss is None else np.array(self._loss[number])
        return np.array(self._tokens[number]), np.array(self._lengths[number], np.int64), loss

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of a document, int32."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        out = np.empty(stop - start, np.int32)
        self.read(start, stop, out)
        return out

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return int(np.diff(self.offsets).max(initial=0))


def _mapped(path: Path) -> np.ndarray:
    """Returns the array of an .npy file, mapped into memory and read-only.

    Unlike `numpy.memmap`, it holds no open file: a corpus may have more shards than a process may have files. Slicing
    it is also several times as fast.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if len(shape) != 1 or dtype.hasobject or size != start + shape[0] * dtype.itemsize:
            raise ValueError(f"{size} bytes do not hold {dtype} {list(shape)}")
        if not shape[0]:
            return np.zeros(0, dtype)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, libc.munmap, address, size).atexit = False
    array = np.frombuffer(buffer, dtype, shape[0], start)
    array.flags.writeable = False
    return array
