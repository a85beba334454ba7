"""The memory of a step: exact where it can be, the compiler's count, and what is done when it does not fit."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import TINY

from zoo.errors import UserError
from zoo.hardware import memory as hardware_memory
from zoo.plan import fit
from zoo.plan.compiled import compile_step
from zoo.plan.layout import choose, make_mesh_for
from zoo.recipe import make_recipe
from zoo.train import memory
from zoo.train.mesh import put_batch
from zoo.train.microbatch import Microbatch
from zoo.train.program import Program


def recipe_of(name="cronica", mesh=None, batch_size=8, seq_len=16, **sections):
    registered, values = TINY[name]
    sizes = values | dict(vocab_size=256, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64, max_seq_len=seq_len)
    data = {"batch_size": batch_size, "seq_len": seq_len}
    content = {"name": "x", "model": {"name": registered, **sizes}, "data": data, "mesh": mesh or {}}
    return make_recipe(content | sections)


def program_of(name="cronica", **options):
    recipe = recipe_of(name, **options)
    return Program(recipe, make_mesh_for(recipe, jax.devices()[:1]))


@pytest.fixture
def limit(monkeypatch):
    """Sets what a device is said to have."""
    return lambda size: monkeypatch.setattr(hardware_memory, "device_memory", lambda device: size)


def nbytes(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_state_is_counted_to_the_byte():
    program = program_of(optimizer={"moments_dtype": "bfloat16"})
    params, opt_state = program.create()
    assert program.state_bytes == memory.StateBytes(nbytes(params), nbytes(opt_state), gradients=nbytes(params))


@pytest.mark.slow
def test_what_was_compiled_to_count_is_what_runs(limit, caplog):
    """The real step, in microbatches; the run does not compile it again."""
    program = program_of(train={"microbatch": 2})
    counted, state = program.compiled_memory(), program.state_bytes
    assert compile_step(program).total == counted  # `zoo plan` counts alike
    arguments = program.lower().compile().memory_analysis().argument_size_in_bytes
    batch = sum(leaf.nbytes for leaf in (np.zeros(x.shape, x.dtype) for x in program.batch().values()))
    assert arguments == state.params + state.optimizer + batch  # the step's number is for dropout
    assert counted > arguments + state.gradients
    assert program.estimated_memory() == pytest.approx(counted, rel=1)
    params, opt_state = program.create()
    values = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in program.batch().items()}
    on_mesh = put_batch(values, program.mesh)
    shorter = put_batch({name: array[:, :8] for name, array in values.items()}, program.mesh)
    step = program.step(program.frozen)
    with jax.log_compiles():
        params, opt_state, _ = step(params, opt_state, on_mesh, 0)
        assert "jit(train_step)" not in caplog.text
        step(params, opt_state, shorter, 1)  # what is compiled is told
        assert "XLA compilation of jit(train_step)" in caplog.text

    limit(counted - 1)
    with pytest.raises(UserError) as error:
        fit.check(program, print)
    print(error.value)
    limit(counted)
    said = []
    fit.check(program, said.append)
    assert said[-1].startswith("Memory: a step takes ")


@pytest.mark.slow
def test_what_was_compiled_to_find_the_microbatch_is_what_runs(limit, caplog):
    limit(program_of(train={"microbatch": 4}).compiled_memory())
    program = program_of(train={"microbatch": "auto"})
    assert program.microbatch.rows == 4 and program.microbatch.step_bytes is not None
    params, opt_state = program.create()
    batch = put_batch({name: np.ones(leaf.shape, leaf.dtype) for name, leaf in program.batch().items()}, program.mesh)
    with jax.log_compiles():
        fit.check(program, lambda text: None)
        program.step(program.frozen)(params, opt_state, batch, 0)
    assert "jit(train_step)" not in caplog.text


def test_plain_room_compiles_nothing(limit, monkeypatch):
    monkeypatch.setattr(Program, "compiled_memory", lambda *_: pytest.fail("compiled"))
    limit(2**40)
    said = []
    for microbatch in (None, "auto"):
        program = program_of(train={"microbatch": microbatch})
        fit.check(program, said.append)
        assert program.microbatch == Microbatch(8)
    assert said == ["Microbatch: 8 of 8 rows (auto: the largest that fits into a device's memory)"]
    limit(None)
    fit.check(program_of(), said.append)
    assert len(said) == 1


class Compiler:
    """Stands for the compiler: `fixed` bytes and `per_row` for each row of a microbatch."""

    def __init__(self, monkeypatch, fixed, per_row):
        self.seen = []

        def count(program, rows=None):
            rows = program.microbatch.rows if rows is None else rows
            self.seen.append(rows)
            total = fixed + per_row * rows
            if program.recipe.train.remat == "full":
                total -= per_row * rows // 2
            return total

        monkeypatch.setattr(Program, "compiled_memory", count)


@pytest.mark.parametrize(("room", "rows"), [(1000, 16), (170, 4), (130, 2), (111, 1), (50, 1)])
def test_the_largest_microbatch_that_fits_is_found(limit, monkeypatch, room, rows):
    """The compiler decides, wherever the estimate (here far too high for any of them) begins."""
    compiler = Compiler(monkeypatch, fixed=100, per_row=10)
    monkeypatch.setattr(Program, "estimated_memory", lambda program, rows=None: 100 + 30 * rows)
    limit(room)
    program = program_of(batch_size=16, train={"microbatch": "auto"})
    assert program.microbatch.rows == rows
    assert len(compiler.seen) <= 3
    assert program.recipe.data.batch_size == 16


def test_a_step_that_does_not_fit_names_two_changes_that_would(limit, monkeypatch):
    Compiler(monkeypatch, fixed=100, per_row=10)

    def estimate(program, rows=None):
        return 100 + (5 if program.recipe.train.remat == "full" else 10) * rows

    monkeypatch.setattr(Program, "estimated_memory", estimate)
    limit(190)
    with pytest.raises(UserError) as error:
        fit.check(program_of(batch_size=16), lambda text: None)
    assert "would fit: train.microbatch=8; or train.remat=full" in str(error.value)
    limit(10)
    with pytest.raises(UserError, match=r"would fit: mesh\.fsdp=\d+ on that many devices; or a smaller model"):
        fit.check(program_of(batch_size=16), lambda text: None)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries (23.30G) "
         "exceeds available HBM (15.48G). HLO module: jit_train_step", 23.3 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 38.26G of 31.24G hbm.", 38.26 * 2**30),
        ("RESOURCE_EXHAUSTED", float("inf")),
    ],
)  # fmt: skip
def test_what_a_compiler_that_refuses_says_is_read(said, size):
    assert memory.required_bytes(said) == pytest.approx(size)


def test_an_automatic_mesh_of_one_device_is_that_device():
    mesh, why = choose(recipe_of(mesh="auto"), jax.devices()[:1], 2**34)
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1}
    assert why.startswith("Mesh: one device (auto: a step takes about 0.00 GiB of 16.00 GiB")


EIGHT_DEVICES = """
    import sys
    sys.path.insert(0, {here!r})
    import jax, pytest
    from test_memory import nbytes, program_of, recipe_of
    from zoo.errors import UserError
    from zoo.hardware import memory as hardware_memory
    from zoo.plan import fit
    from zoo.plan.layout import choose, make_mesh_for
    from zoo.train import memory
    from zoo.train.program import Program

    def shape(recipe, limit):
        mesh, why = choose(recipe, jax.devices(), limit)
        assert why.startswith("Mesh: ") and "auto" in why and "\\n" not in why
        return tuple(mesh.shape.values())

    # Few positions: the state decides.
    recipe = recipe_of(mesh="auto", seq_len=8)
    sizes = [(8, 1, 1), (4, 2, 1), (2, 4, 1)]
    programs = []
    for data, fsdp, tensor in sizes:
        one = recipe_of(mesh=dict(data=data, fsdp=fsdp, tensor=tensor), seq_len=8)
        programs.append(Program(one, make_mesh_for(one)))
    params, opt_state = programs[-1].create()
    state = programs[-1].state_bytes
    assert (state.params, state.optimizer) == (nbytes(params), nbytes(opt_state))
    needs = [program.estimated_memory() for program in programs]
    assert needs == sorted(needs, reverse=True)
    for wanted, need in zip(sizes, needs):
        assert shape(recipe, need / memory.FILLED + 1) == wanted, (wanted, needs)
    assert shape(recipe, None) == (8, 1, 1)
    # Too little for any: what takes least, and all devices share the state.
    data, fsdp, tensor = shape(recipe, 1)
    assert fsdp * tensor == 8
    # Four rows on eight devices: heads are split.
    assert shape(recipe_of(mesh="auto", batch_size=4), 2**34) == (4, 1, 2)
    assert shape(recipe_of(mesh="auto", batch_size=8, train=dict(microbatch=2)), 2**34) == (2, 1, 4)
    with pytest.raises(UserError, match="mesh: auto finds no layout of 8 devices"):
        shape(recipe_of(mesh="auto", batch_size=1, train=dict(steps=200)), 2**34)

    # Where it does not fit, more fsdp is offered, and it does what it says.
    program = Program(recipe_of(), make_mesh_for(recipe_of()))
    taken = program.compiled_memory()
    hardware_memory.device_memory = lambda device: taken - 1
    with pytest.raises(UserError, match=r"would fit: .*mesh\\.fsdp=[248]") as error:
        fit.check(program, print)
    print("chosen", error.value)
"""


@pytest.mark.slow
def test_layouts_of_eight_devices():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, NPROC="32")
    script = textwrap.dedent(EIGHT_DEVICES).format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "chosen" in done.stdout
