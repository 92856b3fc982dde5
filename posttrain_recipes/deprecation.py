"""Names of the plugin API that are about to go: they work for two minor versions, and say so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.errors import PtlWarning

MINORS = 2
"""Minor versions in which a deprecated name still works, the one that deprecated it included."""


class PluginDeprecationWarning(PtlWarning, DeprecationWarning):
    """A plugin uses a name that a coming version no longer has; the text says which plugin."""


@dataclass(frozen=True)
class Going:
    """A name that is deprecated."""

    since: str
    """The minor version that deprecated it, as `0.1`."""
    instead: str
    """What to write, as the end of a sentence."""

    @property
    def until(self) -> str:
        """The minor version that may no longer have it."""
        major, minor = self.since.split(".")
        return f"{major}.{int(minor) + MINORS}"


def warn(text: str, *, depth: int) -> None:
    """Warn of `text`, with the plugin that caused it.

    Args:
        depth: how many calls above this one the plugin's line is.
    """
    module = sys._getframe(depth).f_globals.get("__name__", "")
    told = f"{text}; {_user(module)} uses it"
    warnings.warn(told, PluginDeprecationWarning, stacklevel=depth + 1)


def taken(module: str, name: str, going: Mapping[str, Going], find: Callable[[str], Any]) -> Any:
    """What a module's `__getattr__` returns for a deprecated name, with a warning.

    Args:
        find: gives the value.

    Raises:
        AttributeError: `going` has no such name.
    """
    if name not in going:
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    one = going[name]
    text = f"{module}.{name} is deprecated since {one.since} and may be gone in {one.until}: "
    warn(text + one.instead, depth=3)
    return find(name)


def _user(module: str) -> str:
    """The package that a module is of, with its version where it is installed."""
    from importlib import metadata  # only here: it reads the files of every package

    top = module.partition(".")[0]
    for distribution in metadata.packages_distributions().get(top, ()):
        return f"plugin {distribution} {metadata.version(distribution)}"
    return module or "a program"
