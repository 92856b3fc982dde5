"""What a reply is worth: the answer is found in it, and judged by the rule of its task."""

import json
from dataclasses import replace

import pytest
from ptl_reasoning_gym import forms, guard
from ptl_reasoning_gym.datasets import ReasoningGym, item_of
from ptl_reasoning_gym.library import Item
from ptl_reasoning_gym.rewards import ReasoningGymReward, judge

from posttrain_recipes.plugin import Message, Prompt, Sample
from posttrain_recipes.testing import check_plugin

GCD = Item("gcd", None, json.dumps({"max_value": 50}), 0, 0)


def sample(reply: str, item: Item = GCD, form: forms.Form = "tag") -> Sample:
    kept = json.dumps({**vars(item), "answer": form})
    return Sample((Message("user", "?"),), reply, metadata={"item": kept})


@pytest.mark.parametrize(
    ("reply", "form", "found"),
    [
        ("The GCD of 3 and 18 is 3.", "whole", "The GCD of 3 and 18 is 3."),
        ("The GCD of 3 and 18 is 3.", "number", "3"),
        ("The GCD of 3 and 18 is 3.", "tag", None),
        ("<answer>2</answer> or rather <answer> 3\n</answer>.", "tag", "3"),
        ("<answer>3", "tag", None),
        ("<answer>1 2\n3 4</answer>", "tag", "1 2\n3 4"),
        ("First 18 = 6 * 3.\n 3 \n\n", "last_line", "3"),
        ("  \n", "last_line", None),
        ("so \\boxed{3}", "boxed", "3"),
        ("18 = 6 * 3\n#### 3", "hashes", "3"),
        ("", "whole", None),
        ("none", "number", None),
    ],
)
def test_the_answer_in_a_reply(reply: str, form: forms.Form, found: str | None) -> None:
    assert forms.read(reply, form) == found


@pytest.mark.parametrize("form", ["tag", "last_line", "boxed", "hashes", "number", "whole"])
def test_a_right_reply_in_any_form_is_right(form: forms.Form) -> None:
    config = ReasoningGym.Config(task="gcd", size=20, answer=form)
    for prompt in ReasoningGym(config).load():
        assert prompt.answer is not None
        judged = judge(Sample(prompt.messages, prompt.answer, metadata=prompt.metadata))
        assert judged is not None
        assert judged.solved, prompt.answer


def test_a_sentence_earns_nothing_raw_and_all_where_its_answer_is_found() -> None:
    right = GCD.entry()["answer"]
    said = f"The GCD of these numbers is {right}."
    assert judge(sample(said, form="tag")).score == 0.0  # type: ignore[union-attr]
    assert judge(sample(said, form="whole")).score < 0.1  # type: ignore[union-attr]
    assert judge(sample(said, form="number")).score == 1.0  # type: ignore[union-attr]
    assert judge(sample(f"<answer>{right}</answer>")).score == 1.0  # type: ignore[union-attr]


def test_partly_right_answers_count_or_do_not() -> None:
    right = GCD.entry()["answer"]
    half = sample(f"<answer>{right}{'9' * len(right)}</answer>")
    kept, dropped = (
        ReasoningGymReward(ReasoningGymReward.Config(partial=p)) for p in (True, False)
    )
    assert kept.score([half]) == [0.5]
    assert dropped.score([half, sample(f"<answer>{right}</answer>")]) == [0.0, 1.0]


def test_prompts_of_other_data_sets_are_abstained_on() -> None:
    reward = ReasoningGymReward(ReasoningGymReward.Config())
    other = replace(sample("<answer>3</answer>"), metadata={})
    assert reward.score([other]) == [None]


def test_a_rule_that_fails_is_worth_nothing_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    item = Item("prime_factorization", None, "{}", 0, 0)
    judged = [judge(sample("<answer>no idea</answer>", item)) for _ in range(3)]
    assert [one and one.score for one in judged] == [0.0] * 3
    assert caplog.text.count("'prime_factorization' fails on some answers") == 1


@pytest.mark.parametrize("task", sorted(guard.EVALUATED | guard.PARSED))
def test_answers_that_tasks_would_run_are_still_right(task: str) -> None:
    for index in range(10):
        item = Item(task, None, "{}", 0, index)
        answer = str(item.entry()["answer"])
        judged = judge(sample(f"<answer>{answer}</answer>", item))
        assert judged is not None
        # An integral that is only written down is no answer, though the library has some of them.
        assert judged.solved is ("Integral" not in answer), answer


@pytest.mark.parametrize("task", sorted(guard.EVALUATED | guard.PARSED))
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('pathlib').Path('{path}').touch()",
        "[open('{path}', 'w')]",
        "exec(chr(112))",
        "[0]*10**10",
        "9**9**9",
        "9**(9**9)",
        "((9**32)**32)**32",
        "9**9999999",
        "1<<10**10",
        "factorial(99999)",
        "99999!",
        "x.__class__",
        "lambda: 0",
        "(" * 5000,
    ],
)
def test_no_answer_is_run(task: str, attack: str, tmp_path: object) -> None:
    path = f"{tmp_path}/made"
    answer = attack.replace("{path}", path)
    harmless_there = task in guard.EVALUATED and attack in {"x.__class__", "lambda: 0", "99999!"}
    assert guard.harmless(task, answer) is harmless_there
    judged = judge(sample(f"<answer>{answer}</answer>", Item(task, None, "{}", 0, 0)))
    assert judged is not None
    assert judged.score == 0.0


@pytest.mark.parametrize("task", ["coin_flip", "countdown", "decimal_chain_sum", "power_function"])
@pytest.mark.parametrize(
    "answer", ["1e999999999", "-2.5E-99999999", "3.e+10000000", "1e1_0000_0000"]
)
def test_no_number_is_too_large_to_compare(task: str, answer: str) -> None:
    judged = judge(sample(f"<answer>{answer}</answer>", Item(task, None, "{}", 0, 0)))
    assert judged is not None
    assert judged.score == 0.0


@pytest.mark.parametrize(
    "answer", ["x**5/5 + C", "(3 + 4)*2 - 1/2", "-cos(3*x)/3", "x**(-2)", "e**x"]
)
def test_arithmetic_is_harmless(answer: str) -> None:
    assert guard.harmless("simple_integration", answer)


def test_the_item_goes_through_a_file() -> None:
    config = ReasoningGym.Config(
        task="gcd", config={"max_value": 50}, size=1, seed=5, answer="boxed"
    )
    (prompt,) = ReasoningGym(config).load()
    assert isinstance(prompt, Prompt)
    assert item_of(json.loads(json.dumps(dict(prompt.metadata)))) == item_of(prompt.metadata)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("dataset", "reasoning_gym", {"task": "gcd", "size": 8}),
        ("reward", "reasoning_gym", {}),
        ("eval", "reasoning_gym", {}),
    ],
)
def test_they_conform(kind: str, name: str, options: dict[str, object]) -> None:
    check_plugin(kind, name, work=kind != "eval", **options)
