"""Process rewards: where steps end, and which tokens are credited with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from posttrain_recipes.plugin import PluginConfig, Reward, Sample, StepMark
from posttrain_recipes.rewards.steps import Steps
from posttrain_recipes.training.rl.policy_loss import PolicyConfig, RolloutSegment
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment, StepMarks
from posttrain_recipes.training.rl.scoring import StepScores
from tests.rollout_engine import Engine, run


class Length(Reward):
    """How many characters were said; nothing of a reply with an x."""

    name = "length"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [None if "x" in s.completion else float(len(s.completion)) for s in samples]


def steps(ends_with: str = "\n") -> Steps:
    reward = Steps(Steps.Config(of={"use": "length"}, ends_with=ends_with))  # type: ignore[arg-type]
    reward.rewards = {"of": Length(PluginConfig())}
    return reward


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("a\nbc\nd", [2, 5, 6]),
        ("a\n\nbc\n", [3, 6]),
        ("\n\na", [3]),
        ("alone", [5]),
        ("", []),
        ("x\ny", None),
    ],
)
def test_a_step_ends_with_its_line(text: str, ends: list[int] | None) -> None:
    [marks] = steps().steps([Sample((), text)])
    expected = None if ends is None else [StepMark(end, float(end)) for end in ends]
    assert marks == expected
    mean = sum(ends) / len(ends) if ends else None
    assert steps().score([Sample((), text)]) == [mean]


class Letters:
    """A token is a letter; 0 ends a reply."""

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token).strip()


def rollout(text: str) -> Rollout:
    tokens = [*map(ord, text), 0]
    segment = Segment.reply([9, 9], tokens, [-1.0] * len(tokens))
    return Rollout([segment], Sample((), text.strip()), [], reward=0.0)


def test_marks_are_of_tokens() -> None:
    scores: Any = StepScores(steps(), Letters(), 0.5)  # type: ignore[arg-type]
    one = rollout("ab\ncd\nef")
    assert scores.score([one.sample]) == [pytest.approx((3 + 6 + 8) / 3)]
    marks = scores.take(one)
    # A text that ends with its newline is parsed without, and no letter after is of its step.
    assert [end for end, _ in marks.steps] == [3, 6, 9]
    assert (marks.weight, [mark for _, mark in marks.steps]) == (0.5, [3.0, 6.0, 8.0])


@pytest.mark.parametrize("advantage", ["group_norm", "group_mean"])
def test_a_token_is_credited_with_the_steps_that_end_after_it(advantage: str) -> None:
    """Shao et al., section 4.1.3, over all steps of the group."""
    marked = {"abc\nd": [(4, 1.0), (6, 0.0)], "ab": [(3, 0.5)]}
    group = Group([rollout(text) for text in marked])
    for one, marks in zip(group.rollouts, marked.values(), strict=True):
        one.marks = [StepMarks(2.0, marks)]
    assert group.varies
    config = PolicyConfig(advantage=advantage)
    group.weigh([0.0, 0.25], [1.0, 1.0], 1)
    config.credit(group)
    every = np.array([1.0, 0.0, 0.5])
    z = (every - every.mean()) / ((every.std(ddof=1) + 1e-6) if advantage == "group_norm" else 1)
    first, last, other = 2 * z
    expected = [[first + last] * 4 + [last] * 2, [other + 0.25] * 3]
    for one, values in zip(group.rollouts, expected, strict=True):
        assert one.teaches
        assert config.token_advantages(RolloutSegment(one, 0)) == pytest.approx(values)


class Even(Reward):
    """Marks each number of a reply: 1 where it is even."""

    name = "even"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        raise AssertionError("steps are asked for")

    def steps(self, samples: Sequence[Sample]) -> list[list[StepMark]]:
        found = []
        for sample in samples:
            words = sample.completion.split()
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            pairs = zip(ends.tolist(), words, strict=True)
            found.append([StepMark(end, float(int(word) % 2 == 0)) for end, word in pairs])
        return found


def test_a_stage_learns_of_steps() -> None:
    """A reply's token has a larger advantage before an even number than before an odd one."""
    engine = Engine()
    run(engine, rewards=[Even(PluginConfig())], advantage="group_mean", max_steps=2)
    seen = 0
    for datum in sum(engine.passes, []):
        tokens = datum.loss_fn_inputs["target_tokens"].tolist()[2:]
        advantages = datum.loss_fn_inputs["advantages"].tolist()[2:]
        for t in range(len(tokens) - 1):
            # What is credited to t and not to t + 1 is the mark of t itself, less the mean.
            if tokens[t] % 2 == 0:
                assert advantages[t] > advantages[t + 1] - 1e-9
            else:
                assert advantages[t] < advantages[t + 1] + 1e-9
            seen += 1
    assert seen > 20
    assert engine.log[0][0]["reward/parts/even"] > 0
    assert engine.log[0][0]["reward/mean"] == engine.log[0][0]["reward/parts/even"]
