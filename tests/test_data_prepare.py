"""Shards: what is prepared, that it goes on where it was stopped, and what becomes of bad data."""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from zoo.data import encode as encode_module
from zoo.data import prepare as prepare_module
from zoo.data import shards as shards_module
from zoo.data import stories
from zoo.data.budget import TokenBudget
from zoo.data.encode import encode, encode_chunk, pieces_of
from zoo.data.prepare import directory_of, prepare
from zoo.data.shards import Shards, read_manifest
from zoo.data.tokenizer import make_tokenizer
from zoo.errors import UserError
from zoo.hardware.cores import allowed_cores
from zoo.recipe import make_recipe
from zoo.recipe.data import DataSection, SourceSection
from zoo.tokenizers import load
from zoo.tokenizers.characters import CharacterTokenizer

DATA = Path(__file__).parent / "data"
TOKENIZER = load(DATA / "small.tiktoken")
TEXTS = stories.generate(300)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 3000)
    monkeypatch.setattr(encode_module, "_CHUNK_ITEMS", 10)


def data(tmp_path, **fields):
    fields = {"source": "stories", "kind": "text", "prepared_dir": str(tmp_path / "prepared"), "workers": 1} | fields
    return DataSection(**fields)


def make(section, want, tokenizer=TOKENIZER, said=None):
    said = [] if said is None else said
    return Shards(prepare(section.document_sources[0], section, tokenizer, want, say=said.append))


def documents(found):
    return [found.document(i).tolist() for i in range(found.manifest.documents)]


def rows(texts, tokenizer=TOKENIZER):
    return [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


def test_documents_keep_their_borders(tmp_path):
    found = make(data(tmp_path), TokenBudget(tokens=20_000))
    number = found.manifest.documents
    assert documents(found) == rows(TEXTS[:number])
    # Not one document more than is wanted.
    assert sum(map(len, rows(TEXTS[: number - 1]))) < 20_000 <= found.manifest.tokens
    assert len(found.manifest.shards) > 3
    assert all(shard.tokens >= 3000 for shard in found.manifest.shards[:-1])
    found.verify()
    assert found.manifest.tokenizer == TOKENIZER.fingerprint


def test_what_shards_hold_does_not_depend_on_how_they_came_about(tmp_path):
    whole = make(data(tmp_path), TokenBudget(tokens=20_000))
    other = data(tmp_path, prepared_dir=str(tmp_path / "other"))
    for tokens in (1, 2500, 2600, 9000, 20_000):
        grown = make(other, TokenBudget(tokens=tokens))
        number = TokenBudget(tokens=tokens).documents_of(whole)
        assert grown.manifest.documents == number
        # A run that needs so much sees the same, before and after more was prepared.
        assert grown.fingerprint(number) == whole.fingerprint(number)
    assert grown.manifest.shards == whole.manifest.shards
    assert files(grown) == set(map(name, grown.manifest.shards))
    assert len({whole.fingerprint(number) for number in range(1, 40)}) == 39


def name(shard):
    return shard.name


def files(found):
    return {path.name.split(".")[0] for path in found.directory.glob("*.npy")}


def test_a_second_time_nothing_is_done(tmp_path):
    make(data(tmp_path), TokenBudget(tokens=9000))
    said = []
    make(data(tmp_path), TokenBudget(tokens=9000), said=said)
    make(data(tmp_path), TokenBudget(tokens=500), said=said)
    assert said == []


def test_another_tokenizer_source_or_file_has_shards_of_its_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes((DATA / "stories.jsonl").read_bytes())
    base = data(tmp_path, source="jsonl", path=str(path))
    found = {directory_of(base.document_sources[0], base, TOKENIZER)}
    found.add(directory_of(base.document_sources[0], base, load(DATA / "small.model")))
    for fields in ({"text_field": "id"}, {"source": "text"}, {"source": "stories", "path": None}):
        other = data(tmp_path, **({"source": "jsonl", "path": str(path)} | fields))
        found.add(directory_of(other.document_sources[0], other, TOKENIZER))
    path.write_bytes((DATA / "stories.jsonl").read_bytes()[:-1] + b" \n")
    found.add(directory_of(base.document_sources[0], base, TOKENIZER))
    assert len(found) == 6
    seeded = {directory_of(d.document_sources[0], d, TOKENIZER) for d in (data(tmp_path, seed=s) for s in (0, 1))}
    assert len(seeded) == 2


def same_time(*paths):
    for path in paths:
        os.utime(path, ns=(1_700_000_000 * 10**9,) * 2)


@pytest.mark.parametrize("kind", ["jsonl", "hub"])
def test_files_of_one_name_size_and_time_are_told_apart_by_their_content(tmp_path, kind):
    """As tar unpacks them, whose times are whole seconds."""
    directories = []
    for word in ("red", "sun"):
        path = tmp_path / word / "set" / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"text": "the {word} cat"}}\n')
        same_time(path)
        place = tmp_path / word / "set"
        section = data(tmp_path, source=kind, path=str(path if kind == "jsonl" else place))
        directories.append(directory_of(section.document_sources[0], section, TOKENIZER))
        # What was prepared of it is found again, until the file changes.
        assert directory_of(section.document_sources[0], section, TOKENIZER) == directories[-1]
    assert directories[0] != directories[1]
    path.write_text('{"text": "the fox cat"}\n')
    same_time(path)
    assert directory_of(section.document_sources[0], section, TOKENIZER) not in directories


def test_a_local_data_set_whose_files_change_is_prepared_anew(tmp_path):
    path = tmp_path / "set" / "train.jsonl"
    path.parent.mkdir()
    section = data(tmp_path, source="hub", path=str(path.parent))
    for word in ("red", "sun"):
        path.write_text(f'{{"text": "the {word} cat"}}\n')
        same_time(path)
        assert [TOKENIZER.decode(ids[:-1]) for ids in documents(make(section, TokenBudget()))] == [f"the {word} cat"]


def test_a_large_file_is_known_by_blocks_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_BLOCK", 10)
    monkeypatch.setattr(prepare_module, "_WHOLE", 160)
    path, content = tmp_path / "a.txt", bytes(range(256)) * 5

    def hashed(content):
        path.write_bytes(content)
        return prepare_module.files_identity([path])[0][3]

    seen = {hashed(content), hashed(content[:100])}
    # In the first block, the second and the last.
    for at in (0, 9, (len(content) - 10) // 15 + 5, len(content) - 10, len(content) - 1):
        seen.add(hashed(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]))
    assert len(seen) == 7
    whole = content[:160]
    assert len({hashed(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) for at in range(160)}) == 160


def test_files_may_be_moved_together(tmp_path):
    for part in ("a/x.txt", "b/x.txt"):
        written(tmp_path / "one" / part, part)
    before = prepare_module.files_identity(sorted((tmp_path / "one").rglob("*.txt")))
    (tmp_path / "one").rename(tmp_path / "two")
    assert prepare_module.files_identity(sorted((tmp_path / "two").rglob("*.txt"))) == before
    assert [place for place, *_ in before] == ["a/x.txt", "b/x.txt"]


def test_processes_give_what_one_gives(tmp_path, monkeypatch):
    alone = list(encode(iter(TEXTS[:100]), data(tmp_path), TOKENIZER))
    monkeypatch.setattr(encode_module, "_ALONE", 1000)
    before = set(multiprocessing.active_children())
    several = list(encode(iter(TEXTS[:100]), data(tmp_path, workers=2), TOKENIZER))
    assert len(alone) == len(several) == 10
    for one, other in zip(alone, several, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.lengths, other.lengths)
    assert set(multiprocessing.active_children()) <= before


def test_a_worker_that_is_killed_is_told_with_the_remedy(tmp_path, monkeypatch):
    """As the kernel does it when memory runs out."""
    monkeypatch.setattr(encode_module, "_ALONE", 1000)
    items = itertools.chain(TEXTS[:60], kill_children())
    with pytest.raises(UserError) as caught:
        list(encode(items, data(tmp_path, workers=2), TOKENIZER))
    text = str(caught.value)
    assert text.startswith("data.workers: one of 2 processes") and "memory" in text and "data.workers: 1" in text
    assert "\n" not in text and not multiprocessing.active_children()


def kill_children():
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    yield from TEXTS * 10


def test_what_workers_lack_in_memory_is_told_too(tmp_path, monkeypatch):
    def run_out(*args):
        raise MemoryError

    monkeypatch.setattr(encode_module, "_ALONE", 0)
    monkeypatch.setattr(encode_module, "_pool", lambda workers, tokenizer: contextlib.nullcontext(Pool(run_out)))
    with pytest.raises(UserError, match=r"^data\.workers: .*memory.*data\.workers: 2 \(now 4\)"):
        list(encode(iter(TEXTS), data(tmp_path, workers=4), TOKENIZER))


class Pool:
    def __init__(self, call):
        self._call = call

    def submit(self, *args):
        future = concurrent.futures.Future()
        try:
            self._call(*args)
        except MemoryError as error:
            future.set_exception(error)
        return future


def test_workers_are_as_many_as_the_cores_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "_ALONE", 0)
    monkeypatch.setattr(encode_module, "allowed_cores", lambda: 3)
    asked = []

    def pool(workers, tokenizer):
        asked.append(workers)
        raise Interrupted

    monkeypatch.setattr(encode_module, "_pool", pool)
    for workers in (0, 2):
        with pytest.raises(Interrupted):
            list(encode(iter(TEXTS), data(tmp_path, workers=workers), TOKENIZER))
    assert asked == [3, 2]


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (None, {}, 8),
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        # The limit may stand on any level above.
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("4:memory:/x\n1:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        # In a container the mount is the group itself, whatever it is called outside.
        ("1:cpu:/docker/1", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_that_the_process_may_use(tmp_path, monkeypatch, groups, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name, text in ({} if groups is None else {"proc/self/cgroup": groups}).items():
        written(tmp_path / name, text)
    for name, text in files.items():
        written(tmp_path / "sys/fs/cgroup" / name, text)
    assert allowed_cores(tmp_path) == cores


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Interrupted(BaseException):
    pass


def interrupt_at(moment, call):
    """Calls a function, and interrupts it at the line of preparing that is reached as number `moment`."""
    watched, reached = (prepare_module.__file__, shards_module.__file__), 0

    def trace(frame, event, argument):
        nonlocal reached
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            reached += 1
            if reached == moment:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


def test_interrupted_at_any_line_no_document_is_doubled_or_lost(tmp_path, monkeypatch):
    """As Ctrl-C does it, between a shard's files, its manifest and the next document, too."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 10)
    texts = [line("one two"), line("three four five"), line("six"), line("seven eight nine"), line("x")]
    lines = [texts[0], b"{bad", texts[1], line(""), *texts[2:4], b"[", texts[4]]
    fields = write_lines(tmp_path, lines) | {"max_bad_records": 2}

    def prepared(directory):
        return make(data(tmp_path, prepared_dir=str(directory), **fields), TokenBudget())

    monkeypatch.setattr(encode_module, "_CHUNK_ITEMS", 2)
    whole = prepared(tmp_path / "whole")
    assert len(whole.manifest.shards) > 2
    moments = 0
    for moment in itertools.count(1, 5):
        directory = tmp_path / str(moment)
        with contextlib.suppress(Interrupted):
            interrupt_at(moment, lambda directory=directory: prepared(directory))
            break
        found = prepared(directory)
        assert documents(found) == documents(whole), moment
        assert (found.manifest.shards, found.manifest.skipped) == (whole.manifest.shards, whole.manifest.skipped), (
            moment
        )
        assert files(found) == set(map(name, whole.manifest.shards)), moment
        moments += 1
    assert moments > 40


def test_interrupted_anywhere_it_goes_on(tmp_path, monkeypatch):
    whole = make(data(tmp_path), TokenBudget(tokens=20_000))
    other = data(tmp_path, prepared_dir=str(tmp_path / "other"))
    real, calls = encode_module.encode_chunk, [0]

    def interrupt(*args):
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise Interrupted
        return real(*args)

    monkeypatch.setattr(encode_module, "encode_chunk", interrupt)
    kept = []
    for _ in range(100):
        try:
            found = make(other, TokenBudget(tokens=20_000))
            break
        except Interrupted:
            kept.append(read_manifest(directory_of(other.document_sources[0], other, TOKENIZER)).tokens)
    assert len(kept) > 2 and kept == sorted(kept) and kept[0] > 0
    assert documents(found) == documents(whole)
    assert found.manifest.shards == whole.manifest.shards


def test_killed_while_a_shard_is_written_it_goes_on(tmp_path):
    """SIGKILL between a shard's files and the manifest, when the shard before was written anew."""
    program = f"""
        import os, signal
        from zoo.data import budget, prepare, shards
        from zoo.recipe.data import DataSection
        from zoo.tokenizers import load

        data = DataSection(source="stories", kind="text", prepared_dir={str(tmp_path / "prepared")!r}, workers=1)
        tokenizer = load({str(DATA / "small.tiktoken")!r})
        prepare.prepare(data.document_sources[0], data, tokenizer, budget.TokenBudget(tokens=2000), say=print)
        write = shards.write_shard

        def die(*args):
            write(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        shards.write_shard = die
        prepare.prepare(data.document_sources[0], data, tokenizer, budget.TokenBudget(tokens=6000), say=print)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    section = data(tmp_path)
    directory = directory_of(section.document_sources[0], section, TOKENIZER)
    Shards(directory).verify()  # what the manifest lists is whole
    found = make(section, TokenBudget(tokens=6000))
    assert documents(found) == rows(TEXTS[: found.manifest.documents])
    assert files(found) == set(map(name, found.manifest.shards))


def test_all_that_is_needed_may_lie_where_nothing_can_be_written(tmp_path, monkeypatch):
    found = make(data(tmp_path), TokenBudget(tokens=4000))

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(prepare_module.files, "open_lock", refuse)
    (found.directory / ".lock").unlink()
    assert documents(make(data(tmp_path), TokenBudget(tokens=4000))) == documents(found)
    for section, budget in (
        (data(tmp_path), TokenBudget(tokens=9000)),
        (data(tmp_path, seed=1), TokenBudget(tokens=9)),
    ):
        with pytest.raises(UserError, match=r"prepared.*: cannot be written \(Read-only file system\); set data\.prep"):
            make(section, budget)
    # A file system that has no locks.
    monkeypatch.undo()
    monkeypatch.setattr(prepare_module.fcntl, "flock", lambda *args: refuse("x"))
    assert documents(make(data(tmp_path), TokenBudget(tokens=4000))) == documents(found)
    # The directory cannot be made: something else is in its place.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*cannot be written \(Not a directory\)"):
        make(data(tmp_path, prepared_dir=str(tmp_path / "file")), TokenBudget(tokens=9))


@pytest.mark.parametrize("part", ["tokens", "manifest"])
def test_a_full_disk_is_told_with_its_directory_and_what_is_there_stays(tmp_path, monkeypatch, part):
    first = documents(make(data(tmp_path), TokenBudget(tokens=4000)))
    number = os.fsync

    def full(file):
        if part in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return number(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        make(data(tmp_path), TokenBudget(tokens=9000))
    text = str(caught.value)
    assert str(tmp_path / "prepared") in text and "the disk is full" in text and "data.prepared_dir" in text
    assert "\n" not in text and not list((tmp_path / "prepared").glob("*/.*.tmp"))
    monkeypatch.undo()
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 3000)
    assert documents(make(data(tmp_path), TokenBudget(tokens=9000)))[: len(first)] == first


def test_a_full_disk_while_shards_are_copied_is_told(tmp_path, monkeypatch):
    import fsspec

    from zoo.data import remote

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    found = make(data(tmp_path), TokenBudget(tokens=900))
    fsspec.filesystem("memory").put(f"{found.directory}/", "/full/stories/", recursive=True)

    def full(system, source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "_copy", full)
    section = data(tmp_path, source="shards", path="memory://full/stories")
    with pytest.raises(UserError, match=r"cache.*cannot be copied there \(No space left.*ZOO_CACHE"):
        make(section, TokenBudget())
    written(tmp_path / "taken", "")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"taken.*cannot be copied there \(Not a directory"):
        make(section, TokenBudget())


def test_two_at_once_do_the_work_once(tmp_path):
    said, results = [[], []], [None, None]

    def work(i):
        results[i] = make(data(tmp_path), TokenBudget(tokens=9000), said=said[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert documents(results[0]) == documents(results[1])
    assert sum(line.startswith("prepared") for lines in said for line in lines) == 1


def test_workers_go_when_their_parent_is_killed(tmp_path):
    program = f"""
        import itertools, os, signal, sys
        from zoo.data import encode
        from zoo.recipe.data import DataSection
        from zoo.tokenizers import load

        encode._ALONE = 1
        data = DataSection(source="stories", kind="text", workers=2)
        tokenizer = load({str(DATA / "small.tiktoken")!r})
        import multiprocessing
        for number, _ in enumerate(encode.encode(itertools.repeat("a b c " * 1000), data, tokenizer)):
            if number == 5:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2, done.stderr
    gone = threading.Event()
    for _ in range(300):
        if not any(alive(pid) for pid in children):
            return
        gone.wait(0.1)
    pytest.fail(f"still running: {[pid for pid in children if alive(pid)]}")


def alive(pid):
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


# Bad data


def write_lines(tmp_path, lines):
    (tmp_path / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return {"source": "jsonl", "path": str(tmp_path / "a.jsonl")}


def line(text):
    return json.dumps({"text": text}).encode()


def test_bad_and_empty_documents_are_counted_and_passed_over(tmp_path):
    lines = [line("one"), line(""), b"{bad", line(" \n"), b'{"text": "\xff"}', line("two"), b'{"x": 1}']
    said = []
    found = make(data(tmp_path, **write_lines(tmp_path, lines)), TokenBudget(), said=said)
    assert documents(found) == rows(["one", "two"])
    assert found.manifest.skipped == {"bad": 3, "empty": 2}
    assert found.manifest.exhausted
    assert "2 empty passed over" in said[-1] and "3 bad passed over" in said[-1]


def test_too_many_bad_ones_stop_in_one_line_again_and_again(tmp_path):
    lines = [line("one"), *[b"{bad"] * 4, line("two")]
    section = data(tmp_path, **write_lines(tmp_path, lines), max_bad_records=2)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            make(section, TokenBudget())
        text = str(caught.value)
        assert "3 records" in text and "data.max_bad_records 2" in text and "\n" not in text
    assert documents(make(data(tmp_path, **write_lines(tmp_path, lines), max_bad_records=4), TokenBudget())) == rows(
        ["one", "two"]
    )


def test_a_source_without_a_document_is_named(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="holds no document that could be used"):
            make(data(tmp_path, **write_lines(tmp_path, [line(""), b"{"])), TokenBudget())


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NODE = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "lang": "en"}


@pytest.mark.parametrize(
    ("records", "fields", "reason"),
    [
        ([{"content": "a"}], {}, "line 1: no field 'text' (data.text_field); its fields: content"),
        ([[{"text": "a"}]], {}, "this is a list; write each of its objects as a line"),
        ([{"text": None}], {}, "line 1: no field 'text'"),
        ([{"text": ["a"]}], {}, "line 1: field 'text' is list, not text"),
        (
            [{"messages": [{"role": "system", "content": "x"}, USER, ASSISTANT]}],
            {"kind": "chat"},
            "line 1: message 1 is of role 'system', a turn of the user was due",
        ),
        (
            [{"conversations": [{"from": "human", "value": "q"}]}],
            {"kind": "chat"},
            "its fields: conversations (ShareGPT's are not read: write messages of role and content)",
        ),
        ([{"prompt": "q"}], {"kind": "chat", "format": "dolly"}, "'response' is missing; its fields: prompt"),
        ([NODE], {"kind": "chat", "format": "oasst1"}, "in 1 records of format oasst1 there is no English answer"),
        ([[NODE]], {"kind": "chat", "format": "oasst1"}, "one cannot be used: {path}, line 1: a JSON object was exp"),
    ],
)
def test_the_reason_why_no_document_can_be_used_is_told_each_time(tmp_path, records, fields, reason):
    section = data(tmp_path, **write_lines(tmp_path, [json.dumps(record).encode() for record in records]), **fields)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            make(section, TokenBudget())
        text = str(caught.value)
        assert text.startswith("data: ") and f"({len(records)} bad); the first: " in text and "\n" not in text
        assert reason.format(path=tmp_path / "a.jsonl") in text


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_tokenizer_that_finds_no_text_to_learn_from_says_why(tmp_path, kind):
    lines = [json.dumps({"content": "a"}).encode(), line(" ")]
    content = {"name": "x", "model": {"name": "cronica-5m"}, "tokenizer": {"train": True, "kind": kind}}
    content["data"] = {"kind": "text", **write_lines(tmp_path, lines)}
    with pytest.raises(UserError, match=r"^data: .*holds no doc.*\(1 bad, 1 empty\); the first: .*its fields: content"):
        make_tokenizer(make_recipe(content), say=lambda text: None)


def test_what_is_skipped_is_counted_once_however_often_it_stops(tmp_path):
    lines = [b"{bad"] * 3 + [line("one"), b"{bad", line("two")]
    for limit in (0, 1, 2, 3):
        section = data(tmp_path, **write_lines(tmp_path, lines), max_bad_records=limit)
        with pytest.raises(
            UserError, match=rf"{limit + 1} records of .* cannot be used, more than .* {limit}; the last"
        ):
            make(section, TokenBudget())
    found = make(data(tmp_path, **write_lines(tmp_path, lines), max_bad_records=4), TokenBudget())
    assert documents(found) == rows(["one", "two"]) and found.manifest.skipped == {"bad": 4}


def test_a_character_outside_the_alphabet_makes_a_document_bad(tmp_path):
    tokenizer = CharacterTokenizer("abc")
    lines = [line("abc"), line("xyz"), line("cab")]
    found = make(data(tmp_path, **write_lines(tmp_path, lines)), TokenBudget(), tokenizer)
    assert found.manifest.skipped == {"bad": 1}
    assert [tokenizer.decode(ids) for ids in documents(found)] == ["abc", "cab"]  # no line feed to part them


def test_a_very_long_document_is_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "LONGEST_PIECE", 1000)
    text = " ".join(TEXTS[:20])
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text and len(pieces) > 5 and max(map(len, pieces)) <= 1000
    assert all(piece[0].isspace() for piece in pieces[1:])
    assert "".join(pieces_of("x" * 4321)) == "x" * 4321
    found = make(data(tmp_path, **write_lines(tmp_path, [line("a"), line(text), line("b")])), TokenBudget())
    assert found.manifest.documents == 3
    assert TOKENIZER.decode(found.document(1)) == text


@pytest.mark.slow
def test_eleven_million_characters_without_a_space_do_not_hang(tmp_path):
    for kind in ("tiktoken", "model"):
        tokenizer = load(DATA / f"small.{kind}")
        encoded = encode_chunk(["ab" * 5_500_000], tokenizer, "text", None)
        assert tokenizer.decode(encoded.tokens[:-1]).replace(" ", "") == "ab" * 5_500_000


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_shards_hold_no_file_open_however_many_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 100)
    for kind, source in (("text", {}), ("chat", {"source": "jsonl", "path": str(DATA / "chat.jsonl")})):
        before = open_files()
        found = make(data(tmp_path, kind=kind, **source), TokenBudget(tokens=6000))
        again = Shards(found.directory)
        assert open_files() == before
        found.verify()
        assert again.document(0).tolist() == found.document(0).tolist() and open_files() == before
        assert len(found.manifest.shards) > (20 if kind == "text" else 0)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "close other programs"),
        (errno.ENOMEM, "vm.max_map_count"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "see that its disk"),
    ],
)
def test_a_shard_that_cannot_be_opened_is_not_to_be_deleted(tmp_path, monkeypatch, number, remedy):
    found = make(data(tmp_path), TokenBudget(tokens=900))

    def refuse(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    for where, attribute in ((shards_module, "_mapped"), (Path, "read_text")):
        monkeypatch.setattr(where, attribute, refuse)
        with pytest.raises(UserError) as caught:
            Shards(found.directory)
        text = str(caught.value)
        assert os.strerror(number) in text and remedy in text and "delete" not in text and "\n" not in text
        monkeypatch.undo()


@pytest.mark.parametrize("part", ["tokens", "lengths"])
def test_a_damaged_shard_is_named(tmp_path, part):
    found = make(data(tmp_path), TokenBudget(tokens=9000))
    path = sorted(found.directory.glob(f"*.{part}.npy"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Shards(found.directory).verify()
    assert path.name.split(".")[0] in str(caught.value) or "do not add up" in str(caught.value)
    path.write_bytes(content[:-8])
    with pytest.raises(UserError, match=path.name):
        Shards(found.directory)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        Shards(found.directory)


def test_only_the_shards_in_use_are_verified(tmp_path):
    found = make(data(tmp_path), TokenBudget(tokens=9000))
    last = found.manifest.shards[-1]
    path = found.directory / f"{last.name}.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = Shards(found.directory)
    again.verify(again.shards_of(found.manifest.documents - last.documents))
    with pytest.raises(UserError, match="damaged"):
        again.verify(again.shards_of(found.manifest.documents - last.documents + 1))


def test_unusable_manifests_are_named(tmp_path):
    found = make(data(tmp_path), TokenBudget(tokens=900))
    path = found.directory / "manifest.json"
    content = json.loads(path.read_text())
    for bad, words in (("{", "cannot be read"), (json.dumps({**content, "format": 9}), "format 9"), ("[]", "cannot")):
        path.write_text(bad)
        with pytest.raises(UserError, match=words):
            make(data(tmp_path), TokenBudget(tokens=900))


def test_shards_are_a_source_of_their_own(tmp_path):
    found = make(data(tmp_path), TokenBudget(tokens=9000))
    section = data(tmp_path, source="shards", path=str(found.directory))
    assert documents(make(section, TokenBudget())) == documents(found)
    with pytest.raises(UserError, match="made with another tokenizer"):
        make(section, TokenBudget(), load(DATA / "small.model"))
    chats = DataSection(kind="chat", source="shards", path=str(found.directory))
    with pytest.raises(UserError, match="hold texts"):
        make(chats, TokenBudget())


def test_shards_elsewhere_are_copied_once(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    found = make(data(tmp_path), TokenBudget(tokens=4000))
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{found.directory}/", "/bucket/stories/", recursive=True)
    section = data(tmp_path, source="shards", path="memory://bucket/stories")
    copy = make(section, TokenBudget())
    assert documents(copy) == documents(found)
    assert tmp_path / "cache" in copy.directory.parents
    copy.verify()
    # More was prepared there meanwhile: what is new comes, what is here stays.
    before = {path.name: path.stat().st_mtime_ns for path in copy.directory.glob("*.npy")}
    bucket.put(f"{make(data(tmp_path), TokenBudget(tokens=9000)).directory}/", "/bucket/stories/", recursive=True)
    grown = make(section, TokenBudget())
    assert grown.manifest.tokens >= 9000
    kept = [name for name in before if (grown.directory / name).is_file()]
    assert kept and all((grown.directory / name).stat().st_mtime_ns == before[name] for name in kept)
    with pytest.raises(UserError, match=r"^data\.path: memory://bucket/nothing cannot be fetched"):
        make(data(tmp_path, source="shards", path="memory://bucket/nothing"), TokenBudget())
    with pytest.raises(UserError, match=r"^data\.path: nosuch://bucket/x"):
        make(data(tmp_path, source="shards", path="nosuch://bucket/x"), TokenBudget())


def test_a_source_ends_where_num_documents_says(tmp_path):
    found = make(data(tmp_path, num_documents=17), TokenBudget(tokens=10**9, documents=17))
    assert documents(found) == rows(TEXTS[:17])


def test_bos_goes_before_and_eos_behind(tmp_path):
    tokenizer = load(DATA / "small.model")
    found = make(data(tmp_path), TokenBudget(tokens=500), tokenizer)
    assert found.document(0).tolist() == [1, *tokenizer.encode(TEXTS[0]), 2]


def test_a_turn_of_weight_0_bears_no_loss(tmp_path):
    def turns(*weights):
        for number, weight in enumerate(weights):
            yield {"role": "user", "content": f"question {number}", "weight": 1}
            yield {"role": "assistant", "content": f"answer {number}", **({} if weight is None else {"weight": weight})}

    talks = [list(turns(*weights)) for weights in ((0, 1), (None, 0), (0, 0.0), (True, False, None))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    learnt = []
    for template in ("kodalite", "kodalite_eos"):
        section = data(tmp_path, kind="chat", source="jsonl", path=str(path), chat_template=template)
        found = make(section, TokenBudget())
        for i in range(4):
            start, stop = found.offsets[i : i + 2]
            mask = np.empty(stop - start, np.uint8)
            found.read_loss(start, stop, mask)
            learnt.append(TOKENIZER.decode(found.document(i)[mask == 1], skip_special=False))
    # The end of a conversation belongs to its last turn.
    assert learnt[:4] == ["answer 1\n<|end|>", "answer 0", "", "answer 0answer 2\n<|end|>"]
    assert learnt[4:] == ["answer 1\n<|end|><|endoftext|>", "answer 0", "", "answer 0answer 2\n<|end|><|endoftext|>"]


def test_chats_carry_their_loss_masks(tmp_path):
    section = DataSection(
        kind="chat", source="jsonl", path=str(DATA / "chat.jsonl"), prepared_dir=str(tmp_path), workers=1
    )
    found = make(section, TokenBudget())
    found.verify()
    learnt = []
    for i in range(3):
        start, stop = found.offsets[i], found.offsets[i + 1]
        mask = np.empty(stop - start, np.float32)
        found.read_loss(int(start), int(stop), mask)
        learnt.append(TOKENIZER.decode(found.document(i)[mask == 1]))
    assert learnt == [
        "A small animal with long ears.\n<|end|>",
        "Why did the duck cross the road?To get to the other side.\n<|end|>",
        "ñ, a, n, d, ú.\n<|end|>",
    ]


def test_a_pinned_revision_is_kept(tmp_path, monkeypatch):
    """What was the newest when preparing began is what it goes on with."""
    from zoo.data import documents as documents_module
    from zoo.data import readers

    monkeypatch.setattr(readers.hub, "unreachable", lambda: None)
    monkeypatch.setattr(readers, "hub_revision", lambda source: "abc123")
    asked = []

    def read(source, kind, *, seed, start):
        asked.append((source.revision, start))
        return iter(TEXTS[start:])

    monkeypatch.setattr(documents_module, "read", read)
    section = data(tmp_path, source="hub", path="a/b")
    first = make(section, TokenBudget(tokens=2000))
    monkeypatch.setattr(readers, "hub_revision", lambda source: "newer")
    make(section, TokenBudget(tokens=9000))
    assert asked == [("abc123", 0), ("abc123", first.manifest.documents)]


def test_sources_that_are_no_text_are_refused():
    with pytest.raises(UserError, match="holds tokens"):
        next(prepare_module.documents.read(SourceSection(source="shards", path="x"), "text"))
