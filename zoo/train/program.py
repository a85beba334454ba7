"""The program that training a recipe compiles: model, optimizer and step, known from shapes before any array exists.

The run, the plan of memory and time, and the benchmarks all take the step from here, so it is the same in all of them.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend.core import Literal
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import registry
from zoo.layers.attention_kernels import Kernel, recorded_kernels
from zoo.layers.stack import Execution, executing
from zoo.models import build
from zoo.recipe import Recipe
from zoo.train import memory, parameters
from zoo.train import step as steps
from zoo.train.mesh import BATCH_AXES
from zoo.train.microbatch import Microbatch, choose_microbatch
from zoo.train.optimizers import EMA_FIELD, in_state, make_optimizer, make_schedule

Tree = Any


@dataclass(frozen=True)
class Program:
    """The training program of a recipe on a mesh.

    Raises UserError, on construction or first use, where the mesh does not divide the model's axes.

    Attributes:
        recipe: the resolved recipe.
        mesh: of attached devices, or of a topology that is compiled for ahead of time.
    """

    recipe: Recipe
    mesh: Mesh

    @cached_property
    def spec(self) -> registry.ModelSpec:
        """The registered model."""
        return registry.describe(self.recipe.model.name)

    @cached_property
    def config(self) -> Any:
        """The model's config."""
        return self.recipe.model.make_config()

    @cached_property
    def param_dtype(self) -> Any:
        """The dtype in which parameters are stored."""
        return jnp.dtype(self.recipe.train.param_dtype)

    @cached_property
    def compute_dtype(self) -> Any:
        """The dtype in which the model computes."""
        return steps.compute_dtype_for(self.recipe.train.compute_dtype, self.mesh)

    @property
    def activation_dtype(self) -> Any:
        """The dtype of parameters and activations inside of the step: see `zoo.train.step.activation_dtype`."""
        with jax.set_mesh(self.mesh):
            return steps.activation_dtype(self.compute_dtype)

    @property
    def execution(self) -> Execution:
        """How the model's blocks are run."""
        return Execution(self.recipe.train.scan_layers, self.recipe.train.remat)

    @cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return make_schedule(self.recipe.optimizer, self.recipe.train.steps)

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return make_optimizer(self.recipe.optimizer, self.recipe.train.steps)

    @cached_property
    def _parameters(self) -> parameters.Parameters:
        return parameters.abstract(
            self.recipe, self.spec.model_class(), self.config, mesh=self.mesh, dtype=self.param_dtype
        )

    @property
    def graphdef(self) -> nnx.GraphDef:
        """The model's definition, its adapters included."""
        return self._parameters.graphdef

    @property
    def params(self) -> Tree:
        """The trained parameters, ShapeDtypeStructs with their shardings."""
        return self._parameters.trained

    @property
    def frozen(self) -> Tree:
        """The parameters that are not trained, ShapeDtypeStructs with their shardings; {} where all are trained."""
        return self._parameters.frozen

    @cached_property
    def opt_state(self) -> Tree:
        """The optimizer's state, ShapeDtypeStructs with their shardings."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self.tx.init, self.params),
            self.shardings[1],
        )

    @cached_property
    def shardings(self) -> tuple[Tree, Tree]:
        """The shardings of the trained parameters and of the optimizer's state."""
        params = jax.tree.map(lambda leaf: leaf.sharding, self.params)
        return params, steps.opt_state_shardings(self.tx, self.params, params, self.mesh)

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a batch of `data.batch_size` rows of `data.seq_len` tokens, ShapeDtypeStructs with shardings."""
        data = self.recipe.data
        rows = NamedSharding(self.mesh, P(BATCH_AXES))
        kinds = {"tokens": np.int32, "targets": np.int32, "loss_mask": np.float32}
        if data.document_mask:
            kinds |= {"segment_ids": np.int32, "positions": np.int32}
        shape = (data.batch_size, data.seq_len)
        return {name: jax.ShapeDtypeStruct(shape, kind, sharding=rows) for name, kind in kinds.items()}

    def flops_per_token(self, seq_len: int) -> float:
        """Returns the FLOPs of training per token of rows of `seq_len` tokens.

        It is the model's own count, less what frozen weights save: a weight in a matrix product costs 2 in the forward
        pass, 2 for the gradient of its input and, only if it is trained, 2 for its own. Adapters are not counted.
        """
        return self.config.flops_per_token(seq_len) - 2.0 * self._frozen_products

    @cached_property
    def _frozen_products(self) -> int:
        """The number of frozen weights in matrix products of a token: kernels, and the output head even if tied."""
        if not self.frozen:
            return 0
        params = steps.merged(self.params, self.frozen)
        traced = jax.make_jaxpr(lambda params: nnx.merge(self.graphdef, params).head()[0])(params)
        made_of = {traced.jaxpr.outvars[0]}
        for equation in reversed(traced.jaxpr.eqns):
            if not made_of.isdisjoint(equation.outvars):
                made_of.update(var for var in equation.invars if not isinstance(var, Literal))
        head = {path for path, var in zip(build.flatten(params), traced.jaxpr.invars, strict=True) if var in made_of}
        frozen = build.flatten(self.frozen)
        kernels = (
            leaf for path, leaf in frozen.items() if path.endswith("kernel") and leaf.ndim == 2 and path not in head
        )
        # Of a table or kernel longer than the vocabulary only the logits' part is multiplied.
        of_head = math.prod(traced.out_avals[0].shape) if head & frozen.keys() else 0
        return sum(leaf.size for leaf in kernels) + of_head

    @cached_property
    def microbatch(self) -> Microbatch:
        """How many rows go through the model at a time; for `auto` steps are compiled to find out."""
        chosen = choose_microbatch(self.recipe, self.mesh, self.estimated_memory, self.compiled_memory)
        for rows in self._steps.keys() - {chosen.rows}:
            del self._steps[rows]
        return chosen

    @cached_property
    def state_bytes(self) -> memory.StateBytes:
        """The bytes of one device that parameters, optimizer state and gradients take."""
        params, frozen = memory.device_bytes(self.params), memory.device_bytes(self.frozen)
        return memory.StateBytes(params + frozen, memory.device_bytes(self.opt_state), gradients=params)

    def estimated_memory(self, rows: int | None = None) -> int | None:
        """Returns about how many bytes of one device a step takes, or None: see `zoo.train.memory.estimate`."""
        count = sum(leaf.size for leaf in jax.tree.leaves((self.params, self.frozen)))
        return memory.estimate(self.recipe, self.config, self.mesh, self.state_bytes, count, rows)

    def compiled_memory(self, rows: int | None = None) -> float:
        """Returns the bytes of one device the compiled step takes with `rows` a microbatch (None: `microbatch`)."""
        return memory.compile_step(self.lower(rows))[1]

    def with_changes(self, mesh: Mesh | None = None, /, **sections: dict[str, Any]) -> "Program":
        """Returns the program on another mesh, or with other fields in its recipe: `train={"microbatch": 8}`."""
        update = {name: getattr(self.recipe, name).model_copy(update=fields) for name, fields in sections.items()}
        return dataclasses.replace(self, recipe=self.recipe.model_copy(update=update), mesh=mesh or self.mesh)

    @cached_property
    def attention_kernels(self) -> list[Kernel]:
        """The kernels that compute attention in the step, each once, from a trace of the model."""

        def hidden(params, frozen, batch):
            dtype = steps.activation_dtype(self.compute_dtype)
            model = nnx.merge(self.graphdef, steps.cast_floats(steps.merged(params, frozen), dtype))
            with executing(self.execution):
                return model.hidden(
                    batch["tokens"], positions=batch.get("positions"), segment_ids=batch.get("segment_ids")
                )[0]

        with jax.set_mesh(self.mesh), recorded_kernels() as kernels:
            jax.eval_shape(hidden, self.params, self.frozen, self.batch())
        return kernels

    def create(self) -> tuple[Tree, Tree]:
        """Returns new trained parameters and optimizer state, created on the mesh."""
        params = self.new_parameters(build.flatten(self.params))
        return build.unflatten(params), self.new_opt_state(build.unflatten(params))

    def create_frozen(self) -> Tree:
        """Returns the frozen parameters of a model without a base, from the recipe's seed."""
        return build.unflatten(self.new_parameters(build.flatten(self.frozen)))

    def new_parameters(self, paths: Iterable[str]) -> dict[str, jax.Array]:
        """Returns new parameters of these paths, created on the mesh."""
        return parameters.create(
            self.recipe, self.spec.model_class(), self.config, paths, mesh=self.mesh, dtype=self.param_dtype
        )

    def new_opt_state(self, params: Tree) -> Tree:
        """Returns the optimizer's state before the first update of the parameters."""
        return steps.init_opt_state(self.tx, params, self.shardings[1])

    def evaluated(self, params: Tree, opt_state: Tree) -> Tree:
        """Returns the parameters that are evaluated, which are not the trained ones where the optimizer averages."""
        section = self.recipe.optimizer
        if section.average_field is None:
            return params
        return self._average(params, in_state(opt_state, section.average_field))

    def ema(self, params: Tree, opt_state: Tree) -> Tree:
        """Returns the moving average of the weights that `optimizer.ema_decay` keeps, float32."""
        return in_state(opt_state, EMA_FIELD)

    @cached_property
    def _average(self) -> Any:
        return jax.jit(self.recipe.optimizer.averaged, out_shardings=self.shardings[0])

    def step(self, frozen: Tree | None = None) -> steps.TrainStep:
        """Returns the training step, which is compiled when it is first called.

        Args:
            frozen: the arrays of `self.frozen`; None: the step is to be compiled ahead of time.
        """
        step = self._step_of(self.microbatch.rows)
        return step if frozen is None else step.holding(frozen)

    def lower(self, rows: int | None = None) -> jax.stages.Lowered:
        """Returns the step with microbatches of `rows` (None: those of `microbatch`), lowered to be compiled."""
        step = self._step_of(self.microbatch.rows if rows is None else rows)
        return step.lower(self.params, self.opt_state, self.batch(), jax.ShapeDtypeStruct((), jnp.int32))

    def _step_of(self, rows: int) -> steps.TrainStep:
        # One object a size: JAX then knows the program that was compiled to find the microbatch when it is to run.
        if rows not in self._steps:
            self._steps[rows] = steps.make_train_step(
                self.graphdef,
                self.frozen,
                self.tx,
                self.schedule,
                mesh=self.mesh,
                shardings=self.shardings,
                compute_dtype=self.compute_dtype,
                seed=self.recipe.train.seed,
                microbatches=self.recipe.data.batch_size // rows,
                skip_nonfinite=self.recipe.train.on_nonfinite == "skip",
                execution=self.execution,
            )
        return self._steps[rows]

    @cached_property
    def _steps(self) -> dict[int, steps.TrainStep]:
        return {}

    def evaluate(self, frozen: Tree | None = None):
        """Returns the compiled loss of a batch: see `zoo.train.step.make_eval_step`; `frozen` as for `step`."""
        return steps.make_eval_step(
            self.graphdef,
            self.frozen if frozen is None else frozen,
            mesh=self.mesh,
            compute_dtype=self.compute_dtype,
            execution=self.execution,
        )
