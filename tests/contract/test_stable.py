"""What is stable of the plugin API: nothing of it goes without a word, and the words are right."""

from __future__ import annotations

import json

import pytest

from posttrain_recipes import plugin
from posttrain_recipes.deprecation import Going, PluginDeprecationWarning
from posttrain_recipes.version import __version__
from tests.conftest import ROOT, Ptl
from tools.stable_names import PATH, names

KEPT = json.loads(PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", KEPT)
def test_no_name_that_was_promised_is_gone(part: str) -> None:
    gone = set(KEPT[part]) - set(names().get(part, ()))
    assert not gone - plugin.GOING.keys(), "deprecate it first: see docs/reference/stability.md"


def test_what_is_new_is_written_down() -> None:
    assert names() == KEPT, "run: python tools/stable_names.py"


def test_a_deprecated_name_works_and_says_who_uses_it() -> None:
    with pytest.warns(PluginDeprecationWarning) as told:
        assert plugin.NoEffect() is plugin.Affects.NOTHING
    # Another test's sockets may be closed in the meantime, which Python tells too.
    told = [one for one in told if one.category is PluginDeprecationWarning]
    assert str(told[0].message) == (
        "posttrain_recipes.plugin.NoEffect is deprecated since 0.1 and may be gone in 0.3: "
        f"write Affects.NOTHING; {__name__} uses it"
    )
    assert told[0].filename == __file__
    space = {"__name__": "pytest"}  # as a module of a package that is installed
    with pytest.warns(PluginDeprecationWarning, match=r"; plugin pytest \d[\d.]* uses it$"):
        exec("from posttrain_recipes.plugin import NoEffect", space)


def test_what_never_was_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = plugin.nonesuch  # type: ignore[attr-defined]


def test_a_command_tells_of_it_once(ptl: Ptl, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_recipes import registry

    def load() -> registry.Registry:
        for _ in range(3):
            _ = plugin.NoEffect
        return registry.Registry()

    monkeypatch.setattr(registry, "load", load)
    told = ptl("plugins", "list").err
    assert told.count("warning: posttrain_recipes.plugin.NoEffect is deprecated since 0.1") == 1


def test_nothing_that_was_to_go_is_kept_for_ever() -> None:
    now = [int(part) for part in __version__.split(".")[:2]]
    for name, going in plugin.GOING.items():
        assert now < [int(part) for part in going.until.split(".")], f"take {name} away"
    assert Going("1.9", "write x").until == "1.11"


def test_the_page_names_every_part() -> None:
    page = (ROOT / "docs" / "reference" / "stability.md").read_text(encoding="utf-8")
    for word in ("posttrain_recipes.plugin", "posttrain_recipes.testing", *KEPT["hooks"]):
        assert f"`{word}`" in page
    for name in plugin.GOING:
        assert f"`{name}`" in page
