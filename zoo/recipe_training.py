"""The recipe's sections on how a model is trained: optimizer, train, mesh, checkpoint, logging and eval."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zoo.recipe_fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Seed


class OptimizerSection(Section):
    """AdamW. The learning rate climbs linearly from `warmup_init_lr` to `peak_lr`, then falls along half a cosine to
    `final_lr` at `train.steps` (default 3e-5), or stays where it is (`schedule: constant`).

    `moments_dtype`: in which both moments are kept. `clip_norm`: of the global gradient norm; null clips nothing.
    """

    name: Literal["adamw"] = "adamw"
    peak_lr: PositiveFloat = 3e-4
    final_lr: NonNegativeFloat | None = None
    warmup_steps: NonNegativeInt = 100
    warmup_init_lr: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat | None = 1.0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _end_of_the_cosine(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("final_lr") is None and data.get("schedule", "cosine") == "cosine":
            return {**data, "final_lr": 3e-5}
        return data

    @model_validator(mode="after")
    def _rates_fit_together(self) -> "OptimizerSection":
        if self.schedule == "constant":
            if self.final_lr is not None:
                raise ValueError("optimizer.final_lr has no meaning for optimizer.schedule constant; leave it out")
        elif self.final_lr > self.peak_lr:
            raise ValueError(f"optimizer.final_lr {self.final_lr} is above optimizer.peak_lr {self.peak_lr}; lower it")
        if self.warmup_init_lr > self.peak_lr:
            raise ValueError(
                f"optimizer.warmup_init_lr {self.warmup_init_lr} is above optimizer.peak_lr {self.peak_lr}; lower it"
            )
        return self


class TrainSection(Section):
    """`compute_dtype: auto` is bfloat16 on accelerators and float32 on CPU."""

    steps: PositiveInt = 2000
    seed: Seed = 0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False


class MeshSection(Section):
    """Devices along each axis of the mesh; one of them may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    @model_validator(mode="after")
    def _sizes(self) -> "MeshSection":
        for name, size in self:
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name} must be at least 1, or -1 for the devices left, got {size}")
        rest = [f"mesh.{name}" for name, size in self if size == -1]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} are both -1; only one axis can take the devices left")
        return self


class CheckpointSection(Section):
    """A checkpoint `every` so many steps (and at the end); the newest `keep` stay."""

    every: PositiveInt = 500
    keep: PositiveInt = 2


class LoggingSection(Section):
    """The run directory is `runs_dir`/<name>; metrics are logged `every` so many steps."""

    runs_dir: Annotated[str, Field(min_length=1)] = "runs"
    every: PositiveInt = 10
    tensorboard: bool = False


class EvalSection(Section):
    """Held-out loss `every` so many steps (0: only at the end) over `num_pairs` pairs, or rows of text; at the end
    `cronicas` generated and measured (0: none; crónica data alone) and a sample streamed to the terminal
    (`final_sample`): one more crónica, or what a model of texts writes after `prompt` (absent: after the first words
    of the held-out texts).
    """

    every: NonNegativeInt = 0
    num_pairs: NonNegativeInt = 64
    cronicas: NonNegativeInt = 16
    max_new_tokens: PositiveInt = 400
    temperature: NonNegativeFloat = 0.85
    top_k: NonNegativeInt = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    final_sample: bool = True
    prompt: Annotated[str, Field(min_length=1)] | None = None
