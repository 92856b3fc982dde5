"""Where the names of `posttrain_recipes.training` live, and where those of before have gone.

Modules that plugins were written over have moved into rooms. Until API version 2 their old paths
still work, and every name that is taken from one warns and tells where it is now.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

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
}
"""Names that `posttrain_recipes.training` has, with the module of each."""
MODULES = {
    "supervised": "loops.supervised",
    "completions": "preference.completions",
    "losses": "preference.losses",
    "verdicts": "judges.verdicts",
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
    """`name` of what was `posttrain_recipes.training.OLD`, with a DeprecationWarning.

    Raises:
        AttributeError: there is no such name, and there was none.
    """
    home, was = MOVED[old], name
    name = RENAMED.get(f"{old}.{name}", name)
    try:
        found = getattr(importlib.import_module(f"{PACKAGE}.{home}"), name)
    except AttributeError:
        raise AttributeError(f"module '{PACKAGE}.{old}' has no attribute '{was}'") from None
    module = home.rpartition(".")[2]
    if name in FLAT:
        now = f"{PACKAGE}.{name}"
    elif module in MODULES:
        now = f"{PACKAGE}.{module}.{name}"
    else:
        now = f"{PACKAGE}.{home}.{name}, which is no part of the plugin API"
    warnings.warn(f"{PACKAGE}.{old}.{was} is now {now}", DeprecationWarning, stacklevel=3)
    return found


class _Moved(ModuleType):
    """A module under its old name, of which nothing is imported before it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return find(self.__name__.rpartition(".")[2], name)


def install() -> None:
    """Have the old paths be found. `sampling`, which is a room now, answers for itself."""
    for old in MOVED.keys() - {"sampling"}:
        path = f"{PACKAGE}.{old}"
        sys.modules.setdefault(path, _Moved(path))
