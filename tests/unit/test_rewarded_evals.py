"""Evals that ask a reward, which stands in their options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError, RecipeError
from posttrain_recipes.evals.mean_reward import MeanReward
from posttrain_recipes.evals.win_rate import WinRate
from posttrain_recipes.plugin import (
    Eval,
    EvalContext,
    EvalResult,
    Message,
    PerRecord,
    PluginConfig,
    Prompt,
    Reward,
    Sample,
    ServedModel,
)
from posttrain_recipes.records import Checkpoint
from tests.conftest import Project


class Renderer:
    stop = [0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [int(messages[-1].content)]

    def raw(self, tokens: Sequence[int]) -> str:
        return self.parse(tokens)

    def parse(self, tokens: Sequence[int]) -> str:
        return str(tokens[0])


@dataclass
class Sampler:
    """Replies with the prompt's number plus `add`; the seeds it was given are kept."""

    add: int
    seeds: list[int]

    def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
        self.seeds.append(params.seed)
        future: Future[Any] = Future()
        one = SimpleNamespace(tokens=[prompt.to_ints()[0] + self.add], stop_reason="stop")
        future.set_result(SimpleNamespace(sequences=[one]))
        return future


class Number(Reward):
    """The reply itself, up to 5; abstains beyond 100."""

    name = "number"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        values = [int(sample.completion) for sample in samples]
        return [None if value > 100 else float(min(5, value)) for value in values]


def evaluate(made: Eval, numbers: Sequence[int], add: int, other: int = 0) -> EvalResult:
    made.rewards = {"reward": Number(PluginConfig())}
    seeds: list[int] = []
    context = EvalContext(
        name="e",
        seed=3,
        records=[Prompt(messages=(Message("user", str(n)),)) for n in numbers],
        renderer=Renderer(),  # type: ignore[arg-type]
        sampler=Sampler(add, seeds),  # type: ignore[arg-type]
        wait=lambda future: future.result(5),
        resolve=lambda ref: ServedModel(Checkpoint("m"), Renderer(), Sampler(other, seeds)),  # type: ignore[arg-type]
    )
    result = made.evaluate(context)
    assert len(set(seeds)) == len(seeds), "equal weights would write equal replies"
    return result


def test_the_mean_reward_leaves_out_where_it_abstains() -> None:
    made = MeanReward(MeanReward.Config.model_validate({"reward": {"use": "number"}}))
    result = evaluate(made, [1, 2, 200], 1)
    assert result.metrics["mean_reward"].value == 2.5
    assert result.metrics["mean_reward"].count == 2
    assert result.scores["mean_reward"] == PerRecord((2.0, 3.0, None), abstained=True)
    assert [sample.scores for sample in result.samples] == [{"number": 2.0}, {"number": 3.0}, {}]
    with pytest.raises(PtlError, match="abstained on every reply"):
        evaluate(made, [200], 1)


def test_a_reward_that_fails_is_told_with_the_eval_and_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down(self: Number, samples: Sequence[Sample]) -> list[float | None]:
        raise ValueError("service down")

    monkeypatch.setattr(Number, "score", down)
    made = MeanReward(MeanReward.Config.model_validate({"reward": {"use": "number"}}))
    with pytest.raises(PtlError, match="eval 'e': reward 'number' failed") as caught:
        evaluate(made, [1], 1)
    assert re.fullmatch(
        r"ValueError: service down \(test_rewarded_evals\.py:\d+\)", caught.value.why or ""
    )
    assert "mend it" in (caught.value.hint or "")


def test_a_win_is_one_and_a_tie_is_half() -> None:
    made = WinRate(WinRate.Config.model_validate({"reward": {"use": "number"}}))
    # 2 > 1; 5 = 5; 200 abstains on both.
    result = evaluate(made, [1, 7, 200], 1)
    assert result.metrics["win_rate"].value == 0.75
    assert result.scores["win_rate"] == PerRecord((1.0, 0.5, None), abstained=True)
    assert evaluate(made, [1, 2], 0, other=2).metrics["win_rate"].value == 0.0


RECIPE = """\
name: mine
model: ./model
stages:
  - name: look
    eval:
      - use: mean_reward
        dataset: {use: jsonl, path: questions.jsonl}
        reward: {use: function, call: "rule:score"}
"""


def test_a_reward_in_an_evals_options_is_planned_and_checked(project: Project) -> None:
    project.write("rule.py", "def score(sample):\n    return 1\n")
    [planned] = project.plan(RECIPE).stages[0].evals
    assert planned.eval.rewards["reward"].name == "function"
    project.write("rule.py", "def score(sample):\n    return 2\n")
    [changed] = project.plan(RECIPE).stages[0].evals
    assert changed.fingerprint != planned.fingerprint
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("rule:score", "rule:none"))
    [fault] = caught.value.faults
    assert "has no function 'none'" in fault.message
    assert fault.key.endswith("reward.call")
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("use: function", "use: functoin"))
    assert "did you mean 'function'" in str(caught.value)


def test_the_rule_of_the_rlhf_recipe_is_the_one_its_data_were_made_by() -> None:
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "tools"), str(root / "recipes")]
    try:
        import formality
        import make_recipe_data
    finally:
        del sys.path[:2]

    def score(reply: str) -> int:
        return formality.score(Sample(prompt=(), completion=reply))

    for name in ("formal", "formal_held_out"):
        for _, row in make_recipe_data.rows_of(name):
            assert score(row["chosen"]) > score(row["rejected"])
    best = "It is a pleasure. I would be glad if you call me. I do look forward to it."
    assert score(best) == 3
    assert score(f"{best} Many thanks and kind regards.") == 3, "a fourth is no gain"
    assert score(f"{best} The reply is polite: yes or") == 2
