"""What a judge wrote is read in one form, which it was asked for."""

from __future__ import annotations

import pytest

from posttrain_recipes.records import Message
from posttrain_recipes.training.judges import judge as judging
from tests.unit.test_makers import Script


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", 1.0), ("b", -1.0), ("**B**", -1.0), ("(A)", 1.0), ("A.", 1.0), (' "B" ', -1.0),
        ("Verdict: A", 1.0), ("verdict: b", -1.0), ("The first is kinder.\n\nVerdict: A", 1.0),
        ("A is short, B is long.\n**Verdict: B**\n", -1.0), ("**Verdict:** A", 1.0),
        ("The second reply is a better answer.", None), ("Reply B is a better answer.", None),
        ("A better answer is hard to think of.", None), ("A or B", None), ("", None),
        ("Verdict: C", None),
        ("Verdict: A or B", None), ("Verdict: A\nBut then again, who knows.", None), ("AB", None),
    ],
)  # fmt: skip
def test_a_verdict_of_two_letters(text: str, verdict: float | None) -> None:
    assert judging._said(text, "A", "B") == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes.", 1.0), ("no!", -1.0), ("yes and no", None), ("No doubt about it: yes", None),
        ("I know of no fault.\nVerdict: yes", 1.0), ("There is no reason to say yes.", None),
    ],
)  # fmt: skip
def test_a_verdict_of_yes_or_no(text: str, verdict: float | None) -> None:
    assert judging._said(text, "yes", "no") == verdict


def test_a_judge_is_asked_for_the_form_and_again_where_it_keeps_to_none() -> None:
    seen: list[str] = []

    class Kept(Script):
        def texts(self, questions: object, attempt: int) -> list[str | None]:
            seen.append(questions[0][-1].content)  # type: ignore[index]
            return super().texts(questions, attempt)  # type: ignore[arg-type]

    judge = Kept([["The second reply is a better answer."], ["Verdict: B"]])
    asked = [(Message("user", "Which is better?"),)]
    assert judging.choices(judge, asked, "A", "B", "text") == [-1.0]
    assert seen == ["Which is better?\n\nEnd with one line, 'Verdict: A' or 'Verdict: B'."] * 2


def test_a_judge_that_prefers_the_second_in_both_orders_prefers_neither() -> None:
    judge = Script([["Verdict: B", "Verdict: B"]])
    pairs = [((Message("user", "q"),), "x", "y")]
    assert judging.margins(judge, pairs, "{prompt} {a} {b}", "text") == [0.0]
