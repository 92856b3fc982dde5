"""Evolving instructions: what is tried, chosen, kept and told, by the package itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.methods.gepa import GEPA, InstructedModel
from posttrain_recipes.plugin import (
    Checkpoint,
    LoraConfig,
    Message,
    PluginConfig,
    Prompt,
    PtlError,
    Reward,
    Sample,
    StageContext,
    UsageError,
)
from tests.rollout_engine import done

pytest.importorskip("gepa", reason="gepa is not installed")

PROMPTS = [
    Prompt(messages=(Message("user", f"word {n}"),), answer=str(n), source=f"p:{n}")
    for n in range(20)
]


class Renderer:
    """A token is a character."""

    stop = [0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [ord(c) for message in messages for c in f"{message.role}:{message.content}|"]

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    raw = parse


class Model:
    """Shouts where its instructions say so, and is asked to reflect by the same client."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reflections = 0

    def sample(self, prompt: Any, count: int, params: Any, **more: Any) -> Any:
        text = "".join(map(chr, prompt.to_ints()))
        self.asked.append(text)
        if "<instructions>" in text:
            self.reflections += 1
            assert "Feedback: Its score is" in text or "Feedback: Louder." in text
            said = "Well: <instructions>Shout it</instructions>" if self.reflections > 1 else "Hum."
        else:
            said = "LOUD" if "system:Shout" in text else "quiet"
        sequence = SimpleNamespace(tokens=[ord(c) for c in said], logprobs=None, stop_reason="stop")
        return done(SimpleNamespace(sequences=[sequence]))


class Loud(Reward):
    """1 for what is shouted."""

    name = "loud"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(sample.completion.isupper()) for sample in samples]


class Sink:
    def __init__(self) -> None:
        self.measurements: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self.files: dict[str, str] = {}
        self.notes: list[str] = []
        self.total = 0

    def begin(self, total: int) -> None:
        self.total = total

    def measured(self, name: str, when: str, result: Any) -> None:
        self.measurements[f"{name} {when}"] = result.metrics["mean_reward"].value

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged |= metrics

    def artifact(self, name: str, text: str) -> None:
        self.files[name] = text

    def note(self, text: str) -> None:
        self.notes.append(text)


def stage(model: Model, cache: Path | None = None, **more: Any) -> tuple[StageContext, Sink]:
    sink = Sink()
    context = StageContext(
        name="evolved",
        seed=1,
        base_model="base",
        start=Checkpoint("base"),
        lora=LoraConfig(),
        train=more.pop("train", PROMPTS),
        renderer=Renderer(),  # type: ignore[arg-type]
        service=SimpleNamespace(create_sampling_client=lambda **options: done(model)),  # type: ignore[arg-type]
        sink=sink,  # type: ignore[arg-type]
        wait=lambda future: future.result(10),
        rewards=[(Loud(PluginConfig()), 1.0)],
        cache=cache,
        **more,
    )
    return context, sink


OPTIONS: dict[str, Any] = {"system": "Say it.", "selection": 6, "test": 5, "calls": 60}


def test_instructions_get_better_and_are_left_before_each_prompt() -> None:
    model = Model()
    context, sink = stage(model)
    [records] = GEPA(GEPA.Config(**OPTIONS)).make(context, 0)
    assert [one.messages[0] for one in records] == [Message("system", "Shout it")] * 20  # type: ignore[union-attr]
    assert sink.measurements == {"instructions before": 0.0, "instructions after": 1.0}
    assert sink.logged["gepa/selection_best"] == 1.0
    assert sink.logged["gepa/selection_before"] == 0.0
    assert sink.files["instructions.md"].startswith("# Instructions\n\nShout it\n")
    assert sink.total == 1
    # What was measured on is neither read nor chosen by.
    reflected = [text for text in model.asked if "<instructions>" in text]
    assert not any(f"word {n}\n" in text for text in reflected for n in range(11))
    assert any(f"word {n}\n" in text for text in reflected for n in range(11, 20))


def test_a_stage_that_was_stopped_pays_for_no_reply_twice(tmp_path: Path) -> None:
    first, again = Model(), Model()
    for model in (first, again):
        context, sink = stage(model, tmp_path)
        list(GEPA(GEPA.Config(**OPTIONS)).make(context, 0))
        assert sink.measurements["instructions after"] == 1.0
    replies = [text for text in first.asked if "<instructions>" not in text]
    assert len(replies) == len(set(replies)) > 20
    assert not [text for text in again.asked if "<instructions>" not in text]
    # A line that was cut off as it was written is asked for again, and no more.
    [kept] = tmp_path.iterdir()
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:10])
    third = Model()
    list(GEPA(GEPA.Config(**OPTIONS)).make(stage(third, tmp_path)[0], 0))
    assert len([text for text in third.asked if "<instructions>" not in text]) == 1
    assert all(json.loads(line) for line in lines)


def test_a_kept_reply_is_scored_by_the_rewards_as_they_are_now(tmp_path: Path) -> None:
    """Nothing tells a reward whose program or weights have changed by its options."""

    class Hushed(Loud):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [0.25 + 0.5 * sample.raw.islower() for sample in samples]

    model, again = Model(), Model()
    list(GEPA(GEPA.Config(**OPTIONS)).make(stage(model, tmp_path)[0], 0))
    context, sink = stage(again, tmp_path)
    changed = StageContext(**{**vars(context), "rewards": [(Hushed(PluginConfig()), 1.0)]})
    list(GEPA(GEPA.Config(**OPTIONS)).make(changed, 0))
    assert sink.measurements["instructions before"] == 0.75
    assert not [
        text for text in again.asked for n in range(11) if f"Say it.|user:word {n}|" in text
    ]


def test_rewards_that_all_abstain_are_told() -> None:
    class Mute(Loud):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [None] * len(samples)

    context = StageContext(**{**vars(stage(Model())[0]), "rewards": [(Mute(PluginConfig()), 1.0)]})
    with pytest.raises(PtlError, match="no reply to the prompts of 'selection' has a reward"):
        list(GEPA(GEPA.Config(**OPTIONS)).make(context, 0))


@pytest.mark.parametrize("where", ["reward", "reflection"])
def test_what_fails_in_the_search_ends_it(where: str) -> None:
    """The package would go on as if nothing had been written, and leave the first instructions."""

    class Failing(Loud):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            if where == "reward" and any(s.completion.isupper() for s in samples):
                raise ValueError("boom")
            return super().score(samples)

    class Down(Model):
        def sample(self, prompt: Any, count: int, params: Any, **more: Any) -> Any:
            if where == "reflection" and "<instructions>" in "".join(map(chr, prompt.to_ints())):
                raise PtlError("it cannot be reached")
            return super().sample(prompt, count, params, **more)

    context = StageContext(
        **{**vars(stage(Down())[0]), "rewards": [(Failing(PluginConfig()), 1.0)]}
    )
    told = {"reward": "reward 'loud' failed", "reflection": "it cannot be reached"}[where]
    with pytest.raises(PtlError, match=told):
        list(GEPA(GEPA.Config(**OPTIONS)).make(context, 0))


def test_proposals_are_tried_where_nobody_reflects() -> None:
    model = Model()
    context, sink = stage(model)
    config = GEPA.Config(**OPTIONS, proposals=["Whisper.", "Shout!"])
    [records] = GEPA(config).make(context, 0)
    assert {one.messages[0].content for one in records} == {"Shout!"}  # type: ignore[union-attr]
    assert not model.reflections
    assert list(GEPA(config).make(context, 1)) == []


def test_a_search_that_found_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    context, _ = stage(Model())
    config = GEPA.Config(**OPTIONS, proposals=["Whisper."])
    [records] = GEPA(config).make(context, 0)
    assert {one.messages[0].content for one in records} == {"Say it."}  # type: ignore[union-attr]
    assert "nothing that was tried earned more" in caplog.text
    caplog.clear()
    context, sink = stage(Model())
    list(GEPA(GEPA.Config(**OPTIONS, proposals=["Shout\nit!"])).make(context, 0))
    assert "nothing that was tried" not in caplog.text
    assert sink.notes == ["instructions: Shout it!"]


def test_what_the_rewards_say_is_read() -> None:
    class Teacher(Loud):
        def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
            return [None if s.completion.isupper() else "Louder." for s in samples]

    context, _ = stage(Model())
    config = GEPA.Config(**OPTIONS)
    for reward, expected in (
        (Teacher(PluginConfig()), "Its score is 0. Louder."),
        (Loud(PluginConfig()), "Its score is 0. A good reply is: 3"),
    ):
        program = InstructedModel(
            StageContext(**{**vars(context), "rewards": [(reward, 1.0)]}), config, PROMPTS
        )
        batch = program.evaluate([3], {"system": "Say it."}, capture_traces=True)
        rows = program.make_reflective_dataset({}, batch, ["system"])
        assert rows == {"system": [{"Request": "word 3", "Reply": "quiet", "Feedback": expected}]}


def test_too_few_prompts_are_told() -> None:
    context, _ = stage(Model(), train=PROMPTS[:11])
    with pytest.raises(UsageError, match="11 prompts leave none to reflect on"):
        list(GEPA(GEPA.Config(**OPTIONS)).make(context, 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"proposals": ["a"], "reflect": {"model": "m"}}, "give one of"),
        ({"calls": 32}, "32 'calls' are spent once"),
        ({"question": "Better?"}, "has to have {instructions} and {examples}"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GEPA.Config(**options)
