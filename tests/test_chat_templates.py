"""Chat templates in exports: a run's conversations look outside as they looked in training."""

import json
from pathlib import Path

import pytest
import yaml

import zoo
from zoo.cli.train import main as train
from zoo.convert import chat_templates
from zoo.run import job
from zoo.tokenizers import chat

jinja2 = pytest.importorskip("jinja2")  # comes with transformers

DATA = Path(__file__).parent / "data"
TALK = [
    {"role": "user", "content": "Hi <b>'you'</b>"},
    {"role": "assistant", "content": "Yes?\n"},
    {"role": "user", "content": "Go \\n on"},
]
CLOSED = [*TALK, {"role": "assistant", "content": "Gone."}]
SIZES = {"num_layers": 2, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 24}


def rendered(template, messages, **settings):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it up
    return environment.from_string(template.jinja).render(messages=messages, **settings)


@pytest.mark.parametrize("name", chat.TEMPLATES)
def test_a_conversation_is_the_text_that_the_run_saw(name):
    template, letters = chat_templates.of_run(name, "<EOS>"), []

    def spell(texts):  # a tokenizer whose tokens are letters
        letters.extend(texts)
        return [[ord(letter) for letter in text] for text in texts]

    prompt = chat.encode_prompt(spell, TALK, name)
    assert rendered(template, TALK, add_generation_prompt=True) == "".join(map(chr, prompt))
    ((closed, _),) = chat.encode_conversations(spell, [CLOSED], name, eos_id=0)
    assert rendered(template, CLOSED) == "".join("<EOS>" if i == 0 else chr(i) for i in closed)
    system = rendered(template, [{"role": "system", "content": "Be kind."}, *TALK], add_generation_prompt=True)
    assert system == "".join(map(chr, prompt)).replace("Hi", "Be kind.\n\nHi", 1)
    assert chat_templates.name_of(template.jinja) == name


def test_templates_of_others_have_no_name():
    assert chat_templates.name_of(chat_templates.KODALITE_RELEASE) == "kodalite"
    assert chat_templates.name_of("{{ messages }}") is None and chat_templates.name_of(None) is None
    assert chat_templates.of_release("kodalite_eos") is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small Llama of KodaLite's class, trained on a few conversations."""
    directory = tmp_path_factory.mktemp("chat")
    recipe = {
        "name": "small",
        "logging": {"runs_dir": str(directory / "runs")},
        "model": {"name": "kodalite-1.3b", "vocab_size": 400, "max_seq_len": 64, **SIZES},
        "tokenizer": {"path": str(DATA / "small.tiktoken")},
        "data": {
            **{"kind": "chat", "source": "jsonl", "path": str(DATA / "chat.jsonl"), "packing": "best_fit"},
            **{"seq_len": 64, "batch_size": 2, "chat_template": "kodalite_eos", "workers": 1},
        },
        "optimizer": {"schedule": "constant", "warmup_steps": 0, "peak_lr": 1e-3},
        "train": {"steps": 1},
        "eval": {"num_pairs": 0, "prompt": "Tell me", "max_new_tokens": 2},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "peak_flops", lambda: (1e11, "not measured"))
        assert train([str(directory / "recipe.yaml")]) == 0
    return directory / "runs" / "small"


def test_exports_of_a_run_speak_of_the_run(run, tmp_path):
    lm = zoo.load(run)
    assert repr(lm).startswith("kodalite-1.3b: of the architecture of kodalite-1.3b, 2 layers of width 16\n")
    lm.export(tmp_path / "hf", name="mine")
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == chat_templates.of_run("kodalite_eos", "<|endoftext|>").jinja
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["stop_strings"] == ["<|end|>"] and "temperature" not in generation
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "# mine\n\nmine: of the architecture of kodalite-1.3b, 2 layers of width 16.\n" in card
    assert "24 layers" not in card and "undertrained" not in card
    again = zoo.load(tmp_path / "hf")
    assert not again.is_community_model and again.chat_template == lm.chat_template == "kodalite_eos"
    talk = {"max_new_tokens": 4, "temperature": 0.0}
    assert again.chat("Hi", **talk).tokens == lm.chat("Hi", **talk).tokens


def test_gguf_and_ollama_get_the_template_of_the_run(run, tmp_path):
    gguf = pytest.importorskip("gguf")
    zoo.load(run).export(tmp_path / "out", "gguf", name="mine")
    fields = gguf.GGUFReader(tmp_path / "out" / "mine-F16.gguf").fields
    template = chat_templates.of_run("kodalite_eos", "<|endoftext|>")
    assert fields["tokenizer.chat_template"].contents() == template.jinja
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert template.go in modelfile and 'PARAMETER stop "<|end|>"\n' in modelfile and "temperature" not in modelfile
    assert "{{ .Content }}\n<|assistant|>\n" in template.go and "<|endoftext|>" not in template.go
