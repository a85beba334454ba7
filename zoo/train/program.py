"""What training a recipe compiles: model, optimizer and step, known from shapes alone before any array exists.

The run, the plan of memory and time, and the benchmarks all take the step from here, so they speak of the same program.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import registry
from zoo.models import build
from zoo.recipe import Recipe
from zoo.train import step as steps
from zoo.train.mesh import BATCH_AXES
from zoo.train.optimizers import make_optimizer, make_schedule

Tree = Any


@dataclass(frozen=True)
class Program:
    """The training program of `recipe` on `mesh`.

    Raises UserError, on construction or first use, where the mesh does not divide the model's axes.
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
        """In which parameters are stored."""
        return jnp.dtype(self.recipe.train.param_dtype)

    @cached_property
    def compute_dtype(self) -> Any:
        """In which the model computes."""
        return steps.compute_dtype_for(self.recipe.train.compute_dtype, self.mesh)

    @cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return make_schedule(self.recipe.optimizer, self.recipe.train.steps)

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return make_optimizer(self.recipe.optimizer, self.recipe.train.steps)

    @cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, Tree]:
        return build.abstract_params(self.spec.model_class(), self.config, mesh=self.mesh, dtype=self.param_dtype)

    @property
    def graphdef(self) -> nnx.GraphDef:
        """The model's definition."""
        return self._abstract[0]

    @property
    def params(self) -> Tree:
        """The trained parameters, ShapeDtypeStructs with their shardings."""
        return self._abstract[1]

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
        """Of the trained parameters and of the optimizer's state."""
        params = jax.tree.map(lambda leaf: leaf.sharding, self.params)
        return params, steps.opt_state_shardings(self.tx, self.params, params, self.mesh)

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of `data.batch_size` rows of `data.seq_len` tokens, abstract."""
        data = self.recipe.data
        rows = NamedSharding(self.mesh, P(BATCH_AXES))
        kinds = {"tokens": np.int32, "targets": np.int32, "loss_mask": np.float32}
        if data.document_mask:
            kinds |= {"segment_ids": np.int32, "positions": np.int32}
        shape = (data.batch_size, data.seq_len)
        return {name: jax.ShapeDtypeStruct(shape, kind, sharding=rows) for name, kind in kinds.items()}

    def create(self) -> tuple[Tree, Tree]:
        """New parameters and optimizer state, made where they belong on the mesh."""
        _, params = build.create_params(
            self.spec.model_class(), self.config, self.recipe.train.seed, mesh=self.mesh, dtype=self.param_dtype
        )
        return params, steps.init_opt_state(self.tx, params, self.shardings[1])

    def step(self) -> steps.TrainStep:
        """The compiled training step."""
        return steps.make_train_step(
            self.graphdef,
            {},
            self.tx,
            self.schedule,
            mesh=self.mesh,
            shardings=self.shardings,
            compute_dtype=self.compute_dtype,
            seed=self.recipe.train.seed,
        )

    def evaluate(self):
        """The compiled loss of a batch: see `zoo.train.step.make_eval_step`."""
        return steps.make_eval_step(self.graphdef, {}, mesh=self.mesh, compute_dtype=self.compute_dtype)
