"""Recipes: the YAML files that describe runs, as checked objects. Importing this loads no JAX."""

from zoo.recipe.resume import resume_changes, resume_diff
from zoo.recipe.schema import Recipe, load_recipe, make_recipe

__all__ = ["Recipe", "load_recipe", "make_recipe", "resume_changes", "resume_diff"]
