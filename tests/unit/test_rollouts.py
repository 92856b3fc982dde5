"""The rollout loop over a policy whose every token tells its weights and its seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import (
    ModelRef,
    PluginConfig,
    Reward,
    Sample,
    UsageError,
)
from posttrain_recipes.training.rl.policy_loss import PolicyConfig
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.rollout_engine import (
    ROOM,
    Asked,
    Engine,
    Parity,
    Same,
    Sampler,
    done,
    run,
    trained,
    weigh,
)


def test_a_group_is_one_request_with_a_seed_of_its_own() -> None:
    engine = Engine()
    assert run(engine).step == 3
    assert engine.total == 3
    assert [ask.count for ask in engine.asked] == [6] * 10
    assert sorted(ask.prompt[-1] for ask in engine.asked) == list(range(100, 110))
    assert len({ask.seed for ask in engine.asked}) == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"max_staleness": 1}, [0, 0, 1, 2, 3]),
        ({"max_staleness": 2}, [0, 0, 0, 1, 2]),
        ({"updates_per_batch": 2}, [0, 2, 4, 6, 8]),
        ({"updates_per_batch": 2, "max_staleness": 1}, [0, 0, 2, 4, 6]),
    ],
)
def test_a_batch_is_sampled_from_the_policy_or_one_that_is_little_older(
    options: dict[str, Any], expected: list[int]
) -> None:
    engine = Engine()
    run(engine, epochs=2, max_steps=5 * options.get("updates_per_batch", 1), **options)
    asked = sorted(engine.asked, key=lambda ask: ask.version)
    counts = {version: sum(a.version == version for a in asked) for version in set(expected)}
    sizes = [4, 4, 2, 4, 4]
    assert counts == {
        version: sum(s for s, v in zip(sizes, expected, strict=True) if v == version)
        for version in set(expected)
    }
    if "max_staleness" in options:
        late = [metrics["rollouts/staleness"] for metrics, _ in engine.log]
        steps = options.get("updates_per_batch", 1)
        assert late[::steps] == [min(i, options["max_staleness"]) for i in range(5)]


def test_checkpoints_have_names_that_every_engine_takes() -> None:
    """A stage of a matrix is called by its values."""
    engine = Engine()
    run(engine, name="rl[learning_rate=0.001, seed=0]/a", max_staleness=1, save_every=1)
    assert len(engine.names) > 6
    assert {re.fullmatch(r"[A-Za-z0-9._-]+", name) is not None for name in engine.names} == {True}


class Stop(Exception):
    pass


def steps_kept(engine: Engine) -> int:
    return engine.kept[-1].step if engine.kept else 0


def stopping(
    engine: Engine,
    due: Callable[[Engine], bool],
    error: type[BaseException] = KeyboardInterrupt,
) -> Callable[[Future[Any]], Any]:
    """A waiter that raises once, when it is due."""
    raised: list[bool] = []

    def wait(future: Future[Any]) -> Any:
        if not raised and due(engine):
            raised.append(True)
            raise error
        return future.result(ROOM)

    return wait


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"updates_per_batch": 2},
        {"max_staleness": 2},
        {"max_staleness": 1, "updates_per_batch": 2, "advantage": "reinforce_pp"},
        {"zero_variance_groups": "replace"},
    ],
)
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stage_that_was_stopped_comes_to_the_same_end(how: str, options: dict[str, Any]) -> None:
    per = options.get("updates_per_batch", 1)
    options = {"epochs": 2, "save_every": 1, **options}
    whole = Engine()
    run(whole, **options)
    for stop in (1, 2, 4):
        first = Engine()
        if how == "killed":
            wait = stopping(first, lambda engine, n=stop * per: steps_kept(engine) >= n, Stop)
            saves = options
        else:
            wait = stopping(first, lambda engine, n=stop * per: len(engine.log) >= n)
            saves = options | {"save_every": 0}
        with pytest.raises((KeyboardInterrupt, Stop)):
            run(first, wait=wait, **saves)
        resume = first.kept[-1]
        assert resume.step % per == 0
        assert resume.step >= stop * per
        second = Engine(run="b")
        end = run(second, resume=resume, **options)
        assert end.step == whole.total
        steps = [data for data in trained(whole) if data]
        begun = [data for data in trained(second) if data]
        assert begun == steps[len(steps) - len(begun) :]
        assert begun
        tail = [step for _, step in second.log]
        assert tail == list(range(resume.step + 1, whole.total + 1))


def test_advantages_stand_on_the_policys_own_tokens() -> None:
    engine = Engine()
    run(engine, max_steps=1, advantage="group_mean", length_norm="constant", loss="ppo")
    assert engine.losses[0] == ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})
    seen = 0
    for datum in (datum for data in engine.passes for datum in data):
        inputs = datum.loss_fn_inputs
        tokens = [*datum.model_input.to_ints(), int(inputs["target_tokens"].tolist()[-1])]
        reply = tokens[3:]
        even = float(reply[0] % 2 == 0)
        prompt = next(p for p in engine.asked if p.prompt == tokens[:3])
        mean = mean_reward(prompt)
        # group_mean over max_tokens 4, 6 replies and 4 groups; nothing on the prompt.
        worth = (even - mean) / 4 / 6 / 4
        expected = [0.0, 0.0] + [worth] * len(reply)
        assert inputs["advantages"].tolist() == pytest.approx(expected)
        assert inputs["logprobs"].tolist() == [0.0, 0.0] + [-0.5] * len(reply)
        seen += 1
    assert seen > 6


def mean_reward(asked: Asked) -> float:
    rng = np.random.default_rng([asked.version, asked.seed, asked.prompt[-1]])
    firsts = []
    for _ in range(asked.count):
        length = int(rng.integers(1, 5))
        firsts.append(rng.integers(3, 90, size=length).tolist()[0])
    return sum(first % 2 == 0 for first in firsts) / len(firsts)


def test_groups_that_are_there_are_trained_on_while_others_still_run() -> None:
    """The last group comes only once the first part of its batch was submitted."""
    last: Future[None] = Future()
    engine = Engine()
    order: list[int] = []

    def hold(place: int) -> Future[Any] | None:
        order.append(place)
        return None

    engine.hold = hold
    run(engine, max_steps=1)
    engine = Engine(hold=lambda place: last if place == late else None)
    from posttrain_recipes.training.loops.supervised import Order

    late = 100 + Order(range(10), 4, 5).batch(0)[-1]
    submitted = engine.forward_backward

    def forward_backward(*args: Any) -> Future[Any]:
        if not last.done():
            last.set_result(None)
        return submitted(*args)

    engine.forward_backward = forward_backward  # type: ignore[method-assign]
    run(engine, max_steps=1, wait=lambda future: future.result(10))
    assert engine.version == 1


def test_groups_without_variance_are_replaced_up_to_a_bound_and_counted() -> None:
    engine = Engine()
    run(
        engine,
        rewards=[Same(PluginConfig())],
        zero_variance_groups="replace",
        max_replacements=2,
        max_steps=1,
    )
    assert len(engine.asked) == 4 * 3
    assert len({ask.seed for ask in engine.asked}) == 12
    [(metrics, _)] = engine.log
    assert metrics["groups/replaced"] == 8
    assert metrics["groups/zero_variance_share"] == 1.0
    assert metrics["groups/learned"] == 0
    # Nothing to learn: no gradient, and Adam's momentum moves nothing either.
    assert engine.passes == []
    assert engine.version == 0


def test_a_greedy_reply_that_is_thrown_away_counts_in_the_budget() -> None:
    engine = Engine()
    options = {"advantage": "remax", "zero_variance_groups": "replace", "max_replacements": 1}
    run(engine, rewards=[Same(PluginConfig())], token_budget=10**6, max_steps=1, **options)
    written = 0
    for ask in engine.asked:
        greedy = ask.count == 1
        again = Sampler(Engine(), ask.version).sample(
            SimpleNamespace(to_ints=lambda ask=ask: ask.prompt),
            ask.count,
            SimpleNamespace(seed=ask.seed, temperature=float(not greedy)),
        )
        written += sum(len(one.tokens) for one in again.result().sequences)
    assert sum(ask.count == 1 for ask in engine.asked) == 8
    assert engine.kept[-1].tokens == written


class Opposed(Parity):
    """Two of these, of weights 2 and 1, have one sum of all replies."""

    name = "opposed"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [2.0 - 2 * (value or 0.0) for value in super().score(samples)]


def test_rewards_that_are_compared_apart_vary_where_their_sum_does_not() -> None:
    """gdpo: a group is not thrown away, and not told as one that taught nothing."""
    engine = Engine()
    rewards = [Parity(PluginConfig()), Parity(PluginConfig()), Opposed(PluginConfig())]
    options = {"advantage": "gdpo", "zero_variance_groups": "replace", "max_steps": 1}
    run(engine, rewards=rewards, **options)
    [(metrics, _)] = engine.log
    assert metrics["reward/std"] == 0
    assert (metrics["groups/learned"], metrics["groups/zero_variance_share"]) == (4, 0)
    assert metrics["groups/replaced"] == 0


def test_a_group_of_one_that_the_batch_teaches_is_told_as_learned() -> None:
    engine = Engine()
    run(engine, advantage="reinforce_pp", group_size=1, batch_size=8, max_steps=1)
    [(metrics, _)] = engine.log
    assert (metrics["groups/learned"], metrics["groups/zero_variance_share"]) == (8, 0)


def test_answers_of_an_environment_are_not_to_be_had_of_prompts() -> None:
    with pytest.raises(UsageError, match="observation_weight is for environments"):
        run(Engine(), observation_weight=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overlong_penalty": 2.0}, "overlong_penalty is for overlong: penalize"),
        ({"max_replacements": 2}, "max_replacements is for zero_variance_groups: replace"),
    ],
)
def test_options_of_another_one_that_is_not_set_are_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(Engine(), **options)


def test_groups_without_variance_are_dropped_without_more_samples() -> None:
    engine = Engine()
    run(engine, rewards=[Same(PluginConfig())], max_steps=1)
    assert len(engine.asked) == 4
    assert engine.log[0][0]["groups/zero_variance_share"] == 1.0


def test_a_group_that_fails_is_tried_again_alone() -> None:
    def fail(nth: int) -> None:
        if nth == 2:
            raise ConnectionError("lost")

    engine = Engine(fail=fail)
    run(engine, max_steps=1)
    assert len(engine.asked) == 5
    assert len({ask.seed for ask in engine.asked}) == 4
    assert engine.log[0][0]["rollouts/retried"] == 1


def test_a_group_that_fails_again_and_again_ends_the_stage() -> None:
    def fail(nth: int) -> None:
        raise ConnectionError("lost")

    with pytest.raises(PtlError, match="failed 3 times") as caught:
        run(Engine(fail=fail), max_steps=1)
    assert "lost" in str(caught.value.why)


def test_a_reward_that_never_works_ends_the_stage() -> None:
    class Broken(Reward):
        name = "broken"

        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            raise ValueError("no key in the prompt")

    with pytest.raises(PtlError, match="no reply of a whole batch") as caught:
        run(Engine(), rewards=[Broken(PluginConfig())], max_steps=1)
    assert "no key in the prompt" in str(caught.value.why)


def test_a_reference_alone_is_measured_and_costs_nothing() -> None:
    engine = Engine()
    run(engine, max_steps=1, reference=ModelRef(stage="base"))
    [(metrics, _)] = engine.log
    assert metrics["policy/kl_reference_per_token"] == pytest.approx(1.0)
    assert metrics["reward/mean"] == metrics["reward/parts/parity"]


def test_a_reply_that_was_cut_is_masked_and_counted() -> None:
    engine = Engine()
    run(engine, max_steps=1, overlong="mask")
    lengths = [datum.model_input.length - 2 for data in engine.passes for datum in data]
    assert lengths
    assert max(lengths) < 4
    assert engine.log[0][0]["completions/clipped_ratio"] > 0


def test_tokens_that_are_masked_are_none_that_others_are_divided_by() -> None:
    rollouts = [
        Rollout([Segment.reply([1], [2] * n, [0.0] * n)], Sample((), "", None), [], reward=r)
        for n, r in ((2, 1.0), (4, 0.0), (3, 0.5))
    ]
    rollouts[1].masked = True
    config = PolicyConfig(advantage="group_mean", length_norm="token")
    weigh(config, [Group(rollouts)], 1, max_tokens=4)
    assert [rollouts[0].weight, rollouts[2].weight] == [1 / 5, 1 / 5]
    assert rollouts[0].advantage == 0.5, "its reward counts in the baseline"


def test_what_a_step_showed() -> None:
    engine = Engine()
    run(engine, epochs=4)
    metrics, step = engine.log[0]
    assert step == 1
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0)
    assert metrics["policy/clip_share"] == 0.0
    assert metrics["policy/entropy"] == pytest.approx(0.5)
    assert metrics["train/grad_norm"] == 0.5
    assert 1 <= metrics["completions/mean_length"] <= 4
    assert metrics["rollouts/tokens"] == pytest.approx(24 * metrics["completions/mean_length"])
    steps = [step for step, _ in engine.shown]
    assert steps[0] == 1
    assert steps[-1] == 12
    sample = engine.shown[0][1][0]
    assert {"parity", "reward", "advantage"} <= sample.scores.keys()


def test_dro_is_computed_here_over_the_replys_tokens_alone() -> None:
    """Against the formula, in float64, for log p and the advantages as they come."""
    import torch

    engine = Engine()
    found: list[tuple[list[Any], Any]] = []

    def custom(data: list[Any], loss: Any) -> Future[Any]:
        found.append((data, loss))
        outputs = [{"logprobs": SimpleNamespace(data=[-0.5] * d.model_input.length)} for d in data]
        return done(SimpleNamespace(metrics={"loss:sum": 1.0}, loss_fn_outputs=outputs))

    engine.forward_backward_custom = custom  # type: ignore[attr-defined]
    run(engine, max_steps=1, loss="dro", dro_beta=0.3, advantage="dr_grpo")
    for data, loss in found:
        logprobs = [
            torch.linspace(-3, -1, datum.model_input.length, dtype=torch.float64) for datum in data
        ]
        expected = 0.0
        for datum, logp in zip(data, logprobs, strict=True):
            tokens = [
                *datum.model_input.to_ints(),
                datum.loss_fn_inputs["target_tokens"].tolist()[-1],
            ]
            asked = next(a for a in engine.asked if a.prompt == tokens[:3])
            advantage = float(tokens[3] % 2 == 0) - mean_reward(asked)
            own = logp[2:].numpy()
            gain = advantage * own - 0.3 / 2 * (own + 0.5) ** 2
            expected -= gain.sum() / 6 / 4 / 4
        assert float(loss(data, logprobs)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"max_staleness": 1}, {"zero_variance_groups": "replace"}])
def test_a_budget_of_tokens_ends_it_with_the_batch_that_reaches_it(options: dict[str, Any]) -> None:
    free = Engine()
    run(free, epochs=2, token_budget=10**9, save_every=1, **options)
    used = [kept.tokens for kept in free.kept]
    assert len(used) == 6
    assert used == sorted(set(used))
    first = {name: free.log[0][0][name] for name in ("train/tokens", "rollouts/tokens")}
    assert used[0] >= sum(first.values()) > first["train/tokens"] > 0
    bound = Engine()
    end = run(bound, epochs=2, token_budget=used[2], **options)
    assert (end.step, bound.total) == (3, 3)
    assert [step for _, step in bound.log] == [1, 2, 3]
    assert bound.kept[-1].tokens == used[2]
    assert trained(bound) == trained(free)[: len(trained(bound))]
    resumed = Engine(version=2)
    run(resumed, epochs=2, token_budget=used[2], resume=free.kept[1], **options)
    assert [step for _, step in resumed.log] == [3]


def test_a_batch_is_finished_when_the_budget_ends_within_it() -> None:
    engine = Engine()
    assert run(engine, epochs=2, updates_per_batch=2, token_budget=1).step == 2
    assert engine.total == 2


@pytest.mark.parametrize("options", [{}, {"max_staleness": 1}])
def test_a_batch_that_fails_loses_no_batch_before_it(options: dict[str, Any]) -> None:
    options = {"epochs": 2, "save_every": 0, **options}
    whole, first = Engine(), Engine()
    run(whole, **options)

    def wait(future: Future[Any]) -> Any:
        if len(first.log) >= 3 and isinstance(future.result(ROOM), list):  # groups of a 4th batch
            raise PtlError("a tool is gone")
        return future.result(ROOM)

    with pytest.raises(PtlError, match="tool"):
        run(first, wait=wait, **options)
    assert [kept.step for kept in first.kept] == [3]
    second = Engine(run="b")
    assert run(second, resume=first.kept[-1], **options).step == whole.total
    begun = [data for data in trained(second) if data]
    assert begun == [data for data in trained(whole) if data][-len(begun) :]
    assert [step for _, step in second.log] == list(range(4, whole.total + 1))


@pytest.mark.parametrize("options", [{}, {"max_staleness": 2}, {"updates_per_batch": 2}])
def test_evals_in_between_change_nothing_and_may_end_the_stage(options: dict[str, Any]) -> None:
    plain, between, ended = Engine(), Engine(due_at=(2, 4)), Engine(due_at=(2, 4), ends_at=4)
    many = {"epochs": 2, "batch_size": 4, "save_every": 0, **options}
    run(plain, **many)
    run(between, **many)
    assert trained(between) == trained(plain)
    assert [kept.step for kept in between.kept[:2]] == [2, 4]
    assert run(ended, **many).step == 4
    assert len(ended.log) == 4
    assert trained(ended) == trained(plain)[: len(trained(ended))]
    again = Engine(kept=list(ended.kept), ends_at=4)
    assert run(again, resume=ended.kept[-1], **many).step == 4
    assert trained(again) == []
