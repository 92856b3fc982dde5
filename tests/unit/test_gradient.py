"""The gradient loop with an engine that keeps the order of what it was asked."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import LoraConfig, Resume, StageContext, Usage
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.training.loops import optimizer, supervised
from posttrain_recipes.training.loops.optimizer import OptimizerConfig
from posttrain_recipes.training.loops.supervised import (
    GradientConfig,
    Order,
    learning_rate,
    total_steps,
    train,
)

# --- an engine that answers at once, and keeps a log ---------------------------------------------


class Answer(Future[Any]):
    """A future that knows what it answers, for the log of what was awaited."""

    def __init__(self, what: str, value: Any) -> None:
        super().__init__()
        self.what = what
        self.set_result(value)


@dataclass
class Engine:
    """Stands for the service, its training client, the objective and the sink."""

    log: list[str] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    adam: list[Any] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    kept: list[Resume] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    created: list[tuple[str, Any]] = field(default_factory=list)
    due_at: tuple[int, ...] = ()
    """Steps after which an eval is due."""
    ends_at: int | None = None
    """The step whose checkpoint ends the stage."""
    reviews: list[tuple[int, int]] = field(default_factory=list)
    """Of each review: the step of the last checkpoint, and how many batches were submitted."""
    first: int = 1
    """The number of the first step that this engine sees."""

    def _answer(self, what: str, value: Any) -> Answer:
        self.log.append(what)
        return Answer(what, value)

    # the service

    def _create(self, how: str, value: Any) -> Answer:
        self.created.append((how, value))
        return Answer("create", self)

    def create_lora_training_client(self, **options: Any) -> Answer:
        return self._create("lora", options)

    def create_training_client_from_state(self, path: str) -> Answer:
        return self._create("state", path)

    def create_training_client_from_state_with_optimizer(self, path: str) -> Answer:
        return self._create("resume", path)

    # the training client

    def optim_step(self, adam: Any) -> Answer:
        self.adam.append(adam)
        number = self.first - 1 + len(self.adam)
        return self._answer(f"optim {number}", SimpleNamespace(metrics={"grad_norm:mean": 0.5}))

    def save_state(self, name: str, overwrite: bool = False) -> Answer:
        return self._answer(f"save {name}", SimpleNamespace(path=f"tinker://a/weights/{name}"))

    def save_weights_for_sampler(self, name: str) -> Answer:
        path = f"tinker://a/sampler_weights/{name}"
        return self._answer(f"sampler {name}", SimpleNamespace(path=path))

    # the objective

    def prepare(self, batch: Sequence[int]) -> None:
        self.log.append("prepare")

    def submit(self, client: Any, batch: Sequence[int]) -> Answer:
        assert client is self
        self.batches.append(list(batch))
        number = self.first - 1 + len(self.batches)
        return self._answer(f"forward {number}", SimpleNamespace(metrics={}))

    def objective_metrics(self, batch: Sequence[int], output: Any) -> dict[str, float]:
        return {"train/loss": float(sum(batch))}

    def usage(self, batch: Sequence[int]) -> Usage:
        return Usage(train=10 * len(batch), sample=len(batch))

    @property
    def total(self) -> int:
        return self.totals[-1]

    # the sink

    def begin(self, total_steps: int) -> None:
        self.totals.append(total_steps)

    def sink_log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics[step] = dict(metrics)

    def checkpoint(self, resume: Resume) -> None:
        self.kept.append(resume)

    def due(self, step: int) -> bool:
        return step in self.due_at

    def review(self) -> bool:
        self.reviews.append((self.kept[-1].step if self.kept else 0, len(self.batches)))
        return bool(self.kept) and self.kept[-1].step == self.ends_at

    # the waiter

    def wait(self, future: Future[Any]) -> Any:
        if isinstance(future, Answer):
            self.log.append(f"wait {future.what}")
        return future.result()


def run(
    engine: Engine,
    examples: Sequence[int] = range(10),
    *,
    resume: Resume | None = None,
    start: Checkpoint | None = None,
    wait: Callable[[Future[Any]], Any] | None = None,
    **options: Any,
) -> Checkpoint:
    if resume is not None:
        engine.first = resume.step + 1
    objective = SimpleNamespace(
        prepare=engine.prepare,
        submit=engine.submit,
        metrics=engine.objective_metrics,
        usage=engine.usage,
    )
    stage = StageContext(
        name="sft",
        seed=7,
        base_model="base",
        start=start or Checkpoint("base"),
        lora=LoraConfig(rank=4),
        train=[],
        renderer=None,  # type: ignore[arg-type]
        service=engine,  # type: ignore[arg-type]
        sink=SimpleNamespace(  # type: ignore[arg-type]
            begin=engine.begin,
            log=engine.sink_log,
            checkpoint=engine.checkpoint,
            due=engine.due,
            review=engine.review,
        ),
        wait=wait or engine.wait,
        resume=resume,
    )
    config = GradientConfig(**{"batch_size": 2, "learning_rate": 1.0} | options)
    return train(stage, config, examples, objective)


def rates(engine: Engine) -> list[float]:
    return [adam.learning_rate for adam in engine.adam]


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 1, [1, 1, 0.75, 0.5, 0.25]),
        ("linear", 4, [0.25, 0.5, 0.75, 1, 1]),
        ("linear", 10, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("cosine", 0, [1, 0.9045085, 0.6545085, 0.3454915, 0.0954915]),
        ("cosine", 1, [1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_of_every_step(schedule: str, warmup: int, expected: list[float]) -> None:
    engine = Engine()
    run(engine, schedule=schedule, warmup_steps=warmup, learning_rate=2.0)
    assert rates(engine) == pytest.approx([2 * value for value in expected])
    assert [engine.metrics[step]["train/learning_rate"] for step in range(1, 6)] == rates(engine)


def test_the_last_step_still_learns() -> None:
    config = GradientConfig(learning_rate=1.0, schedule="cosine")
    assert learning_rate(config, 999, 1000) == pytest.approx(0.5 * (1 - math.cos(math.pi / 1000)))
    assert learning_rate(config, 999, 1000) > 0


@pytest.mark.parametrize(
    ("options", "examples", "steps"),
    [
        ({}, 10, 5),
        ({}, 11, 6),
        ({}, 1, 1),
        ({"epochs": 3}, 11, 18),
        ({"epochs": 3, "max_steps": 4}, 11, 4),
        ({"max_steps": 100}, 11, 6),
    ],
)
def test_how_many_steps(options: dict[str, int], examples: int, steps: int) -> None:
    assert total_steps(GradientConfig(batch_size=2, **options), examples) == steps  # type: ignore[arg-type]
    engine = Engine()
    assert run(engine, range(examples), **options).step == steps
    assert (engine.total, len(engine.batches), len(engine.adam)) == (steps, steps, steps)


def test_adams_options_reach_the_engine() -> None:
    engine = Engine()
    run(engine, weight_decay=0.1, grad_clip=2.0, adam_beta1=0.8, adam_beta2=0.9, max_steps=1)
    [adam] = engine.adam
    assert (adam.weight_decay, adam.grad_clip_norm, adam.beta1, adam.beta2) == (0.1, 2.0, 0.8, 0.9)


# --- order ---------------------------------------------------------------------------------------


def epoch(order: Order[int], number: int) -> list[int]:
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return [example for step in steps for example in order.batch(step)]


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    order = Order(range(11), 4, seed=0)
    epochs = [epoch(order, number) for number in range(3)]
    assert [sorted(seen) for seen in epochs] == [list(range(11))] * 3
    assert len({tuple(seen) for seen in [*epochs, list(range(11))]}) == 4
    assert [len(order.batch(step)) for step in range(4)] == [4, 4, 3, 4]


def test_another_seed_is_another_order() -> None:
    assert epoch(Order(range(50), 4, seed=0), 0) != epoch(Order(range(50), 4, seed=1), 0)


def test_the_order_is_the_same_in_every_process() -> None:
    code = (
        "from posttrain_recipes.training.loops.supervised import Order\n"
        "print([Order(range(9), 2, 5).batch(i) for i in range(8)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert runs == [str([Order(range(9), 2, 5).batch(i) for i in range(8)])] * 2


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """A change here would make a resumed run see examples twice."""
    found = [Order(range(6), 2, 7).batch(step) for step in range(6)]
    assert found == [[4, 2], [1, 3], [0, 5], [4, 2], [3, 1], [5, 0]]


# --- the pipeline --------------------------------------------------------------------------------


def test_a_step_is_submitted_before_the_one_before_is_awaited() -> None:
    engine = Engine()
    run(engine, max_steps=3, save_every=0)
    assert engine.log == [
        "prepare",
        "forward 1",
        "optim 1",
        "prepare",
        "forward 2",
        "optim 2",
        "prepare",
        "wait forward 1",
        "wait optim 1",
        "forward 3",
        "optim 3",
        "save sft-000003",
        "sampler sft-000003",
        "wait forward 2",
        "wait optim 2",
        "wait forward 3",
        "wait optim 3",
        "wait save sft-000003",
        "wait sampler sft-000003",
    ]


def test_a_checkpoint_is_asked_for_between_its_step_and_the_next() -> None:
    engine = Engine()
    run(engine, save_every=2)
    asked = [line for line in engine.log if not line.startswith(("wait", "prepare"))]
    assert asked == [
        *("forward 1", "optim 1"),
        *("forward 2", "optim 2", "save sft-000002", "sampler sft-000002"),
        *("forward 3", "optim 3"),
        *("forward 4", "optim 4", "save sft-000004", "sampler sft-000004"),
        *("forward 5", "optim 5", "save sft-000005", "sampler sft-000005"),
    ]
    assert engine.kept == [resume_at(2), resume_at(4), resume_at(5)]


def test_a_budget_of_tokens_ends_the_stage_with_the_step_that_reaches_it() -> None:
    """A step of two examples takes 20 tokens that are trained on and 2 that were written."""
    engine = Engine()
    assert run(engine, token_budget=45, epochs=4).step == 3
    assert engine.totals == [20, 3, 3, 3], "two steps in, a third is needed"
    assert engine.kept == [replace(resume_at(3), tokens=66)], "the last step is saved, and once"
    assert rates(engine) == pytest.approx([1, 1 - 22 / 45, 1 - 44 / 45])
    exact = Engine()
    assert run(exact, token_budget=44).step == 2
    enough = Engine()
    assert run(enough, token_budget=10_000).step == 5
    assert rates(enough) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2]), "the steps end first"


def test_a_resumed_stage_has_the_rest_of_its_budget() -> None:
    whole, rest = Engine(), Engine()
    run(whole, token_budget=85, epochs=4, save_every=2)
    assert [kept.tokens for kept in whole.kept] == [44, 88]
    assert run(rest, token_budget=85, epochs=4, resume=whole.kept[0]).step == 4
    assert rates(rest) == rates(whole)[2:]
    assert rest.batches == whole.batches[2:]
    over = Engine()
    assert run(over, token_budget=85, epochs=4, resume=whole.kept[1]).step == 4
    assert (over.total, over.batches) == (4, [])


def resume_at(step: int) -> Resume:
    name = f"sft-{step:06d}"
    return Resume(step, f"tinker://a/weights/{name}", f"tinker://a/sampler_weights/{name}")


def test_the_last_step_is_saved_once() -> None:
    engine = Engine()
    run(engine, max_steps=4, save_every=2)
    assert [resume.step for resume in engine.kept] == [2, 4]


def test_the_checkpoint_is_that_of_the_last_step() -> None:
    assert run(Engine()) == Checkpoint(
        "base", "tinker://a/weights/sft-000005", "tinker://a/sampler_weights/sft-000005", 5
    )


def test_what_a_step_showed_is_logged_under_its_number() -> None:
    engine = Engine()
    run(engine)
    assert sorted(engine.metrics) == [1, 2, 3, 4, 5]
    for number, batch in enumerate(engine.batches, 1):
        shown = engine.metrics[number]
        assert shown["train/loss"] == sum(batch)
        assert shown["train/tokens"] == 20.0
        assert shown["train/grad_norm"] == 0.5
        assert shown["train/tokens_per_second"] > 0


def test_no_examples_is_told() -> None:
    with pytest.raises(UsageError, match="stage 'sft' has no records to train on"):
        run(Engine(), [])


# --- starts --------------------------------------------------------------------------------------


def test_a_base_model_gets_a_new_adapter() -> None:
    engine = Engine()
    run(engine, max_steps=1)
    assert engine.created == [
        (
            "lora",
            {
                "base_model": "base",
                "rank": 4,
                "seed": 7,
                "train_mlp": True,
                "train_attn": True,
                "train_unembed": False,
            },
        )
    ]


def test_a_stages_state_comes_with_a_fresh_optimizer() -> None:
    engine = Engine()
    run(engine, max_steps=1, start=Checkpoint("base", "tinker://b/weights/x", "s", 9))
    assert engine.created == [("state", "tinker://b/weights/x")]
    assert sorted(engine.metrics) == [1]


def test_a_resumed_stage_comes_with_its_optimizer() -> None:
    engine = Engine()
    start = Checkpoint("base", "tinker://b/weights/x", "s", 9)
    run(engine, max_steps=3, start=start, resume=resume_at(2))
    assert engine.created == [("resume", "tinker://a/weights/sft-000002")]


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(1, 10))
def test_a_resumed_stage_does_what_was_left_and_no_more(done: int) -> None:
    options: dict[str, Any] = {"epochs": 2, "schedule": "cosine", "warmup_steps": 3}
    whole, rest = Engine(), Engine()
    run(whole, **options)
    checkpoint = run(rest, resume=resume_at(done), **options)
    assert rest.batches == whole.batches[done:]
    assert rates(rest) == rates(whole)[done:]
    assert sorted(rest.metrics) == list(range(done + 1, 11))
    assert checkpoint == Checkpoint("base", *astuple(resume_at(10)))
    assert rest.total == 10
    seen = Counter(e for batch in whole.batches[:done] + rest.batches for e in batch)
    assert seen == Counter([*range(10), *range(10)])


def astuple(resume: Resume) -> tuple[str, str, int]:
    return resume.state_uri, resume.sampler_uri, resume.step


def test_a_stage_that_was_done_trains_no_more() -> None:
    engine = Engine()
    assert run(engine, resume=resume_at(5)) == Checkpoint("base", *astuple(resume_at(5)))
    assert engine.log == []


# --- interrupts ----------------------------------------------------------------------------------


@dataclass
class Interrupted:
    """Waits as the engine does, and is interrupted once, at the given wait."""

    engine: Engine
    at: str

    def __call__(self, future: Future[Any]) -> Any:
        if isinstance(future, Answer) and future.what == self.at:
            self.at = ""
            raise KeyboardInterrupt
        return self.engine.wait(future)


WAITS = [f"{what} {step}" for step in range(1, 6) for what in ("forward", "optim")]
WAITS += ["save sft-000002", "sampler sft-000002", "save sft-000005", "sampler sft-000005"]


@pytest.mark.parametrize("at", WAITS)
def test_what_was_paid_for_is_saved_before_an_interrupt_goes_on(at: str) -> None:
    engine = Engine()
    with pytest.raises(KeyboardInterrupt):
        run(engine, wait=Interrupted(engine, at), save_every=2)
    submitted = len(engine.adam)
    assert engine.kept[-1] == resume_at(submitted)
    assert sorted(engine.metrics) == list(range(1, submitted + 1))
    asked = [line for line in engine.log if not line.startswith(("wait", "prepare"))]
    assert asked[-2:] == [f"save sft-{submitted:06d}", f"sampler sft-{submitted:06d}"]
    assert len(asked) == len(set(asked))  # nothing is saved twice under one name
    # Going on from there sees what was left.
    whole, rest = Engine(), Engine()
    run(whole)
    run(rest, resume=engine.kept[-1])
    assert engine.batches + rest.batches == whole.batches


@dataclass
class Failing:
    """Waits as the engine does, and answers some requests with an error."""

    engine: Engine
    fails: tuple[str, ...]

    def __call__(self, future: Future[Any]) -> Any:
        if isinstance(future, Answer) and future.what in self.fails:
            raise PtlError("the engine ran out of memory")
        return self.engine.wait(future)


def test_a_pass_that_fails_loses_no_step_before_it() -> None:
    engine = Engine()
    # As the embedded engine has it: neither step is taken whose gradient is not whole, nor one
    # that was submitted before the failure was known.
    wait = Failing(engine, ("forward 4", "optim 4", "optim 5"))
    with pytest.raises(PtlError, match="out of memory"):
        run(engine, wait=wait, save_every=2)
    assert [kept.step for kept in engine.kept] == [2, 3]
    assert sorted(engine.metrics) == [1, 2, 3]
    whole, rest = Engine(), Engine()
    run(whole)
    run(rest, resume=engine.kept[-1])
    assert engine.batches[:3] + rest.batches == whole.batches


@pytest.mark.parametrize("fails", [("forward 4",), ("forward 4", "optim 4")])
def test_where_a_later_step_was_taken_the_weights_are_of_no_step_and_not_saved(
    fails: tuple[str, ...],
) -> None:
    engine = Engine()
    with pytest.raises(PtlError):
        run(engine, wait=Failing(engine, fails), save_every=2)
    assert [kept.step for kept in engine.kept] == [2]


def test_what_fails_beside_the_engine_loses_nothing() -> None:
    engine, submitted = Engine(), []

    def submit(client: Any, batch: Sequence[int]) -> Answer:
        if len(submitted) == 3:
            raise PtlError("the reference does not answer")
        submitted.append(batch)
        return Answer("forward", SimpleNamespace(metrics={}))

    engine.submit = submit  # type: ignore[method-assign]
    with pytest.raises(PtlError, match="reference"):
        run(engine, save_every=0)
    assert [kept.step for kept in engine.kept] == [3]


def test_a_checkpoint_is_due_when_the_last_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(optimizer.time, "monotonic", lambda: now)
    saves = optimizer.Saves(OptimizerConfig(save_every=4, save_minutes=10), now)
    found = []
    for step in range(1, 11):
        now += 240.0
        if saves.due(step, 10, asked=step == 5):
            found.append(step)
    assert found == [3, 4, 5, 8, 10]  # 12 minutes, by steps, asked for, 12 minutes, the last
    never = optimizer.Saves(OptimizerConfig(save_every=0, save_minutes=0), now)
    now += 1e9
    assert not never.due(1, 10)


def test_an_interrupt_before_the_first_step_saves_nothing() -> None:
    engine = Engine()

    def submit(*_: Any) -> Any:
        raise KeyboardInterrupt  # a method may wait for a reference here

    engine.submit = submit  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    assert engine.kept == []
    assert engine.log == ["prepare"]


def test_a_second_interrupt_stops_at_once() -> None:
    engine = Engine()

    def wait(future: Future[Any]) -> Any:
        if isinstance(future, Answer) and future.what != "create":
            raise KeyboardInterrupt
        return future.result()

    with pytest.raises(KeyboardInterrupt):
        run(engine, wait=wait)
    assert engine.kept == []


# --- evals in between ----------------------------------------------------------------------------


def test_nothing_is_under_way_while_a_checkpoint_is_evaluated() -> None:
    engine = Engine(due_at=(2, 4))
    assert run(engine, save_every=0).step == 5
    assert [kept.step for kept in engine.kept] == [2, 4, 5]
    # Of each review: the last checkpoint, and how many batches had been submitted by then.
    assert engine.reviews == [(0, 0), (2, 2), (4, 4)]
    plain = Engine()
    run(plain, save_every=0)
    assert engine.batches == plain.batches
    assert engine.adam == plain.adam
    assert engine.metrics.keys() == plain.metrics.keys()


def test_an_eval_is_no_part_of_the_speed_of_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(supervised.time, "monotonic", lambda: now)

    @dataclass
    class Slow(Engine):
        def wait(self, future: Future[Any]) -> Any:
            nonlocal now
            if isinstance(future, Answer) and future.what.startswith("forward"):
                now += 2.0
            return super().wait(future)

        def review(self) -> bool:
            nonlocal now
            now += 100.0
            return super().review()

    engine = Slow(due_at=(2, 4))
    run(engine, save_every=0)
    speeds = [shown["train/tokens_per_second"] for shown in engine.metrics.values()]
    assert speeds == [10.0] * 5  # 20 tokens in 2 s


def test_a_stage_ends_with_the_checkpoint_that_evals_end_it_with() -> None:
    engine = Engine(due_at=(2, 4), ends_at=4)
    assert run(engine, save_every=0).step == 4
    assert len(engine.batches) == len(engine.adam) == 4
    assert list(engine.metrics) == [1, 2, 3, 4]
    again = Engine(kept=list(engine.kept), ends_at=4)
    assert run(again, resume=engine.kept[-1]).step == 4
    assert again.batches == []
