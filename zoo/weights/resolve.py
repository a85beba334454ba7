"""From a name or a path to weights: `find` opens and describes the files, no array is read.

A name is one of the registry or of the hub; a path is a run directory, a portable directory, adapters in PEFT's
format or a published format, told apart by their files. `runs/x@500` is the checkpoint of step 500 of a run,
`runs/x@ema` or `runs/x@500@ema` the moving average of its weights there.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from zoo import convert, registry
from zoo.checkpoints import storage
from zoo.convert import chat_templates, files, peft
from zoo.convert.portable import CONFIG_FILE, TOKENIZER_DIR
from zoo.errors import UserError
from zoo.models.spec import HUB
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.training import EMA_SUFFIX
from zoo.rundir import mirror
from zoo.util import nearest
from zoo.weights import hub, model_card
from zoo.weights.sources import AdapterWeights, RunWeights, Weights, run_checkpoints

RECIPE_FILE = "recipe.yaml"
MAX_REFERENCES = 8  # how many weights may stand on one another: adapters on a run that started from a run, and so on

_references: ContextVar[int] = ContextVar("zoo_references", default=0)


def find(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> Weights:
    """Returns the weights that a name or a path stands for; see `zoo.load`. No array is read.

    Args:
        revision: branch, tag or commit on the hub.
        overrides: config fields in place of those in the files.
        step: which checkpoint of a run directory; None is the newest.

    Raises:
        UserError: nothing of that name or path, nothing that zoo reads, a step that is not there, a revision of a path,
            an average that the run does not keep.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise UserError(f"give the path or the name of a model as text, and not {name_or_path!r:.80}")
    run = str(name_or_path).removesuffix(EMA_SUFFIX)
    if run != str(name_or_path) and not Path(name_or_path).expanduser().exists():
        if revision is not None:
            raise UserError(f"revision: {name_or_path} is a path; revisions are of names on the hub")
        return _find_average(run, overrides, step)
    if storage.is_remote(name_or_path):
        return _find_remote(str(name_or_path), overrides or {}, step)
    path = Path(name_or_path).expanduser()
    at_step = re.fullmatch(r"(.+)@(\d+)", str(path))
    if at_step and step is None and not path.exists():
        path, step = Path(at_step[1]), int(at_step[2])
    if path.exists():
        if revision is not None:
            raise UserError(f"revision: {name_or_path} is a path; revisions are of names on the hub")
        return replace(_find_path(path, overrides or {}, step), location=str(path.absolute()))
    name = str(name_or_path)
    if name not in registry.list_models():
        _refuse_missing(path, name)
    if step is not None:
        raise UserError(f"{name_or_path}: is no run directory here, and steps are of the checkpoints of a run")
    if name in registry.list_models():
        return _find_published(registry.describe(name), revision, overrides or {})
    if hub.is_hub_name(name):
        what = f"{name}: is no path here, and on the hub it is {HUB}{name}"
        return _find_snapshot(hub.fetch(name, revision, what=what), name, revision, overrides or {})
    near = nearest(name, registry.list_models())
    hint = f"did you mean {near!r}?" if near else f"models are: {', '.join(registry.list_models())}"
    raise UserError(f"{name}: no such file or directory, and no model of that name; {hint}")


def _find_average(run: str, overrides: Mapping[str, Any] | None, step: int | None) -> RunWeights:
    """Returns the moving average that a run directory, `runs/x` or `runs/x@500`, holds of its weights."""
    name = f"{run}{EMA_SUFFIX}"
    if not storage.is_remote(run) and not Path(re.sub(r"@\d+$", "", run)).expanduser().exists():
        raise UserError(f"{name}: there is no run directory {run} here, and averages are of the weights of a run")
    weights = find(run, overrides=overrides, step=step)
    if not isinstance(weights, RunWeights):
        raise UserError(f"{name}: {run} is no run directory, and averages are of the weights of a run")
    if weights.recipe.optimizer.ema_decay is None:
        raise UserError(f"{name}: the run keeps no average of its weights (optimizer.ema_decay); take {run}")
    return replace(weights, ema=True, kind=f"{weights.kind}, moving average of its weights")


def find_source(recipe: Recipe, base: Mapping[str, Any] | None, near: Path | None) -> Weights:
    """Returns the weights that a recipe's section `from` names.

    Args:
        base: of a run that has begun, the entry "base" of its checkpoint's meta: it says which step it started from.
        near: the run's directory, beside which a source that has moved is looked for.

    Raises:
        UserError: the source is not to be found, or is a run without a checkpoint.
    """
    section = recipe.from_
    _refuse_circle(recipe, near)
    path, step = Path(section.source), section.step
    if near is not None and path.is_absolute() and not path.exists() and (near.parent / path.name).exists():
        path = near.parent / path.name  # both have moved together
    name = path if path.is_absolute() else section.source
    is_run = storage.is_remote(section.source) or (path / RECIPE_FILE).is_file()
    if step is None and base is not None and is_run:
        step = base["step"]
    try:
        source = find(f"{name}{EMA_SUFFIX}" if section.ema else name, revision=section.revision, step=step)
    except UserError as error:
        raise UserError(f"from: {error}") from None
    if isinstance(source, RunWeights):
        if source.step is None:
            raise UserError(f"from: {source.path} has no checkpoint yet; train it first")
        # The step is fixed: the run always starts from this very checkpoint, not from a newer one.
        source = replace(source, explicit_step=True)
    return source


def _refuse_circle(recipe: Recipe, near: Path | None) -> None:
    """Raises UserError where runs start from one another in a circle, or more than MAX_REFERENCES deep."""
    seen = [] if near is None else [near.resolve()]
    while recipe.from_ is not None and (Path(recipe.from_.source) / RECIPE_FILE).is_file():
        path = Path(recipe.from_.source).resolve()
        if path in seen or len(seen) > MAX_REFERENCES:
            names = " from ".join(map(str, [*seen, path]))
            raise UserError(f"from: runs start from one another without end: {names}; correct the recipe of one")
        seen.append(path)
        recipe = load_recipe(path / RECIPE_FILE, check_files=False)


def _refuse_missing(path: Path, name: str) -> None:
    """Raises UserError for a missing path in an existing directory, which is no owner/repository on the hub."""
    if len(path.parts) < 2 or not Path(path.parts[0]).is_dir():
        return
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except OSError:  # no directory, or none that may be listed
        siblings = []
    near = nearest(path.name, siblings)
    hint = f"did you mean {path.parent / near}?" if near else "name another, or train it first with zoo-train"
    raise UserError(f"{name}: no such file or directory here, so no run either; {hint}")


def _find_path(path: Path, overrides: Mapping[str, Any], step: int | None = None) -> Weights:
    if (path / RECIPE_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        return _find_run(path, overrides, step)
    if step is not None:
        raise UserError(f"{path}: is no run directory, and steps are of the checkpoints of a run")
    if peft.detect(path):
        return _find_adapter(path, overrides)
    path = files.model_directory(path)
    format = convert.detect_format(path)
    if format is None and (reason := files.why_unknown(path)) is not None:
        raise UserError(f"{path}: {reason}")
    if format is None:
        raise UserError(
            f"{path} is no run directory ({RECIPE_FILE}), no portable one ({CONFIG_FILE}) and in no published "
            f"format that zoo reads ({', '.join(convert.FORMATS)})"
        )
    published = format.open(path)
    spec = registry.describe(published.model_name)
    usual = published.config == spec.make_config().to_dict()
    if format.name == "portable":
        is_community_model = bool(files.read_json(path / CONFIG_FILE).get("foreign"))
    else:
        is_community_model = format.community and not usual and not _may_be_of(spec, path)
    if overrides:
        published = published.with_config(overrides)
    return Weights(
        kind=published.kind,
        path=path,
        spec=spec,
        config=spec.config_class().from_dict(published.config),
        step=published.step,
        tokenizer_path=published.tokenizer_path,
        published=published,
        format=format,
        official=usual and format.official and not model_card.written_by_zoo(path),
        is_community_model=is_community_model,
        display_name=path.resolve().stem if path.is_file() else path.resolve().name,
    )


def _may_be_of(spec: registry.ModelSpec, path: Path) -> bool:
    """Returns whether weights of the spec's class, and of another size, may have been made with its tokenizer.

    A tokenizer without a chat template of zoo was not made for it, unless zoo wrote it; bare weights may well be.
    """
    if path.is_file():
        return False
    config = path / "tokenizer_config.json"
    if not config.is_file():
        return True
    template = files.peek_json(config).get("chat_template")
    return model_card.written_by_zoo(path) if template is None else chat_templates.name_of(template) is not None


def _find_remote(url: str, overrides: Mapping[str, Any], step: int | None) -> RunWeights:
    at_step = re.fullmatch(r"(.+)@(\d+)", url)
    if at_step:
        url, step = at_step[1], int(at_step[2]) if step is None else step
    run = _find_run(mirror.fetched(url), overrides, step)
    if str(run.recipe.remote_run_dir) != url.rstrip("/"):
        raise UserError(f"{url} was trained as {run.recipe.remote_run_dir or run.recipe.run_dir}; name that")
    return replace(run, location=url.rstrip("/"))


def _find_run(path: Path, overrides: Mapping[str, Any], step: int | None) -> RunWeights:
    recipe = load_recipe(path / RECIPE_FILE, check_files=False)
    spec, config = registry.describe(recipe.model.name), recipe.model.make_config()
    if overrides:
        config = type(config).from_dict({**config.to_dict(), **overrides})
    checkpoints = run_checkpoints(path, recipe)
    if step is not None and step not in checkpoints.steps():
        raise UserError(f"{path} has no checkpoint of step {step}; there are {checkpoints.steps() or 'none'}")
    return RunWeights(
        kind="zoo run directory",
        path=path,
        spec=spec,
        config=config,
        step=checkpoints.latest() if step is None else step,
        tokenizer_path=path / TOKENIZER_DIR,
        recipe=recipe,
        explicit_step=step is not None,
        find_source=partial(find_source, recipe, near=path),
    )


def _find_adapter(path: Path, overrides: Mapping[str, Any]) -> AdapterWeights:
    adapter = peft.load(path)
    if adapter.base is None:
        raise UserError(f"{path}: does not say what it adapts; set base_model_name_or_path in {peft.CONFIG}")
    depth = _references.get() + 1
    if depth > MAX_REFERENCES:
        raise UserError(f"{path}: adapters on adapters, more than {MAX_REFERENCES} deep; name a model as their base")
    token = _references.set(depth)
    try:
        base = find(adapter.base, revision=adapter.revision, overrides=overrides)
    except UserError as error:
        raise UserError(f"{path}: its base_model_name_or_path: {error}") from None
    finally:
        _references.reset(token)
    adapter.check(base.spec.model_class(), base.config)
    return AdapterWeights(
        kind=f"adapters in PEFT's format, on {base.path}",
        path=path,
        spec=base.spec,
        config=base.config,
        tokenizer_path=base.tokenizer_path,
        base_model=base,
        adapter=adapter,
        is_community_model=base.is_community_model,
        display_name=base.display_name,
    )


def _find_published(spec: registry.ModelSpec, revision: str | None, overrides: Mapping[str, Any]) -> Weights:
    wanted = f"{spec.name}: its weights are in {spec.source} (files: {spec.facts.get('files', registry.NOT_STATED)})"
    repo, random = next(iter(spec.repositories), None), f"zoo.create({spec.name!r}), which has random weights"
    if repo is None:
        raise UserError(f"{spec.name}: zoo knows of no published weights; train it with zoo-train, or take {random}")
    try:
        directory = hub.fetch(repo, revision, what=wanted)
    except UserError as error:
        raise UserError(f"{error}, or take {random}") from None
    return _find_snapshot(directory, repo, revision, overrides)


def _find_snapshot(directory: Path, repo: str, revision: str | None, overrides: Mapping[str, Any]) -> Weights:
    weights = replace(_find_path(directory, overrides), location=repo, revision=revision)
    if isinstance(weights, AdapterWeights):
        return weights
    official = repo in weights.spec.repositories
    weights = replace(
        weights,
        official=official,
        is_community_model=weights.is_community_model and not official,
        display_name=repo.rpartition("/")[2],
    )
    if weights.tokenizer_path:
        return weights
    return replace(weights, tokenizer_path=hub.fetch_tokenizer(weights.spec, repo))
