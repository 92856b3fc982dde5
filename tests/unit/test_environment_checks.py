"""What `ptl plugins check` finds wrong with environments, and how it says it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from posttrain_recipes import registry
from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    DrivenTask,
    Episode,
    Message,
    Played,
    Policy,
    Record,
    Task,
    Turn,
    hookimpl,
)
from posttrain_recipes.testing import check_plugin, findings
from posttrain_recipes.testing.environments import environment_checks
from tests.conftest import Install

ENDS = "its episodes can be played to their end"
ANSWERS = "its episodes answer any reply"
SAME = "its episodes are the same each time"


@dataclass
class Count(Episode):
    """Say the number that you are told, three times."""

    said: int = 0
    right: int = 0

    def turn(self) -> Turn | None:
        return None if self.said == 3 else Turn((Message("user", f"Say {self.said}."),))

    def act(self, reply: str) -> Sequence[float]:
        right = reply.strip() == str(self.said)
        self.said, self.right = self.said + 1, self.right + right
        return [float(right)]

    def metrics(self) -> Mapping[str, float]:
        return {"success": float(self.right == 3)}


class Endless(Count):
    def turn(self) -> Turn | None:
        return Turn((Message("user", "Say 1."),))


class Over(Count):
    def turn(self) -> Turn | None:
        return None


class Silent(Count):
    def turn(self) -> Turn | None:
        return Turn(())


class Posing(Count):
    def turn(self) -> Turn | None:
        return Turn((Message("assistant", "1"),))


class Seated(Count):
    def turn(self) -> Turn | None:
        return Turn((Message("user", "Say 1."),), seat=1)


class Strict(Count):
    def act(self, reply: str) -> Sequence[float]:
        number = 0 if reply == "Say" else int(reply)
        return super().act(str(number))


class Unpaid(Count):
    def act(self, reply: str) -> Sequence[float]:
        return [*super().act(reply), 0.0]


class Infinite(Count):
    def act(self, reply: str) -> Sequence[float]:
        return [super().act(reply)[0] + float("inf")]


class Unmeasured(Count):
    def metrics(self) -> Mapping[str, float]:
        return {"success": float("nan")}


class Moody(Count):
    count: ClassVar[Iterator[int]] = itertools.count()

    def act(self, reply: str) -> Sequence[float]:
        super().act(reply)
        return [float(next(self.count))]


@dataclass
class Shared(Count):
    """Counts its replies in a place that all episodes share and that each one begins anew."""

    replies: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.replies.clear()

    def act(self, reply: str) -> Sequence[float]:
        super().act(reply)
        self.replies.append(reply)
        return [float(len(self.replies))]


@dataclass(frozen=True, kw_only=True)
class CountTask(Task):
    kind: str

    def start(self) -> Episode:
        return next(cls for cls in EPISODES if cls.__name__ == self.kind)()


class Counting(Dataset):
    """Says numbers that a model has to say after it."""

    name = "counting"

    class Config(DatasetConfig):
        """Options."""

        kind: str = "Count"
        """The class of the episodes."""

    config: Config

    def digest(self) -> str:
        return self.config.model_dump_json()

    def load(self) -> Iterator[Record]:
        for number in range(6):
            yield CountTask(kind=self.config.kind, source=f"counting:{number}")


EPISODES = (
    Count,
    Endless,
    Over,
    Silent,
    Posing,
    Seated,
    Strict,
    Unpaid,
    Infinite,
    Unmeasured,
    Moody,
    Shared,
)


@pytest.fixture
def counting(install: Install) -> None:
    @hookimpl
    def ptl_datasets() -> list[type]:
        return [Counting]

    install("acme", "1.0", {"ptl_datasets": ptl_datasets, "PTL_API": 1})


def told(**options: Any) -> dict[str, str]:
    entry = registry.load().get("dataset", "counting")
    return {f.check: f.told for f in findings(entry, options) if not f.passed}


@pytest.mark.usefixtures("counting")
class TestFindings:
    def test_one_that_conforms(self) -> None:
        check_plugin("dataset", "counting")
        entry = registry.load().get("dataset", "counting")
        assert {ENDS, ANSWERS, SAME} <= {finding.check for finding in findings(entry, {})}

    @pytest.mark.parametrize(
        ("kind", "complaint"),
        [
            ("Endless", "an episode is not over after 1,000 replies; end it after so many turns"),
            ("Over", "an episode is over before anybody has said anything"),
            ("Silent", "a turn has no message; tell the seat something before it writes"),
            ("Posing", "a turn speaks as the assistant, which is the policy; use 'user'"),
            ("Seated", "it is the turn of seat 1, and 'seats' is 1: they count from 0"),
            ("Unpaid", "got 2 rewards for 1 seats"),
            ("Infinite", "got the reward inf, which is no finite number"),
            ("Unmeasured", "the metric 'success' is nan, which is no finite number"),
        ],
    )
    def test_an_episode_that_cannot_be_played(self, kind: str, complaint: str) -> None:
        assert complaint in told(kind=kind)[ENDS]

    def test_a_reply_that_it_does_not_foresee(self) -> None:
        found = told(kind="Strict")[ANSWERS]
        assert "the reply '?' raised ValueError: invalid literal for int()" in found
        assert "answer it with a message, a cost or the end of the episode" in found
        assert "'aaaaaaaaaaaaaaaaa...'" in found

    def test_an_episode_that_goes_two_ways(self) -> None:
        assert told(kind="Moody") == {
            SAME: "a task that is begun twice and played in the same way goes two ways; draw from "
            "a seed that the task holds"
        }

    def test_episodes_that_disturb_each_other(self) -> None:
        assert told(kind="Shared") == {
            SAME: "two episodes of one task that are played at the same time disturb each other; "
            "keep what changes in the episode, not in the task or its class"
        }


def test_records_that_are_no_tasks_are_not_played() -> None:
    entry = registry.load().get("dataset", "nim")
    assert ENDS in {finding.check for finding in findings(entry, {"episodes": 5})}
    entry = registry.load().get("dataset", "jsonl")
    assert ENDS not in {finding.check for finding in findings(entry, {})}


@dataclass(frozen=True, kw_only=True)
class Alone(DrivenTask):
    """Plays by itself."""

    def play(self, policy: Policy) -> Played:
        raise NotImplementedError


def test_tasks_that_drive_themselves_are_said_not_to_be_played() -> None:
    class Driven(Dataset):
        """Yields a task that drives itself."""

        name = "driven"

        def load(self) -> Iterator[Record]:
            yield Alone(source="alone:1")

    entry = registry.Entry("dataset", Driven, "acme", "1.0", 1)
    (finding,) = environment_checks(entry, {})
    assert (finding.check, finding.skipped) == (ENDS, True)
    assert finding.told == "its tasks drive themselves; a check has no policy for them to ask"
