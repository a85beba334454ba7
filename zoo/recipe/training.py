"""The recipe's sections on how a model is trained: optimizer, train, from, lora, mesh, checkpoint, logging and eval."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_serializer, model_validator

from zoo import registry
from zoo.models.spec import import_class
from zoo.models.specs import CRONICA_5M
from zoo.recipe.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Seed
from zoo.recipe.optimizers.base import Optimizer, Schedule, Transformation, Tree

# In the order of the registry; the first is what a recipe has that names none.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name: import_class(target, f"optimizer.name {name}") for name, target in registry.OPTIMIZERS.items()
}
_FIRST, *_OTHERS = OPTIMIZERS.values()


class _RateFields(Section):
    name: Literal[*OPTIMIZERS] = next(iter(OPTIMIZERS))
    peak_lr: PositiveFloat = 3e-4
    final_lr: NonNegativeFloat | None = None
    warmup_steps: NonNegativeInt = 100
    warmup_init_lr: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "constant", "linear", "trapezoid", "inverse_sqrt"] = "cosine"
    warmup_fraction: Fraction | None = None
    cooldown_steps: PositiveInt | None = None
    cooldown_fraction: Annotated[float, Field(gt=0, le=1)] | None = None


class _CommonFields(Section):
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    lr_scales: dict[str, PositiveFloat] = Field(default_factory=dict)
    no_decay: list[str] = Field(default_factory=list)
    weight_decays: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None


EMA_SUFFIX = "@ema"  # of the name of a run: the moving average of its weights
# Of the schedules that end below the peak.
_FALLING = ("cosine", "linear", "trapezoid")


# Fields are written into a run's recipe.yaml from the last base to the first: an optimizer that is added to the
# registry has its fields at the end.
class OptimizerSection(*reversed(_OTHERS), _CommonFields, _FIRST, _RateFields):
    """The optimizer called `name` with its own fields (see `zoo.recipe.optimizers`), and the learning rate.

    The learning rate climbs linearly from `warmup_init_lr` to `peak_lr`, then follows `schedule`: down to `final_lr`
    at `train.steps` (default 3e-5) along half a cosine or a line; a trapezoid stays at the peak first and then falls
    along a line for the cool-down; a constant stays there; inverse_sqrt falls as sqrt(warm-up / step).

    Attributes:
        warmup_steps: the length of the warm-up.
        warmup_fraction: the same as a part of `train.steps`, in place of `warmup_steps`.
        cooldown_steps: of a trapezoid, how many steps the learning rate falls for at the end.
        cooldown_fraction: the same as a part of `train.steps`; 0.2 where neither is given.
        lr_scales: from a pattern, as in train.trainable ("layers/*/kernel"), to a factor of the learning rate of the
            parameters that it matches; the first matching pattern counts.
        no_decay: patterns of parameters without weight decay.
        weight_decays: from a pattern to the weight decay of the parameters that it matches; the first matching pattern
            counts, other parameters have `weight_decay`.
        ema_decay: how much of an average of the weights stays at each step; null keeps no average.
        clip_norm: the bound on the global gradient norm; null clips nothing.
        moments_dtype: the dtype in which the moments are stored.
    """

    def build(self, *last: Transformation) -> Transformation:
        """Returns the optimizer called `name`; see `Optimizer.build`."""
        return OPTIMIZERS[self.name].build(self, *last)

    def wrap(self, tx: Transformation, learning_rate: Schedule) -> Transformation:
        """Returns `Optimizer.wrap` of the optimizer called `name`."""
        return OPTIMIZERS[self.name].wrap(self, tx, learning_rate)

    def averaged(self, params: Tree, state: Tree) -> Tree:
        """Returns `Optimizer.averaged` of the optimizer called `name`."""
        return OPTIMIZERS[self.name].averaged(self, params, state)

    @property
    def average_field(self) -> str | None:
        """The field `averages` of the optimizer called `name`."""
        return OPTIMIZERS[self.name].averages

    def warmup(self, steps: int) -> int:
        """Returns the length of the warm-up in a run of `steps`."""
        return self.warmup_steps if self.warmup_fraction is None else round(self.warmup_fraction * steps)

    def cooldown(self, steps: int) -> int:
        """Returns the length of a trapezoid's cool-down in a run of `steps`."""
        return self.cooldown_steps or max(1, round(self.cooldown_fraction * steps))

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_schedule(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        schedule, defaults = data.get("schedule", "cosine"), {}
        if schedule in _FALLING and data.get("final_lr") is None:
            defaults["final_lr"] = 3e-5
        if schedule == "trapezoid" and data.get("cooldown_steps") is None and data.get("cooldown_fraction") is None:
            defaults["cooldown_fraction"] = 0.2
        return {**data, **defaults}

    @model_validator(mode="after")
    def _fields_are_of_this_optimizer(self) -> "OptimizerSection":
        for field in self.changed(type(self).model_fields):
            owners = [name for name, optimizer in OPTIMIZERS.items() if field in optimizer.model_fields]
            if owners and self.name not in owners:
                raise ValueError(f"optimizer.{field} is for optimizer.name {' or '.join(owners)}; leave it out")
        return self

    @model_validator(mode="after")
    def _rates_fit_together(self) -> "OptimizerSection":
        if self.schedule not in _FALLING:
            if self.final_lr is not None:
                raise ValueError(
                    f"optimizer.final_lr has no meaning for optimizer.schedule {self.schedule}; leave it out"
                )
        elif self.final_lr > self.peak_lr:
            raise ValueError(f"optimizer.final_lr {self.final_lr} is above optimizer.peak_lr {self.peak_lr}; lower it")
        if self.warmup_init_lr > self.peak_lr:
            raise ValueError(
                f"optimizer.warmup_init_lr {self.warmup_init_lr} is above optimizer.peak_lr {self.peak_lr}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _lengths_fit_the_schedule(self) -> "OptimizerSection":
        if self.warmup_fraction is not None and self.changed(["warmup_steps"]):
            raise ValueError("optimizer.warmup_fraction and optimizer.warmup_steps exclude each other; leave one out")
        if self.cooldown_fraction is not None and self.cooldown_steps is not None:
            raise ValueError(
                "optimizer.cooldown_fraction and optimizer.cooldown_steps exclude each other; leave one out"
            )
        if self.schedule != "trapezoid":
            for field in self.changed(["cooldown_steps", "cooldown_fraction"]):
                raise ValueError(f"optimizer.{field} is for optimizer.schedule trapezoid; leave it out")
        if self.schedule == "inverse_sqrt" and not (self.warmup_fraction or self.warmup_steps):
            raise ValueError(
                "optimizer.schedule inverse_sqrt falls from the end of its warm-up, whose length is its unit of time; "
                "set optimizer.warmup_steps"
            )
        return self


def _check_microbatch(value: Any) -> Any:
    """Checks `train.microbatch`. It is a function, since a union of types would give one problem for each of them."""
    if value is None or value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"train.microbatch must be a number of rows, auto or null, got {value!r}")


class TrainSection(Section):
    """How a model is trained.

    Attributes:
        param_dtype: the dtype in which parameters are stored.
        compute_dtype: the dtype in which the model computes; auto is bfloat16 on accelerators and on CPUs that multiply
            it by units of their own (AMX), and float32 on other CPUs. A run keeps what it was begun with on a CPU.
        deterministic: whether GPUs add in a fixed order, more slowly (XLA's flag xla_gpu_deterministic_ops).
        on_nonfinite: what happens when a loss or gradient is not finite. halt ends the run. skip leaves the update out;
            ten in a row end the run. rollback goes back to the newest checkpoint and leaves that batch out; a fourth
            time from the same checkpoint ends the run.
        scan_layers: whether one block is compiled and looped over, where all are alike; deep models compile several
            times faster.
        remat: what of each block is saved for the backward pass: all that it needs (none), the products with weights
            (dots), or its input alone (full). The rest is computed again, which buys memory with time.
        trainable: patterns of the parameters that are trained ("layers/*/mlp/*", or a regular expression after "re:");
            the others stay as they are. Absent, all are, or with `lora` its adapters alone, which always are.
        microbatch: how many rows of the batch go through the model at a time; loss and gradient stay those of the whole
            batch. null takes all rows, auto as many as fit into the devices' memory.
    """

    steps: PositiveInt = 2000
    seed: Seed = 0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False
    on_nonfinite: Literal["halt", "skip", "rollback"] = "halt"
    scan_layers: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    trainable: Annotated[list[str], Field(min_length=1)] | None = None
    microbatch: Annotated[Any, AfterValidator(_check_microbatch)] = None


class FromSection(Section):
    """The weights that a run starts from.

    `from: runs/x@500` is short for `from: {source: runs/x, step: 500}`; `from: runs/x@ema` or `from: runs/x@500@ema`
    says `ema: true` as well.

    Attributes:
        source: a run directory, a portable directory, published files, a name of the registry or of the hub.
        step: of a run's checkpoint; absent, its newest good one.
        ema: whether a run's moving average is taken (`optimizer.ema_decay`) in place of its weights.
        revision: branch, tag or commit on the hub.
        optimizer: whether the optimizer's moments are taken over too; the schedule begins anew in any case.
        partial: patterns, as in train.trainable, of parameters that are initialized where the source lacks them or has
            them in another shape, and that are left out where the source has them and the model does not.
    """

    source: Annotated[str, Field(min_length=1)]
    step: NonNegativeInt | None = None
    ema: bool = False
    revision: Annotated[str, Field(min_length=1)] | None = None
    optimizer: bool = False
    partial: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        rest = data.removesuffix(EMA_SUFFIX)
        source, at, step = rest.rpartition("@")
        section = {"source": source, "step": int(step)} if at and source and step.isdecimal() else {"source": rest}
        return section if rest == data else section | {"ema": True}

    @model_validator(mode="after")
    def _moments_are_of_the_weights(self) -> "FromSection":
        if self.ema and self.optimizer:
            raise ValueError("from.optimizer: the moments are not those of an average; leave it out, or from.ema")
        return self

    def __str__(self) -> str:
        step = "" if self.step is None else f"@{self.step}"
        return f"{self.source}{step}{EMA_SUFFIX if self.ema else ''}"


class LoraSection(Section):
    """Adapters (see `zoo.layers.lora`), which alone are trained; their product is scaled by alpha / rank.

    Attributes:
        targets: patterns of the projections that get one: names ("q", "up", "*") or paths ("layers/1?/attn/*").
        dropout: the rate on the adapters' input, while training.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["q", "k", "v", "o"])
    dropout: Fraction = 0.0


class MeshSection(Section):
    """The number of devices along each axis of the mesh; one of them may be -1 and takes the devices that are left.

    With `mesh: auto` all three are None and the run chooses the sizes: see `zoo.plan.layout`.
    """

    data: int | None = -1
    fsdp: int | None = 1
    tensor: int | None = 1

    @property
    def auto(self) -> bool:
        """Whether the run chooses the sizes."""
        return self.data is None

    @model_validator(mode="before")
    @classmethod
    def _from_auto(cls, data: Any) -> Any:
        if isinstance(data, str):
            if data != "auto":
                raise ValueError(f"mesh must be auto, or the sizes of data, fsdp and tensor, got {data!r}")
            return dict.fromkeys(cls.model_fields)
        missing = [f"mesh.{name}" for name, size in data.items() if size is None] if isinstance(data, dict) else []
        if missing:
            raise ValueError(f"{missing[0]} must be a whole number, got null; the run chooses all with `mesh: auto`")
        return data

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Any) -> Any:
        return "auto" if self.auto else handler(self)

    @model_validator(mode="after")
    def _sizes(self) -> "MeshSection":
        if self.auto:
            return self
        for name, size in self:
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name} must be at least 1, or -1 for the devices left, got {size}")
        rest = [f"mesh.{name}" for name, size in self if size == -1]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} are both -1; only one axis can take the devices left")
        return self


class CheckpointSection(Section):
    """When checkpoints are saved, and which are kept.

    Attributes:
        every: steps between checkpoints; there is one at the end and before each evaluation as well.
        keep: how many of the newest checkpoints are kept.
        keep_every: checkpoints whose step is a multiple of this are never deleted; 0 turns this off.
        keep_best: whether the checkpoint with the lowest held-out loss is kept.
    """

    every: PositiveInt = 500
    keep: PositiveInt = 2
    keep_every: NonNegativeInt = 0
    keep_best: bool = False

    @model_validator(mode="after")
    def _keep_every_fits_every(self) -> "CheckpointSection":
        if self.keep_every % self.every:
            raise ValueError(
                f"checkpoint.keep_every {self.keep_every} must be a multiple of checkpoint.every {self.every}; change "
                f"the one or the other"
            )
        return self


class LoggingSection(Section):
    """Where a run writes, and how often.

    Attributes:
        runs_dir: the run directory is <runs_dir>/<name>, local or remote (gs://bucket/runs).
        every: steps between lines of metrics.
        tensorboard, wandb: whether metrics also go to TensorBoard and Weights & Biases; each is an extra of its own.
    """

    runs_dir: Annotated[str, Field(min_length=1)] = "runs"
    every: PositiveInt = 10
    tensorboard: bool = False
    wandb: bool = False


class EvalSection(Section):
    """What is evaluated while training and at its end.

    Attributes:
        every: steps between measurements of the held-out loss; 0: only at the end.
        sample_every: steps between short samples in samples.md; 0: none.
        num_pairs: how many pairs, or rows of text, the held-out loss is taken over.
        cronicas: how many are generated and measured at the end, with crónica data; 0: none.
        final_sample: whether a sample is streamed to the terminal at the end: a crónica, or what a model of texts
            writes after `prompt`.
        prompt: absent, the first words of the held-out texts.
        max_new_tokens, temperature, top_k, top_p: of what is generated; the defaults are those of crónica's card,
            with room for its longest texts, for every kind of data.
    """

    every: NonNegativeInt = 0
    sample_every: NonNegativeInt = 0
    num_pairs: NonNegativeInt = 64
    cronicas: NonNegativeInt = 16
    max_new_tokens: PositiveInt = 400
    temperature: NonNegativeFloat = CRONICA_5M.sampling["temperature"]
    top_k: NonNegativeInt = CRONICA_5M.sampling["top_k"]
    top_p: Annotated[float, Field(gt=0, le=1)] = CRONICA_5M.sampling["top_p"]
    final_sample: bool = True
    prompt: Annotated[str, Field(min_length=1)] | None = None
