"""Before RL: is there anything to learn from? The real engine and the method's own code say so."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.running import activity, learnability, preflight
from posttrain_recipes.running.events import Reporter, SamplingProgress
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.store import Store

pytestmark = pytest.mark.usefixtures("quick_engines")

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
name: ahead
model: ptl/tiny
lora: {rank: 4}
stages:
  - name: taught
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 16}
    method: {use: sft, batch_size: 8}
  - name: varied
    init_from: base
    dataset: {use: jsonl, path: DATA/sums.jsonl, limit: 64}
    method: {use: grpo, max_tokens: 8}
    reward: {use: exact_match}
  - name: flat
    init_from: taught
    dataset: {use: jsonl, path: DATA/sums.jsonl, limit: 64}
    method: {use: grpo, max_tokens: 8}
    reward: {use: regex, pattern: "no reply has this"}
  - name: game
    init_from: base
    dataset: {use: nim, episodes: 32}
    method: {use: self_play, max_tokens: 4}
"""


class Heard(Reporter):
    """Keeps what is told while groups are sampled."""

    def __init__(self) -> None:
        self.told: list[SamplingProgress] = []

    def sampling(self, progress: SamplingProgress) -> None:
        self.told.append(progress)


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "SECONDS", 0.0)


def found(recipe: Path, home: Path) -> dict[str, PreflightFinding]:
    plan = ptl.plan(recipe)
    runs = Store(home).runs()
    heard = Heard()
    every = list(preflight.engine(plan, home, runs, sample=True, reporter=heard))
    groups = [told for told in heard.told if told.unit == "groups"]
    assert {told.what for told in groups} >= {"sampling groups for varied"}
    assert all(0 < told.done <= told.total == learnability.GROUPS for told in groups)
    assert any(told.answered and told.written for told in heard.told)
    assert {f.verdict for f in every} <= {"ok", "warning", "skipped"}, every
    return {f.check: f for f in every if f.check.startswith("learning of ")}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "ahead.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    return path


@pytest.mark.nightly
def test_groups_without_variance_are_told_before_training(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = found(recipe, home)
    assert list(first) == ["learning of varied", "learning of flat", "learning of game"]
    assert first["learning of varied"].verdict == "ok"
    assert "replies were cut at max_tokens=8" in first["learning of varied"].message
    assert f"of {learnability.GROUPS} groups" in first["learning of varied"].message
    assert first["learning of flat"].message == (
        "starts from taught, which is not there yet: whether there is anything to learn was not "
        "tried"
    )
    assert f"of {2 * learnability.GROUPS} groups" in first["learning of game"].message, "two seats"

    ptl.run(recipe, home=home, until="taught")
    flat = found(recipe, home)["learning of flat"]
    assert flat.verdict == "warning"
    assert flat.message.startswith(
        f"{learnability.GROUPS} of {learnability.GROUPS} groups have one reward for all replies; "
        "the mean is 0.00: there is little to learn from"
    )
    assert "sft first" in (flat.hint or "")
