"""Names, specs and config overrides."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import zoo
from zoo import registry
from zoo.errors import UserError

# Exact sizes, and the tokens of the whole training where they are stated.
SIZES = {
    "bwetaf-97m": (97_609_728, 6_466 * 256 * 2_048),
    "cronica-5m": (5_261_568, None),
    "gelu-d12": (261_096_338, 19_920 * 256 * 1_024),
    "kodalite-1.3b": (1_269_209_088, 100_000 * 16 * 1_024),
    "nanochat-d12": (261_096_338 + 768 * 32_768, None),
    "tiny-lm": (201_344 + 129 * 100, None),
}


def test_the_built_in_models():
    assert zoo.list_models() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_every_built_in_model_is_what_it_says(name):
    spec = zoo.describe(name)
    parameters, tokens = SIZES[name]
    assert spec.name == name
    assert spec.num_params == parameters
    assert spec.facts["parameters"] == f"{parameters:,}"
    context = spec.facts.get("context")
    if name == "nanochat-d12":  # nothing is published of it
        assert context is None
    else:
        assert context.split()[0] == f"{spec.make_config().max_seq_len:,}"
    assert type(spec.make_config()) is spec.config_class()
    if tokens is not None:
        assert spec.tokens_per_param == pytest.approx(tokens / parameters, rel=1e-3)


def test_tokens_a_parameter_stand_beside_twenty():
    assert {name: zoo.describe(name).tokens_per_param_text for name in SIZES} == {
        "bwetaf-97m": "34.7 (174% of 20)",
        "cronica-5m": "0.28 (1.4% of 20)",
        "gelu-d12": "20 (100% of 20)",
        "kodalite-1.3b": "1.29 (6.5% of 20)",
        "nanochat-d12": "not stated",
        "tiny-lm": "not stated",
    }


def test_what_is_not_published_is_said_to_be_so():
    published = zoo.describe("bwetaf-97m").published()
    assert published["licence"] == published["final loss"] == "not stated"
    assert published["validation loss"] == "3.02"
    assert set(zoo.describe("nanochat-d12").published().values()) > {"not stated", "286,262,162"}
    nothing = OUTSIDE.published()
    assert set(nothing.values()) == {"not stated"}
    assert {"parameters", "source", "licence", "dataset", "tokenizer", "tokens a parameter", "hardware"} <= set(nothing)


def test_where_weights_are():
    sources = {name: zoo.describe(name).source for name in SIZES}
    assert sources.pop("tiny-lm").startswith("https://github.com/cmaddis/tlm ")
    assert sources.pop("nanochat-d12") == "not stated"
    hub = "https://huggingface.co/"
    assert sources == {
        "bwetaf-97m": f"{hub}WICKED4950/BwETAFv3-97M",
        "cronica-5m": f"{hub}DanielRegaladoCardoso/cronica-jax-5m",
        "gelu-d12": f"{hub}mlnomad/gelu-d12-chinchilla-261M-pytorch",
        "kodalite-1.3b": f"{hub}YoAbriel/KodaLite-1.3B",
    }


@pytest.mark.parametrize("name", ["tiny-lm", "nanochat-d12"])
def test_loading_what_is_not_published_says_so(name):
    with pytest.raises(
        UserError, match=rf"^{name}.*(nothing to download|no published weights).*zoo\.create\('{name}'\)"
    ):
        zoo.load(name)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"'cronica5m'; did you mean 'cronica-5m'\?"):
        zoo.describe("cronica5m")
    with pytest.raises(UserError, match="Known: bwetaf-97m, cronica-5m, "):
        zoo.describe("zzzzzz")


def test_overrides():
    config = zoo.describe("cronica-5m").make_config(num_layers="2", norm_eps="1e-6")
    assert (config.num_layers, config.norm_eps, config.embed_dim) == (2, 1e-6, 256)
    variant = zoo.describe("nanochat-d12").make_config(tie_embeddings=True)  # over the spec's own
    assert (variant.activation, variant.tie_embeddings) == ("relu_squared", True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_layer": 3}, r"model\.num_layer: .*did you mean 'num_layers'"),
        ({"num_layers": 0}, r"model\.num_layers: must be positive"),
        ({"num_layers": 2.5}, r"model\.num_layers: expected int, got 2\.5"),
        ({"num_layers": True}, r"model\.num_layers: expected int, got True"),
        ({"num_heads": None}, r"model\.num_heads: expected int, got None"),
        ({"norm_eps": "small"}, r"model\.norm_eps: expected float"),
        ({"rope_theta": float("inf")}, r"model\.rope_theta: must be positive and finite"),
        ({"head_dim": 3}, r"model\.head_dim: .*even"),
    ],
)
def test_impossible_overrides_name_the_field(override, message):
    with pytest.raises(UserError, match=message):
        zoo.describe("cronica-5m").make_config(**override)


def test_listing_and_describing_load_no_jax():
    lines = [
        "import sys, zoo",
        "for name in zoo.list_models(): zoo.describe(name).published()",
        "print('jax' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


OUTSIDE = registry.ModelSpec(
    name="outside",
    summary="",
    cls="zoo.models.cronica:Cronica",
    config_cls="zoo.models.cronica:CronicaConfig",
)


def test_models_of_other_packages(monkeypatch, caplog):
    def points(*, group):
        assert group == "zoo.models"
        return [
            EntryPoint("outside", f"{__name__}:OUTSIDE", group),
            EntryPoint("broken", "zoo_no_such_package:SPEC", group),
            EntryPoint("wrong", "zoo.registry:NOT_STATED", group),
            EntryPoint("cronica-5m", f"{__name__}:OUTSIDE", group),
        ]

    monkeypatch.setattr(registry, "entry_points", points)
    assert registry.list_models() == sorted([*SIZES, "broken", "outside", "wrong"])
    assert registry.describe("outside") is OUTSIDE
    assert registry.describe("cronica-5m") is registry.BUILT_IN["cronica-5m"]
    assert "entry point cronica-5m" in caplog.text and "ignored" in caplog.text
    with pytest.raises(UserError, match=r"'broken'.*zoo_no_such_package"):
        registry.describe("broken")
    with pytest.raises(UserError, match=r"not a zoo\.ModelSpec"):
        registry.describe("wrong")


def test_a_model_registered_in_a_session():
    spec = registry.ModelSpec("session-model", "a Llama", "zoo.models.llama:Llama", "zoo.models.llama:LlamaConfig")
    try:
        zoo.register(spec)
        assert "session-model" in zoo.list_models() and zoo.describe("session-model") is spec
        with pytest.raises(UserError, match="tiny-lm"):
            zoo.register(registry.ModelSpec("tiny-lm", "mine", "a:B", "a:C"))
    finally:
        registry._REGISTERED.clear()
