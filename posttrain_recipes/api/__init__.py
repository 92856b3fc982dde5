"""The verbs of the command line for notebooks and programs."""

from __future__ import annotations

from posttrain_recipes.api.models import chat, eval, export, serve
from posttrain_recipes.api.recipes import plan, run, validate
from posttrain_recipes.api.results import compare, pack, report, reproduce, runs, show
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.results import Result

__all__ = [
    "PtlError",
    "RecipeError",
    "Result",
    "UsageError",
    "chat",
    "compare",
    "eval",
    "export",
    "pack",
    "plan",
    "report",
    "reproduce",
    "run",
    "runs",
    "serve",
    "show",
    "validate",
]
