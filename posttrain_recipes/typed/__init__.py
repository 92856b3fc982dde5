"""Recipes built in Python from objects that an editor completes and a type checker checks.

    from posttrain_recipes import typed as t

    recipe = t.recipe(
        name="first",
        model="ptl/tiny",
        stages=[
            t.stage(
                name="sft",
                dataset=t.dataset.jsonl(path="data/chat.jsonl", test_size=128),
                method=t.method.sft(learning_rate=2e-3),
                eval=[t.eval.nll()],
            )
        ],
    )
    print(recipe)  # as YAML
    ptl.run(recipe)

Everything here comes from the schema of recipes: `t.method` has every method that is installed, of
plugins too, with its options as keywords. What an editor sees beside it, `__init__.pyi`, is
generated from the same schema for the built-ins (`python tools/typed_stub.py`). A piece is a
mapping, so that it may stand beside plain dicts. Values are checked as those of a file are, when
the recipe is planned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from posttrain_recipes.errors import UsageError
from posttrain_recipes.language.given import dumped

KINDS = ("dataset", "method", "reward", "eval", "engine", "tracker")
"""Kinds of plugins: `t.method.sft` is a method."""
PIECES = ("recipe", "stage", "repeat", "compare", "lora", "renderer", "resources")
"""What else the schema has a definition of."""

__all__ = ["RecipePart", *KINDS, *PIECES]


class RecipePart(dict[str, Any]):
    """A part of a recipe, as the text would have it; printed, it is that text."""

    def __str__(self) -> str:
        return dumped(self, "the recipe")


class Kind:
    """The plugins of one kind, each a function of its options."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Callable[..., RecipePart]:
        if name.startswith("__"):
            raise AttributeError(name)
        definition = schema()["$defs"].get(f"{self._kind}.{name}")
        if definition is None:
            from posttrain_recipes.registry import suggest

            near = suggest(name, dir(self))
            raise AttributeError(f"there is no {self._kind} '{name}'; {near}")
        return builder(name, definition, {"use": name})

    def __dir__(self) -> list[str]:
        return list(schema()["$defs"][self._kind]["properties"]["use"]["enum"])

    def __repr__(self) -> str:
        return f"<{self._kind}s: {', '.join(dir(self))}>"


@cache
def schema() -> Mapping[str, Any]:
    """The schema of recipes, with what is installed here."""
    from posttrain_recipes import registry
    from posttrain_recipes.language.schema import recipe_schema

    return recipe_schema(registry.load())


def builder(
    name: str, definition: Mapping[str, Any], fixed: Mapping[str, Any]
) -> Callable[..., RecipePart]:
    """A function whose keywords are the properties of a definition.

    Raises:
        UsageError: from the function, for a keyword that is none of them.
    """
    known = {key: each for key, each in definition["properties"].items() if key not in fixed}

    def build(**options: Any) -> RecipePart:
        for key in options:
            if key not in known:
                from posttrain_recipes.registry import suggest

                raise UsageError(f"{name} has no option '{key}'", hint=suggest(key, list(known)))
        return RecipePart({**fixed, **options})

    required = definition.get("required", ())
    build.__name__ = build.__qualname__ = name
    build.__doc__ = documented(name, definition, known)
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if key in required else each.get("default"),
            )
            for key, each in known.items()
            if key.isidentifier()
        ]
    )
    return build


def documented(name: str, definition: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A docstring: what it is, and every option with its default."""
    lines = [str(definition.get("description") or f"A {name}."), "", "Args:"]
    for key, each in known.items():
        default = f" [default: {each['default']}]" if each.get("default") is not None else ""
        lines.append(f"    {key}: {each.get('description', '')}{default}")
    return "\n".join(lines)


def __getattr__(name: str) -> Any:
    if name in KINDS:
        return Kind(name)
    if name in PIECES:
        return builder(name, schema()["$defs"][name], {})
    raise AttributeError(f"module 'posttrain_recipes.typed' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
