"""The pages of docs/methods say what the plugins say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from posttrain_recipes import registry
from posttrain_recipes.plugin import Method
from posttrain_recipes.training.gradient import GradientConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
sys.path.insert(0, str(ROOT / "tools"))

import method_docs  # noqa: E402


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_tables_of_options_are_the_plugins(page: Path) -> None:
    """`python tools/method_docs.py` writes them."""
    text = page.read_text(encoding="utf-8")
    assert method_docs.fill(text, "options", method_docs.option_table) == text


def test_every_option_of_a_method_is_on_its_page_or_the_shared_one() -> None:
    shared = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.stem == "README":
            continue
        entry = registry.load().get("method", page.stem)
        text = page.read_text(encoding="utf-8")
        for option in entry.config.model_fields:
            known = shared if option in GradientConfig.model_fields else ""
            assert f"| `{option}` |" in text + known, f"{page.name}: {option}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "README"], ids=lambda p: p.stem)
def test_a_page_names_its_paper(page: Path) -> None:
    cls = registry.load().get("method", page.stem).cls
    assert issubclass(cls, Method)
    text = page.read_text(encoding="utf-8")
    (number,) = re.findall(r"arXiv (\d+\.\d+)", cls.paper)
    assert f"https://arxiv.org/abs/{number}" in text


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_blocks_of_other_kinds_are_left_alone() -> None:
    effects = "<!-- effects: sft -->\nold\n<!-- end -->\n"
    new = method_docs.fill(
        "<!-- options: sft -->\nold\n<!-- end -->\n" + effects,
        "options",
        lambda name: f"| {name} |",
    )
    assert new == "<!-- options: sft -->\n\n| sft |\n\n<!-- end -->\n" + effects
