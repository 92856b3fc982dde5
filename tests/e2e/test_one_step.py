"""docs/one-step.md tells what a step does; here the step is taken, and the page held to it."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.methods.self_play import SelfPlay
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import one_step  # noqa: E402

NUMBER = re.compile(r"[-+]?\d+\.\d+")


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    return one_step.blocks()


@pytest.mark.nightly
def test_the_page_tells_what_a_step_does(blocks: dict[str, str]) -> None:
    """`python tools/one_step.py` fills it."""
    shown = one_step.PAGE.read_text(encoding="utf-8")
    found = one_step.filled(shown, blocks)
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", found)
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (shown, found)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.002)
    assert len(numbers[0]) > 60


@pytest.mark.nightly
def test_a_step_runs_through_few_files(blocks: dict[str, str]) -> None:
    counts = {name: int(blocks[f"{name}.files"].split()[0]) for name in ("grpo", "sft")}
    assert counts["grpo"] <= 24, blocks["grpo.files"]
    assert counts["sft"] <= 12, blocks["sft.files"]
    assert "methods/grpo.py" in blocks["grpo.files"]
    assert "training/rl/advantages.py" in blocks["grpo.files"]


@pytest.mark.parametrize("method", [GRPO, SelfPlay])
def test_the_algorithm_is_one_function_that_fits_a_screen(method: type) -> None:
    source = inspect.getsource(method.train)  # type: ignore[attr-defined]
    assert len(source.splitlines()) <= 30
    steps = ["self.loop(stage)", "step.groups()", "estimate", "self.learn(", "step.update()"]
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
