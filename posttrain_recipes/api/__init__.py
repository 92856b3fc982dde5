"""The verbs of the command line for notebooks and programs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import PtlError, RecipeError, UsageError

if TYPE_CHECKING:
    from posttrain_recipes.api.models import chat, eval, export, serve
    from posttrain_recipes.api.recipes import plan, run, validate
    from posttrain_recipes.api.results import compare, pack, report, reproduce, runs, show
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

_PLACES = {
    "posttrain_recipes.api.models": ("chat", "eval", "export", "serve"),
    "posttrain_recipes.api.recipes": ("plan", "run", "validate"),
    "posttrain_recipes.api.results": ("compare", "pack", "report", "reproduce", "runs", "show"),
    "posttrain_recipes.results": ("Result",),
}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `ptl validate` has no use for reports.
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
