"""The authors' pages: every kind, every hook and every public name is told."""

from __future__ import annotations

import inspect
import re

import pytest

from posttrain_recipes import plugin
from posttrain_recipes.registry import KINDS, Hooks
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "authors.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "plugin-api.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(Hooks) if name.startswith("ptl_")]


def test_it_names_every_kind_and_every_hook() -> None:
    for kind, base in KINDS.items():
        assert f"| {kind} | `{base.__name__}` |" in GUIDE
    for hook in HOOKS:
        assert f"`{hook}`" in GUIDE


@pytest.mark.parametrize("name", plugin.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(plugin, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
        if value.__module__.startswith("posttrain_recipes"):
            assert f"::: {value.__module__}\n" in REFERENCE
    else:  # a constant: a string below it, in the source
        source = inspect.getsource(plugin)
        assert re.search(rf'^{name} = .*\n"""', source, flags=re.MULTILINE), name


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    assert "that recipes name with" in str(inspect.getdoc(getattr(Hooks, hook)))
