"""`zoo plan`: memory to the byte where it is exact, collectives read from HLO, the search, exit codes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from zoo.cli.main import main
from zoo.errors import UserError
from zoo.hardware.topologies import chip_of, parse_topology
from zoo.plan import collectives, estimate, search, targets
from zoo.plan.collectives import Collective
from zoo.plan.compiled import Needs
from zoo.plan.report import make_plan
from zoo.recipe import load_recipe
from zoo.train.mesh import make_mesh
from zoo.train.program import Program

RECIPE = """\
name: tiny_plan
model:
  {name: kodalite-1.3b, vocab_size: 40, num_layers: 2, embed_dim: 24, num_heads: 6, num_kv_heads: 2, head_dim: 4,
   mlp_dim: 32}
data: {source: stories, seq_len: 16, batch_size: 4}
train: {steps: 100}
optimizer: {warmup_steps: 2}
"""
MATRICES = 2 * (24 * 24 + 2 * 24 * 8 + 24 * 24 + 3 * 24 * 32) + 2 * 40 * 24  # blocks, embedding and head
GAINS = (2 * 2 + 1) * 24


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny_plan.yaml"
    path.write_text(RECIPE)
    return path


def run_plan(recipe, *arguments: str) -> SimpleNamespace:
    """In a process of its own: the number of devices is fixed when JAX starts."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "zoo.cli.main", "plan", str(recipe), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture
def here(capsys, monkeypatch):
    """As `run_plan` in this process, which has one device."""
    jax.devices()  # no more of them from now on, whatever the command sets; that is put back:
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))

    def run(recipe, *arguments: str) -> SimpleNamespace:
        code = main(["plan", str(recipe), *arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_topologies_are_read():
    v6e, v3, h200 = (parse_topology(text) for text in ("v6e:2x4", "V3:4x4", "h200:16"))
    assert (v6e.num_devices, v6e.accelerator_type, v6e.hosts) == (8, "v6e-8", 1)
    assert v6e.interconnect == 3 * 100e9  # one link along the side of two, two along that of four
    assert (v3.num_chips, v3.num_devices, v3.accelerator_type) == (16, 32, "v3-32")
    assert v3.interconnect == 4 * 70e9 / 2  # two cores share a chip's links
    assert (h200.num_devices, h200.hosts) == (16, 2)
    assert parse_topology("v4:2x2").shape == (2, 2, 1)
    assert parse_topology("cpu:8").interconnect is None
    assert parse_topology("v5e:2x4").accelerator_type == "v5litepod-8"


@pytest.mark.parametrize("text", ["v7:2x2", "v6e", "v6e:8", "v6e:2x2x2", "h200:2x4", "h200:12", "v6e:0x2", "cpu:", ""])
def test_other_topologies_are_refused_in_one_line(text):
    with pytest.raises(ValueError) as error:
        parse_topology(text)
    assert "\n" not in str(error.value) and text in str(error.value)


def test_chips_are_known_by_their_device_kind():
    kinds = {"NVIDIA H200": "h200", "NVIDIA L40S": "l40s", "NVIDIA L4": "l4", "Tesla T4": "t4", "TPU v5 lite": "v5e"}
    kinds |= {"TPU v5": "v5p", "TPU v6 lite": "v6e", "NVIDIA A100-SXM4-40GB": "a100-40", "TPU v3": "v3"}
    kinds |= {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4090": "4090", "cpu": "cpu"}
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("NVIDIA L40") is None


# ------------------------------------------------------------------------------------------- the whole command


def test_a_compiled_plan_is_exact_where_it_says_so(recipe):
    done = run_plan(recipe, "--topology", "cpu:2", "--json", "--trials", "1", "mesh.data=1", "mesh.fsdp=2")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    # Matrices lie in two halves, gains on both devices; AdamW has two moments and two counters (its own and the
    # schedule's), all in float32 and int32.
    parameters = 4 * (MATRICES // 2 + GAINS)
    assert plan["memory"]["parameters"] == plan["memory"]["gradients"] == parameters
    assert plan["memory"]["optimizer"] == 2 * parameters + 2 * 4
    assert plan["memory"]["batch"] == 3 * 4 * 4 * 16 // 2
    held = parameters + plan["memory"]["optimizer"] + plan["memory"]["batch"]
    assert plan["memory"]["total"] == held + plan["memory"]["activations_and_temporaries"]
    assert plan["memory"]["activations_and_temporaries"] > plan["memory"]["gradients"]
    assert plan["how"] == "compiled" and plan["fits"] and plan["changes_that_fit"] == []
    assert plan["compute_dtype"] == "float32" and plan["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    # Every matrix of a product is brought together at least once.
    gathered = [one for one in plan["collectives"] if one["kind"] == "all-gather"]
    assert {tuple(one["axes"]) for one in plan["collectives"]} == {("fsdp",)}
    assert sum(one["payload"] for one in gathered) >= 4 * (MATRICES - 40 * 24)
    assert plan["flops_per_token"] == 6 * (MATRICES - 40 * 24) + 12 * 2 * 24 * 17 / 2
    assert plan["largest_batch"] == {"fits": 64, "too_many": None, "trials": 1}  # 16 times what was known to fit
    assert plan["tokens"] == 100 * 4 * 16
    assert plan["lower_bound_s"]["compute"] is plan["tokens_per_s"] is plan["days"] is None  # no peak is stated


def test_frozen_weights_cost_no_gradient_and_are_not_written(recipe):
    topology = parse_topology("h200:1")
    plans = {}
    for name, overrides in {
        "whole": [],
        "adapters": ["lora.rank=2"],
        "norms": ["train.trainable=['*norm/scale']"],
    }.items():
        plans[name] = make_plan(load_recipe(recipe, overrides), topology, trials=0)
    attended = 12 * 2 * 24 * 17 / 2
    assert plans["whole"].flops_per_token == 6 * (MATRICES - 40 * 24) + attended
    for name in ("adapters", "norms"):
        plan = plans[name]
        assert plan.flops_per_token == 4 * (MATRICES - 40 * 24) + attended
        assert plan.bounds.compute == pytest.approx(
            plans["whole"].bounds.compute * plan.flops_per_token / plans["whole"].flops_per_token
        )
        frozen = 4 * (MATRICES + (GAINS if name == "adapters" else 0))
        once = plan.needs.batch + frozen
        twice = plan.needs.parameters - frozen + plan.needs.optimizer + plan.needs.other
        assert plan.bounds.memory == pytest.approx((once + 2 * twice) / topology.chip.bandwidth)


def test_a_gpu_plan_is_marked_as_estimated_and_predicts(recipe):
    done = run_plan(recipe, "--topology", "h200:16", "--trials", "0", "mesh.tensor=2", "data.batch_size=8")
    assert done.code == 0, done.err
    assert "ESTIMATED, not compiled" in done.out and "note: estimated, not compiled" in done.out
    assert "computes in bfloat16" in done.out and "tokens/s" in done.out and "between 2 hosts" in done.out
    assert len(done.err.splitlines()) == 1  # what it is doing


def test_what_does_not_fit_exits_with_1_and_names_two_changes(recipe, here, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.0001")  # of 16 GB
    tiny = ["--topology", "t4:1", "data.seq_len=256", "model.num_layers=4"]
    done = here(recipe, *tiny, "--trials", "3")
    assert done.code == 1 and "DOES NOT FIT" in done.out
    assert re.search(r" \d rows \(\d do not fit; a search of \d more trials\)", done.out)
    changes = [line.split("with", 1)[1].strip() for line in done.out.splitlines() if "with  " in line]
    assert len(changes) == 2, done.out
    for change in changes:  # each alone is enough
        assert here(recipe, *tiny, "--trials", "0", *change.split()).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--topology is missing"),
        (["--topology", "v6e:8"], "v6e wants chips along 2 sides"),
        (["--topology", "cpu:64"], "virtual devices"),
        (["--topology", "h200:1", "mesh.fsdp=3"], "cannot be laid over 1 device"),
    ],
)
def test_bad_usage_is_one_line(recipe, here, arguments, words):
    done = here(recipe, *arguments)
    error = done.err.strip().splitlines()[-1]
    assert done.code == 2 and error.startswith("zoo: ") and words in error


# ------------------------------------------------------------------------------------------------- its parts


HLO = textwrap.dedent("""\
    HloModule jit_train_step

    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
    }

    %body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
      %all-gather.1 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]
    }

    %open_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
      %all-reduce.2 = f32[10]{0} all-reduce(%x), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0)
    }

    %cond (p: (s32[], f32[4])) -> pred[] {
      %c = pred[] constant(true)
    }

    %all-reduce-scatter.3 (i: f32[32]) -> f32[8] {
      %all-reduce.3 = f32[32]{0} all-reduce(%i), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
    }

    %never (i: f32[32]) -> f32[8] {
      %all-reduce.9 = f32[3200]{0} all-reduce(%i), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
    }

    ENTRY %main (p0: f32[4]) -> f32[4] {
      %while.1 = (s32[], f32[4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
      %while.2 = (s32[], f32[4]) while(%t), condition=%cond, body=%open_body
      %fusion = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
      %start = (bf16[2,8], bf16[8,8]) all-gather-start(%x), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}
      %done = bf16[8,8]{1,0} all-gather-done(%start)
      %rs = (f32[2]{0}, f32[4]{0}) reduce-scatter(%x, %y), channel_id=5, replica_groups={{0,4},{1,5},{2,6},{3,7}}
      %move = f32[6]{0} collective-permute(%x), channel_id=6, source_target_pairs={{0,1},{1,0}}
      ROOT %all = f32[] all-reduce(%x), channel_id=7, replica_groups={}
    }
    """)


def test_collectives_are_read_from_hlo():
    found = collectives.in_hlo(HLO, {"data": 2, "fsdp": 4}, open_loop=3)
    expected = {
        ("all-gather", ("fsdp",)): (12 + 1, 12 * 256 + 128, (12 * 256 + 128) * 3 / 4),
        ("all-reduce", ("data",)): (3, 3 * 40, 3 * 40),
        ("reduce-scatter", ("fsdp",)): (1, 128, 96),  # as the TPU compiler writes one
        ("reduce-scatter", ("data",)): (1, 2 * 24, 24),
        ("collective-permute", ("fsdp",)): (1, 24, 24),
        ("all-reduce", ("data", "fsdp")): (1, 4, 2 * 4 * 7 / 8),
    }
    assert {(one.kind, one.axes): (one.count, one.payload, one.sent) for one in found} == expected


def test_part_of_a_named_axis():
    groups = collectives._groups("replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}", {"data": 2, "fsdp": 4})
    assert groups.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_time_on_the_network():
    gather = Collective("all-gather", ("data",), 1, 1.6e9, 1.5e9)
    shape = {"data": 16, "fsdp": 1, "tensor": 1}
    # Each host of eight brings in the other's half, an eighth of it by each card.
    assert collectives.seconds([gather], shape, parse_topology("l40s:16")) == pytest.approx(0.1e9 / (100e9 / 64))
    assert collectives.seconds([gather], shape, parse_topology("h200:16")) == pytest.approx(1.5e9 / 450e9)
    inside = {"data": 2, "fsdp": 8, "tensor": 1}
    gather = Collective("all-gather", ("fsdp",), 1, 1.6e9, 1.4e9)
    assert collectives.seconds([gather], inside, parse_topology("h200:16")) == pytest.approx(1.4e9 / 450e9)
    assert collectives.seconds([gather], inside, parse_topology("v3:2x4")) == pytest.approx(1.4e9 / (3 * 35e9))
    assert collectives.seconds([gather], inside, parse_topology("cpu:16")) is None


def program(recipe, *overrides: str) -> Program:
    loaded = load_recipe(recipe, overrides)
    return Program(loaded, make_mesh(loaded.mesh, jax.devices()[:1]))


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        ([], 2 * 256),
        (["train.scan_layers=true"], 2 * 256),
        (["train.remat=full"], 2 * 24 + 256),  # the blocks' inputs, and one block as it is computed again
        (["train.remat=dots", "train.scan_layers=true"], 2 * (24 + 152) + 256 - 152),
    ],
)
def test_activations_are_what_products_read_and_give(recipe, overrides, numbers):
    """A block of this model: norm 24, q 24, k and v 8, attention 24, o 24, norm 24, two of 32 and their product, 24."""
    size, width = estimate._activations(program(recipe, *overrides), 4)
    assert (size, width) == (4 * 16 * 4 * numbers, 24)


def test_frozen_weights_are_brought_together_too():
    mesh = AbstractMesh((1, 4, 1), ("data", "fsdp", "tensor"))

    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))

    adapters = SimpleNamespace(
        compute_dtype=jnp.bfloat16, mesh=mesh, params={"lora": leaf(8, 2)}, frozen={"kernel": leaf(8, 32)}
    )
    assert estimate._largest_gathered(adapters) == 8 * 32 * 2


def test_what_jax_reads_when_it_is_imported_can_be_set_after_the_topology_is_known():
    program = "import sys, zoo.plan.targets; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_plan_for_cpus_shares_out_what_this_process_may_use(monkeypatch):
    topology = parse_topology("cpu:4")
    monkeypatch.setattr(targets, "host_memory", lambda: 2**33)
    assert targets.usable_memory(topology) == 2**31
    monkeypatch.setattr(targets, "host_memory", lambda: None)
    with pytest.raises(UserError, match="does not say how much memory"):
        targets.usable_memory(topology)


def test_the_search_finds_the_largest_batch_in_few_trials(recipe):
    tried = []

    def measure(other: Program) -> Needs:
        rows = other.recipe.data.batch_size
        tried.append(rows)
        return needs(rows)

    def needs(rows: int) -> Needs:
        # not quite a straight line, as of a compiler that saves more when memory is short
        other = 1000 + 10 * rows - rows**1.5 / 50
        return Needs(100, 200, 0, 100, int(other), int(300 + other), [])

    def found(first_rows: int, limit: int, trials: int) -> search.Search:
        tried.clear()
        return search.largest_batch(
            program(recipe, f"data.batch_size={first_rows}"),
            needs(first_rows),
            limit,
            trials=trials,
            measure=measure,
            fitting=lambda one: one.total <= limit,
        )

    result = found(4, 20_000, 6)
    assert needs(result.fits).total <= 20_000 < needs(result.too_many).total
    assert result.too_many <= 1.1 * result.fits and result.trials == len(tried) <= 6
    result = found(4000, 5_000, 6)
    assert needs(result.fits).total <= 5_000 < needs(result.too_many).total
    assert found(4, 1_200, 3).fits is None and all(rows < 4 for rows in tried)
    assert found(4, 10**9, 1) == search.Search(64, None, 1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu compiles for TPUs; it is not here")
def test_libtpu_compiles_a_step_without_a_tpu(recipe):
    done = run_plan(recipe, "--topology", "v6e:2x2", "--json", "--trials", "0", "mesh.data=1", "mesh.fsdp=4")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["how"] == "compiled" and plan["compiler"].startswith("libtpu") and plan["fits"]
    assert plan["compute_dtype"] == "bfloat16"
    assert plan["memory"]["parameters"] == 4 * (MATRICES // 4 + GAINS)
    assert {tuple(one["axes"]) for one in plan["collectives"]} == {("fsdp",)}
    assert 0 < plan["lower_bound_s"]["compute"] < plan["lower_bound_s"]["step"]
