"""What is spent is counted at the SDK's door, and a bound stops the run before it is passed."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import tinker

from posttrain_recipes import waiting
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import pricing
from posttrain_recipes.running import limits
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.metering import Meter
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Spent
from posttrain_recipes.waiting import Interrupts, StopAsked
from posttrain_recipes.workload import Usage
from tests.conftest import Project

RECIPE = """\
name: demo
model: Qwen/Qwen3-8B
engine: {use: tinker}
limits: LIMITS
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (limits, waiting):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spending(project: Project, bounds: str, **kept: float) -> tuple[Spending, Any, Any]:
    plan = project.plan(RECIPE.replace("LIMITS", bounds))
    record = new_record(plan, "demo-1")
    for name, value in kept.items():
        setattr(record, name, value)
    made = Spending(plan, record, pricing.load(project.path), Interrupts())
    made.start()
    return made, plan.stages[0], record.stages[0]


# --- counting ------------------------------------------------------------------------------------


def test_everything_that_is_sent_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    written: Future[Any] = Future()
    answer = SimpleNamespace(future=lambda: written)
    for owner, names in (
        (tinker.TrainingClient, ("forward", "forward_backward", "forward_backward_custom")),
        (tinker.SamplingClient, ("sample", "compute_logprobs")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, lambda *_, **__: answer)
    data = [SimpleNamespace(model_input=SimpleNamespace(length=n)) for n in (3, 4)]
    prompt: Any = SimpleNamespace(length=5)
    training: Any = object.__new__(tinker.TrainingClient)
    sampling: Any = object.__new__(tinker.SamplingClient)
    meter, spent, other = Meter(), Spent(), Spent()
    before = tinker.SamplingClient.sample
    with meter.installed():
        with meter.into(spent):
            training.forward_backward(data, "cross_entropy")
            training.forward(data=data, loss_fn="cross_entropy")
            training.forward_backward_custom(data, print)
            sampling.sample(prompt, 2, None)
            sampling.compute_logprobs(prompt)
        with meter.into(other):
            reply = SimpleNamespace(tokens=[1, 2, 3])
            written.set_result(SimpleNamespace(sequences=[reply, reply]))
    assert spent.usage == Usage(train=14, prefill=14 + 10, sample=6, forward=14)
    assert other.usage == Usage(), "a late reply belongs to what asked for it"
    assert spent.seconds > 0
    assert tinker.SamplingClient.sample is before


def test_an_eval_in_the_middle_of_training_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr("posttrain_recipes.running.metering.time.monotonic", lambda: next(clock))
    meter, training, evals = Meter(), Spent(), Spent()
    with meter.into(training):
        with meter.into(evals):
            pass
        assert training.seconds == 10.0, "a run that is killed now leaves no less than it took"
    assert (training.seconds, evals.seconds) == (17.0, 3.0)


def test_a_reply_that_failed_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: Future[Any] = Future()
    failed.set_exception(RuntimeError())
    answer = SimpleNamespace(future=lambda: failed)
    monkeypatch.setattr(tinker.SamplingClient, "sample", lambda *_: answer)
    meter, spent = Meter(), Spent()
    with meter.installed(), meter.into(spent):
        object.__new__(tinker.SamplingClient).sample(SimpleNamespace(length=5), 1, None)  # type: ignore
    assert spent.usage == Usage(prefill=5)


# --- bounds --------------------------------------------------------------------------------------


def test_tokens_stop_a_run_before_the_bound(project: Project) -> None:
    made, stage, kept = spending(project, "{max_tokens: 100}")
    with made.into(stage, kept, kept.training):
        kept.training.train = 35
        made.step(stage, kept)
        with pytest.raises(StopAsked, match="max_tokens is 100, and 35 are used"):
            made.interrupts.check()  # two more would make 105
        made.step(stage, kept)
        made.interrupts.check()  # said once: what is under way is saved meanwhile


def test_tokens_count_two_steps_ahead(project: Project) -> None:
    made, stage, kept = spending(project, "{max_tokens: 100}")
    with made.into(stage, kept, kept.training):
        for used in (20, 40, 60):
            kept.training.train = used
            made.step(stage, kept)
            made.interrupts.check()
        kept.training.train = 70
        made.step(stage, kept)
        with pytest.raises(StopAsked, match="max_tokens is 100, and 70 are used"):
            made.interrupts.check()


def test_money_is_counted_where_the_engine_is_billed(project: Project) -> None:
    made, stage, kept = spending(project, "{max_cost_usd: 1}")
    with made.into(stage, kept, kept.training):
        kept.training.train = 200_000
        made.step(stage, kept)
        made.interrupts.check()
    assert kept.usd == pytest.approx(0.088)
    kept.evaluation.prefill = 5_000_000
    kept.usd = made.usd(stage, kept)
    with pytest.raises(StopAsked, match=r"max_cost_usd is \$1.00, and \$1.06 are spent, before x"):
        made.check("x")


def test_money_means_nothing_on_an_engine_of_ones_own(project: Project) -> None:
    text = RECIPE.replace("LIMITS", "{max_cost_usd: 1}").replace("{use: tinker}", "local")
    plan = project.plan(text)
    record = new_record(plan, "demo-1")
    record.stages[0].training.train = 10**9
    made = Spending(plan, record, pricing.load(project.path), Interrupts())
    made.start()
    assert made.usd(plan.stages[0], record.stages[0]) is None


def test_a_bound_on_money_needs_prices(project: Project) -> None:
    plan = project.plan(
        RECIPE.replace("LIMITS", "{max_cost_usd: 1}").replace("Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B")
    )
    with pytest.raises(UsageError, match="not every price of Qwen/Qwen3.5-9B is known") as caught:
        Spending(plan, new_record(plan, "demo-1"), pricing.load(project.path), Interrupts())
    assert "prices.yaml" in (caught.value.hint or "")


def test_time_counts_all_tries_and_the_steps_ahead(project: Project, clock: Clock) -> None:
    made, stage, kept = spending(project, "{max_hours: 1}", seconds=3000.0)
    with made.into(stage, kept, kept.training):
        clock.now += 100
        made.step(stage, kept)
        clock.now += 299
        made.interrupts.check()
        clock.now += 2
        with pytest.raises(StopAsked, match="max_hours is 1, and the time is up"):
            made.interrupts.check()
    assert made.seconds == 3401.0


def test_a_run_that_is_over_its_bound_does_not_begin(project: Project) -> None:
    with pytest.raises(StopAsked, match="max_hours"):
        spending(project, "{max_hours: 1}", seconds=3600.0)


def test_limits_change_no_fingerprint(project: Project) -> None:
    bound = project.plan(RECIPE.replace("LIMITS", "{max_hours: 1}"))
    free = project.plan(RECIPE.replace("limits: LIMITS\n", ""))
    assert bound.fingerprint == free.fingerprint


@pytest.mark.parametrize("bounds", ["{}", "{max_hours: 0}", "{max_tokens: 1.5}", "{max_days: 1}"])
def test_bounds_are_checked(project: Project, bounds: str) -> None:
    from posttrain_recipes.errors import RecipeError

    with pytest.raises(RecipeError, match="limits"):
        project.plan(RECIPE.replace("LIMITS", bounds))
