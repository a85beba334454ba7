"""A file of results, with which an interrupted evaluation goes on where it was."""

import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo.errors import UserError
from zoo.language_model import LanguageModel
from zoo.util import sha256_hex


class ResultCache:
    """An SQLite file of JSON values by question, as one model answered.

    Several models may share the file; each, and each set of weights, sees its own answers alone.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        """Opens or creates the file; `identity` is `identity_of` the model. Raises UserError if it cannot be used."""
        self._path, self._identity = Path(path), identity
        try:
            self._connection = sqlite3.connect(self._path)
            self._connection.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise UserError(f"--cache: {path} cannot be used ({error}); name a new file, or one it wrote") from None

    def get(self, kind: str, question: Any) -> Any:
        """Returns the value that was put for a question, which JSON can hold; None where there is none."""
        key = self._key(kind, question)
        row = self._connection.execute("SELECT value FROM results WHERE key = ?", [key]).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, kind: str, question: Any, value: Any) -> None:
        """Stores the value of a question; it is lost without a later `commit`."""
        row = [self._key(kind, question), json.dumps(value)]
        self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", row)

    def commit(self) -> None:
        """Writes to the disk what was put."""
        self._connection.commit()

    def _key(self, kind: str, question: Any) -> str:
        return sha256_hex(json.dumps([self._identity, kind, question]).encode())


def identity_of(lm: LanguageModel) -> str:
    """Returns the SHA-256 over what decides a model's results: architecture, weights, tokenizer and compute dtype."""
    _, state = nnx.split(lm.module)
    tokenizer = None if lm.tokenizer is None else lm.tokenizer.fingerprint
    settings = [lm.spec.name, lm.config.to_dict(), tokenizer, str(lm.computing.dtype)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()
