"""Where the names of `posttrain_recipes.training` live, and where those of before have gone.

Modules that plugins were written over have moved into rooms. Until API version 2 their old paths
still work, and every name that is taken from one warns: where it is now, and which plugin uses it.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from posttrain_recipes import deprecation

PACKAGE = "posttrain_recipes.training"
FLAT = {
    "Example": "text.examples",
    "tokenize": "text.examples",
    "datum": "text.examples",
    "extract": "text.answer_extraction",
    "equal": "text.answer_extraction",
    "fenced": "text.answer_extraction",
    "generate": "sampling.generation",
    "log_likelihoods": "sampling.generation",
    "mean": "intervals",
    "proportion": "intervals",
    "ratio": "intervals",
    "PairConfig": "preference.pairs",
    "PairMethod": "preference.pairs",
    "PolicyGradientMethod": "loops.rollout_method",
    "Rollout": "rl.rollout",
}
"""Names that `posttrain_recipes.training` has, with the module of each."""
MODULES = {
    "supervised": "loops.supervised",
    "completions": "preference.completions",
    "losses": "preference.losses",
    "verdicts": "judges.verdicts",
    "harness": "sampling.harness",
}
"""Modules that it has by their own name: what is in them is called by it."""
MOVED = {
    "gradient": "loops.supervised",
    "examples": "text.examples",
    "estimates": "intervals",
    "answers": "text.answer_extraction",
    "replies": "preference.completions",
    "pairs": "preference.pairs",
    "losses": "preference.losses",
    "verdicts": "judges.verdicts",
    "sampling": "sampling.generation",
}
"""Modules by the names that plugins knew them by."""
RENAMED = {"replies.Objective": "CompletionObjective"}
"""Names in those that are others now."""


def find(old: str, name: str) -> Any:
    """`name` of what was `posttrain_recipes.training.OLD`, with a warning that names the plugin.

    Raises:
        AttributeError: there is no such name, and there was none.
    """
    home, now = MOVED[old], RENAMED.get(f"{old}.{name}", name)
    try:
        found = getattr(importlib.import_module(f"{PACKAGE}.{home}"), now)
    except AttributeError:
        raise AttributeError(f"module '{PACKAGE}.{old}' has no attribute '{name}'") from None
    module = home.rpartition(".")[2]
    if now in FLAT:
        where = f"write 'from {PACKAGE} import {now}'"
    elif module in MODULES:
        where = f"write 'from {PACKAGE} import {module}' and '{module}.{now}'"
    else:
        where = f"it is {PACKAGE}.{home}.{now} now, which is no part of the plugin API"
    deprecation.warn(f"{PACKAGE}.{old}.{name} has moved: {where}", depth=3)
    return found


class _Elsewhere(ModuleType):
    """A module under a path that it does not lie at; nothing is imported before it is used."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(f"{PACKAGE}.{name}")
        self.__dict__["_name"], self.__dict__["_home"] = name, f"{PACKAGE}.{home}"
        self.__dict__["__spec__"] = ModuleSpec(self.__name__, None, origin=self._home)

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return dir(self)
        if name.startswith("__"):
            raise AttributeError(name)
        if self._name in MODULES:
            return getattr(importlib.import_module(self._home), name)
        return find(self._name, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(importlib.import_module(self._home), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(importlib.import_module(self._home), name)

    def __dir__(self) -> list[str]:
        return public(self._home)


def public(home: str) -> list[str]:
    """The names that a module defines itself, without those that it keeps to itself."""
    names = vars(importlib.import_module(home)).items()
    return sorted(
        name
        for name, value in names
        if not name.startswith("_")
        and getattr(value, "__module__", home) == home
        and not isinstance(value, ModuleType)
    )


def install() -> None:
    """Have the old paths be found, and `MODULES` as if they lay here. `sampling`, which is a room
    now, answers for itself."""
    for name, home in {**MOVED, **MODULES}.items():
        if name != "sampling":
            sys.modules.setdefault(f"{PACKAGE}.{name}", _Elsewhere(name, home))
