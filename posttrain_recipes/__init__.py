"""LLM post-training from declarative recipes, over the Tinker API.

import posttrain_recipes as ptl

result = ptl.run("recipes/sft_then_dpo.yaml")
print(result)
result["sft"].after["held_out"]["exact_match"].value
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain_recipes.version import __version__

__all__ = [
    "PtlError",
    "RecipeError",
    "Result",
    "UsageError",
    "__version__",
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

if TYPE_CHECKING:
    from posttrain_recipes.api import (
        PtlError,
        RecipeError,
        Result,
        UsageError,
        chat,
        compare,
        eval,
        export,
        pack,
        plan,
        report,
        reproduce,
        run,
        runs,
        serve,
        show,
        validate,
    )


def __getattr__(name: str) -> Any:
    # Looked up late, so that `ptl --help` does not pay for what it does not use.
    if name in __all__:
        from posttrain_recipes import api

        return getattr(api, name)
    raise AttributeError(f"module 'posttrain_recipes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
