"""What is under way is told while it lasts: evals as n of N, all else by what was answered."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import models, waiting
from posttrain_recipes.evals import ptl_evals
from posttrain_recipes.evals.exact_match import ExactMatch
from posttrain_recipes.options import RewardRef
from posttrain_recipes.plugin import (
    Conversation,
    EvalContext,
    Message,
    PluginConfig,
    Preference,
    Prompt,
    Reward,
    Sample,
    ServedModel,
)
from posttrain_recipes.progress.lines import QUIET_SECONDS, Lines, how_far
from posttrain_recipes.progress.live import Live
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import Checkpoint, Episode, Record, Task, Turn
from posttrain_recipes.registry import load
from posttrain_recipes.running import activity
from posttrain_recipes.running.events import SamplingProgress
from posttrain_recipes.running.metering import Meter
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.sandbox import tested
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from posttrain_recipes.waiting import EngineWaiter


@pytest.fixture(scope="module")
def tiny() -> ChatRenderer:
    return load_renderer(models.resolve("ptl/tiny"))


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@dataclass
class Sampler:
    """Answers at once: one token that ends the reply."""

    stop: int

    def sample(self, prompt: Any, count: int, params: Any, **more: Any) -> Future[Any]:
        one = SimpleNamespace(
            tokens=[self.stop], stop_reason="stop", logprobs=[-1.0], topk_logprobs=None
        )
        return done(SimpleNamespace(sequences=[one] * count))

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        return done([None, *[-1.0] * (len(prompt.to_ints()) - 1)])


class Fair(Reward):
    name = "fair"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [1.0 for _ in samples]


@dataclass(frozen=True, kw_only=True)
class Short(Task):
    turns: int

    def start(self) -> Episode:
        return Asks(self.turns)


@dataclass
class Asks(Episode):
    left: int

    def turn(self) -> Turn | None:
        return Turn((Message("user", "and?"),)) if self.left else None

    def act(self, reply: str) -> Sequence[float | None]:
        self.left -= 1
        return [1.0]


ASK = (Message("user", "1+1?"),)
SAID = (Message("assistant", "2"),)
FIELDS = {
    "choices": ["1", "3", "2"],
    "test_list": ["assert True"],
    "test": "def check(candidate): pass",
    "entry_point": "f",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
    "label": "unsafe",
}
"""What evals by name have in their files."""
RECORDS: dict[type[Record], list[Record]] = {
    Prompt: [Prompt(messages=ASK, answer="2", metadata=FIELDS) for _ in range(3)],
    Conversation: [Conversation(messages=ASK + SAID) for _ in range(3)],
    Preference: [Preference(prompt=ASK, chosen=SAID, rejected=SAID) for _ in range(3)],
    Task: [Short(turns=turns) for turns in (1, 2, 2)],
}
TOTALS = {
    "win_rate": 6, "preference_accuracy": 6, "reward_accuracy": 6, "mmlu": 9, "multiple_choice": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ptl_evals()))
def test_every_built_in_eval_tells_how_far_it_is(name: str, tiny: ChatRenderer) -> None:
    if name in ("mbpp", "humaneval") and (reason := tested.refusal()):
        pytest.skip(reason)
    if missing := load().entries["eval"][name].missing:
        pytest.skip(f"{missing} not installed")
    kind: Any = load().get("eval", name).cls
    fields = kind.Config.model_fields
    options: dict[str, Any] = {"reward": RewardRef(use="fair")} if "reward" in fields else {}
    made = kind(kind.Config(**options))
    made.rewards = {"reward": Fair(PluginConfig())}
    sampler: Any = Sampler(tiny.stop[0])
    told: list[tuple[int, int, str]] = []
    context = EvalContext(
        name="e",
        seed=0,
        records=RECORDS[kind.takes[0]],
        renderer=tiny,
        sampler=sampler,
        wait=EngineWaiter(),
        resolve=lambda ref: ServedModel(Checkpoint("base"), tiny, sampler),
        progress=lambda *far: told.append(far),
    )
    made.evaluate(context)
    total = TOTALS.get(name, 3)
    assert told
    assert {far[1] for far in told} == {total}
    counts = [far[0] for far in told]
    assert counts == sorted(counts)
    assert counts[0] == 0, "how many there will be is told before the first is awaited"
    assert counts[-1] == total
    if name != "episodes":
        assert sorted(set(counts)) == list(range(total + 1))


# --- whatever asks -------------------------------------------------------------------------------


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Heard:
    told: list[SamplingProgress] = field(default_factory=list)

    def __call__(self, progress: SamplingProgress) -> None:
        self.told.append(progress)


class ApiFuture:
    """As the SDK's."""

    def __init__(self) -> None:
        self.inner: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.inner


def test_an_eval_that_says_nothing_is_told_by_its_answers() -> None:
    clock, heard, meter = Clock(), Heard(), Meter()
    prompt: Any = SimpleNamespace(length=7)
    asked = [ApiFuture() for _ in range(3)]
    with activity.watched("evaluating x", heard, clock):
        clock.now = 5.0
        activity.tick()
        assert not heard.told  # it asks for nothing, and nothing can be said of it
        for one in asked[:2]:
            meter._sampled(one, prompt)
        meter._scored(asked[2], prompt)
        asked[0].inner.set_result(SimpleNamespace(sequences=[SimpleNamespace(tokens=[1] * 20)] * 2))
        asked[1].inner.set_exception(ValueError("lost"))
        clock.now = 10.0
        activity.tick()
        activity.tick()
    activity.tick()
    (told,) = heard.told
    assert told == SamplingProgress("evaluating x", 0, 0, "", 3, 1, 7, 40, 10.0)
    assert how_far(told) == "1 of 3 requests answered, 4 tokens/s, 10 s"


def test_what_comes_first_counts_though_another_was_asked_before(
    tiny: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply to the first prompt that takes long hides no others."""
    monkeypatch.setattr(waiting, "TICK", 0.001)
    clock, heard, meter = Clock(), Heard(), Meter()
    asked: list[ApiFuture] = []

    class Slow(Sampler):
        def sample(self, prompt: Any, count: int, params: Any, **more: Any) -> Any:
            asked.append(ApiFuture())
            meter._sampled(asked[-1], prompt)
            return asked[-1]

    answer = Sampler(tiny.stop[0]).sample(None, 1, None).result()
    order = iter((None, 2, None, 1, None, None, 0))

    def looked() -> bool:
        """Each second one more look at the engine; at some of them an answer has come."""
        clock.now += 1.0
        if (place := next(order)) is not None:
            asked[place].inner.set_result(answer)
        return True

    slow: Any = Slow(tiny.stop[0])
    prompts = [Prompt(messages=ASK, answer="2") for _ in range(3)]
    with activity.watched("evaluating x", heard, clock) as watch:
        waiter = EngineWaiter(looked, tick=activity.tick)
        context = EvalContext("e", 0, prompts, tiny, slow, waiter, progress=watch.progress)
        generation.generate(context, prompts, max_tokens=4, temperature=0.0)
    told = [how_far(one) for one in heard.told]
    assert told[0] == "0 of 3 replies, 1 s"
    for there in ("1 of 3 replies", "2 of 3 replies"):
        assert any(text.startswith(there) and text.endswith(" left") for text in told), told


@pytest.mark.parametrize(("answered", "says"), [(1, False), (11, False), (12, True)])
def test_a_few_answers_of_many_tell_nothing_of_the_others(answered: int, says: bool) -> None:
    """An engine works at many at once: one reply after 15 s is no speed, and no time left."""
    told = SamplingProgress("e", answered, 120, "replies", 120, answered, 90, 30, 15.0)
    assert ("tokens/s" in how_far(told), how_far(told).endswith("left")) == (says, says)
    assert how_far(told).startswith(f"{answered} of 120 replies, ")


def test_whoever_waits_gives_the_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TICK", 0.001)
    future: Future[int] = Future()
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            future.set_result(4)

    looks = iter([True] * 50)  # without a tick it would wait for ever
    assert EngineWaiter(lambda: next(looks, False), tick=tick)(future) == 4
    assert len(ticks) == 3


def test_threads_count_for_what_started_them() -> None:
    clock, heard, meter = Clock(), Heard(), Meter()
    with activity.watched("making", heard, clock):
        prompt: Any = SimpleNamespace(length=7)
        waiting.in_thread(lambda: meter._scored(done([None]), prompt)).result(10)
        clock.now = 2.0
        activity.tick()
    (told,) = heard.told
    assert how_far(told) == "1 requests answered, 4 tokens/s read, 2 s"


def far(done: int = 64, total: int = 200, answered: int = 64, **more: Any) -> SamplingProgress:
    what = more.pop("what", "evaluating exact_match before sft")
    return SamplingProgress(
        what, done, total, "replies", answered, answered, 900, 12340, 10.0, **more
    )


def test_how_far_it_is_in_words() -> None:
    assert how_far(far()) == "64 of 200 replies, 1,234 tokens/s, 21 s left"
    assert how_far(far(answered=90)) == how_far(far()), "they come in another order"
    waiting_yet = SamplingProgress("evaluating x", 0, 0, "", 256, 0, 0, 0, 2.0)
    assert how_far(waiting_yet) == "0 of 256 requests answered, 2 s"
    judged = "200 of 200 replies, 260 requests answered, 1,234 tokens/s, 10 s"
    assert how_far(far(done=200, answered=260)) == judged


def test_a_pipe_hears_of_it_after_fifteen_seconds_of_silence() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock)
    lines.doing("evaluating exact_match before sft")
    for second in range(1, 62):
        clock.now = float(second)
        lines.sampling(far(done=second))
        if second == 20:
            lines.warning("of something else")
    told = out.getvalue().splitlines()
    assert told[1].startswith("  evaluating exact_match before sft: 15 of 200 replies, ")
    assert told[2] == "warning: of something else"
    assert [line.split(": ")[1].split(" of")[0] for line in told[3:]] == ["35", "50"]
    assert QUIET_SECONDS == 15


@pytest.mark.parametrize("width", [80, 120])
def test_in_a_terminal_it_is_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    live = Live(Lasting(io.StringIO()))
    told: list[str] = []
    monkeypatch.setattr(live, "doing", told.append)
    live.sampling(far(what="evaluating exact_match_of_the_longest_name before sft-variant-seed-7"))
    live.sampling(far())
    assert [len(line) + 2 <= width for line in told] == [True, True]
    assert told[0].endswith("64 of 200 replies, 1,234 tokens/s, 21 s left")
    assert told[0].startswith("evaluating")
    assert "sft-variant-seed-7: 64 of" in told[0]
    if width == 120:
        assert told[0].startswith("evaluating exact_match_of_")
        assert told[1] == "evaluating exact_match before sft: " + how_far(far())


def test_before_the_first_step_the_bar_says_what_was_answered() -> None:
    live = Live(Lasting(io.StringIO()))
    stage: Any = SimpleNamespace(name="rl", method=None, evals=())
    live.training(stage, 0, 10)
    bar = live.bar
    assert bar is not None
    try:
        live.sampling(far(done=0, total=0))
        assert (bar.told, bar.speed) == ("64 of 64 requests", "1,234 tokens/s")
        live.step(1, 10, {"train/loss": 1.0, "train/tokens_per_second": 9.0})
        live.sampling(far(done=0, total=0))
        assert (bar.told, bar.speed) == ("loss 1.0000", "9 tokens/s")
    finally:
        live.close()


def test_an_eval_of_a_stranger_needs_no_progress(tiny: ChatRenderer) -> None:
    sampler: Any = Sampler(tiny.stop[0])
    context = EvalContext("e", 0, RECORDS[Prompt], tiny, sampler, EngineWaiter())
    found = ExactMatch(ExactMatch.Config()).evaluate(context)
    assert found.metrics["exact_match"].count == 3
