"""SDPO: what rewards say in words, and who is shown what of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.methods import sdpo
from posttrain_recipes.methods.sdpo import SDPO, _Hindsight, _Tried
from posttrain_recipes.plugin import Message, Prompt, PtlError, Reward, Sample
from posttrain_recipes.rewards.function import Function
from posttrain_recipes.rewards.judge import JudgeReward
from posttrain_recipes.rewards.python_tests import PythonTests
from posttrain_recipes.rewards.rubric import Rubric
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.on_policy import Attempt
from posttrain_recipes.training.distill.teachers import Likeliest
from posttrain_recipes.training.rl.scoring import Scorer, WrongScores
from posttrain_recipes.training.sandbox import child_main, split_tests
from tests.conftest import Project
from tests.unit.test_asserts import needs_sandbox
from tests.unit.test_judges import Words, opened, sample

# --- what rewards say ----------------------------------------------------------------------------


def happened(test: str, reply: str) -> str:
    """What is told of a test, with the reply run in this process."""
    scope: dict[str, object] = {}
    exec(reply, scope)
    taken = split_tests.take_apart(test)
    answers = json.loads(child_main.answered(taken.steps, scope))
    assert not taken.passed(answers)
    return taken.happened(answers)


@pytest.mark.parametrize(
    ("test", "reply", "told"),
    [
        ("assert f(1) == 2", "def f(x): return [x, 'a']", "f(1) gave [1, 'a']"),
        ("assert f(1) == 2", "def f(x): return x / 0", "f(1) raised ZeroDivisionError: division b"),
        ("assert f(1) == 2", "", "f(1) raised NameError: name 'f' is not defined"),
        ("assert f(1) == 2", "def f(x): return f", "f(1) gave an object"),
        ("assert f(1) == 2", "def f(x): return 'y' * 900", "yyy..."),
        ("for i in [3]:\n    assert f(i)", "def f(x): return 0", "AssertionError: "),
    ],
)
def test_a_failing_test_is_told_with_what_happened(test: str, reply: str, told: str) -> None:
    assert told in happened(test, reply)


@pytest.mark.parametrize(
    "answers",
    [
        *(None, 3, {}, [], [[]], [[1, 2, 3]], [{"raised": "x"}], [[{"list": 3}]], [["a", "b", 1]]),
        *([[{"int": "0x" + "f" * 99999}]], [[{"nonsense": 1, "more": 2}]], [1], [[None, 7]]),
    ],
)
def test_what_a_program_makes_up_is_told_and_passes_nothing(answers: Any) -> None:
    taken = split_tests.take_apart("assert f(1) == 2")
    assert not taken.passed(answers)
    assert taken.happened(answers)


@needs_sandbox
def test_the_tests_say_which_one_failed() -> None:
    reward = PythonTests(PythonTests.Config(seconds=2))
    tests = {"tests": ["assert f(1) == 2", "assert f(2) == 3"]}
    replies = ["def f(x): return x + 1", "def f(x): return 2", "def f(x) return", "f = 1; 1 / 0"]
    samples = [sample(reply, metadata=tests) for reply in replies]
    samples.append(sample("while True: pass", metadata=tests))
    said = reward.feedback([*samples, sample("no tests")])
    assert reward.score(samples) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert said[0] is None
    assert said[5] is None
    assert said[1] == "This test failed:\n\nassert f(2) == 3\n\nf(2) gave 2"
    assert "SyntaxError" in str(said[2])
    assert "ZeroDivisionError" in str(said[3])
    assert "it took more than 2 s" in str(said[4])


def test_a_judge_that_writes_gives_its_reason() -> None:
    answers = {"a": "Too curt.\nNo hello.\nVerdict: no", "b": "Fine.\nVerdict: yes", "c": "No."}
    judge = Words(say=lambda text, attempt: answers[text[0]])
    config = JudgeReward.Config(question="{reply}", score="text")
    reward = opened(JudgeReward(config), judge)
    replies = [sample(reply) for reply in "abc"]
    assert reward.feedback(replies) == ["Too curt.\nNo hello.", None, None]
    silent = opened(JudgeReward(JudgeReward.Config(question="{reply}")), judge)
    assert silent.feedback(replies) == [None, None, None]


def test_a_rubric_names_what_is_broken() -> None:
    odds = {"polite": -2.0, "long": 3.0, "right": 1.0, "vague": None}
    judge = Words(lambda text: odds[text.split()[0]])
    criteria = ["polite.", {"text": "long", "weight": -1}, "right", "vague"]
    reward = opened(Rubric(Rubric.Config(criteria=criteria, question="{criterion}")), judge)
    [said] = reward.feedback([sample("x")])
    assert said == "It should be so: polite.\nIt should not be so: long."


def test_a_function_of_ones_own_says_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(sample): return 0.0\n"
        "def say(sample): return 'too long' if len(sample.completion) > 2 else None\n"
        "def wrong(samples): return ''\n"
    )
    reward = Function(Function.Config(call="mine:score", feedback="mine:say"), tmp_path)
    assert reward.feedback([sample("abc"), sample("ab")]) == ["too long", None]
    assert list(reward.problems()) == []
    mute = Function(Function.Config(call="mine:score"), tmp_path)
    assert mute.feedback([sample("abc")]) == [None]
    for name, told in (("nobody", "has no function 'nobody'"), ("wrong", "has to be 'sample'")):
        faulty = Function(Function.Config(call="mine:score", feedback=f"mine:{name}"), tmp_path)
        [(option, problem)] = faulty.problems()
        assert option == "feedback"
        assert told in problem


class Says(Reward):
    """Gives 1 to a reply of its letter, and says what it is told to."""

    name = "says"

    def __init__(self, letter: str = "", said: Any = None) -> None:
        super().__init__(self.Config())
        self.letter, self.said = letter, said

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(one.completion == self.letter) for one in samples]

    def feedback(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said if isinstance(self.said, list) else super().feedback(samples)


def test_what_several_rewards_say_is_one_text(caplog: pytest.LogCaptureFixture) -> None:
    two = [sample("a"), sample("b")]
    rewards = [(Says(said=["x", None]), 1.0), (Says(said=["y", ""]), 1.0), (Says(), 1.0)]
    assert Scorer(rewards).feedback(two) == ["x\n\ny", None]
    broken = [(Says(said=ValueError("no")), 1.0), *rewards]
    assert Scorer(broken).feedback(two) == ["x\n\ny", None]
    assert re.search(
        r"feedback: ValueError: no \(test_sdpo\.py:\d+\); it goes on without", caplog.text
    )
    with pytest.raises(PtlError, match="failed"):
        Scorer(broken, on_error="stop").feedback(two)
    for wrong, told in (
        (["x"], r"a list \(\['x'\]\) for 2 replies"),
        (["x", 3], "an int .3. for a"),
    ):
        with pytest.raises(WrongScores, match=told):
            Scorer([(Says(said=wrong), 1.0)]).feedback(two)


NOTHING = """\
name: demo
model: ptl/nano
stages:
  - name: told
    dataset: {use: jsonl, path: chat.jsonl}
    reward: REWARD
    method: {use: sdpo, OPTIONS}
"""
JUDGE = "{use: judge, judge: {stage: base}, score: %s}"


@pytest.mark.parametrize(
    ("reward", "options", "option"),
    [
        ("{use: exact_match}", "show_success: false", "show_success"),
        ("{use: exact_match}", "group_size: 1", "group_size"),
        ("{use: function, call: 'mine:score'}", "show_success: false", "show_success"),
        (JUDGE % "logits", "show_success: false", "show_success"),
        (JUDGE % "text", "show_success: false", None),
        ("[{use: exact_match}, {use: python_tests}]", "show_success: false", None),
        ("{use: function, call: 'mine:score', feedback: 'mine:say'}", "group_size: 1", None),
        ("{use: exact_match}", "group_size: 2", None),
    ],
)
def test_what_can_never_be_learned_from_is_a_fault(
    project: Project, reward: str, options: str, option: str | None
) -> None:
    project.write("mine.py", "def score(sample): return 0.0\ndef say(sample): return 'no'\n")
    text = NOTHING.replace("REWARD", reward).replace("OPTIONS", options)
    if option is None:
        project.plan(text)
        return
    with pytest.raises(RecipeError, match="says anything in words") as caught:
        project.plan(text)
    assert [fault.key for fault in caught.value.faults] == [f"stages.told.method.{option}"]


def test_each_stage_that_can_never_learn_is_told_beside_other_faults(project: Project) -> None:
    text = NOTHING.replace("REWARD", "{use: exact_match}").replace("OPTIONS", "show_success: false")
    first = text[text.index("  - name") :]
    wrong = first.replace("told", "third").replace("show_success: false", "beta: 2")
    broken = first.replace("told", "fourth").replace("exact_match", "exact_matches")
    with pytest.raises(RecipeError) as caught:
        project.plan(text + first.replace("told", "second") + wrong + broken)
    assert {fault.key for fault in caught.value.faults} == {
        "stages.told.method.show_success",
        "stages.second.method.show_success",
        "stages.third.method.beta",
        "stages.fourth.reward.use",
    }


# --- who is shown what ---------------------------------------------------------------------------

PROMPTS = [
    Prompt(messages=(Message("user", name),), answer="", source=f"{name}:1") for name in ("p", "q")
]


class Engine:
    """Notes what is submitted, and what loss it is."""

    def forward_backward_custom(self, data: Sequence[Any], loss: Any) -> None:
        self.data = data
        shapes = [one.loss_fn_inputs["target_tokens"].shape for one in data]
        self.loss = loss(data, [torch.full(s, math.log(0.4)).requires_grad_() for s in shapes])[0]

    def forward_backward(self, data: Sequence[Any], name: str) -> None:
        self.data = data
        self.loss = sum(sum(one.loss_fn_inputs["weights"].data) for one in data)


def step(
    monkeypatch: pytest.MonkeyPatch, replies: str, said: Any, **options: Any
) -> tuple[Engine, list[str], Any]:
    """One step on two prompts with two attempts each, of one letter; "a" is right."""
    asked: list[str] = []
    shown: list[Any] = []

    def ask(teacher: Any, prompt: Any, tokens: Any, k: int) -> str:
        asked.append(f"{teacher}: {''.join(map(chr, prompt))} -> {chr(tokens[0])}")
        return "asked"

    monkeypatch.setattr(teachers, "ask_top_k", ask)
    top = Likeliest(np.array([[5, 6]]), np.log(np.array([[0.5, 0.3]])))
    monkeypatch.setattr(teachers, "likeliest", lambda found, count: top)
    renderer = SimpleNamespace(
        prompt=lambda messages: [*map(ord, messages[-1].content)],
        parse=lambda tokens: chr(tokens[0]),
        raw=lambda tokens: chr(tokens[0]),
    )
    stage: Any = SimpleNamespace(
        name="learn",
        seed=0,
        resume=None,
        renderer=renderer,
        rewards=[(Says("a", said), 1.0)],
        wait=lambda found: found,
        resolve=None,
        cache=None,
        start=None,
        sampling_client=lambda start: "start",
        watch=lambda *shown: None,
        sink=SimpleNamespace(show=lambda name, samples, step: shown.extend(samples)),
    )
    options = {"template": "{question}{success}{feedback}", **options}
    options = {"success_template": "+{success}", "feedback_template": "!{feedback}", **options}
    objective = _Hindsight(stage, SDPO.Config(group_size=2, **options))
    left = iter(replies)

    def written(sampler: Any, batch: Sequence[_Tried], *stream: str) -> Any:
        for item in batch:
            for _ in range(2):
                yield item, Attempt(item.prompt, [ord(next(left))], logprobs=(-0.5,))

    vars(objective).update(written=written, snapshot=lambda client: "policy")
    engine: Any = Engine()
    batch = [_Tried(one, renderer.prompt(one.messages)) for one in PROMPTS]
    objective.submit(engine, batch)
    metrics = objective._waiting[-1]
    return engine, asked, SimpleNamespace(metrics=metrics, shown=shown)


def test_an_attempt_is_read_by_the_policy_that_is_shown_its_feedback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, asked, told = step(monkeypatch, "abbb", ["no", None])
    # Of the first group the one that failed is shown the other; of both, who was told something.
    assert asked == ["policy: p!no -> a", "policy: p+a -> b", "policy: q!no -> b"]
    assert len(engine.data) == 3
    p, q = [0.4, 0.4, 0.2], [0.5, 0.3, 0.2]
    kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert engine.loss.item() == pytest.approx(kl, rel=1e-6)
    assert told.metrics["reward/mean"] == 0.25
    assert told.metrics["feedback/solved_share"] == 0.25
    assert told.metrics["feedback/learned_share"] == 0.75
    assert told.metrics["teacher/mass"] == pytest.approx(0.8)
    assert [one.prompt[0].content for one in told.shown] == ["p!no", "p+a", "q!no", "q"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"show_success": False}, ["policy: p!no -> a", "policy: q!no -> b"]),
        ({"teacher": "start", "success": 2.0}, ["start: p!no -> a", "start: q!no -> b"]),
        ({"max_length": 4}, ["policy: p+a -> b"]),
    ],
)
def test_options_say_who_is_shown_what(
    monkeypatch: pytest.MonkeyPatch, options: Any, expected: list[str]
) -> None:
    assert step(monkeypatch, "abbb", ["no", None], **options)[1] == expected


def test_a_step_of_which_nothing_is_said_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked, told = step(monkeypatch, "bbbb", None)
    assert asked == []
    assert len(engine.data) == 4
    assert engine.loss == 0
    assert told.metrics["feedback/learned_share"] == 0


def test_an_attempt_whose_reward_fails_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def score(self: Says, samples: Sequence[Sample]) -> list[float | None]:
        if any(one.completion == "x" for one in samples):
            raise ValueError("no x")
        return [float(one.completion == "a") for one in samples]

    monkeypatch.setattr(Says, "score", score)
    _, asked, told = step(monkeypatch, "axbb", ["no", "no"])
    assert asked == ["policy: p!no -> a", "policy: q!no -> b", "policy: q!no -> b"]
    assert told.metrics["reward_errors/failed"] == 1
    assert "step 1: 1 of 4 attempts got no score" in caplog.text
    assert "are left out: reward 'says': ValueError: no x" in caplog.text
    _, asked, _ = step(monkeypatch, "axbb", ["no", "no"], on_reward_error="zero")
    assert len(asked) == 4
    with pytest.raises(PtlError, match="no attempt of a whole batch of stage 'learn' has a reward"):
        step(monkeypatch, "xxxx", ["no", "no"])


def test_a_template_has_its_places() -> None:
    for name in ("template", "success_template", "feedback_template"):
        with pytest.raises(ValueError, match=f"'{name}' has to have"):
            SDPO.Config.model_validate({name: "nothing"})
    assert sdpo.TEMPLATE.startswith("{question}")
