"""What the README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain_recipes import registry
from posttrain_recipes.cli import COMMANDS
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import planner

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_its_recipe_is_the_one_that_ships(tmp_path: Path) -> None:
    """Shorter by defaults and presets, and the same to the fingerprint of every stage and eval."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(shown.splitlines()) <= 12
    written = tmp_path / "sft_then_dpo.yaml"
    written.write_text(shown.replace("data/", f"{ROOT}/recipes/data/"), encoding="utf-8")

    def known(path: Path) -> list[tuple[str, str, list[tuple[str, str]]]]:
        plan = planner.build(recipes.load(path), registry.load())
        evals = [[(e.name, e.fingerprint) for e in stage.evals] for stage in plan.stages]
        return [
            (stage.name, stage.fingerprint, found)
            for stage, found in zip(plan.stages, evals, strict=True)
        ]

    assert known(written) == known(ROOT / "recipes" / "sft_then_dpo.yaml")


def test_its_commands_are_there() -> None:
    named = set(re.findall(r"\bptl ([a-z]+)\b", README))
    assert named <= set(COMMANDS)
    assert named == set(COMMANDS), "a command that the README does not name"


def test_its_test_command_is_what_ci_runs() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("a source distribution has no .ci")
    shown = re.search(r"\S+ -m pytest .*", README)
    assert shown is not None
    assert shown.group() in script.read_text().splitlines()


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_shipped_recipe_is_listed() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{path.name}`" in README
