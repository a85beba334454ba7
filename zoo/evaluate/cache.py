"""Results kept in a file, so that an evaluation that was interrupted goes on where it was."""

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
    """JSON values by question, of one model: another model, or the same with other weights, finds nothing here.

    An SQLite file; several models may share it.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        """Opens or creates the file; `identity` is `identity_of` the model. Raises UserError if that cannot be done."""
        self._path, self._identity = Path(path), identity
        try:
            self._connection = sqlite3.connect(self._path)
            self._connection.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise UserError(f"--cache: {path} cannot be used ({error}); name a new file, or one it wrote") from None

    def get(self, kind: str, question: Any) -> Any:
        """The value that was put, or None. `question` is what JSON can say."""
        found = self._connection.execute(
            "SELECT value FROM results WHERE key = ?", [self._key(kind, question)]
        ).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, kind: str, question: Any, value: Any) -> None:
        """Keep `value`; `commit` makes it last."""
        row = [self._key(kind, question), json.dumps(value)]
        self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", row)

    def commit(self) -> None:
        """Write what was put."""
        self._connection.commit()

    def _key(self, kind: str, question: Any) -> str:
        return sha256_hex(json.dumps([self._identity, kind, question]).encode())


def identity_of(lm: LanguageModel) -> str:
    """SHA-256 over what decides a model's results: architecture, weights, tokenizer and the dtype it computes in."""
    _, state = nnx.split(lm.module)
    about = [lm.spec.name, lm.config.to_dict(), None if lm.tokenizer is None else lm.tokenizer.fingerprint]
    digest = hashlib.sha256(json.dumps([*about, str(lm.computing.dtype)], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()
