"""`zoo generate` with several prompts, as JSON, from files and stdin; its settings and refusals."""

import io
import json
import os
import signal

import pytest
from scripted_model import scripted_lm

import zoo.language_model
from zoo.cli.common import late_interrupt
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.generate import rope_scaling
from zoo.generate.text import TextStream
from zoo.language_model import LanguageModel, create
from zoo.models.cronica import CronicaConfig
from zoo.models.llama import LlamaConfig
from zoo.tokenizers.characters import CharacterTokenizer

SHORT = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def lm():
    sizes = dict(num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_seq_len=64)
    bare = create("kodalite-1.3b", vocab_size=30, **sizes)
    return LanguageModel(bare.module, CharacterTokenizer("abcdefghijklmnopqrstuvwxyz \n"), bare.spec, bare.config)


@pytest.fixture(scope="module")
def directory(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    lm.save(path)
    return str(path)


def run(capsys, *arguments):
    assert main(["generate", *arguments]) == 0
    return capsys.readouterr()


def test_several_prompts_and_samples_as_json(lm, directory, capsys):
    out = run(capsys, directory, "one", "two words", "--n", "2", "--seed", "5", "--json", *SHORT).out
    found = [json.loads(line) for line in out.splitlines()]
    assert [(item["prompt"], item["seed"]) for item in found] == [
        ("one", 5),
        ("one", 6),
        ("two words", 5),
        ("two words", 6),
    ]
    expected = lm.generate(["one", "two words"], n=2, seed=5, max_new_tokens=8)
    for item, wanted in zip(found, [one for group in expected for one in group], strict=True):
        assert (item["text"], item["tokens"], item["finish"]) == (wanted.text, wanted.tokens, "length")
        assert item["logprobs"] == pytest.approx(wanted.logprobs, abs=1e-4)
    assert expected[0][1].tokens == lm.generate("one", seed=6, max_new_tokens=8).tokens != expected[0][0].tokens


def test_prompts_of_a_file_in_batches(directory, tmp_path, capsys, monkeypatch):
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\ntwo words\nthree\n")
    plain = run(capsys, directory, "--prompts", str(lines), "--batch-size", "2", "--temperature", "0", *SHORT)
    assert [text[: text.index("]")] for text in plain.out.split("\n[")] == ["[one", "two words", "three"]
    assert "3 texts, 24 tokens" in plain.err and "tokens/s" in plain.err
    monkeypatch.setattr("sys.stdin", io.StringIO(lines.read_text()))
    assert run(capsys, directory, "--prompts", "-", "--temperature", "0", *SHORT).out == plain.out
    records = tmp_path / "prompts.jsonl"
    records.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("one", "two words", "three")))
    assert run(capsys, directory, "--prompts", str(records), "--temperature", "0", *SHORT).out == plain.out


def test_one_prompt_streams_and_tells_its_speed(lm, directory, capsys):
    found = run(capsys, directory, "one", "--seed", "3", *SHORT)
    assert found.out == lm.generate("one", seed=3, max_new_tokens=8).text + "\n"
    assert "8 tokens: the first after" in found.err and "tokens/s" in found.err


def test_every_setting_reaches_the_model(capsys, monkeypatch):
    class Asked(Exception):
        pass

    def refuse(self, prompt, **settings):
        raise Asked(settings)

    model = scripted_lm("the end")
    loaded = {}
    monkeypatch.setattr(zoo.language_model, "load", lambda name, **fields: loaded.update(fields) or model)
    monkeypatch.setattr(LanguageModel, "stream", refuse)
    options = ["--preset", "original", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.8", "--min-p", "0.1"]
    options += ["--repetition-penalty", "1.2", "--stop", "a", "--stop", "b", "--dtype", "bfloat16", "--seed", "9"]
    assert main(["generate", "MODEL", "user", *options]) == 1
    assert "Asked" in capsys.readouterr().err
    with pytest.raises(Asked) as caught:
        from zoo.cli.generate import generate

        generate("MODEL", ["user"], **dict(preset="original", temperature=0.5, top_k=7, top_p=0.8, min_p=0.1), seed=9,
                 repetition_penalty=1.2, stop=["a", "b"], dtype="bfloat16", style=None)  # fmt: skip
    assert caught.value.args[0] == dict(
        preset="original", temperature=0.5, top_k=7, top_p=0.8, min_p=0.1, repetition_penalty=1.2, stop=["a", "b"]
    ) | {"seed": 9}
    assert loaded == {"dtype": "bfloat16"}


def test_rope_scaling_lets_a_llama_hold_more(directory, capsys):
    long = "a" * 70
    assert main(["generate", directory, long, *SHORT]) == 2
    assert "70 tokens; the model takes 64" in capsys.readouterr().err
    plain = run(capsys, directory, long[:60], "--temperature", "0", "--max-new-tokens", "4").out
    assert len(run(capsys, directory, long, "--rope-scaling", "ntk:2", *SHORT).out) == 9
    scaled = run(capsys, directory, long[:60], "--rope-scaling", "ntk:2", "--temperature", "0", "--max-new-tokens", "4")
    assert len(scaled.out) == len(plain)


def test_rope_scaling_as_config_fields():
    assert rope_scaling.overrides(LlamaConfig(), "ntk:2") == {"rope_ntk_factor": 2.0, "max_seq_len": 2048}
    stretched = LlamaConfig(rope_ntk_factor=2.0, max_seq_len=2048)
    assert rope_scaling.overrides(stretched, "ntk:1.5") == {"rope_ntk_factor": 3.0, "max_seq_len": 3072}
    for config, text, named in (
        (LlamaConfig(), "ntk", "ntk:2"),
        (LlamaConfig(), "yarn:2", "ntk:2"),
        (LlamaConfig(), "ntk:0.5", "ntk:2"),
        (CronicaConfig(), "ntk:2", "Llama"),
    ):
        with pytest.raises(UserError, match=named):
            rope_scaling.overrides(config, text)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["MODEL"], "--prompts"),
        (["MODEL", "text", "--prompts", "x"], "--prompts"),
        (["MODEL", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["MODEL", "--prompts", "EMPTY.txt"], "no prompt"),
        (["MODEL", "--prompts", "BAD.jsonl"], "line 2"),
        (["MODEL", "--prompts", "OTHER.jsonl"], "`prompt`"),
        (["MODEL", "text", "--preset", "card"], "card"),
        (["MODEL", "text", "--temperature", "-1"], "temperature"),
        (["MODEL", "text", "--dtype", "float9"], "--dtype"),
        (["MODEL", "text", "--rope-scaling", "2"], "ntk:2"),
    ],
)
def test_bad_requests_are_one_line(directory, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY.txt").write_text("\n\n")
    (tmp_path / "BAD.jsonl").write_text('{"prompt": "a"}\n{\n')
    (tmp_path / "OTHER.jsonl").write_text('{"text": "a"}\n')
    assert main(["generate", *[directory if word == "MODEL" else word for word in arguments]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and named in err and len(err.splitlines()) <= 2


def test_lines_end_at_newlines_alone(directory, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(LanguageModel, "generate", lambda self, texts, **_: asked.append(texts) or [[] for _ in texts])
    text = "one\u2028two\u0085three\x0c"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (tmp_path / "p.txt").write_text(f"{text}\nfour\n", encoding="utf-8")
    for name in ("p.jsonl", "p.txt"):
        run(capsys, directory, "--prompts", str(tmp_path / name))
    assert asked == [[text], [text, "four"]]


def test_no_stdin_and_no_tokenizer_are_told_in_a_line(directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where the process was given none
    for arguments in (["-"], ["--prompts", "-"]):
        assert main(["generate", directory, *arguments]) == 2
        assert "stdin, which is closed" in capsys.readouterr().err
    create("tiny-lm").save(tmp_path / "portable")
    create("tiny-lm").export(tmp_path / "own", "tiny")
    for way, file in (("portable", "tokenizer.json into"), ("own", "characters.json into")):
        assert main(["generate", str(tmp_path / way), "Hello"]) == 2
        told = capsys.readouterr().err
        assert file in told and str(tmp_path / way) in told and told.count("\n") == 1


@pytest.mark.parametrize("way", [["-"], ["--prompts", "-"], ["--prompts", "P.jsonl"]])
def test_what_is_not_utf8_is_told_in_a_line(directory, tmp_path, capsys, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    # As Python reads stdin in the C locales.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8", errors="surrogateescape"))
    (tmp_path / "P.jsonl").write_text('{"prompt": "a\\ud800"}\n')
    assert main(["generate", directory, *way]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_ctrl_c_leaves_what_has_come_and_ends_the_command(directory, capsys, monkeypatch):
    """The first is not seen inside of JAX, which may crash of it while it compiles; the second is an exception."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        plain = TextStream.__next__
        shown = []

        def interrupted(self):
            shown.append(plain(self))
            if len(shown) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return shown[-1]

        monkeypatch.setattr(TextStream, "__next__", interrupted)
        assert main(["generate", directory, "x", "--max-new-tokens", "40", "--seed", "3"]) == 130
        assert capsys.readouterr().out == shown[0] + "\n" and len(shown) == 2
        with late_interrupt() as pressed:
            assert not pressed()
            os.kill(os.getpid(), signal.SIGINT)
            assert pressed()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_seed_may_be_of_any_size(directory, capsys):
    huge = run(capsys, directory, "one", "--seed", str(2**80 + 5), *SHORT).out
    assert huge == run(capsys, directory, "one", "--seed", "5", *SHORT).out
