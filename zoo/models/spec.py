"""`ModelSpec`: the class and config of a registered model, and all that its authors publish. Loads no JAX."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zoo.errors import UserError

HUB = "https://huggingface.co/"
NOT_STATED = "not stated"
PLENTY = 20.0  # tokens for each parameter: about the best for a budget of operations (arXiv:2203.15556)

# What `ModelSpec.published` always lists, stated or not.
USUAL_FACTS = ("parameters", "context", "trained", "hardware", "final loss", "validation loss")


@dataclass(frozen=True)
class ModelSpec:
    """The class and config of a registered model, and what its authors publish of it (else NOT_STATED).

    Attributes:
        name: the registry's name.
        summary: one line that describes the model.
        cls, config_cls: the classes of the model and of its config as "module:Name", imported when first needed.
        config: the fields in which the model differs from its config class's defaults.
        tokenizer: a description of the tokenizer.
        source: the address of the weights, or of the program where no weights are published.
        licence, dataset: as the authors state them.
        tokens_seen: the number of tokens in the whole training, as text.
        tokens_per_param: that number over the number of parameters.
        facts: further published facts, label -> text. USUAL_FACTS are the usual labels; "parameters" is the exact
            number; "files" lists the files of `source`.
        sampling: the settings with which the authors' card or program writes text, by their names in
            `zoo.generate.settings.Settings`; None where nothing is published.
        chat_template: the name of the template that its conversations were written in, from
            `zoo.tokenizers.chat.TEMPLATES`; None for a model that was not trained on conversations.
        tokenizer_repo: the hub repository of the tokenizer where the weights' repository has none; None otherwise.
        completions: greedy completions on the card, prompt -> text.
        figures: measured values on the card that zoo computes again, protocol -> metric -> value.
        task: the kind of data it was made for, a key of `zoo.registry.TASKS`; None for a plain language model.
    """

    name: str
    summary: str
    cls: str
    config_cls: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = NOT_STATED
    source: str = NOT_STATED
    licence: str = NOT_STATED
    dataset: str = NOT_STATED
    tokens_seen: str = NOT_STATED
    tokens_per_param: float | None = None
    facts: dict[str, str] = field(default_factory=dict)
    sampling: Mapping[str, Any] | None = None
    chat_template: str | None = None
    tokenizer_repo: str | None = None
    completions: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    task: str | None = None

    @property
    def repositories(self) -> list[str]:
        """Returns the hub repositories with the model's published weights; the first one is loaded by name."""
        addresses = [self.source, *self.facts.values()]
        return [address.removeprefix(HUB) for address in addresses if address.startswith(HUB)]

    def model_class(self) -> type:
        """Returns the `nnx.Module` class. Raises UserError where it cannot be imported."""
        return import_class(self.cls, f"model {self.name!r}")

    def config_class(self) -> type:
        """Returns the class of the config, a frozen dataclass. Raises UserError where it cannot be imported."""
        return import_class(self.config_cls, f"model {self.name!r}")

    def make_config(self, **overrides: Any) -> Any:
        """Returns the model's config with `overrides` of its fields; raises UserError for an impossible one."""
        return self.config_class().from_dict({**self.config, **overrides})

    @cached_property
    def num_params(self) -> int:
        """Returns the exact number of parameters, computed from shapes: nothing is allocated."""
        from zoo.models.build import count_params

        return count_params(self.model_class(), self.make_config())

    @property
    def tokens_per_param_text(self) -> str:
        """Returns the tokens seen for each parameter, and their share of 20 (`PLENTY`): "1.29 (6.5% of 20)"."""
        if self.tokens_per_param is None:
            return NOT_STATED
        share = 100 * self.tokens_per_param / PLENTY
        return f"{self.tokens_per_param:.3g} ({share:.{0 if share >= 10 else 1}f}% of {PLENTY:.0f})"

    def published(self) -> dict[str, str]:
        """Returns all that is published of the model, label -> text, in reading order; NOT_STATED where nothing is."""
        known = {label: self.facts.get(label, NOT_STATED) for label in USUAL_FACTS}
        return {
            "parameters": known.pop("parameters"),
            "source": self.source,
            "licence": self.licence,
            "dataset": self.dataset,
            "tokenizer": self.tokenizer,
            "tokens seen": self.tokens_seen,
            "tokens a parameter": self.tokens_per_param_text,
            **known,
            **{label: text for label, text in self.facts.items() if label not in USUAL_FACTS},
        }


def import_class(target: str, name: str) -> type:
    """Imports the class at `target`, "module:Name". Raises UserError, which names `name`, where that fails."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{name}: {target!r} cannot be imported: {error}") from error
