"""The method at work: on the embedded engine, and gone on with after a crash."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ptl_ppo import PPO
from pydantic import ValidationError

import posttrain_recipes as ptl
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.testing import check_plugin

RECIPES = Path(__file__).parents[1] / "recipes"
STAGE: dict[str, Any] = {
    "name": "rl",
    "dataset": {"use": "jsonl", "path": "prompts.jsonl"},
    "method": {
        "use": "ppo", "learning_rate": 5e-3, "batch_size": 4, "max_tokens": 4, "max_steps": 2,
    },
    "reward": {"use": "length", "unit": "characters", "most": 0, "slack": 20},
}  # fmt: skip


class Crash(BaseException):
    """Stands for a machine that dies."""


class Steps(Reporter):
    """Keeps the metrics of every step, and dies after one of them where that is asked for."""

    def __init__(self, crash_after: int | None = None) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.crash_after = crash_after

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        self.metrics[number] = dict(metrics)
        if number == self.crash_after:
            raise Crash


def run(folder: Path, steps: Steps, home: str = "home", **options: Any) -> ptl.Result:
    prompts = [
        json.dumps({"prompt": f"Say {word}."}) for word in ["a", "b", "c", "d", "e", "f", "g", "h"]
    ]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    stage = {**STAGE, "method": {**STAGE["method"], **options}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "demo", "model": "ptl/nano", "stages": [stage]}))
    return ptl.run(recipe, home=folder / home, reporter=steps)


@pytest.mark.nightly
def test_the_critic_learns_and_the_policy_once_it_has_warmed_up(tmp_path: Path) -> None:
    steps = Steps()
    critic = {"critic_steps": 4, "critic_learning_rate": 2e-2, "lam": 1.0}
    result = run(tmp_path, steps, epochs=2, max_steps=3, critic_warmup=2, **critic)
    first, second, third = (steps.metrics[number] for number in (1, 2, 3))
    assert third["critic/loss"] < first["critic/loss"] / 2
    assert "critic/explained_variance" in first
    assert not {"policy/ratio_mean", "train/loss"} & (first | second).keys()
    assert third["policy/ratio_mean"] == pytest.approx(1, abs=1e-3), "one update a batch"
    # Four passes of the critic, and one of the policy at the last step.
    [stage] = result.record.stages
    told = [metrics["train/tokens"] for metrics in steps.metrics.values()]
    assert stage.training.train == pytest.approx(sum(told), rel=0.1)
    assert stage.training.forward == pytest.approx(told[0] / 4 * 15, rel=0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"updates_per_batch": 2, "critic_clip": 0.1}])
def test_a_run_that_was_killed_goes_on_with_its_critic(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """The critic's losses tell its weights and its Adam: from another they are others."""
    options = {"epochs": 9, "max_steps": 6, "save_every": 2, "critic_steps": 2, **options}
    whole, dying, rising = Steps(), Steps(crash_after=4), Steps()
    run(tmp_path, whole, **options)
    with pytest.raises(Crash):
        run(tmp_path, dying, home="other", **options)
    result = run(tmp_path, rising, home="other", **options)
    assert 1 < min(rising.metrics) <= 5
    for number, metrics in rising.metrics.items():
        for name in ("critic/loss", "critic/explained_variance", "train/loss", "reward/mean"):
            assert metrics[name] == pytest.approx(whole.metrics[number][name], rel=1e-4, abs=1e-6)
    kept = result.record.stages[0]
    assert kept.resume is not None
    assert set(kept.resume.beside.values()) <= set(kept.superseded), "'ptl gc' deletes it"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"advantage": "group_norm"}, "gae"),
        ({"loss": "gspo"}, "ppo"),
        ({"length_norm": "token"}, "length_norm means nothing"),
        ({"observation_weight": 0.1}, "for environments"),
        ({"critic_clip": 0.2}, "learned from once"),
        ({"lam": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PPO.Config(**options)


def test_the_plan_tells_what_the_critic_costs(tmp_path: Path) -> None:
    one, two = (PPO(PPO.Config(batch_size=1, max_tokens=4, critic_steps=steps)) for steps in (1, 3))
    from posttrain_recipes.plugin import Message, Prompt

    prompts = [Prompt(messages=(Message("user", "a"),), source="p:1")]
    found = [method.workload(prompts, 1, lambda messages: 7) for method in (one, two)]
    usages = [work.usage for work in found if work is not None]
    # 7 tokens of the prompt and 4 of the reply, of which the last is only predicted.
    assert [usage.train for usage in usages] == [2 * 10, 4 * 10]
    assert [usage.forward for usage in usages] == [2 * 10, 4 * 10]


@pytest.mark.nightly
def test_it_conforms() -> None:
    check_plugin("method", "ppo", batch_size=4, max_tokens=8, learning_rate=5e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path) -> None:
    assert ptl.run(path, preset="tiny", home=tmp_path).status == "finished"


def test_it_can_be_read() -> None:
    check_plugin("method", "ppo", work=False)
