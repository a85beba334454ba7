"""The registry of models, tasks, formats of files and optimizers. Importing it, and listing names, loads no JAX.

The built-in models are those of `zoo.models.specs`. Other packages add theirs through an entry point in the group
"zoo.models", whose name is the model's name and whose object is a `ModelSpec`:

    [project.entry-points."zoo.models"]
    my-model = "my_package.spec:SPEC"
"""

import importlib
import logging
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from zoo.errors import UserError
from zoo.models.spec import NOT_STATED as NOT_STATED
from zoo.models.spec import ModelSpec, import_class
from zoo.models.specs import ALL
from zoo.util import nearest

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "zoo.models"

# Kinds of data (`data.kind` of a recipe) and the tasks that train on them, "module:Name".
TASKS = {
    "cronicas": "zoo.tasks.cronica.task:CronicaTask",
    "text": "zoo.tasks.text:TextTask",
    "chat": "zoo.tasks.text:TextTask",
}
# Built-in corpora (`data.source` of a recipe) and their modules, which have `items` and `VERSION`. All but
# crónicas hold texts.
CORPORA = {
    "cronicas": "zoo.tasks.cronica.corpus",
    "stories": "zoo.data.stories",
}
# Formats of files that hold records (`data.source` of a recipe) and their modules: see `zoo.data.formats`.
FILE_FORMATS = {
    "jsonl": "zoo.data.formats.jsonl",
    "parquet": "zoo.data.formats.parquet",
}
# Optimizers (`optimizer.name` of a recipe), "module:Name" of subclasses of `zoo.recipe.optimizers.base.Optimizer`.
OPTIMIZERS = {
    "adamw": "zoo.recipe.optimizers.adamw:AdamW",
    "schedule_free": "zoo.recipe.optimizers.schedule_free:ScheduleFree",
    "muon": "zoo.recipe.optimizers.muon:Muon",
}
# What tasks add to `zoo eval --suite`, "module:Name" of subclasses of `zoo.evaluate.suites.Suite`.
SUITES = {
    "cronica": "zoo.tasks.cronica.suite:CronicaSuite",
}
BUILT_IN: dict[str, ModelSpec] = {spec.name: spec for spec in ALL}
_REGISTERED: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> None:
    """Registers a model in this process, so that `zoo.create(spec.name)` and recipes find it.

    This is for notebooks and scripts, whose classes are named "__main__:MyModel"; the same name may be registered
    again. A package registers its models for every process by an entry point of the group `zoo.models` instead.

    Raises:
        UserError: a built-in model has this name.
    """
    if spec.name in BUILT_IN:
        raise UserError(f"register: {spec.name!r} is the name of a built-in model; choose another")
    _REGISTERED[spec.name] = spec


def list_models() -> list[str]:
    """Returns the names of all models, built-in, registered and of other packages, sorted."""
    return sorted({**BUILT_IN, **_outside(), **_REGISTERED})


def describe(name: str) -> ModelSpec:
    """Returns the spec of the model called `name`.

    Raises:
        UserError: there is no such model (the message has the nearest name), or its package cannot be loaded.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a model is text, and this is {name!r:.80}; known: {', '.join(list_models())}")
    known = _REGISTERED | BUILT_IN
    if name in known:
        return known[name]
    outside = _outside()
    if name in outside:
        return _load_outside(outside[name])
    near = nearest(name, list_models())
    hint = f"did you mean {near!r}? " if near else ""
    raise UserError(f"unknown model {name!r}; {hint}Known: {', '.join(list_models())}")


def task_class(kind: str) -> type:
    """Returns the `zoo.tasks.base.Task` class for a recipe's `data.kind`. Raises UserError for an unknown kind."""
    if kind not in TASKS:
        raise UserError(f"data.kind: there is no task for {kind!r} here, only for {', '.join(TASKS)}")
    return import_class(TASKS[kind], f"data.kind {kind!r}")


def file_format(source: str) -> ModuleType:
    """Returns the module of a format of files, a key of FILE_FORMATS; see `zoo.data.formats`."""
    return importlib.import_module(FILE_FORMATS[source])


def corpus(source: str) -> ModuleType:
    """Returns the module of a built-in corpus, a key of CORPORA.

    Its `items(start, seed=..., split=...)` yields the corpus from item `start` on without end; its `VERSION` changes
    whenever the same seed gives other items.
    """
    return importlib.import_module(CORPORA[source])


def _outside() -> dict[str, EntryPoint]:
    points = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in BUILT_IN:
            logger.warning("entry point %s = %s ignored: the name is built in", point.name, point.value)
        else:
            points[point.name] = point
    return points


def _load_outside(point: EntryPoint) -> ModelSpec:
    try:
        spec = point.load()
    except Exception as error:  # another package's code: whatever it raises, say whose it is
        raise UserError(f"model {point.name!r}: its package's {point.value} cannot be loaded: {error}") from error
    if not isinstance(spec, ModelSpec):
        raise UserError(f"model {point.name!r}: {point.value} is a {type(spec).__name__}, not a zoo.ModelSpec")
    return spec
