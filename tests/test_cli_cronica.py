"""`zoo generate`, `zoo cronica` and `zoo eval`, in this process, on a tiny model with random weights."""

import io
import json
from pathlib import Path

import pytest

from zoo.cli.main import main
from zoo.language_model import Generation, LanguageModel, create
from zoo.recipe import load_recipe
from zoo.tasks.cronica import corpus
from zoo.tasks.cronica import tokens as cronica_tokens
from zoo.tasks.cronica.grounding import Lexicon
from zoo.tasks.cronica.tokens import STYLES
from zoo.tokenizers.characters import CharacterTokenizer

RECORDS = corpus.generate(40)
LINE = "Rayo 2-1 Betis; 23 Pérez; 67 López (Betis)"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 1, "head_dim": 16, "mlp_dim": 24}
    bare = create("cronica-5m", vocab_size=600, **sizes)
    texts = (cronica_tokens.training_text(record) for record in RECORDS)
    path = tmp_path_factory.mktemp("model")
    LanguageModel(bare.module, cronica_tokens.train(texts, 600), bare.spec, bare.config).save(path)
    return str(path)


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    path = tmp_path_factory.mktemp("stats") / "match.txt"
    path.write_text(RECORDS[0]["stats_block"], encoding="utf-8")
    return str(path)


def test_generate_a_cronica(directory, stats, capsys):
    arguments = ["generate", directory, "--stats", stats, "--style", "mexicano_clasico", "--max-new-tokens", "8"]
    assert main([*arguments, "--seed", "4"]) == 0
    first = capsys.readouterr()
    assert first.out.strip() and "tokens" in first.err and "first after" in first.err
    assert main([*arguments, "--seed", "4"]) == 0
    assert capsys.readouterr().out == first.out
    assert main([*arguments, "--seed", "5"]) == 0
    assert capsys.readouterr().out != first.out


def test_generate_from_a_prompt_and_from_stdin(directory, capsys, monkeypatch):
    arguments = ["--max-new-tokens", "8", "--temperature", "0"]
    assert main(["generate", directory, "El partido", *arguments]) == 0
    out = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("El partido"))
    assert main(["generate", directory, "-", *arguments]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "MODEL"], "--stats"),
        (["generate", "MODEL", "text", "--stats", "x"], "--stats"),
        (["generate", "MODEL", "--stats", "x"], "--style"),
        (["generate", "MODEL", "text", "--style", "mexicano_clasico"], "--stats"),
        (["generate", "MODEL", "--stats", "/none/there.txt", "--style", "mexicano_clasico"], "/none/there.txt"),
        (["generate", "/none/there", "text"], "/none/there"),
        (["generate", "MODEL", "text", "--top-p", "2"], "top_p"),
        (["cronica", "Rayo gana", "MODEL"], "Rayo gana"),
        (["cronica", LINE, "MODEL", "--style", "mexicano"], "mexicano_clasico"),
        (["cronica", LINE, "MODEL", "--date", "15/3"], "--date"),
        (["eval", "MODEL", "--suite", "lambada"], "--suite"),
        (["eval", "MODEL", "--cronicas", "0"], "at least 1"),
        (["eval", "MODEL", "--out", "/none/there.json"], "--out"),
        (["eval", "MODEL", "--data", "/none/there.jsonl"], "/none/there.jsonl"),
    ],
)
def test_mistakes_are_told_without_a_traceback(directory, arguments, named, capsys):
    assert main([directory if word == "MODEL" else word for word in arguments]) == 2
    told = capsys.readouterr()
    assert named in told.err and "Traceback" not in told.err and not told.out


def test_cronica_in_all_styles(directory, capsys):
    assert main(["cronica", LINE, directory, "--style", "all", "--date", "2024-03-15"]) == 0
    told = capsys.readouterr()
    assert "warning: the result 2-1 gives Rayo 2 goals, but 1 listed" in told.err
    assert "fecha: 2024-03-15" in told.err and "  - 23' Pérez (Rayo)" in told.err
    headings = [line.split(" (")[0] for line in told.out.splitlines() if line.split(" (")[0] in STYLES]
    assert headings == list(STYLES)


def test_cronica_marks_what_is_not_in_the_match(directory, capsys, monkeypatch):
    class Stream:
        generation = Generation("", [1, 2, 3], [], "stop")

        def __iter__(self):
            return iter(["Marcó Pé", "rez a los 2", "3 minutos; luego Zubeldón", " a los 31.", " Rayo 2-1."])

    def stream(self, match, style, **settings):
        assert match.home == "Rayo" and settings["seed"] == 0
        return Stream()

    monkeypatch.setattr(LanguageModel, "stream_cronica", stream)
    assert main(["cronica", LINE, directory]) == 0
    told = capsys.readouterr()
    assert "Marcó Pérez a los 23 minutos; luego [Zubeldón] a los [31]. Rayo 2-1." in told.out
    assert "2 marked [like this]" in told.err


def test_cronica_finds_the_last_run(directory, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["cronica", LINE]) == 2
    assert "zoo-train" in capsys.readouterr().err
    root = Path(__file__).parent.parent
    for name, kind in (("stories", "tiny_lm"), ("matches", "quickstart"), ("later", "tiny_lm")):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        recipe = load_recipe(root / "recipes" / f"{kind}.yaml", [f"name={name}"])
        (tmp_path / "runs" / name / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert main(["cronica", LINE]) == 2  # of the three the one that learnt crónicas, which has nothing yet
    assert "model: runs/matches\n" in capsys.readouterr().err


def test_a_model_that_is_none_for_cronicas_is_told_at_once(capsys, tmp_path, monkeypatch, stats):
    bare = create("tiny-lm", vocab_size=4)
    LanguageModel(bare.module, CharacterTokenizer("abc "), bare.spec, bare.config).save(tmp_path / "letters")
    monkeypatch.setattr(corpus, "generate", lambda *_, **__: pytest.fail("a corpus was made first"))
    monkeypatch.setattr(Lexicon, "learn", lambda *_, **__: pytest.fail("a lexicon was made first"))
    for command in (
        ["cronica", LINE, str(tmp_path / "letters")],
        ["eval", str(tmp_path / "letters")],
        ["generate", str(tmp_path / "letters"), "--stats", stats, "--style", "mexicano_clasico"],
    ):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "no model for crónicas" in told and "letters" in told


def test_eval_prints_tables_or_json_and_writes_the_texts(directory, capsys, tmp_path):
    out = tmp_path / "result.json"
    short = ["--cronicas", "2", "--max-new-tokens", "4"]
    assert main(["eval", directory, *short, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "| home club named |" in told.out and "other data" in told.out
    assert "heldout: 2 of 2" in told.err and "unseen: 2 of 2" in told.err
    assert len(json.loads(out.read_text())["sets"]["heldout"]["texts"]) == 2
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(record) for record in RECORDS[:3]), encoding="utf-8")
    assert main(["eval", directory, *short, "--json", "--data", str(data)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["sets"]) == ["data"] and result["sets"]["data"]["generated"]["n"] == 2
    assert "texts" not in result["sets"]["data"]
