"""What the README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from posttrain_recipes.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_its_recipe_is_the_one_that_ships() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    shipped = yaml.safe_load((ROOT / "recipes" / "sft_then_dpo.yaml").read_text())
    shipped.pop("presets")
    assert yaml.safe_load(shown) == shipped


def test_its_commands_are_there() -> None:
    named = set(re.findall(r"\bptl ([a-z]+)\b", README))
    assert named <= set(COMMANDS)
    assert named == set(COMMANDS), "a command that the README does not name"


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_shipped_recipe_is_listed() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{path.name}`" in README
