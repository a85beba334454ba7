"""Names, specs and config overrides."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import zoo
from zoo import registry
from zoo.errors import UserError


def test_every_built_in_model_is_what_it_says():
    assert "cronica-5m" in zoo.list_models()
    for name in zoo.list_models():
        spec = zoo.describe(name)
        assert spec.name == name
        assert spec.facts["parameters"] == f"{spec.num_params:,}"
        assert type(spec.make_config()) is spec.config_class()
    assert zoo.describe("cronica-5m").num_params == 5_261_568


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"'cronica5m'; did you mean 'cronica-5m'\?"):
        zoo.describe("cronica5m")
    with pytest.raises(UserError, match="Known: cronica-5m"):
        zoo.describe("zzzzzz")


def test_overrides():
    config = zoo.describe("cronica-5m").make_config(num_layers="2", norm_eps="1e-6")
    assert (config.num_layers, config.norm_eps, config.embed_dim) == (2, 1e-6, 256)


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
    code = "import sys, zoo; zoo.list_models(); zoo.describe('cronica-5m'); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
    assert registry.list_models() == ["broken", "cronica-5m", "outside", "wrong"]
    assert registry.describe("outside") is OUTSIDE
    assert registry.describe("cronica-5m") is registry.CRONICA_5M
    assert "entry point cronica-5m" in caplog.text and "ignored" in caplog.text
    with pytest.raises(UserError, match=r"'broken'.*zoo_no_such_package"):
        registry.describe("broken")
    with pytest.raises(UserError, match=r"not a zoo\.ModelSpec"):
        registry.describe("wrong")
