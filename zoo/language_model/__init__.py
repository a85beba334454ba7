"""Language models as notebooks and commands use them: `load` and `create` return a `LanguageModel`."""

from zoo.generate.text import Generation
from zoo.language_model.loading import create, load
from zoo.language_model.model import LanguageModel, Score

__all__ = ["Generation", "LanguageModel", "Score", "create", "load"]
