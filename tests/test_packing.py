"""What best-fit packing keeps beside the shards, and that it packs where nothing can be kept."""

import numpy as np
import pytest

from zoo.data import packing
from zoo.data.packing import best_fit

LENGTHS = np.random.default_rng(2).integers(1, 200, 10_000)


def forbidden(*_, **__):
    raise PermissionError(13, "Permission denied")


def unwritable(monkeypatch, cache):
    monkeypatch.setattr(packing, "atomic_write", forbidden)


def no_directory(monkeypatch, cache):
    monkeypatch.setattr(type(cache), "mkdir", forbidden)


def unreadable(monkeypatch, cache):
    monkeypatch.setattr(packing.np, "load", forbidden)
    monkeypatch.setattr(packing, "atomic_write", forbidden)


def a_file_in_its_place(monkeypatch, cache):
    cache.write_text("")


@pytest.mark.parametrize("hinder", [unwritable, no_directory, unreadable, a_file_in_its_place])
def test_shards_that_cannot_be_written_to_are_packed_all_the_same(tmp_path, monkeypatch, hinder):
    cache = tmp_path / "rows"
    hinder(monkeypatch, cache)
    made = packing.cached_best_fit(cache, LENGTHS, 500)
    monkeypatch.undo()
    for one, two in zip(made, best_fit(LENGTHS, 500), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not list(tmp_path.glob("rows/*"))


def test_an_empty_index_is_made_anew(tmp_path):
    made = packing.cached_best_fit(tmp_path, LENGTHS, 500)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(b"")
    for one, two in zip(packing.cached_best_fit(tmp_path, LENGTHS, 500), made, strict=True):
        np.testing.assert_array_equal(one, two)
    assert path.read_bytes() == whole
