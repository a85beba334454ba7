"""`zoo describe` and `zoo diff`: sizes, operations and cache from shapes alone, differences by named part."""

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import jax
import pytest
from flax import nnx
from jaxtyping import Array, Float

import zoo
from zoo import registry
from zoo.cli import main
from zoo.layers.embedding import Embedding
from zoo.layers.initializers import normal
from zoo.layers.linear import Linear
from zoo.models import differences
from zoo.models.config import ModelConfig
from zoo.models.summary import OVER_KEYS, Summary, summarize


def summary_of(name: str, **overrides) -> Summary:
    spec = zoo.describe(name)
    return summarize(spec.model_class(), spec.make_config(**overrides))


def parameters_of(summary: Summary) -> dict[str, int]:
    return {part.name: part.parameters for part in summary.components if part.tensors}


def flops_of(summary: Summary) -> dict[str, float]:
    return {part.name: part.flops for part in summary.components if part.flops}


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_components_are_the_whole_model(name):
    summary = summary_of(name)
    assert summary.parameters == zoo.describe(name).num_params
    assert sum(parameters_of(summary).values()) == summary.parameters
    assert sum(flops_of(summary).values()) == pytest.approx(summary.flops_forward)
    assert summary.flops_training == zoo.describe(name).make_config().flops_per_token(summary.seq_len)


def test_components_of_a_model_with_everything():
    assert parameters_of(summary_of("gelu-d12")) == {
        "embedding": 25_165_824,
        "value embeddings": 150_994_944,
        "smear": 25,
        "residual scalars": 24,
        "attention": 28_311_552 + 6 * 12 * 12,
        "mlp": 56_623_104,
        "backout": 1,
    }
    norms = summary_of("bwetaf-97m").components[1]
    assert (norms.name, norms.parameters) == ("norms", 24 * 768)
    assert {(part.path, part.shape, part.count) for part in norms.tensors} == {
        ("layers/*/attn_norm/scale", (768,), 12),
        ("layers/*/mlp_norm/scale", (768,), 12),
    }


@pytest.mark.parametrize(
    ("name", "gigaflops"), [("cronica-5m", 0.0363), ("bwetaf-97m", 0.698), ("gelu-d12", 0.693), ("kodalite-1.3b", 7.30)]
)
def test_operations_of_training(name, gigaflops):
    assert summary_of(name).flops_training / 1e9 == pytest.approx(gigaflops, rel=1e-3)


def test_operations_by_component():
    koda = flops_of(summary_of("kodalite-1.3b"))
    assert koda == {
        "attention": 24 * 2 * (2 * 2048 * 2048 + 2 * 2048 * 512),
        "mlp": 24 * 2 * 3 * 2048 * 5504,
        "head": 2 * 2048 * 50257,
        OVER_KEYS: pytest.approx(24 * 4 * 2048 * 1025 / 2),
    }
    # A tied head holds no parameters and costs what an untied one costs.
    tied, untied = summary_of("gelu-d12", num_layers=2), summary_of("gelu-d12", num_layers=2, tie_embeddings=False)
    assert flops_of(tied) == flops_of(untied)
    assert flops_of(tied)["head"] == 2 * 768 * 32768
    assert parameters_of(untied)["head"] == 768 * 32768
    assert "head" not in parameters_of(tied)


def test_a_padded_head_is_the_head_still():
    summary = summary_of("gelu-d12", num_layers=1, vocab_size=100, tie_embeddings=False)
    assert parameters_of(summary)["head"] == 768 * 128
    assert flops_of(summary)["head"] == 2 * 768 * 100


def test_cache_bytes():
    koda = summary_of("kodalite-1.3b").cache
    assert koda["bfloat16"].first_token == koda["bfloat16"].last_token == 24 * 2 * 8 * 64 * 2
    assert koda["float32"].first_token == 2 * koda["bfloat16"].first_token
    assert koda["bfloat16"].full == 1024 * koda["bfloat16"].first_token + 4  # and the row's length
    # 3 of the 12 layers see everything, 9 keep a ring of 257.
    windowed, token = summary_of("gelu-d12").cache["bfloat16"], 2 * 12 * 64 * 2
    assert windowed.first_token == 12 * token
    assert windowed.last_token == 3 * token
    assert windowed.full == (9 * 257 + 3 * 1024) * token + 768 * 2 + 4  # and the last embedding
    assert summary_of("gelu-d12", window_pattern="").cache["bfloat16"].last_token == 12 * token


def test_describe_shows_components_and_costs(capsys):
    assert main.main(["describe", "gelu-d12"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "tokens a parameter 20 (100% of 20)",
        "validation loss not stated",
        "qk norm after rotation, times 1.2",
        "window_pattern SSSL",
        "value embeddings 150,994,944 57.8%",
        "layers/*/value_embed/embedding 32768 x 768 6 150,994,944",
        "backout/scale scalar 1",
        "head 50.332",
        "total 261,096,338 100.0% 231.143",
        "a token 36,864 73,728",
        "a token once the windows are full 9,216 18,432",
    ):
        assert line in lines
    assert "(given here)" not in " ".join(lines)


def test_describe_takes_overrides(capsys):
    assert main.main(["describe", "gelu-d12", "num_layers=4", "smear=false", "window_pattern="]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "num_layers 4 (given here)" in lines
    assert "smear False (given here)" in lines
    assert "window_pattern (given here)" in lines
    assert any("as registered, not of this variant" in line for line in lines)
    assert "smear/gate" not in out
    assert "once the windows are full" not in out
    expected = zoo.describe("gelu-d12").make_config(num_layers=4, smear=False, window_pattern="").flops_per_token(1024)
    assert f"{expected:,.0f} in training" in out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_layer=4", ["num_layer", "did you mean 'num_layers'"]),
        ("num_layers=many", ["num_layers", "'many'"]),
        ("num_layers", ["num_layers", "FIELD=VALUE"]),
        ("=4", ["FIELD=VALUE"]),
        ("smear=[", ["smear", "'['"]),
    ],
)
def test_describe_refuses_what_it_cannot_read(capsys, override, words):
    # The shape checker of the tests would speak first about wrong types of config fields.
    assert main.main(["describe", "cronica-5m" if "smear" not in override else "gelu-d12", override]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_describe_as_json(capsys):
    assert main.main(["describe", "tiny-lm", "num_layers=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = summary_of("tiny-lm", num_layers=2)
    assert found["name"] == "tiny-lm"
    assert found["overrides"] == {"num_layers": 2}
    assert found["config"]["num_layers"] == 2
    assert found["published"]["licence"] == "GPL-3.0"
    assert found["parameters"] == summary.parameters == sum(part["parameters"] for part in found["components"])
    assert sum(part["share"] for part in found["components"]) == pytest.approx(1)
    by_name = {part["name"]: part for part in found["components"]}
    assert by_name["positions"]["tensors"] == [
        {"path": "position/embedding", "shape": [32, 64], "count": 1, "parameters": 2048}
    ]
    assert found["flops_per_token"] == {"forward": summary.flops_forward, "training": summary.flops_training}
    assert found["cache_bytes"]["bfloat16"] == {
        "per_token": 512,
        "per_token_at_full_context": 512,
        "full_context": 32 * 512 + 4,
    }


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """Of a model that another package might bring."""

    vocab_size: int = 11
    embed_dim: int = 6
    max_seq_len: int = 8

    def flops_per_token(self, seq_len: int) -> float:
        return 6.0 * (2 * self.embed_dim**2 + self.embed_dim * self.vocab_size)


class Toy(nnx.Module):
    """No attention, no cache, names of its own."""

    def __init__(self, config: ToyConfig, *, key: Array):
        square = dict(axes=("embed", "mlp"), key=key, init=normal(1.0))
        self.embed = Embedding(config.vocab_size, config.embed_dim, key=key, init=normal(1.0))
        self.stages = nnx.List(
            [nnx.Dict(odd_part=Linear(config.embed_dim, config.embed_dim, **square)) for _ in range(2)]
        )
        self.output = Linear(config.embed_dim, config.vocab_size, axes=("embed", "vocab"), key=key, init=normal(1.0))

    def head(self) -> tuple[Float[Array, "D V"], None, None]:
        return self.output.kernel[...], None, None

    def init_cache(self, batch: int, max_len: int, dtype):
        raise NotImplementedError


TOY = registry.ModelSpec(
    name="toy", summary="a toy", cls=f"{__name__}:Toy", config_cls=f"{__name__}:ToyConfig", licence="MIT"
)


@pytest.fixture
def toy(monkeypatch):
    """The toy, registered as another package would."""
    points = [EntryPoint("toy", f"{__name__}:TOY", "zoo.models")]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)


def test_a_model_of_another_package_is_listed_described_and_compared(toy, capsys):
    assert main.main(["list"]) == 0
    assert any(
        line.split() == ["toy", f"{summary_of('toy').parameters:,}", *"not stated MIT a toy".split()]
        for line in capsys.readouterr().out.splitlines()
    )
    assert main.main(["describe", "toy", "embed_dim=10"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "odd part 200 47.6% 0.000" in lines
    assert "stages/*/odd_part/kernel 10 x 10 2 200" in lines
    assert "output/kernel 10 x 11 110" in lines
    assert "KV cache: the model has none" in lines
    assert "architecture" not in lines
    parts = flops_of(summarize(Toy, ToyConfig()))
    assert parts == {"odd part": 144, "head": 132}
    assert main.main(["diff", "toy", "tiny-lm"]) == 0
    out = capsys.readouterr().out
    assert "architecture" not in out  # one of the two names no parts
    assert "embed_dim" in out and "parameters" in out


def test_diff_by_named_part():
    left, right = (zoo.describe(name).make_config() for name in ("gelu-d12", "kodalite-1.3b"))
    rows = {row.name: (row.left, row.right) for row in differences.differing_switches(left, right)}
    assert rows["windows"] == ("SSSL, the last layer long", "none")
    assert rows["soft-cap"] == ("15", "none")
    assert rows["embedding"][1] == "token table"
    assert rows["residual"][1] == "plain sum"
    assert "rope dtype" not in rows
    fields = {row.name: (row.left, row.right) for row in differences.differing_fields(left, right)}
    assert fields["num_layers"] == ("12", "24")
    assert fields["logit_softcap"] == ("15.0", "no such field (soft-cap: none)")
    assert fields["mlp_bias"] == ("no such field (biases: none)", "False")
    assert "head_dim" not in fields
    reverse = differences.differing_fields(right, left)
    assert {row.name: (row.right, row.left) for row in reverse} == fields


def test_diff_of_variants(capsys):
    assert main.main(["diff", "gelu-d12", "nanochat-d12"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "architecture",
        "gelu-d12 nanochat-d12",
        "mlp gelu_tanh, 4 x width relu_squared, 4 x width",
        "head tied to the token table untied",
        "",
        "config",
        "gelu-d12 nanochat-d12",
        "activation gelu_tanh relu_squared",
        "tie_embeddings True False",
        "",
        "size and cost",
        "gelu-d12 nanochat-d12",
        "parameters 261,096,338 286,262,162",
        "parameters, head 0 25,165,824",
        "",
    ]
    assert main.main(["diff", "tiny-lm", "tiny-lm"]) == 0
    assert capsys.readouterr().out == "tiny-lm and tiny-lm: the same architecture\n"
    assert main.main(["diff", "tiny-lm", "tiny"]) == 2
    assert "did you mean 'tiny-lm'" in capsys.readouterr().err


def test_diff_wraps_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main(["diff", "gelu-d12", "kodalite-1.3b"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in zoo.describe("gelu-d12").make_config().switches()["residual"].split():
        assert word in out.split()  # the cells are wrapped, and nothing of them is lost


def test_fields_point_to_parts_that_are_named():
    """What `differences` says of an absent field must be a part that somebody names."""
    named = {part for spec in registry.BUILT_IN.values() for part in spec.make_config().switches()}
    assert set(differences.SWITCH_OF_FIELD.values()) <= named | set(differences.UNNAMED)
    fields = {field for spec in registry.BUILT_IN.values() for field in spec.make_config().to_dict()}
    assert set(differences.SWITCH_OF_FIELD) <= fields


def test_nothing_is_allocated():
    before = {id(array) for array in jax.live_arrays()}
    summary_of("kodalite-1.3b")
    assert all(array.size < 1000 for array in jax.live_arrays() if id(array) not in before)
