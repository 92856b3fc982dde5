"""How a model of MLflow's registry is named: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

Nothing here asks the registry; `tracking.registered` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain_recipes.errors import UsageError

SCHEME = "models:/"
FORM = "write models:/NAME@ALIAS, as models:/tone@champion, or models:/NAME/VERSION"
_NAME = r"[A-Za-z0-9][\w.-]{0,199}"
_ALIAS = r"[A-Za-z_][\w-]{0,199}"
_WHOLE = re.compile(rf"models:/({_NAME})(?:@({_ALIAS})|/([1-9]\d{{0,8}}))")


@dataclass(frozen=True)
class RegisteredName:
    """A version of a registered model: by its number, or by the alias that it has for now."""

    name: str
    alias: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> RegisteredName | None:
        """The version that `text` names; None where it has another form."""
        match = _WHOLE.fullmatch(text)
        return cls(*match.groups()) if match else None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def is_registered(model: str) -> bool:
    """Whether a model is named as one of MLflow's registry, in whatever form."""
    return model.startswith(SCHEME)


def check_name(name: str) -> None:
    """Raise UsageError for what cannot stand in `models:/NAME@ALIAS`."""
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"{name!r} is no name for a registered model",
            hint="letters, digits and . _ -, beginning with a letter or a digit: tone, qa-small",
        )


def check_alias(alias: str) -> None:
    """Raise UsageError for an alias that MLflow would not take, or not keep apart from a number."""
    if not re.fullmatch(_ALIAS, alias) or re.fullmatch(r"latest|v\d+", alias.lower()):
        raise UsageError(
            f"{alias!r} is no alias",
            why="MLflow keeps 'latest', and 'v' with a number, to itself",
            hint="letters, digits and _ -, beginning with a letter: champion, challenger",
        )
