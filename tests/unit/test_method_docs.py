"""The pages of docs/methods say what the plugins say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from posttrain_recipes import registry, shipped
from posttrain_recipes.plugin import Method
from posttrain_recipes.training.loops.supervised import GradientConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
sys.path.insert(0, str(ROOT / "tools"))

import method_docs  # noqa: E402
import servers_page  # noqa: E402

OTHERS = [method_docs.REWARDS, method_docs.DATASETS, method_docs.EVALS]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda p: p.stem)
def test_the_tables_of_options_are_the_plugins(page: Path) -> None:
    """`python tools/method_docs.py` writes them."""
    text = page.read_text(encoding="utf-8")
    assert method_docs.filled(text) == text


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
def test_a_page_sends_to_the_shared_options_that_its_method_has(page: Path) -> None:
    fields = registry.load().get("method", page.stem).config.model_fields
    missing = GradientConfig.model_fields.keys() - fields
    end = page.read_text(encoding="utf-8").split("<!-- end -->")[-1]
    if "learning_rate" in missing:
        assert not end.strip(), "it takes no steps"
        return
    assert "(README.md#options-of-every-gradient-method)" in end
    assert set(re.findall(r"`(\w+)`", end)) == missing


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "README"], ids=lambda p: p.stem)
def test_a_page_names_its_paper(page: Path) -> None:
    cls = registry.load().get("method", page.stem).cls
    assert issubclass(cls, Method)
    text = page.read_text(encoding="utf-8")
    (number,) = re.findall(r"arXiv (\d+\.\d+)", cls.paper)
    assert f"https://arxiv.org/abs/{number}" in text


@pytest.fixture(scope="module")
def rewards_page() -> str:
    return method_docs.REWARDS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", registry.load().names("reward"))
def test_a_reward_has_a_section_with_a_good_example_and_every_option(
    name: str, rewards_page: str
) -> None:
    entry = registry.load().get("reward", name)
    if entry.distribution != "posttrain-recipes":
        pytest.skip("another package's")
    section = rewards_page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert f"| [{name}](#{name}) |" in rewards_page
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[0])
    options = example["reward"]
    options.pop("weight", None)
    assert options.pop("use") == name
    entry.config.model_validate(options)
    shared = rewards_page.split("\n## Judges\n")[1] if "#judges" in section else ""
    for option in entry.config.model_fields:
        assert f"| `{option}` |" in section + shared


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("dataset", "eval")
        for name in registry.load().names(kind)
        if name not in ("nim", "tools", "cookbook")  # docs/environments.md
    ],
)
def test_a_dataset_or_eval_has_a_section_with_a_good_example(kind: str, name: str) -> None:
    entry = registry.load().get(kind, name)  # type: ignore[arg-type]
    if entry.distribution != "posttrain-recipes":
        pytest.skip("another package's")
    page = {"dataset": method_docs.DATASETS, "eval": method_docs.EVALS}[kind]
    text = page.read_text(encoding="utf-8")
    assert f"| [{name}](#{name}) |" in text
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[0])[kind]
    used = example[0] if kind == "eval" else example
    assert used.pop("use") == name
    for core in ("name", "dataset"):
        used.pop(core, None)
    entry.config.model_validate(used)


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *OTHERS]:
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


def test_the_page_of_servers_has_every_recipe() -> None:
    """`python tools/servers_page.py` brings them in."""
    text = servers_page.PAGE.read_text(encoding="utf-8")
    assert servers_page.refreshed(text) == text
    sections = text.split("\n## ")[-2:]
    for name in shipped.recipes():
        assert all(f"\n| {name} | " in section for section in sections)
