"""The eval `exact_match`, of one reply to a prompt and of several."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.evals.exact_match import ExactMatch
from posttrain_recipes.plugin import EvalContext, EvalResult, Message, Prompt
from tests.unit.test_rewarded_evals import Renderer

REPLIES = {1: [7, 7, 8, 8], 2: [8, 8, 8, 8], 3: [7, 7, 7, 7]}
"""By the prompt's number; the answer is 7."""


class Sampler:
    def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
        future: Future[Any] = Future()
        drawn = REPLIES[prompt.to_ints()[0]][:count]
        one = [
            SimpleNamespace(tokens=[token], logprobs=[-0.7], stop_reason="stop") for token in drawn
        ]
        future.set_result(SimpleNamespace(sequences=one))
        return future


def evaluate(**options: Any) -> EvalResult:
    context = EvalContext(
        name="e",
        seed=3,
        records=[Prompt(messages=(Message("user", str(n)),), answer="7") for n in REPLIES],
        renderer=Renderer(),  # type: ignore[arg-type]
        sampler=Sampler(),  # type: ignore[arg-type]
        wait=lambda future: future.result(5),
    )
    eval_ = ExactMatch(ExactMatch.Config(**options))
    result = eval_.evaluate(context)
    assert list(result.metrics) == eval_.measures()
    return result


def test_of_one_reply_it_is_a_share_of_prompts() -> None:
    result = evaluate()
    assert result.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert result.metrics["exact_match"].count == 3


def test_of_several_replies_it_tells_their_share_and_whether_one_is_right() -> None:
    result = evaluate(samples=4, temperature=1.0)
    assert result.metrics["exact_match"].value == pytest.approx((2 + 0 + 4) / 12)
    assert result.metrics["pass_at_4"].value == pytest.approx(2 / 3)
    assert result.metrics["pass_at_4"].count == 3  # prompts, not replies
    assert len(result.samples) == 12


def test_replies_that_would_be_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="samples at temperature 0 are all the same"):
        ExactMatch.Config(samples=4)
