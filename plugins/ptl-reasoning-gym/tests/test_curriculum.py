"""The level follows the pass rates, whatever happened before."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
from ptl_reasoning_gym.curriculum import ReasoningGymCurriculum
from ptl_reasoning_gym.datasets import ReasoningGym, item_of

from posttrain_recipes.plugin import Conversation, Dataset, Message, Prompt, Record, UsageError
from posttrain_recipes.testing import check_plugin

Rates = Mapping[tuple[str, int], float]


class Given(Dataset):
    """Records that are there."""

    name = "given"
    records: tuple[Record, ...] = ()

    def load(self) -> Iterator[Record]:
        yield from self.records


def rated(rates: Rates, **options: object) -> list[Prompt]:
    """What `pass_rates` leaves: prompts through JSON, with a rate each."""
    tasks = [
        {"task": task, "level": sorted(level for name, level in rates if name == task)}
        for task in dict.fromkeys(name for name, _ in rates)
    ]
    config = ReasoningGym.Config.model_validate({"tasks": tasks, "size": 60, **options})
    return [
        Prompt(
            messages=one.messages,
            answer=one.answer,
            metadata={
                **json.loads(json.dumps(dict(one.metadata))),
                "pass_rate": rates[one.metadata["task"], one.metadata["level"]],
            },
        )
        for one in ReasoningGym(config).load()
    ]


def curriculum(records: list[Prompt] | list[Record], **options: object) -> ReasoningGymCurriculum:
    made = ReasoningGymCurriculum(
        ReasoningGymCurriculum.Config.model_validate(
            {"rates": {"use": "collected", "stage": "rates"}, "size": 24, **options}
        )
    )
    source = Given(Given.Config())
    source.records = tuple(records)
    made.sources = {"rates": [source]}
    return made


def levels(rates: Rates, **options: object) -> Counter[tuple[str, int]]:
    records = curriculum(rated(rates), **options).load()
    return Counter((r.metadata["task"], r.metadata["level"]) for r in records)


@pytest.mark.parametrize(
    ("rates", "level"),
    [
        ({0: 0.1, 1: 0.0}, 0),
        ({0: 0.69, 1: 0.9}, 0),
        ({0: 0.7, 1: 0.3, 2: 0.0}, 1),
        ({0: 1.0, 1: 0.8, 2: 0.2}, 2),
        ({0: 1.0, 1: 1.0, 2: 1.0}, 2),
        ({1: 0.9, 3: 0.1}, 3),
    ],
)
def test_the_level_is_the_lowest_that_is_not_learned(rates: dict[int, float], level: int) -> None:
    assert levels({("gcd", at): rate for at, rate in rates.items()}) == {("gcd", level): 24}


def test_every_task_has_a_level_of_its_own_and_keeps_its_share() -> None:
    rates = {("gcd", 0): 0.9, ("gcd", 1): 0.2, ("lcm", 0): 0.1, ("lcm", 1): 0.0}
    assert levels(rates) == {("gcd", 1): 12, ("lcm", 0): 12}
    assert levels(rates, raise_at=0.95) == {("gcd", 0): 12, ("lcm", 0): 12}


def test_it_has_no_state_and_items_differ_from_round_to_round() -> None:
    first, later = (
        rated({("gcd", 0): 0.2, ("gcd", 1): 0.0}),
        rated({("gcd", 0): 0.3, ("gcd", 1): 0.0}),
    )
    assert list(curriculum(first).load()) == list(curriculum(first).load())
    asked = [
        {p.messages for p in curriculum(one).load()}
        for one in (first, later, rated({("gcd", 0): 0.2}))
    ]
    assert not asked[0] & asked[1]
    measured = {p.messages for p in first}
    assert not asked[0] & measured


def test_the_options_and_the_form_are_those_that_were_rated() -> None:
    config = {"task": "gcd", "level": [0, 1], "config": {"max_numbers": 2}, "tasks": None}
    records = rated({("gcd", 0): 0.9, ("gcd", 1): 0.1}, answer="boxed", **config)
    for prompt in curriculum(records).load():
        found = item_of(prompt.metadata)
        assert found is not None
        assert (found[0].config, found[0].level, found[1]) == ('{"max_numbers": 2}', 1, "boxed")


def test_the_level_is_told(caplog: pytest.LogCaptureFixture) -> None:
    list(curriculum(rated({("gcd", 0): 0.9, ("gcd", 1): 0.1})).load())
    assert "gcd is at level 1 (pass rates 0: 90%, 1: 10%)" in caplog.text


def _unrated() -> list[Record]:
    return list(ReasoningGym(ReasoningGym.Config(task="gcd", level=0, size=1)).load())


def _without_level() -> list[Record]:
    (one,) = ReasoningGym(ReasoningGym.Config(task="gcd", size=1)).load()
    return [Prompt(messages=one.messages, metadata={**one.metadata, "pass_rate": 0.5})]


def _others() -> list[Record]:
    return [Conversation(messages=(Message("user", "?"), Message("assistant", "!")))]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (_unrated, "no rated prompt"),
        (_others, "no rated prompt"),
        (_without_level, "without a level"),
        (list, "left no prompts"),
    ],
)
def test_other_records_are_refused(records: Callable[[], list[Record]], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        list(curriculum(records()).load())


def test_it_conforms() -> None:
    rates = {"use": "collected", "stage": "rates"}
    check_plugin("dataset", "reasoning_gym_curriculum", work=False, rates=rates)
