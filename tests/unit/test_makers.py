"""Methods that make data, with a model that says what a function says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from posttrain_recipes.methods.ai_preferences import AIPreferences
from posttrain_recipes.methods.best_of_n import BestOfN
from posttrain_recipes.methods.constitutional import Constitutional
from posttrain_recipes.methods.pass_rates import PassRates
from posttrain_recipes.methods.teacher_samples import TeacherSamples
from posttrain_recipes.plugin import (
    Conversation,
    DataMethod,
    LoraConfig,
    Message,
    ModelRef,
    PluginConfig,
    Preference,
    Prompt,
    Record,
    Reward,
    Sample,
    ServedModel,
    StageContext,
    UsageError,
)
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.rewards.regex import Regex
from posttrain_recipes.training.judges import judge as judging

END = 0


class Letters:
    """A renderer whose tokens are code points."""

    stop = [END]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [ord(c) for c in "|".join(m.content for m in messages)]

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        tokens = self.prompt(messages[:-1]) + [ord(c) for c in messages[-1].content] + [END]
        return tokens, [1.0] * len(tokens)

    def raw(self, tokens: Sequence[int]) -> str:
        return self.parse(tokens)

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(chr(t) for t in tokens if t != END)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.parse(tokens)


Say = Callable[[str, int], str]
"""(what was asked, number of the sample) -> the reply; one that ends in ~ is cut off there."""


@dataclass(eq=False)
class Model:
    """A sampler that answers with a function and prefers letters with another."""

    say: Say
    odds: Callable[[str], float] = lambda text: 0.0
    asked: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def sample(self, prompt: Any, count: int, params: Any, **options: Any) -> Future[Any]:
        text = "".join(map(chr, prompt.to_ints()))
        self.asked.append(text)
        self.seeds.append(params.seed)
        if options.get("topk_sample_logprobs"):
            top = [(ord("A"), self.odds(text)), (ord("B"), 0.0)]
            return done(SimpleNamespace(sequences=[SimpleNamespace(topk_logprobs=[top])]))
        sequences = []
        for number in range(count):
            said = self.say(text, number)
            cut = said.endswith("~")
            tokens = [ord(c) for c in said.rstrip("~")] + ([] if cut else [END])
            reason = "length" if cut else "stop"
            sequences.append(SimpleNamespace(tokens=tokens, stop_reason=reason, logprobs=None))
        return done(SimpleNamespace(sequences=sequences))


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@dataclass
class Sink:
    total: int = 0
    logged: dict[int, dict[str, float]] = field(default_factory=dict)

    def begin(self, total: int) -> None:
        self.total = total

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged[step] = metrics


def stage(
    model: Model,
    prompts: Iterable[Record],
    rewards: Sequence[Reward] = (),
    others: dict[str, Model] | None = None,
) -> StageContext:
    renderer: Any = Letters()
    service: Any = SimpleNamespace(create_sampling_client=lambda **where: done(model))

    def resolve(ref: ModelRef) -> ServedModel:
        sampler: Any = (others or {})[str(ref.stage)]
        return ServedModel(Checkpoint("m"), renderer, sampler)

    return StageContext(
        name="maker",
        seed=0,
        base_model="m",
        start=Checkpoint("m"),
        lora=LoraConfig(),
        train=list(prompts),
        renderer=renderer,
        service=service,
        sink=cast(Any, Sink()),
        wait=lambda future: future.result(),
        rewards=[(reward, 1.0) for reward in rewards],
        resolve=resolve,
    )


def prompts(count: int, answer: str | None = None) -> list[Prompt]:
    return [
        Prompt(messages=(Message("user", f"q{n}"),), answer=answer, metadata={"n": answer})
        for n in range(count)
    ]


def make(method: DataMethod, context: StageContext, skip: int = 0) -> list[list[Record]]:
    return [list(batch) for batch in method.make(context, skip)]


def numbered(text: str, number: int) -> str:
    return f"{text[-3:]}-{number}"


# --- teacher_samples -----------------------------------------------------------------------------


class Last(Reward):
    """The last digit of a reply; abstains on 2."""

    name = "last"

    class Config(PluginConfig):
        """No options."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [None if s.completion[-1] == "2" else float(s.completion[-1]) for s in samples]


def replies(batches: list[list[Record]]) -> list[str]:
    return [cast(Conversation, r).messages[-1].content for batch in batches for r in batch]


def test_a_teacher_answers_each_prompt() -> None:
    teacher = Model(numbered)
    method = TeacherSamples(
        TeacherSamples.Config(
            teacher=ModelRef(stage="t"), samples=2, batch_size=2, system="instructions"
        )
    )
    context = stage(Model(numbered), prompts(3), others={"t": teacher})
    made = make(method, context)
    assert [len(batch) for batch in made] == [4, 2]
    assert replies(made) == [f"|q{n}-{k}" for n in range(3) for k in range(2)]
    assert teacher.asked == [f"instructions|q{n}" for n in range(3)]
    first = cast(Conversation, made[0][0])
    assert [m.role for m in first.messages] == ["user", "assistant"], "no instructions"
    assert cast(Any, context.sink).total == 2


def test_it_goes_on_with_the_batch_that_is_not_there_to_the_same_requests() -> None:
    method = TeacherSamples(TeacherSamples.Config(batch_size=2))
    whole, rest = Model(numbered), Model(numbered)
    everything = make(method, stage(whole, prompts(6)))
    assert make(method, stage(rest, prompts(6)), skip=1) == everything[1:]
    assert rest.asked == whole.asked[2:]
    assert rest.seeds == whole.seeds[2:]
    assert len(set(whole.seeds)) == 6


def test_rewards_choose_among_the_answers() -> None:
    def of(**options: Any) -> list[str]:
        method = TeacherSamples(TeacherSamples.Config(samples=4, **options))
        return replies(make(method, stage(Model(numbered), prompts(1), [Last(Last.Config())])))

    assert of() == ["q0-0", "q0-1", "q0-3"], "an answer without a reward is left out"
    assert of(best=1) == ["q0-3"]
    assert of(best=2) == ["q0-3", "q0-1"]
    assert of(min_reward=1) == ["q0-1", "q0-3"]


def test_rewards_read_what_was_written_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Letters, "raw", lambda self, tokens: f"<{self.parse(tokens)}>")
    reward = Regex(Regex.Config(pattern="<q0-[12]>", reads="raw"))
    for method in (
        TeacherSamples(TeacherSamples.Config(samples=4, min_reward=1)),
        BestOfN(BestOfN.Config(n=4, keep=2, min_reward=1)),
    ):
        made = make(method, stage(Model(numbered), prompts(1), [reward]))
        talks = [[one for one in batch if isinstance(one, Conversation)] for batch in made]
        assert sorted(replies(talks)) == ["q0-1", "q0-2"]  # type: ignore[arg-type]


def test_what_is_cut_off_or_empty_is_left_out() -> None:
    said = iter(["whole", "cut~", ""])
    method = TeacherSamples(TeacherSamples.Config(samples=3))
    context = stage(Model(lambda text, number: next(said)), prompts(1))
    assert replies(make(method, context)) == ["whole"]
    assert cast(Any, context.sink).logged[1]["data/truncated"] == pytest.approx(1 / 3)


def test_choosing_without_a_reward_is_refused() -> None:
    method = TeacherSamples(TeacherSamples.Config(samples=2, best=1))
    with pytest.raises(UsageError, match="has no 'reward:'"):
        make(method, stage(Model(numbered), prompts(1)))
    with pytest.raises(ValidationError, match="raise 'samples'"):
        TeacherSamples.Config(samples=2, best=3)


def test_pass_rates_stand_with_the_prompts() -> None:
    context = stage(Model(numbered), prompts(2, "x"), [Last(Last.Config())])
    (made,) = make(PassRates(PassRates.Config(samples=2)), context)
    assert [cast(Prompt, r).metadata["pass_rate"] for r in made] == [0.5, 0.5]
    assert [cast(Prompt, r).answer for r in made] == ["x", "x"], "and keep what they had"
    logged = cast(Any, context.sink).logged[1]
    assert (logged["data/pass_rate"], logged["data/never"], logged["data/always"]) == (0.5, 0, 0)


def test_a_prompt_whose_replies_have_no_reward_is_left_out() -> None:
    model = Model(lambda text, number: "2" if text == "q0" else "1")
    context = stage(model, prompts(2), [Last(Last.Config())])
    (made,) = make(PassRates(PassRates.Config(samples=2)), context)
    assert [cast(Prompt, r).messages[0].content for r in made] == ["q1"]
    assert cast(Any, context.sink).logged[1]["data/always"] == 1


# --- best_of_n -----------------------------------------------------------------------------------


def chosen_of(method: BestOfN, context: StageContext) -> tuple[list[str], list[tuple[str, str]]]:
    (made,) = make(method, context)
    talks = [r.messages[-1].content for r in made if isinstance(r, Conversation)]
    pairs = [
        (r.chosen[0].content, r.rejected[0].content) for r in made if isinstance(r, Preference)
    ]
    return talks, pairs


def test_the_best_reply_is_kept_and_stands_against_the_worst() -> None:
    context = stage(Model(numbered), prompts(2), [Last(Last.Config())])
    talks, pairs = chosen_of(BestOfN(BestOfN.Config(n=5)), context)
    assert talks == ["q0-4", "q1-4"]
    assert pairs == [("q0-4", "q0-0"), ("q1-4", "q1-0")]
    logged = cast(Any, context.sink).logged[1]
    # Of 0, 1, 3 and 4 (it abstains on 2) three are above 0.
    assert logged["reward/mean"] == 2
    assert logged["reward/best"] == 4
    assert (logged["reward/pass_at_1"], logged["reward/pass_at_n"]) == (0.75, 1)
    assert (logged["data/kept"], logged["data/pairs"]) == (2, 2)
    assert logged["data/kept_share"] == 2 / 10


def test_a_reply_is_kept_once_and_only_above_the_bar() -> None:
    said = iter(["a3", "a3", "b3", "c1", "cut9~", ""])
    context = stage(Model(lambda text, number: next(said)), prompts(1), [Last(Last.Config())])
    method = BestOfN(BestOfN.Config(n=6, keep=5, min_reward=3))
    assert chosen_of(method, context) == (["a3", "b3"], [("a3", "c1")])
    logged = cast(Any, context.sink).logged[1]
    assert (logged["reward/pass_at_1"], logged["reward/pass_at_n"]) == (0.75, 1)
    assert logged["data/truncated"] == 1 / 6


def test_replies_that_are_worth_the_same_or_too_little_make_no_pair() -> None:
    def of(*said: str, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
        model = Model(lambda text, number: said[number])
        context = stage(model, prompts(1), [Last(Last.Config())])
        return chosen_of(BestOfN(BestOfN.Config(n=2, **options)), context)

    assert of("a1", "b1") == (["a1"], [])
    assert of("a0", "b1", min_reward=3) == ([], [])
    assert of("a2", "b2") == ([], []), "no reply has a reward"


def test_best_of_n_goes_on_to_the_same_records() -> None:
    method = BestOfN(BestOfN.Config(n=3, batch_size=2))
    rewards = [Last(Last.Config())]
    whole, rest = Model(numbered), Model(numbered)
    everything = make(method, stage(whole, prompts(6), rewards))
    assert make(method, stage(rest, prompts(6), rewards), skip=2) == everything[2:]
    assert rest.seeds == whole.seeds[4:]


def test_keeping_every_reply_chooses_nothing_and_is_refused() -> None:
    with pytest.raises(ValidationError, match="chooses nothing"):
        BestOfN.Config(n=4, keep=4)


# --- ai_preferences ------------------------------------------------------------------------------


def longer_first(text: str) -> float:
    """Likes the longer reply, and the first place far more."""
    a, b = (part.split("\n")[0] for part in text.split("Reply A: ")[1].split("Reply B: "))
    return 10.0 + len(a) - len(b)


def test_a_liking_for_the_first_place_cancels() -> None:
    policy = Model(lambda text, number: "ok" if number == 0 else "a long reply")
    judge = Model(numbered, longer_first)
    method = AIPreferences(AIPreferences.Config(judge=ModelRef(stage="j")))
    ((pair, *_),) = make(method, stage(policy, prompts(3), others={"j": judge}))
    assert isinstance(pair, Preference)
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("a long reply", "ok")
    assert pair.prompt == prompts(1)[0].messages
    assert len(judge.asked) == 6, "both orders"


def test_ties_and_equal_replies_are_dropped_and_counted() -> None:
    said = iter(["a", "b", "c", "c", "d", "e" * 9])
    policy = Model(lambda text, number: next(said))
    judge = Model(numbered, longer_first)
    method = AIPreferences(AIPreferences.Config(judge=ModelRef(stage="j"), margin=2))
    context = stage(policy, prompts(3), others={"j": judge})
    (made,) = make(method, context)
    assert [cast(Preference, r).chosen[0].content for r in made] == ["e" * 9]
    logged = cast(Any, context.sink).logged[1]
    assert (logged["data/kept"], logged["data/unusable"], logged["judge/ties"]) == (1, 1, 1)


@pytest.mark.parametrize(
    "method",
    [AIPreferences(AIPreferences.Config()), Constitutional(Constitutional.Config())],
    ids=lambda m: m.name,
)
def test_no_human_label_is_read(method: DataMethod) -> None:
    def run(answer: str | None) -> tuple[list[list[Record]], list[str]]:
        model = Model(lambda text, number: f"{len(text)} {number}" + "!" * number, lambda t: 1.0)
        return make(method, stage(model, prompts(4, answer))), model.asked

    unlabelled, asked = run(None)
    labelled, asked_too = run("the right answer")
    assert labelled == unlabelled
    assert asked_too == asked
    assert not any("the right answer" in text for text in asked)


def test_a_question_that_shows_one_reply_alone_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"has no \{b\} in it"):
        AIPreferences.Config(question="Is {a} good?")


# --- constitutional ------------------------------------------------------------------------------


def test_an_answer_is_criticised_and_rewritten() -> None:
    def say(text: str, number: int) -> str:
        if text.endswith("Rewrite the reply."):
            return "please"
        return "rude" if text.endswith("Critique the reply.") else "no"

    model = Model(say)
    context = stage(model, prompts(1))
    method = Constitutional(Constitutional.Config(principles=["Be kind."], rounds=2))
    ((talk, pair),) = make(method, context)
    assert isinstance(talk, Conversation)
    assert [m.content for m in talk.messages] == ["q0", "please"]
    assert isinstance(pair, Preference)
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("please", "no")
    first = "Request: q0\nReply: no\nPrinciple: Be kind.\nCritique the reply."
    second = first.replace("Reply: no", "Reply: please")
    assert model.asked == [
        "q0",
        first,
        f"{first}|rude|Rewrite the reply.",
        second,
        f"{second}|rude|Rewrite the reply.",
    ]


def test_an_answer_that_stays_makes_no_pair() -> None:
    method = Constitutional(Constitutional.Config())
    (made,) = make(method, stage(Model(lambda text, number: "fine"), prompts(2)))
    assert [type(r) for r in made] == [Conversation, Conversation]


# --- judges --------------------------------------------------------------------------------------


@dataclass
class Script:
    """A judge that says what is written down, one line for every time that it is asked."""

    lines: list[list[str | None]]
    asked: list[int] = field(default_factory=list)

    def texts(self, questions: Sequence[Any], attempt: int) -> list[str | None]:
        self.asked.append(len(questions))
        return self.lines[attempt]

    def log_odds(self, questions: Sequence[Any], first: str, second: str) -> list[float | None]:
        raise AssertionError("asked for text")


def test_an_answer_without_a_verdict_is_asked_for_again_and_then_missing() -> None:
    judge = Script([["Yes.", "hm", None], ["hm", "no!"], ["yes and no"]])
    asked = [judging.question("?")] * 3
    assert judging.choices(judge, asked, "yes", "no", "text") == [1.0, None, -1.0]
    assert judge.asked == [3, 2, 1]


def test_verdicts_in_text_have_to_agree_in_both_orders() -> None:
    judge = Script([["A", "B", "A", "A", "B", "?"], ["?"], ["?"]])
    pairs = [((Message("user", "q"),), "x", "y")] * 3
    found = judging.margins(judge, pairs, "{prompt} {a} {b}", "text")
    assert found == [1.0, 0.0, None]


def test_a_question_takes_replies_as_they_are() -> None:
    (asked,) = judging.question("{prompt}: {a} or {b}?", prompt="{b}", a="{a}", b="x")
    assert asked.content == "{b}: {a} or x?"


def test_a_transcript_says_who_spoke_where_there_is_more_than_one_turn() -> None:
    user = Message("user", "hi")
    assert judging.transcript([user]) == "hi"
    assert judging.transcript([Message("system", "be kind"), user]) == "system: be kind\nuser: hi"


# --- what is cut is told, whoever wrote it -------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        TeacherSamples(TeacherSamples.Config(samples=2)),
        PassRates(PassRates.Config(samples=2)),
        BestOfN(BestOfN.Config(n=2)),
        AIPreferences(AIPreferences.Config()),
        Constitutional(Constitutional.Config(samples=2)),
    ],
    ids=lambda method: str(method.name),
)
def test_every_maker_tells_what_share_of_its_replies_was_cut(method: DataMethod) -> None:
    model = Model(lambda text, number: f"{text}-{number}" + "~" * (number % 2))
    rewards = [Last(Last.Config())] if method.takes_reward else []
    context = stage(model, prompts(2), rewards)
    make(method, context)
    assert cast(Any, context.sink).logged[1]["data/truncated"] == 0.5


def test_what_a_critic_and_a_judge_write_is_told_by_itself() -> None:
    critic = Model(lambda text, number: "shorter~" if "|" in text else "it is long")
    method = Constitutional(
        Constitutional.Config(critic=ModelRef(stage="critic"), critique="R {prompt} {reply}")
    )
    context = stage(Model(lambda text, number: "long"), prompts(2), others={"critic": critic})
    make(method, context)
    logged = cast(Any, context.sink).logged[1]
    told = {name: value for name, value in logged.items() if "truncated" in name}
    assert told == {
        "data/truncated": 0.0,
        "critic/truncated_critiques": 0.0,
        "critic/truncated_revisions": 1.0,
    }
    judge = Model(lambda text, number: "well, let me th~")
    judged = AIPreferences(
        AIPreferences.Config(judge=ModelRef(stage="judge"), score="text", retries=0)
    )
    context = stage(Model(numbered), prompts(2), others={"judge": judge})
    make(judged, context)
    logged = cast(Any, context.sink).logged[1]
    assert (logged["data/truncated"], logged["judge/truncated"]) == (0.0, 1.0)
    assert logged["judge/missing"] == 2
