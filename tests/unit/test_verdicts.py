"""The reward that is the log-odds of two verdict tokens."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.context import untold
from posttrain_recipes.evals.reward import RewardAccuracy
from posttrain_recipes.models import resolve
from posttrain_recipes.records import Message, Preference
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer

CONVERSATION = (Message("user", "Can I come?"), Message("assistant", "Please do."))


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return load_renderer(resolve("ptl/tiny"))


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Sampler:
    """Finds the tokens in `table` as likely as it says, and puts the first `top` among the top."""

    def __init__(self, table: dict[int, float], top: int) -> None:
        self.table, self.top = table, top
        self.asked: list[list[int]] = []
        self.scored: list[list[int]] = []

    def sample(
        self, prompt: Any, count: int, params: Any, *, topk_sample_logprobs: int
    ) -> Future[Any]:
        assert (count, params.max_tokens) == (1, 1)
        assert topk_sample_logprobs > 1
        self.asked.append(prompt.to_ints())
        top = list(self.table.items())[: self.top]
        return done(SimpleNamespace(sequences=[SimpleNamespace(topk_logprobs=[top])]))

    def compute_logprobs(self, prompt: Any) -> Future[list[float | None]]:
        *before, token = prompt.to_ints()
        self.scored.append(before)
        return done([None, *[0.0] * (len(before) - 1), self.table[token]])


def test_the_question_follows_the_reply_and_the_verdicts_begin_the_answer(
    renderer: ChatRenderer,
) -> None:
    one = verdicts.judgement(CONVERSATION, renderer)
    assert renderer.decode(one.prompt) == (
        "<|im_start|>user\nCan I come?<|im_end|>\n<|im_start|>assistant\nPlease do.<|im_end|>\n"
        f"<|im_start|>user\n{verdicts.QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.decode([one.yes]) == "yes"
    assert renderer.decode([one.no]) == "no"


@pytest.mark.parametrize(("top", "more"), [(2, 0), (1, 1), (0, 2)])
def test_the_reward_is_the_log_odds_of_yes_against_no(
    renderer: ChatRenderer, top: int, more: int
) -> None:
    """From one prefill where both verdicts are among the likeliest tokens, exactly in any case;
    what else is asked for is asked for at once."""
    one = verdicts.judgement(CONVERSATION, renderer)
    sampler = Sampler({one.no: -3.5, one.yes: -0.25}, top)

    def wait(future: Future[Any]) -> Any:
        if isinstance(found := future.result(), list):
            assert len(sampler.scored) == 3 * more
        return found

    rewards = verdicts.score(sampler, renderer, wait, [CONVERSATION] * 3)  # type: ignore[arg-type]
    assert rewards == [3.25] * 3
    assert sampler.asked == [one.prompt] * 3
    assert sampler.scored == [one.prompt] * 3 * more


def test_a_pair_is_won_by_the_reply_with_the_higher_reward(
    renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = {"good": 2.0, "bad": -1.0, "so": 0.5}

    def score(*arguments: Any) -> list[float]:
        return [rewards[conversation[-1].content] for conversation in arguments[3]]

    monkeypatch.setattr(verdicts, "score", score)
    pairs = [("good", "bad"), ("so", "good"), ("so", "so"), ("so", "bad")]
    records = [
        Preference(
            prompt=CONVERSATION[:1],
            chosen=(Message("assistant", chosen),),
            rejected=(Message("assistant", rejected),),
        )
        for chosen, rejected in pairs
    ]
    context: Any = SimpleNamespace(
        records=records, renderer=renderer, sampler=None, wait=None, progress=untold
    )
    found = RewardAccuracy(RewardAccuracy.Config()).evaluate(context)
    assert found.metrics["reward_accuracy"].value == 2.5 / 4
    assert found.metrics["margin"].value == (3.0 - 1.5 + 0.0 + 1.5) / 4
