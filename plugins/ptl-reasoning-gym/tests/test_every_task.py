"""Every task of the library, tried: what the table and the README say of them is so."""

import signal
from pathlib import Path

import pytest
from ptl_reasoning_gym import library, survey
from ptl_reasoning_gym.datasets import ReasoningGym
from ptl_reasoning_gym.rewards import judge

from posttrain_recipes.plugin import Sample

README = Path(__file__).parents[1] / "README.md"
USABLE = [task for task, one in library.table().items() if "unusable" not in one]


@pytest.mark.nightly
@pytest.mark.parametrize("task", [task for task in library.table() if task != "composite"])
def test_what_is_said_of_a_task(task: str) -> None:
    signal.signal(signal.SIGALRM, survey.too_late)
    found, said = survey.found_of(task)
    assert found == library.table()[task]
    rows = [
        line for line in README.read_text(encoding="utf-8").splitlines() if f"| `{task}` |" in line
    ]
    for one in said:
        of_this_machine = one.endswith("ms an item") or " takes " in one
        if not of_this_machine and not one.startswith("nonsense"):
            assert any(one in row for row in rows), (one, rows)


@pytest.mark.nightly
@pytest.mark.parametrize("task", USABLE)
def test_right_replies_are_right_by_way_of_the_plugin(task: str) -> None:
    for prompt in ReasoningGym(ReasoningGym.Config(task=task, size=20)).load():
        if prompt.answer is not None and "Integral" not in prompt.answer:
            judged = judge(Sample(prompt.messages, prompt.answer, metadata=prompt.metadata))
            assert judged is not None
            assert judged.solved, prompt.answer


def test_there_are_as_many_tasks_as_the_readme_says() -> None:
    unusable = len(library.table()) - len(USABLE)
    assert f"{len(USABLE)} tasks" in README.read_text(encoding="utf-8")
    assert unusable == 2
