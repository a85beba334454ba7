"""The readers of files of strangers answer or raise UserError: small inputs, what was found, and changes of them."""

import random
import sys
from pathlib import Path

import pytest

from zoo.errors import UserError

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from targets import TARGETS  # noqa: E402


@pytest.mark.parametrize("name", TARGETS)
def test_the_inputs_are_read(name, tmp_path):
    inputs = TARGETS[name].inputs()
    assert inputs
    for number, data in enumerate(inputs):
        (tmp_path / str(number)).mkdir()
        try:
            TARGETS[name].read(data, tmp_path / str(number))
        except UserError:
            assert number, f"the first input of {name} is one that it reads"


@pytest.mark.parametrize("file", sorted(FUZZ.glob("found/*")), ids=lambda file: file.name)
def test_what_was_found_is_answered(file, tmp_path):
    name = file.name.rpartition("-")[0]
    try:
        TARGETS[name].read(file.read_bytes(), tmp_path)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_answered(name, tmp_path):
    """A few of the changes that a fuzzer makes: bits, cuts, repeats; the fuzzer itself makes millions."""
    drawn = random.Random(name)
    for number in range(25):
        data = bytearray(drawn.choice(TARGETS[name].inputs()))
        for _ in range(drawn.randint(1, 4)):
            at = drawn.randrange(len(data) + 1)
            change = drawn.randrange(4)
            if change == 0 and at < len(data):
                data[at] ^= 1 << drawn.randrange(8)
            elif change == 1:
                del data[at : at + drawn.randint(1, 8)]
            elif change == 2:
                data[at:at] = data[at : at + drawn.randint(1, 16)]
            elif at < len(data):
                data[at] = drawn.choice(b'\0\xff{}[]":,-9e\n')
        place = tmp_path / str(number)
        place.mkdir()
        try:
            TARGETS[name].read(bytes(data), place)
        except UserError as error:
            assert str(error)


# Orbax leaves coroutines behind when it fails, which Python mentions.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited:RuntimeWarning"
)
def test_flipped_bytes_of_a_run_change_nothing_in_silence(tmp_path):
    """The whole campaign is `tests/fuzz/flip.py`; here 1,501 bytes apart, of the files that decide most."""
    import flip

    run = flip.make_run(tmp_path)
    for file in [*run.rglob("optimizer/**/*"), run / "loss.png"]:
        if file.is_file():
            file.unlink()  # nothing is read of them here
    table = flip.campaign(run, every=1501)
    outcomes = {name for counted in table.values() for name in counted}
    assert outcomes <= {"refused", "told", "harmless"}, table
    assert table["tokenizer/tokenizer.json"].keys() == {"refused"}
    assert "harmless" not in table["checkpoints/4/meta/data.json"]
