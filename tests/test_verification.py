"""Published weights are compared with whatever a spec states of them, for any registered model."""

import dataclasses

import pytest
from flax import nnx
from tiny_models import TINY, tiny

from zoo import registry
from zoo.cli.main import main
from zoo.evaluate import verification
from zoo.evaluate.perplexity import wikitext
from zoo.language_model import LanguageModel
from zoo.tokenizers.characters import CharacterTokenizer

TEXT = "the ship is on the sea and\n\nthe cat is on the ship\n"


def model_of(name, tokenizer=None, **overrides):
    graphdef, params, config = tiny(name, **overrides)
    return LanguageModel(nnx.merge(graphdef, params), tokenizer, registry.describe(TINY[name][0]), config)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A function that registers a model with these statements, and its checks; `zoo.load` gives a tiny Llama."""
    tokenizer = CharacterTokenizer("\nabcdefghijklmnopqrstuvwxyz ")
    lm = model_of("llama", tokenizer, max_seq_len=16, num_layers=1)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(verification, "load", lambda name: lm)
    (tmp_path / "wiki.txt").write_text(TEXT)

    def checks(wikitext=tmp_path / "wiki.txt", **stated):
        registry.register(dataclasses.replace(lm.spec, name="toy", **{"completions": {}, "figures": {}} | stated))
        return list(verification.published("toy", wikitext=wikitext))

    checks.lm, checks.wikitext = lm, tmp_path / "wiki.txt"
    return checks


def test_the_number_of_parameters(toy, capsys):
    count = sum(leaf.size for leaf in nnx.to_flat_state(nnx.state(toy.lm.module)).leaves)
    assert [check.ok for check in toy(facts={"parameters": f"{count:,}"})] == [True]
    (check,) = toy(facts={"parameters": f"{count + 1:,}"})
    assert not check.ok and check.found == f"{count:,}; the card says {count + 1:,}"
    assert main(["verify", "toy"]) == 1
    assert capsys.readouterr().out.startswith("BAD  parameters: ")


def test_completions(toy):
    right = toy.lm.generate("the sea", temperature=0, max_new_tokens=8).text.strip()
    _, good, bad = toy(completions={"the sea": right, "the ship": "x" * 8})
    assert good == verification.Check("greedy after 'the sea'", repr(right), True)
    assert bad.what == "greedy after 'the ship'" and not bad.ok


def test_figures(toy):
    loss = wikitext(toy.lm, data=toy.wikitext)["tasks"]["wikitext-103"]["metrics"]["nats_per_token"]["value"]
    for stated, ok in ((loss + 0.009, True), (loss - 0.011, False)):
        _, check = toy(figures={"wikitext-103": {"nats_per_token": stated}})
        assert check == verification.Check("wikitext-103 test loss", f"{loss:.3f}; the card says {stated:.3f}", ok)
    _, absent, unknown = toy(wikitext=None, figures={"wikitext-103": {"nats_per_token": 1.0}, "other": {}})
    assert (absent.what, unknown.what) == ("wikitext-103", "other")
    assert "--wikitext" in absent.found and unknown.found.startswith("left out")


def test_nothing_is_generated_without_a_tokenizer(toy):
    toy.lm.tokenizer = None
    _, check = toy(completions={"a": "b"}, figures={"wikitext-103": {"nats_per_token": 1.0}})
    assert check.what == "completions and wikitext-103" and "tokenizer" in check.found
    assert len(toy()) == 1


@pytest.mark.parametrize("name", TINY)
def test_capped_logits_have_a_bound_of_their_own(name):
    lm = model_of(name)
    assert verification.bound_for(lm, exact=True) == 3e-5
    assert verification.bound_for(lm, exact=False) == (0.5 if name in ("gelu", "nanochat") else 0.15)
