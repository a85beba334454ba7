"""Recipes: the YAML files that describe runs, as checked objects. Importing this loads no JAX."""

from zoo.recipe.resume import fixed_fields, recorded_differences, resume_changes, resume_diff
from zoo.recipe.schema import Recipe, load_recipe, make_recipe

__all__ = [
    "Recipe",
    "fixed_fields",
    "load_recipe",
    "make_recipe",
    "recorded_differences",
    "resume_changes",
    "resume_diff",
]
