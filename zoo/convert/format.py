"""What a published format is: one `Format` object at the end of each format's module."""

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.convert import files
from zoo.models.config import ModelConfig
from zoo.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Exported:
    """A model to be written.

    Attributes:
        name: names the files and titles the card.
        params: nested dict of arrays, in the dtype to be written.
        tokenizer: None where there is none to be written.
        path: where the model was loaded from; None for random weights.
        step: of training, where known.
        official, is_community_model, ema, eos_ids: as those of `zoo.weights.sources.Weights`.
        of_run: whether a run of zoo trained it.
        chat_template: the name of the template of the run's conversations; None where it trained on none.
    """

    name: str
    spec: registry.ModelSpec
    config: ModelConfig
    params: Any
    tokenizer: Tokenizer | None
    path: Path | None
    step: int | None
    official: bool = False
    is_community_model: bool = False
    ema: bool = False
    eos_ids: tuple[int, ...] = ()
    of_run: bool = False
    chat_template: str | None = None

    @property
    def sentence(self) -> str:
        """What the model is, in a few words; what the registry says of published weights is said of those alone."""
        return describe(self.spec, self.config, official=self.official, is_community_model=self.is_community_model)


def describe(spec: registry.ModelSpec, config: ModelConfig, *, official: bool, is_community_model: bool) -> str:
    """Returns what a model is, in a few words.

    Args:
        official, is_community_model: as those of `zoo.weights.sources.Weights`.
    """
    if official:
        return spec.summary
    of_class = "a Llama" if is_community_model else f"of the architecture of {spec.name}"
    return f"{of_class}, {config.num_layers} layers of width {config.embed_dim}"


@dataclass(frozen=True)
class HubFiles:
    """Which files of a hub repository hold a model in one format.

    Attributes:
        rank: a repository may hold a model several times; the form of the lowest rank is fetched.
        pick: returns the files out of the names of all, [] where the repository does not have the format.
    """

    rank: int
    pick: Callable[[Sequence[str]], list[str]]


def matching(names: Sequence[str], *patterns: str) -> list[str]:
    """Returns the names that fit one of the shell patterns, in their order."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _safetensors(names: Sequence[str]) -> list[str]:
    if files.SINGLE in names:
        return [files.SINGLE]
    return [files.INDEX, *matching(names, "model-*-of-*.safetensors")] if files.INDEX in names else []


SAFETENSORS = HubFiles(30, _safetensors)
"""What every format with model.safetensors, one file or several, has on the hub; config.json is always fetched."""


@dataclass(frozen=True)
class Format:
    """A published format: how its files are recognised, opened, written, fetched and described.

    Attributes:
        name: the name of the format's module in `zoo.convert`, by which `zoo convert --to` asks for it.
        detect: returns whether a path holds this format, and reads no more than it must for that.
        open: opens the files at a path without reading arrays; raises UserError where they do not fit. Returns a
            `Published`, or a `zoo.convert.peft.Adapter` where `adapters`.
        aliases: other names by which it is asked for.
        write: writes an `Exported` into an existing directory, with one keyword for each of `options`; raises UserError
            for a model that the format cannot express. None where `zoo.weights.export` does not write the format.
        model_name: the registered model whose class the format holds; None where it holds several.
        accepts: returns None for a config that can be written, else the reason, worded to follow the model's name
            ("is no Llama, ..."). None: configs of `model_name`'s class.
        options: keywords of `write`.
        own_dtypes: whether the format has number types of its own, so that a dtype cannot be chosen.
        adapters: whether it holds adapters alone and no whole model.
        official: whether the authors of registered models publish in it.
        community: whether Llamas of any origin are published in it.
        hub_files: the forms in which hub repositories hold it.
        tokenizer_file: where, from the directory, a tokenizer has to lie to be found; None where none is read.
        opened_by: the programs that open it, as the card names them.
        library: the hub's name of the library that opens it; "" stands for `name`.
        usage: returns Python code that opens the files of a config, for the card; None where there is none to show.
    """

    name: str
    detect: Callable[[str | os.PathLike], bool]
    open: Callable[[str | os.PathLike], Any]
    aliases: tuple[str, ...] = ()
    write: Callable[..., None] | None = None
    model_name: str | None = None
    accepts: Callable[[ModelConfig], str | None] | None = None
    options: tuple[str, ...] = ()
    own_dtypes: bool = False
    adapters: bool = False
    official: bool = True
    community: bool = False
    hub_files: tuple[HubFiles, ...] = ()
    tokenizer_file: str | None = "tokenizer.json"
    opened_by: str = ""
    library: str = ""
    usage: Callable[[ModelConfig], str] | None = None

    def refusal(self, config: ModelConfig) -> str | None:
        """Returns why a model of this config cannot be written, going on from the model's name; None where it can."""
        if self.accepts is not None:
            return self.accepts(config)
        if self.model_name is None:
            return None
        kind = registry.describe(self.model_name).config_class()
        if isinstance(config, kind):
            return None
        return f"is no {kind.__name__.removesuffix('Config')}, of which this format is"
